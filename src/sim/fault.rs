//! Faults as values. [`Sim::arm`](super::Sim::arm) injects a fault into the next request that matches it.
//!
//! Faults that affect all requests and watches (down, black hole, restart, restore, cut, stall) are methods of
//! [`Sim`](super::Sim).

use std::fmt;
use std::sync::Arc;

use http::StatusCode;

use super::list_options::ListOptions;
use super::path::ResourcePath;
use super::resource::{ApiResource, Verb};
use super::status::StatusError;
use super::store::Store;

/// A fault that is injected once.
#[derive(Clone, Debug)]
pub struct Fault {
    verb: Option<Verb>,
    resource: Option<ApiResource>,
    effect: Effect,
}

/// An error status instead of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 429 with `Retry-After` in seconds.
    TooManyRequests(u32),
    /// 401
    Unauthorized,
    /// 403 with the message of RBAC.
    Forbidden,
    /// 410. Some servers and proxies answer a watch with it instead of an ERROR line.
    Gone,
    /// 500
    Internal,
    /// 503
    Unavailable,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionEnd {
    /// The body ends as if it were complete.
    Eof,
    /// The connection is reset.
    Reset,
}

/// A fault of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchFault {
    /// The watch ends.
    Cut(ConnectionEnd),
    /// The watch ends in the middle of the next event's line.
    HalfLine,
    /// The line of the next event is invalid JSON, so that the event is lost. The watch continues.
    Garbage,
    /// The watch sends no more bytes and does not end.
    Stall,
    /// The watch sends an ERROR line with code 410, and ends.
    Expired,
}

#[derive(Clone)]
pub(super) enum Effect {
    Answer(Answer),
    Refuse,
    Hang,
    /// The fault `then`, after `after` events.
    Watch {
        after: usize,
        then: WatchFault,
    },
    ExpirePage,
    ConcurrentChange(ConcurrentChange),
}

/// A change of the store, made immediately after an answer is computed.
pub(super) type ConcurrentChange = Arc<dyn Fn(&mut Store) + Send + Sync>;

/// Whether requests reach the simulated API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NetworkState {
    Up,
    Refusing,
    BlackHole,
}

impl Fault {
    /// Answers the request with an error status.
    #[must_use]
    pub fn answer(answer: Answer) -> Self {
        Self::new(None, Effect::Answer(answer))
    }

    /// Refuses the connection.
    #[must_use]
    pub fn refuse() -> Self {
        Self::new(None, Effect::Refuse)
    }

    /// Never answers the request.
    #[must_use]
    pub fn hang() -> Self {
        Self::new(None, Effect::Hang)
    }

    /// Injects a fault into a watch after that many events.
    #[must_use]
    pub fn watch(after: usize, then: WatchFault) -> Self {
        Self::new(Some(Verb::Watch), Effect::Watch { after, then })
    }

    /// Answers the next page of a list (a request with a continue token) with 410.
    #[must_use]
    pub fn expire_page() -> Self {
        Self::new(Some(Verb::List), Effect::ExpirePage)
    }

    /// Changes the store immediately after the answer is computed: between two pages, or between a list and its watch.
    #[must_use]
    pub fn with_concurrent_change(change: impl Fn(&mut Store) + Send + Sync + 'static) -> Self {
        Self::new(None, Effect::ConcurrentChange(Arc::new(change)))
    }

    /// Restricts the fault to requests with this verb.
    #[must_use]
    pub fn on_verb(self, verb: Verb) -> Self {
        Self { verb: Some(verb), ..self }
    }

    /// Restricts the fault to requests for this resource.
    #[must_use]
    pub fn on(self, resource: ApiResource) -> Self {
        Self { resource: Some(resource), ..self }
    }

    fn new(verb: Option<Verb>, effect: Effect) -> Self {
        Self { verb, resource: None, effect }
    }

    fn matches(&self, verb: Verb, resource: ApiResource, options: &ListOptions) -> bool {
        self.verb.is_none_or(|expected| expected == verb)
            && self.resource.is_none_or(|expected| expected == resource)
            && (!matches!(self.effect, Effect::ExpirePage) || options.page.is_some())
    }
}

/// Removes the first fault that matches a request, and returns its effect.
pub(super) fn take_matching(
    faults: &mut Vec<Fault>,
    verb: Verb,
    resource: ApiResource,
    options: &ListOptions,
) -> Option<Effect> {
    let index = faults.iter().position(|fault| fault.matches(verb, resource, options))?;
    Some(faults.remove(index).effect)
}

impl Answer {
    /// Returns the status of the answer.
    pub(super) fn to_error(self, user: &str, verb: Verb, path: &ResourcePath) -> StatusError {
        match self {
            Self::TooManyRequests(seconds) => {
                let message = "too many requests, please try again later";
                StatusError::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message).retry_after(seconds)
            }
            Self::Unauthorized => StatusError::unauthorized(),
            Self::Forbidden => StatusError::forbidden(user, verb, path),
            Self::Gone => StatusError::list_expired(),
            Self::Internal => {
                let message = "Internal error occurred: etcdserver: request timed out";
                StatusError::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
            }
            Self::Unavailable => {
                let message = "the server is currently unable to handle the request";
                StatusError::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
            }
        }
    }
}

impl fmt::Debug for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(answer) => f.debug_tuple("Answer").field(answer).finish(),
            Self::Refuse => f.write_str("Refuse"),
            Self::Hang => f.write_str("Hang"),
            Self::Watch { after, then } => f.debug_struct("Watch").field("after", after).field("then", then).finish(),
            Self::ExpirePage => f.write_str("ExpirePage"),
            Self::ConcurrentChange(_) => f.write_str("ConcurrentChange"),
        }
    }
}
