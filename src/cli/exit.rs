//! How a command ends: exit codes, errors, and results on stdout (docs/protocol.md#command-line).

use std::{
    io::{self, Write},
    process::ExitCode,
};

use super::logging::{color, escape};
use crate::source::error::error_chain;

/// The command failed.
pub(super) const FAILED: u8 = 1;
/// The arguments are wrong.
pub(super) const USAGE: u8 = 2;
/// The API server could not be reached, or no kubeconfig was found.
pub(super) const CANNOT_CONNECT: u8 = 5;
/// The bridge does not accept the credential.
pub(super) const CREDENTIAL: u8 = 4;
/// The time was over before everything was done.
pub(super) const TIMED_OUT: u8 = 124;
/// The terminal was closed (SIGHUP).
#[cfg(feature = "top")]
pub(super) const HANGUP: u8 = 129;
/// SIGINT ended the command.
pub(super) const INTERRUPTED: u8 = 130;

/// Why the program ends with an exit code other than 0.
#[derive(Debug)]
pub(super) struct CliError {
    pub(super) code: u8,
    pub(super) error: anyhow::Error,
}

impl CliError {
    /// The arguments, or their combination, cannot be used.
    pub(super) fn usage(message: impl Into<String>) -> CliError {
        CliError { code: USAGE, error: anyhow::Error::msg(message.into()) }
    }

    /// The command failed.
    pub(super) fn failed(message: impl Into<String>) -> CliError {
        CliError { code: FAILED, error: anyhow::Error::msg(message.into()) }
    }

    /// Returns the error with its causes.
    pub(super) fn text(&self) -> String {
        error_chain(self.error.as_ref())
    }

    /// Prints the error with its causes to stderr.
    pub(super) fn print(&self) -> ExitCode {
        let (bold, plain) = if color() { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        // Nothing can be reported when stderr is closed.
        let _ = writeln!(io::stderr().lock(), "{bold}error:{plain} {}", escape(&self.text()));
        ExitCode::from(self.code)
    }
}

impl<E: Into<anyhow::Error>> From<E> for CliError {
    fn from(error: E) -> CliError {
        CliError { code: FAILED, error: error.into() }
    }
}

/// Writes a result to stdout. A closed pipe is success: the reader has read what it needs.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}
