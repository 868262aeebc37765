//! The rate limit that a server names in an event or in an error body (docs/protocol.md#rate).

use serde::Deserialize;
use serde_json::Value;

/// What `rate_limit` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Nothing more is sent before `reset_at`.
    pub is_used_up: bool,
    /// When the limit starts again: RFC 3339, or seconds or milliseconds since the Unix epoch.
    pub reset_at: Option<String>,
}

impl RateLimit {
    /// Returns `rate_limit` of this JSON object, or of its `details`. `None` where there is none.
    #[must_use]
    pub fn parse(json: &str) -> Option<RateLimit> {
        #[derive(Deserialize)]
        struct Body {
            rate_limit: Option<Limit>,
            details: Option<Details>,
        }
        #[derive(Deserialize)]
        struct Details {
            rate_limit: Option<Limit>,
        }
        #[derive(Deserialize)]
        struct Limit {
            remaining: f64,
            reset_at: Option<Value>,
        }
        // Most events have none: a search costs less than JSON.
        if !json.contains("\"rate_limit\"") {
            return None;
        }
        let body: Body = serde_json::from_str(json).ok()?;
        let limit = body.rate_limit.or_else(|| body.details?.rate_limit)?;
        let reset_at = limit.reset_at.and_then(|value| match value {
            Value::String(text) => Some(text),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        });
        Some(RateLimit { is_used_up: limit.remaining <= 0.0, reset_at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_found_in_events_and_error_bodies() {
        let parse = |json| RateLimit::parse(json).map(|limit| (limit.is_used_up, limit.reset_at));
        let at = Some("2026-01-02T03:05:05.000Z".to_owned());
        assert_eq!(
            parse(r#"{"rate_limit":{"limit":60,"remaining":0,"reset_at":"2026-01-02T03:05:05.000Z"}}"#),
            Some((true, at))
        );
        assert_eq!(
            parse(r#"{"details":{"rate_limit":{"remaining":2,"reset_at":17}}}"#),
            Some((false, Some("17".into())))
        );
        assert_eq!(parse(r#"{"rate_limit":{"remaining":0}}"#), Some((true, None)));
        for none in [r#"{"type":"x"}"#, r#"the text "rate_limit" without JSON"#, r#"{"rate_limit":5}"#] {
            assert_eq!(parse(none), None, "{none}");
        }
    }
}
