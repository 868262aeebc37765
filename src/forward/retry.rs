//! When a delivery is tried again. Pure.

use std::time::Duration;

use jiff::Timestamp;

/// The longest delay that a receiver can ask for with `Retry-After`.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Parses `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3). A longer delay than [`MAX_RETRY_AFTER`] is cut.
pub(super) fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    let delay = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
            Duration::try_from(date.duration_since(now)).unwrap_or_default()
        }
    };
    Some(delay.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "1994-11-06T08:49:07Z".parse().unwrap();
        let seconds = |value: &str| retry_after(value, now).map(|delay| delay.as_secs());
        assert_eq!(seconds("7"), Some(7));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:37 GMT"), Some(30));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0));
        assert_eq!(seconds("86400"), Some(3600));
        for wrong in ["", "soon", "-1", "1.5"] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }
}
