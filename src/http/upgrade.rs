//! The upgrade to WebSocket: validation of the request.

use base64::{
    Engine as _, alphabet,
    engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderMap, HeaderValue, Method, header};

use super::{
    error::{ApiError, ErrorCode},
    request::ApiRequest,
};

/// Base64 as clients send it in `Sec-WebSocket-Key`. The unused bits of the last character may have any value: the
/// example key of RFC 6455 section 1.3 has some that are not zero.
const NONCE: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// Returns whether the request requests a WebSocket, in a valid or an invalid form.
pub(super) fn is_requested<C>(request: &ApiRequest<C>) -> bool {
    contains_word(&request.headers, header::UPGRADE, "websocket")
}

/// Returns `Sec-WebSocket-Key` of a valid upgrade request (RFC 6455, section 4.2.1).
///
/// # Errors
/// 426 with `hint`, a text on what to do, for a request without an upgrade; 426 for another version of WebSocket; 400 for
/// a request that cannot be upgraded.
pub(super) fn key<'a, C>(request: &'a ApiRequest<C>, hint: &str) -> Result<&'a str, ApiError> {
    let headers = &request.headers;
    let upgrade_required = |message: String| {
        ApiError::new(ErrorCode::UpgradeRequired, message)
            .with(header::UPGRADE, HeaderValue::from_static("websocket"))
            .with(header::CONNECTION, HeaderValue::from_static("Upgrade"))
            .with(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"))
    };
    let has_connection_upgrade = contains_word(headers, header::CONNECTION, "upgrade");
    if request.method != Method::GET || !is_requested(request) || !has_connection_upgrade {
        return Err(upgrade_required(format!("this endpoint requires WebSocket: {hint}")));
    }
    if !contains_word(headers, header::SEC_WEBSOCKET_VERSION, "13") {
        return Err(upgrade_required("this endpoint requires WebSocket version 13".to_owned()));
    }
    // The frame reader would parse a body as frames.
    let has_length = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    if has_length || headers.contains_key(header::TRANSFER_ENCODING) {
        let message = "an upgrade request must not have a body: omit Content-Length and Transfer-Encoding";
        return Err(ApiError::new(ErrorCode::BadRequest, message));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok()).unwrap_or_default();
    if NONCE.decode(key).is_ok_and(|nonce| nonce.len() == 16) {
        Ok(key)
    } else {
        Err(ApiError::new(ErrorCode::BadRequest, "Sec-WebSocket-Key must be 16 bytes in base64"))
    }
}

/// Returns whether a header with a comma-separated list contains this word, in any letter case.
fn contains_word(headers: &HeaderMap, name: header::HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|list| list.split(',')).any(|item| item.trim().eq_ignore_ascii_case(word))
}
