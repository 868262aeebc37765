//! What keeps a client out for now and passes by itself, and the words to say so (docs/protocol.md#stream-endpoints).
//!
//! An EventSource gives up for good on any status but 200, so an SSE request gets a stream that ends at once and says
//! when to come back; a WebSocket request gets a status.

use std::time::Duration;

use http::{HeaderValue, header};
use warp::reply::Response;

use super::{
    conn::stream_start,
    error::{ApiError, ErrorCode},
    rate_limit::BudgetStatus,
    stream::{self, control::closing_event},
};
use crate::feed::Framing;

/// Who is sent away keeps no connection that others need.
const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// A reason to come back later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unavailable {
    /// The first lists are not complete yet.
    NotReady,
    /// The process ends.
    Draining,
    /// As many streams are open as may be.
    TooManyStreams,
    /// As many streams of this caller are open as may be.
    TooManyStreamsOfCaller,
    /// The caller has used up what it may ask for.
    RateLimited(BudgetStatus),
    /// Whether the credential is good cannot be found out now.
    CredentialCheckUnavailable,
}

impl Unavailable {
    fn reason(self) -> &'static str {
        match self {
            Unavailable::NotReady => "not ready",
            Unavailable::Draining => "draining",
            Unavailable::TooManyStreams | Unavailable::TooManyStreamsOfCaller => "too many connections",
            Unavailable::RateLimited(_) => "rate",
            Unavailable::CredentialCheckUnavailable => "credential check unavailable",
        }
    }

    /// The answer to a WebSocket request.
    pub(super) fn to_error(self) -> ApiError {
        let (code, message) = match self {
            Unavailable::NotReady => (
                ErrorCode::NotReady,
                "the first lists of pods and claims are not complete yet: connect again in a moment",
            ),
            Unavailable::Draining => (ErrorCode::UpstreamUnavailable, "draining: connect again, to another replica"),
            Unavailable::TooManyStreams => (
                ErrorCode::TooManyConnections,
                "as many streams are open as --max-connections allows: connect again in a moment",
            ),
            Unavailable::TooManyStreamsOfCaller => (
                ErrorCode::TooManyConnections,
                "as many of your streams are open as --max-connections-per-principal allows: close one",
            ),
            Unavailable::CredentialCheckUnavailable => (
                ErrorCode::UpstreamUnavailable,
                "credential check unavailable: the cluster cannot be asked about it; try again in a moment",
            ),
            Unavailable::RateLimited(status) => return status.too_many_requests("too many requests"),
        };
        let error = ApiError::new(code, message).with(header::RETRY_AFTER, HeaderValue::from_static("1"));
        error.with(header::CONNECTION, CLOSE)
    }

    /// The answer to a request for an event stream that is framed so.
    pub(super) fn to_sse_response(self, framing: Framing, retry: Duration) -> Response {
        let mut response = stream_start::response(stream::sse_head(), None);
        response.headers_mut().insert(header::CONNECTION, CLOSE);
        *response.body_mut() = closing_event(framing, self.reason(), retry).into();
        response
    }
}
