//! YAML texts of client-go and of credential plugins → values. Pure.
//!
//! Guarantees: a text gives the values that client-go's YAML parser gives. An error contains no value.

use serde_json::Value;
use serde_saphyr::options::DuplicateKeyPolicy;

/// Where a text is not YAML. Line and column count from 1, and are 0 if they are unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) line: u64,
    pub(super) column: u64,
}

/// Parses the first document of a YAML text, with the types that client-go finds: `yes` is a Boolean, and the last of two
/// equal keys counts. JSON is YAML, except that it may be indented with tabs.
pub(super) fn parse_yaml(text: &str) -> Result<Value, SyntaxError> {
    if let Ok(value) = serde_json::from_str(text) {
        return Ok(value);
    }
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        legacy_octal_numbers: true,
        with_snippet: false,
        emit_comments: false,
    };
    let mut bytes = text.as_bytes();
    let first = serde_saphyr::read_with_options::<_, Value>(&mut bytes, options).next();
    first.unwrap_or(Ok(Value::Null)).map_err(|error| {
        let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
        SyntaxError { line, column }
    })
}
