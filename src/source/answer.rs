//! Judges the answers of the API server: statuses, bodies and watch lines. The hub and the dedicated watchers use the same
//! functions, so one answer has one meaning (docs/failures.md#expected-errors-and-outages).
//!
//! Guarantees: each body has a size limit. No error contains the content of a body, except the message of a Status object.
//!
//! Must not import: the hub, the dedicated watchers, feeds.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::Response;
use http_body_util::BodyExt;
use kube::{client::Body, core::WatchEvent};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    decode::{Decode, resource_version, watch_line::parse_watch_line},
    error::{RequestInfo, UpstreamError},
};
use crate::event::{Resource, ResourceVersion};

/// Maximum bytes that are read of an error response. A Status object has a few hundred.
pub(super) const ERROR_BYTES: usize = 64 << 10;

/// The metadata of a list.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListMeta {
    /// The version of the list.
    #[serde(deserialize_with = "resource_version")]
    pub(super) resource_version: ResourceVersion,
    /// The token of the next page. It is empty or missing on the last one.
    #[serde(rename = "continue")]
    pub(super) next: Option<String>,
}

/// A list of which only the version is read.
#[derive(Debug, Deserialize)]
pub(super) struct ListVersion {
    pub(super) metadata: VersionMeta,
}

/// The version of a list.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VersionMeta {
    #[serde(deserialize_with = "resource_version")]
    pub(super) resource_version: ResourceVersion,
}

/// A watch line that reports no error.
#[derive(Debug)]
pub(super) enum WatchLine<T> {
    /// An object was created, or matches the watch now.
    Added(T),
    /// An object was modified.
    Modified(T),
    /// An object was deleted, or no longer matches the watch.
    Deleted(T),
    /// A version without a change.
    Bookmark(ResourceVersion),
}

/// Describes a request with this verb about a resource, for error messages.
pub(super) fn request_info(
    verb: &'static str,
    resource: Resource,
    namespace: &Arc<str>,
    server: &Arc<str>,
) -> RequestInfo {
    let resource = match resource {
        Resource::Pods => "pods",
        Resource::Claims => "boilerhouseclaims.boilerhouse.dev",
    };
    RequestInfo { verb, resource: resource.into(), namespace: namespace.clone(), server: server.clone() }
}

/// Returns the response if its status is a success.
///
/// # Errors
/// The classified status. At most [`ERROR_BYTES`] of the body are read.
pub(super) async fn require_success(
    response: Response<Body>,
    request_info: &RequestInfo,
) -> Result<Response<Body>, UpstreamError> {
    if response.status().is_success() {
        return Ok(response);
    }
    let (head, body) = response.into_parts();
    // The status alone classifies the error; a body that cannot be read only shortens the message.
    let body = read_body(body, ERROR_BYTES, |_| Ok(())).await.unwrap_or_default();
    Err(UpstreamError::from_response(head.status, &head.headers, &body, request_info))
}

/// Reads a body of at most `limit` bytes. `on_length` is called with the length after each chunk, and can end the read.
///
/// # Errors
/// A body that is longer, a lost connection, and the error of `on_length`.
pub(super) async fn read_body(
    mut body: Body,
    limit: usize,
    mut on_length: impl FnMut(usize) -> Result<(), UpstreamError>,
) -> Result<Bytes, UpstreamError> {
    let mut text = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| UpstreamError::ConnectionLost(innermost_cause(&error)))?;
        let Ok(chunk) = frame.into_data() else { continue };
        if text.len() + chunk.len() > limit {
            return Err(UpstreamError::Decode(format!("more than {limit} bytes in a response")));
        }
        text.extend_from_slice(&chunk);
        on_length(text.len())?;
    }
    Ok(text.freeze())
}

/// Parses a complete JSON text.
///
/// # Errors
/// The position of the mistake.
pub(super) fn parse<D: DeserializeOwned>(text: &[u8]) -> Result<D, UpstreamError> {
    serde_json::from_slice(text).map_err(|error| UpstreamError::from_json_error(&error))
}

/// Parses one watch line, without its newline. `request_info` is called for an `ERROR` line only.
///
/// # Errors
/// An `ERROR` line is classified by its Status object. Every other line that is no watch event of this resource is
/// [`UpstreamError::Decode`].
pub(super) fn parse_line<T: Decode>(
    text: &[u8],
    request_info: impl FnOnce() -> RequestInfo,
) -> Result<WatchLine<T>, UpstreamError> {
    match parse_watch_line(text).map_err(|error| UpstreamError::from_json_error(&error))? {
        WatchEvent::Added(object) => Ok(WatchLine::Added(object)),
        WatchEvent::Modified(object) => Ok(WatchLine::Modified(object)),
        WatchEvent::Deleted(object) => Ok(WatchLine::Deleted(object)),
        WatchEvent::Bookmark(bookmark) => match bookmark.metadata.resource_version.parse() {
            Ok(version) => Ok(WatchLine::Bookmark(version)),
            Err(_) => Err(UpstreamError::Decode("the version of a bookmark".to_owned())),
        },
        WatchEvent::Error(status) => Err(UpstreamError::from_watch_status(&status, &request_info())),
    }
}

/// Returns the error for a watch line longer than `limit` bytes.
pub(super) fn line_too_long(limit: usize) -> UpstreamError {
    UpstreamError::Decode(format!("more than {limit} bytes in a watch line"))
}

/// Returns the text of the innermost cause. The outer errors only state that a body was read.
pub(super) fn innermost_cause(error: &kube::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
