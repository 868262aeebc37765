//! The headers that a user of a kubeconfig adds to each request. Pure.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::field::{FieldError, Fields};

/// The characters of a header name that client-go writes into `Impersonate-Extra-` unchanged (RFC 9110 section 5.6.2,
/// without `%`).
const HEADER_NAME_ESCAPES: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'*')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// Returns the header of a bearer token, or `None` if a header cannot contain the token.
pub(super) fn bearer(token: &[u8]) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_bytes(&[b"Bearer ", token].concat()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Returns the header of a user name and a password.
pub(super) fn basic(user: &Fields) -> Result<HeaderValue, FieldError> {
    let encoded = STANDARD.encode(format!("{}:{}", user.text("username"), user.text("password")));
    let mut value = HeaderValue::try_from(format!("Basic {encoded}"))
        .map_err(|_| user.error("username", "a header cannot contain the value"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Returns the headers of `as`, `as-uid`, `as-groups` and `as-user-extra`.
pub(super) fn impersonation(user: &Fields) -> Result<HeaderMap, FieldError> {
    let mut headers = HeaderMap::new();
    let mut add = |field: &str, name: HeaderName, value: &str| {
        let value = HeaderValue::from_bytes(value.as_bytes())
            .map_err(|_| user.error(field, "the value contains a line break or another control character"))?;
        let added = headers.try_append(name, value);
        added.map(drop).map_err(|_| user.error(field, "the user has too many values for the headers of a request"))
    };
    if !user.has("as") {
        return Ok(HeaderMap::new());
    }
    add("as", HeaderName::from_static("impersonate-user"), user.text("as"))?;
    if user.has("as-uid") {
        add("as-uid", HeaderName::from_static("impersonate-uid"), user.text("as-uid"))?;
    }
    for group in user.texts("as-groups") {
        add("as-groups", HeaderName::from_static("impersonate-group"), group)?;
    }
    for (key, values) in user.text_lists("as-user-extra") {
        let name = format!("impersonate-extra-{}", utf8_percent_encode(key, HEADER_NAME_ESCAPES));
        let name = HeaderName::try_from(name)
            .map_err(|_| user.error("as-user-extra", "a key is too long for the name of a header"))?;
        for value in values {
            add("as-user-extra", name.clone(), value)?;
        }
    }
    Ok(headers)
}
