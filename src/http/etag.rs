//! Entity tags and `If-None-Match` (RFC 9110, sections 8.8.3 and 13.1.2).

use http::{HeaderMap, HeaderValue, header};

/// Returns whether `If-None-Match` contains this tag. The comparison is weak, as RFC 9110 requires for GET.
pub(super) fn matches(headers: &HeaderMap, tag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    let mut tags = values.flat_map(|list| list.split(',')).map(str::trim);
    tags.any(|listed| listed == "*" || listed.strip_prefix("W/").unwrap_or(listed) == tag)
}

/// Sets the tag of a response.
pub(super) fn insert(headers: &mut HeaderMap, tag: &str) {
    // A quoted hexadecimal number is always a valid header value.
    if let Ok(value) = HeaderValue::from_str(tag) {
        headers.insert(header::ETAG, value);
    }
}
