//! The binary. [`boilerhouse_bridge::cli`] parses the arguments, runs the subcommand, prints at most one error, and
//! returns the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    boilerhouse_bridge::cli::main()
}
