//! The upgrade to a WebSocket: what a request must have.

use http::{HeaderMap, HeaderValue, Method, header};

use super::{
    error::{ApiError, ErrorCode},
    request::ApiRequest,
};

/// Whether a WebSocket is asked for, properly or not.
pub(super) fn is_requested(request: &ApiRequest) -> bool {
    lists(&request.headers, header::UPGRADE, "websocket")
}

/// `Sec-WebSocket-Key` of a proper upgrade request (RFC 6455, section 4.2.1). `hint` is what to do where there is none.
///
/// # Errors
/// 426 that says what is spoken here; 400 for a request that cannot be upgraded.
pub(super) fn key<'a>(request: &'a ApiRequest, hint: &str) -> Result<&'a str, ApiError> {
    let headers = &request.headers;
    let required = |message: String| {
        ApiError::new(ErrorCode::UpgradeRequired, message)
            .with(header::UPGRADE, HeaderValue::from_static("websocket"))
            .with(header::CONNECTION, HeaderValue::from_static("Upgrade"))
            .with(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"))
    };
    if request.method != Method::GET || !is_requested(request) || !lists(headers, header::CONNECTION, "upgrade") {
        return Err(required(format!("this endpoint speaks WebSocket: {hint}")));
    }
    if !lists(headers, header::SEC_WEBSOCKET_VERSION, "13") {
        return Err(required("this endpoint speaks WebSocket version 13".to_owned()));
    }
    // Its bytes would be taken for frames.
    let length = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    if length || headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(ApiError::new(ErrorCode::BadRequest, "an upgrade request has no body: leave Content-Length out"));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok()).unwrap_or_default();
    let nonce = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, key);
    if nonce.is_ok_and(|nonce| nonce.len() == 16) {
        Ok(key)
    } else {
        Err(ApiError::new(ErrorCode::BadRequest, "Sec-WebSocket-Key must be 16 bytes in base64"))
    }
}

fn lists(headers: &HeaderMap, name: header::HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|list| list.split(',')).any(|item| item.trim().eq_ignore_ascii_case(word))
}
