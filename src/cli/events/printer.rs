//! Lines on stdout, each flushed at once.

use std::io::{self, IsTerminal as _, Write as _};

use clap::ValueEnum;
use serde_json::Value;

use crate::{
    cli::{
        event_text,
        logging::{color_for, escape, escape_json_line},
    },
    client::Event,
};

/// How one event is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// One readable line
    Text,
    /// The JSON of the event, on one line
    Json,
}

/// Prints lines.
#[derive(Debug)]
pub(super) struct Printer {
    output: Output,
    is_terminal: bool,
}

impl Printer {
    /// The default is text on a terminal, and JSON otherwise.
    pub(super) fn new(output: Option<Output>) -> Printer {
        let is_terminal = io::stdout().is_terminal();
        let output = output.unwrap_or(if is_terminal { Output::Text } else { Output::Json });
        Printer { output, is_terminal }
    }

    /// Prints an event. Returns false if the output is closed.
    pub(super) fn print_event(&self, event: &Event) -> io::Result<bool> {
        match self.output {
            Output::Json => print(&json_line(event.json.get(), self.is_terminal)),
            Output::Text => print(&format!("{}\n", event_text::line(event, color_for(self.is_terminal)))),
        }
    }

    /// Returns the line for a value of the program.
    pub(super) fn line(&self, json: &Value, text: &str) -> String {
        match self.output {
            Output::Json => json_line(&json.to_string(), self.is_terminal),
            Output::Text => format!("{}\n", escape(text)),
        }
    }
}

/// Prints a line, and flushes it. Returns false if the output is closed.
pub(super) fn print(line: &str) -> io::Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
        Ok(()) => Ok(true),
    }
}

/// Returns JSON as one line. A line end in JSON is white space, unless it is escaped. A terminal must not interpret what
/// strings contain.
fn json_line(json: &str, is_terminal: bool) -> String {
    let line = json.replace(['\r', '\n'], " ") + "\n";
    if is_terminal { escape_json_line(&line).into_owned() } else { line }
}
