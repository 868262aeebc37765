//! The binary: parse, run, print one error, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    boilerhouse_bridge::cli::main()
}
