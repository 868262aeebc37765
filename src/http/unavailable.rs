//! Conditions that reject a request now and pass without a change by the client, and their responses
//! (`docs/protocol.md#stream-endpoints`).
//!
//! An `EventSource` stops reconnecting after any status but 200. An SSE request therefore gets a stream that consists of
//! one `stream.closing` event with a retry delay. A WebSocket request and any other request get a status with
//! `Retry-After`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, header};
use warp::reply::Response;

use super::{
    conn::stream_start,
    error::{ApiError, ErrorCode},
    rate_limit::{BudgetStatus, LimitExceeded},
    stream::{self, control::rejection_event},
};
use crate::{
    event::Resource,
    feed::{Feed, Framing, Health},
};

/// `Connection: close` of a rejected stream request, so that its connection is free for other clients.
const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// Why a request is rejected for now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::enum_variant_names, reason = "the name is the one of `stream.closing`")]
pub(super) enum Unavailable {
    /// The first lists are not complete yet, for this reason, if one is known ([`failures`]).
    NotReady(Option<Arc<str>>),
    /// The process drains.
    Draining,
    /// `--max-connections` streams are open.
    TooManyStreams,
    /// The streams that are open leave only those that are reserved for callers with a credential.
    TooManyAnonymousStreams,
    /// `--max-connections-per-principal` streams of this caller are open.
    TooManyStreamsOfCaller,
    /// The streams of this caller have `--max-filters-per-principal` different filters.
    TooManyFilters,
    /// A rate budget of the caller is used up.
    RateLimited(BudgetStatus),
    /// The address has used up its reviews of unknown tokens, so that the token was not reviewed.
    TooManyUnknownTokens(BudgetStatus),
    /// The API server does not answer the review of the credential.
    CredentialCheckUnavailable,
}

impl Unavailable {
    /// Every value of [`Unavailable::label`].
    pub(super) const LABELS: [&str; 8] = [
        "not_ready",
        "draining",
        "max_streams",
        "max_anonymous_streams",
        "max_streams_per_principal",
        "max_filters_per_principal",
        "rate",
        "credential_check_unavailable",
    ];

    /// Returns the name of the condition as the label of a metric.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Unavailable::NotReady(_) => "not_ready",
            Unavailable::Draining => "draining",
            Unavailable::TooManyStreams => "max_streams",
            Unavailable::TooManyAnonymousStreams => "max_anonymous_streams",
            Unavailable::TooManyStreamsOfCaller => "max_streams_per_principal",
            Unavailable::TooManyFilters => "max_filters_per_principal",
            Unavailable::RateLimited(_) | Unavailable::TooManyUnknownTokens(_) => "rate",
            Unavailable::CredentialCheckUnavailable => "credential_check_unavailable",
        }
    }

    /// Returns the `reason` of the `stream.closing` event (docs/protocol.md#stream-endpoints).
    fn reason(&self) -> &'static str {
        match self {
            Unavailable::NotReady(_) => "not ready",
            Unavailable::Draining => "draining",
            Unavailable::TooManyStreams
            | Unavailable::TooManyAnonymousStreams
            | Unavailable::TooManyStreamsOfCaller
            | Unavailable::TooManyFilters => "too many connections",
            Unavailable::RateLimited(_) | Unavailable::TooManyUnknownTokens(_) => "rate",
            Unavailable::CredentialCheckUnavailable => "credential check unavailable",
        }
    }

    /// Returns the response to a WebSocket request and to a request for anything but a stream: 503 or, for a used-up
    /// budget, 429.
    pub(super) fn to_error(&self) -> ApiError {
        let (code, message) = match self {
            Unavailable::NotReady(failures) => {
                let what = "the first lists of pods and claims are not complete yet";
                return not_ready(what, failures.as_deref()).with(header::CONNECTION, CLOSE);
            }
            Unavailable::Draining => (ErrorCode::UpstreamUnavailable, "draining: connect again, to another replica"),
            Unavailable::TooManyStreams => (
                ErrorCode::TooManyConnections,
                "too many streams: --max-connections streams are open; connect again in a moment",
            ),
            Unavailable::TooManyAnonymousStreams => (
                ErrorCode::TooManyConnections,
                "too many streams: the others are reserved for callers with a credential; send one, or connect again in a \
                 moment",
            ),
            Unavailable::TooManyStreamsOfCaller => (
                ErrorCode::TooManyConnections,
                "too many streams: --max-connections-per-principal of your streams are open; close one",
            ),
            Unavailable::TooManyFilters => (
                ErrorCode::TooManyConnections,
                "too many filters: your streams have --max-filters-per-principal different params; close one of them",
            ),
            Unavailable::CredentialCheckUnavailable => (
                ErrorCode::UpstreamUnavailable,
                "credential check unavailable: the API server does not answer; try again in a moment",
            ),
            Unavailable::RateLimited(status) => return too_many_requests(status, "too many requests"),
            Unavailable::TooManyUnknownTokens(status) => return too_many_requests(status, "too many unknown tokens"),
        };
        let error = ApiError::new(code, message).with(header::RETRY_AFTER, HeaderValue::from_static("1"));
        error.with(header::CONNECTION, CLOSE)
    }

    /// Returns the response to a request for an SSE stream: an event stream that ends after one `stream.closing` event. The
    /// event has the id `id`, if there is one.
    pub(super) fn to_sse_response(&self, framing: Framing, id: Option<&str>, retry: Duration) -> Response {
        let mut response: Response = stream_start::response(stream::sse_head(false), None);
        response.headers_mut().insert(header::CONNECTION, CLOSE);
        let detail = match self {
            Unavailable::NotReady(failures) => failures.as_deref(),
            _ => None,
        };
        *response.body_mut() = rejection_event(framing, self.reason(), detail, id, retry).into();
        response
    }
}

/// Returns why resources are down, as in `upstream.down`: `pods: forbidden`, or `pods and boilerhouseclaims: forbidden`. Before
/// the Namespace has been read, nothing else is requested: `namespaces: forbidden`. `None` if nothing is down.
pub(super) fn failures(feed: &Feed) -> Option<Arc<str>> {
    let mut resources_by_reason = BTreeMap::<_, Vec<_>>::new();
    for (resource, health) in Resource::ALL.into_iter().zip(feed.health().borrow().clone().into_array()) {
        if let Health::Down { reason, .. } = health {
            resources_by_reason.entry(reason).or_default().push(resource.plural());
        }
    }
    if feed.namespace().is_none() {
        resources_by_reason.values_mut().for_each(|resources| *resources = vec!["namespaces"]);
    }
    let texts = resources_by_reason.iter().map(|(reason, resources)| format!("{}: {reason}", resources.join(" and ")));
    let texts: Vec<_> = texts.collect();
    (!texts.is_empty()).then(|| texts.join("; ").into())
}

/// Returns the 503 for `what` is missing, for the reason that [`failures`] returns.
pub(super) fn not_ready(what: &str, failures: Option<&str>) -> ApiError {
    ApiError::not_ready(&match failures {
        None => format!("{what}: try again in a moment"),
        Some(failures) => format!("{what} ({failures}): the bridge keeps trying"),
    })
}

impl From<LimitExceeded> for Unavailable {
    fn from(exceeded: LimitExceeded) -> Unavailable {
        match exceeded {
            LimitExceeded::StreamsOfCaller => Unavailable::TooManyStreamsOfCaller,
            LimitExceeded::Rate(status) => Unavailable::RateLimited(status),
        }
    }
}

/// Returns the 429 response for a used-up budget, with `Retry-After` and the rate limit headers.
pub(super) fn too_many_requests(status: &BudgetStatus, message: &str) -> ApiError {
    let seconds = status.seconds();
    let mut headers = HeaderMap::new();
    status.write_headers(&mut headers);
    headers.insert(header::RETRY_AFTER, seconds.into());
    let message = format!("{message}: more than {} per minute; try again in {seconds} s", status.quota);
    headers.into_iter().fold(ApiError::new(ErrorCode::RateLimitExceeded, message), |error, (name, value)| match name {
        Some(name) => error.with(name, value),
        None => error,
    })
}
