//! Response heads of streams.

use hyper::{
    HeaderMap, Response, StatusCode,
    header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, TRANSFER_ENCODING, UPGRADE},
};

use crate::wire::websocket::accept_key;

/// Returns the response head that accepts a WebSocket. `key` is the request's `Sec-WebSocket-Key`.
pub fn websocket_head(key: &str) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    // Base64 is always a valid header value. Without this header a client would reject the response.
    if let Ok(accept) = HeaderValue::try_from(accept_key(key)) {
        headers.insert("sec-websocket-accept", accept);
    }
    response
}

/// Returns the response head of an SSE stream (docs/protocol.md#stream-endpoints, "SSE"). Where the body has no chunks it
/// ends with the connection.
pub fn sse_head(is_chunked: bool) -> Response<()> {
    let mut response = Response::new(());
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    if is_chunked {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    response
}
