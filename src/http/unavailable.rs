//! What keeps a client out for now and passes by itself, and the words to say so (protocol.md section 4).
//!
//! An EventSource gives up for good on any status but 200, so an SSE request gets a stream that ends at once and says
//! when to come back; a WebSocket request gets a status.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, header};
use warp::reply::Response;

use super::{
    error::{Code, Error},
    rate_limit::Spent,
    stream, upgrade,
};
use crate::{
    feed::{Carrier, Framing},
    wire::sse,
};

/// Who is sent away keeps no connection that others need.
const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// A reason to come back later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Later {
    /// The first lists are not complete yet.
    NotReady,
    /// The process ends.
    Draining,
    /// As many streams are open as may be.
    TooManyConnections,
    /// As many streams of this caller are open as may be.
    TooManyOfOne,
    /// The caller has used up what it may ask for.
    Rate(Spent),
    /// Whether the credential is good cannot be found out now.
    Unchecked,
}

impl Later {
    fn reason(self) -> &'static str {
        match self {
            Later::NotReady => "not ready",
            Later::Draining => "draining",
            Later::TooManyConnections | Later::TooManyOfOne => "too many connections",
            Later::Rate(_) => "rate",
            Later::Unchecked => "credential check unavailable",
        }
    }

    /// The answer to a WebSocket request.
    pub(super) fn error(self) -> Error {
        let (code, message) = match self {
            Later::NotReady => {
                (Code::NotReady, "the first lists of pods and claims are not complete yet: connect again in a moment")
            }
            Later::Draining => (Code::UpstreamUnavailable, "draining: connect again, to another replica"),
            Later::TooManyConnections => (
                Code::TooManyConnections,
                "as many streams are open as --max-connections allows: connect again in a moment",
            ),
            Later::TooManyOfOne => (
                Code::TooManyConnections,
                "as many of your streams are open as --max-connections-per-principal allows: close one",
            ),
            Later::Unchecked => (
                Code::UpstreamUnavailable,
                "credential check unavailable: the cluster cannot be asked about it; try again in a moment",
            ),
            Later::Rate(spent) => return spent.refusal("too many requests"),
        };
        let error = Error::new(code, message).with(header::RETRY_AFTER, HeaderValue::from_static("1"));
        error.with(header::CONNECTION, CLOSE)
    }

    /// The answer to a request for an event stream that is framed so.
    pub(super) fn ended(self, framing: Framing, retry: Duration) -> Response {
        let mut response = upgrade::response(stream::sse_head(), None);
        response.headers_mut().insert(header::CONNECTION, CLOSE);
        *response.body_mut() = closing(framing, self.reason(), retry).into();
        response
    }
}

/// When to come back, as a browser's EventSource takes it; nothing where the transport has no such word.
pub(super) fn retry_line(framing: Framing, retry: Duration) -> Vec<u8> {
    let mut out = Vec::new();
    if let Carrier::Sse { .. } = framing.carrier {
        sse::retry(&mut out, retry.as_millis());
    }
    out
}

/// `stream.closing`: the last event of a stream that the bridge ends. `reason` needs no escaping in JSON.
pub(super) fn closing(framing: Framing, reason: &'static str, retry: Duration) -> Bytes {
    let (name, ms) = ("stream.closing", retry.as_millis());
    let mut out = retry_line(framing, retry);
    let json = format!(r#"{{"type":"{name}","reason":"{reason}","retryAfterMs":{ms}}}"#);
    framing.put(&mut out, name, None, &json);
    out.into()
}
