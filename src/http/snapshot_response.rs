//! The responses of endpoints that read the state: JSON with `Event-Cursor` and `ETag` (`docs/protocol.md#state`).
//!
//! Must not import: endpoints.

use http::{HeaderMap, HeaderValue, header};
use serde::Serialize;
use warp::reply::{Reply as _, Response};

use super::{
    app::App,
    error::{ApiError, ErrorCode},
    etag,
    paced_body::PacedChunks,
    request::ApiRequest,
    response_budget::EncodedBody,
    unavailable::{failures, not_ready},
};
use crate::{
    event::projection::Projection,
    feed::{NotSynced, Snapshot},
    wire::json,
};

/// `Retry-After` of a request for which the budget has no part: the time of
/// [`max_wait`](super::response_budget::Config::max_wait).
const BUSY_RETRY: HeaderValue = HeaderValue::from_static("1");

/// Counts a request for which the budget of responses has no part, and returns its 503.
pub(super) fn busy(app: &App) -> ApiError {
    app.content.responses.count_rejection();
    let message = "too many responses are not read yet: read them, or try again in a moment";
    ApiError::new(ErrorCode::NotReady, message).with(header::RETRY_AFTER, BUSY_RETRY)
}

/// Returns the current state.
///
/// # Errors
/// 503 before the first lists are complete, and if a wait for the state ended without success.
pub(super) async fn load_snapshot(app: &App) -> Result<Snapshot, ApiError> {
    let feed = &app.content.feed;
    feed.snapshot().await.map_err(|NotSynced| not_ready("the state is not complete yet", failures(feed).as_deref()))
}

/// Returns a body as JSON.
///
/// # Errors
/// 500 if it cannot be serialized.
pub(super) fn to_json(body: &impl Serialize) -> Result<String, ApiError> {
    json::to_string(body).map_err(|_| ApiError::new(ErrorCode::Internal, "the state cannot be serialized; try again"))
}

/// Returns JSON with `Event-Cursor` and `ETag`, or 304 if `If-None-Match` contains the tag (RFC 9110, section 13).
pub(super) fn snapshot_response(
    request: &ApiRequest,
    snapshot: &Snapshot,
    projection: &Projection,
    body: EncodedBody,
) -> Response {
    let tag = format!("\"{:016x}\"", body.hash);
    let mut response = if etag::matches(&request.headers, &tag) {
        let mut response = Response::default();
        *response.status_mut() = http::StatusCode::NOT_MODIFIED;
        response
    } else {
        let length = body.bytes.len();
        let chunks = PacedChunks::new(body.bytes, request.app.content.config.reader_pace);
        let mut response = warp::reply::stream(futures::stream::iter(chunks)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
        response
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    etag::insert(headers, &tag);
    insert(
        headers,
        http::HeaderName::from_static("event-cursor"),
        &projection.cursor_at(snapshot.namespace, snapshot.versions).encode(),
    );
    response
}

fn insert(headers: &mut HeaderMap, name: http::HeaderName, value: &str) {
    // Hexadecimal and base64url are always a valid header value.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
