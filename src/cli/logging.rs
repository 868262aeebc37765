//! Log output: level, format, and escaping of characters that could forge or reorder lines.
//!
//! Everything in a log line that comes from outside (object names, header values, messages of the API server) goes
//! through [`escape`], so that no client can write a second line or move the cursor of a terminal.

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, IsTerminal, Write},
};

use clap::ValueEnum;
use tracing_subscriber::{
    EnvFilter,
    field::MakeExt as _,
    fmt::{
        FormatFields,
        format::{Writer, debug_fn},
        writer::MakeWriter,
    },
};

/// Levels of dependencies: kube_client logs complete bodies that it cannot parse, and objects do not belong in logs. The
/// others log each request.
const DEPENDENCIES: &str = "async_nats=off,kube_client=error,hyper=warn,hyper_util=warn,rustls=warn,tower=warn";

/// Variable with a filter in the syntax of `tracing_subscriber::EnvFilter`; it replaces `--log-level`.
const FILTER_ENV: &str = "RUST_LOG";

/// `--log-format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// One readable line for each event, colored on a terminal.
    Text,
    /// One JSON object for each event.
    Json,
}

/// Starts logging to stderr. `RUST_LOG` replaces `level`.
///
/// # Errors
/// The text of a usage error when `RUST_LOG` is not a filter.
pub(super) fn init(level: tracing::Level, format: LogFormat) -> Result<(), String> {
    let own = std::env::var(FILTER_ENV).ok().filter(|filter| !filter.is_empty());
    let filter = filter(own.as_deref(), level).map_err(|error| {
        format!(
            "{FILTER_ENV} is not a log filter: {error}; write a level such as `debug`, or `target=level` pairs with commas"
        )
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter);
    // A second call in one process changes nothing.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(color()).with_writer(io::stderr).fmt_fields(text_fields()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_writer(EscapedStderr).try_init(),
    };
    Ok(())
}

fn filter(own: Option<&str>, level: tracing::Level) -> Result<EnvFilter, String> {
    let level = level.to_string();
    // Of two directives for one target the later one counts.
    EnvFilter::try_new(format!("{DEPENDENCIES},{}", own.unwrap_or(&level))).map_err(|error| error.to_string())
}

/// Returns whether stderr may be colored: on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
pub(super) fn color() -> bool {
    color_for(io::stderr().is_terminal())
}

/// Returns whether an output may be colored.
pub(super) fn color_for(is_terminal: bool) -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    is_terminal && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Returns the format of the message and the fields of a line: escaped, with a space between two of them.
fn text_fields() -> impl for<'writer> FormatFields<'writer> + Send + Sync + 'static {
    debug_fn(write_field).delimited(" ")
}

/// Writes `name=value`, or the value alone for the message.
fn write_field(
    writer: &mut Writer<'_>,
    field: &tracing::field::Field,
    value: &dyn std::fmt::Debug,
) -> std::fmt::Result {
    let text = format!("{value:?}");
    match field.name() {
        "message" => write!(writer, "{}", escape(&text)),
        name => write!(writer, "{name}={}", escape(&text)),
    }
}

/// Returns whether a terminal or a viewer could take the character for something else than text: control characters (C0,
/// DEL, C1), line separators, and the characters that change the direction of text (UAX #9).
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Replaces each unsafe character by its escape, such as `\n` or `\u{202e}`.
pub(super) fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// Reports to a person at a terminal: a line on stderr, with the time. Commands that are no server have no log.
pub(super) fn report(message: &str) {
    let time = jiff::Timestamp::now().strftime("%H:%M:%S");
    // Nothing can be reported when stderr is closed.
    let _ = writeln!(io::stderr().lock(), "{time} {}", escape(message));
}

/// Writes JSON lines to stderr. `serde_json` escapes the control characters below U+0020; the other unsafe characters stand
/// in strings only, so that they can be replaced in the text.
#[derive(Clone, Copy, Debug)]
struct EscapedStderr;

impl<'a> MakeWriter<'a> for EscapedStderr {
    type Writer = EscapedStderr;

    fn make_writer(&'a self) -> EscapedStderr {
        *self
    }
}

impl Write for EscapedStderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        io::stderr().write_all(escape_json_line(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

pub(super) fn escape_json_line(line: &str) -> Cow<'_, str> {
    let is_escaped = |c: char| c != '\n' && is_unsafe(c);
    if !line.contains(is_escaped) {
        return Cow::Borrowed(line);
    }
    let mut escaped = String::with_capacity(line.len() + 16);
    for c in line.chars() {
        if is_escaped(c) {
            // All of them are below U+10000, so that one escape is enough. Writing to a string cannot fail.
            let _ = write!(escaped, "\\u{:04x}", u32::from(c));
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn unsafe_characters_are_escaped_and_text_is_kept() {
        assert_eq!(escape("a pod called wörk-1 \u{1f4a1}"), "a pod called wörk-1 \u{1f4a1}");
        assert_eq!(escape("a\nINFO forged"), "a\\nINFO forged");
        assert_eq!(escape("\u{1b}[2J\r\t\u{7f}\u{9b}"), "\\u{1b}[2J\\r\\t\\u{7f}\\u{9b}");
        assert_eq!(escape("\u{202e}gnp.exe\u{2066}\u{2028}"), "\\u{202e}gnp.exe\\u{2066}\\u{2028}");
    }

    /// A writer that keeps what is written.
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn text_line_has_a_space_between_its_message_and_its_fields() {
        let written = Arc::<Mutex<Vec<u8>>>::default();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).without_time().with_target(false);
        let subscriber = subscriber.fmt_fields(text_fields()).with_writer({
            let written = written.clone();
            move || Lines(written.clone())
        });
        let subscriber = subscriber.finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(resource = "pods", version = 7, "live");
            tracing::warn!(error = %"a\nb", "failed");
        });
        let lines = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert_eq!(lines, " INFO live resource=\"pods\" version=7\n WARN failed error=a\\nb\n");
    }

    #[test]
    fn escaped_json_lines_stay_json() {
        let value = serde_json::json!({"name": "x\n\u{202e}\u{9b}\u{2028}y\u{1b}"});
        let line = format!("{value}\n");
        let escaped = escape_json_line(&line);
        assert!(escaped.is_ascii() && escaped.matches('\n').count() == 1, "{escaped}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
    }

    #[test]
    fn own_filter_replaces_the_level_and_keeps_dependencies_quiet() {
        let text = |own, level| filter(own, level).map(|filter| filter.to_string());
        let plain = text(None, tracing::Level::INFO).unwrap();
        assert!(plain.contains("kube_client=error") && plain.ends_with("info"), "{plain}");
        let own = text(Some("warn,boilerhouse_bridge=debug"), tracing::Level::INFO).unwrap();
        assert!(own.contains("kube_client=error") && own.contains("boilerhouse_bridge=debug"), "{own}");
        assert!(own.contains("warn") && !own.contains("info"), "{own}");
        let named = text(Some("kube_client=debug"), tracing::Level::INFO).unwrap();
        assert!(named.contains("kube_client=debug") && !named.contains("kube_client=error"), "{named}");
        assert!(text(Some("boilerhouse_bridge=loud"), tracing::Level::INFO).is_err());
    }
}
