//! The text of a time in events and responses.

use jiff::fmt::temporal::DateTimePrinter;

/// Returns a time in milliseconds since the Unix epoch as RFC 3339 in UTC with milliseconds. A time out of the range of
/// RFC 3339 becomes the Unix epoch.
#[must_use]
pub fn format_timestamp(at_ms: u64) -> String {
    const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(3));
    let at = i64::try_from(at_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    PRINTER.timestamp_to_string(&at.unwrap_or_default())
}
