//! What can go wrong, as values: armed with [`Sim::arm`](super::Sim::arm) for the next request they fit.
//!
//! Faults that strike everything at once (down, black hole, restart, restore, cut, stall) are methods of the handle.

use std::fmt;
use std::sync::Arc;

use http::StatusCode;

use super::list_options::ListOptions;
use super::path::ResourcePath;
use super::resource::{ApiResource, Verb};
use super::status::StatusError;
use super::store::Store;

/// Something that will go wrong once.
#[derive(Clone, Debug)]
pub struct Fault {
    verb: Option<Verb>,
    resource: Option<ApiResource>,
    effect: Effect,
}

/// An answer instead of the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 429 with `Retry-After` in seconds.
    TooManyRequests(u32),
    /// 401
    Unauthorized,
    /// 403, worded as RBAC does.
    Forbidden,
    /// 410; on a watch this is what some servers and proxies send instead of an ERROR line.
    Gone,
    /// 500
    Internal,
    /// 503
    Unavailable,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionEnd {
    /// As a body that is complete.
    Eof,
    /// As a connection that breaks.
    Reset,
}

/// What becomes of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchFault {
    /// It ends.
    Cut(ConnectionEnd),
    /// It ends in the middle of the next event's line.
    HalfLine,
    /// The next event's line does not parse and so is lost; the watch goes on.
    Garbage,
    /// It falls silent for good.
    Stall,
    /// It gets the ERROR line with code 410, and ends.
    Expired,
}

#[derive(Clone)]
pub(super) enum Effect {
    Answer(Answer),
    Refuse,
    Hang,
    Watch { after: usize, then: WatchFault },
    ExpirePage,
    ConcurrentChange(ConcurrentChange),
}

/// A change to make right after an answer has been computed.
pub(super) type ConcurrentChange = Arc<dyn Fn(&mut Store) + Send + Sync>;

/// Whether requests reach the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NetworkState {
    Up,
    Refusing,
    BlackHole,
}

impl Fault {
    /// The request is answered with a refusal.
    #[must_use]
    pub fn answer(answer: Answer) -> Self {
        Self::new(None, Effect::Answer(answer))
    }

    /// The connection is refused.
    #[must_use]
    pub fn refuse() -> Self {
        Self::new(None, Effect::Refuse)
    }

    /// The request is never answered.
    #[must_use]
    pub fn hang() -> Self {
        Self::new(None, Effect::Hang)
    }

    /// A watch breaks after that many events.
    #[must_use]
    pub fn watch(after: usize, then: WatchFault) -> Self {
        Self::new(Some(Verb::Watch), Effect::Watch { after, then })
    }

    /// A list's next page (a request with a continue token) is answered with 410.
    #[must_use]
    pub fn expire_page() -> Self {
        Self::new(Some(Verb::List), Effect::ExpirePage)
    }

    /// The store changes right after the answer has been computed: between two pages, between a list and its watch.
    #[must_use]
    pub fn with_concurrent_change(change: impl Fn(&mut Store) + Send + Sync + 'static) -> Self {
        Self::new(None, Effect::ConcurrentChange(Arc::new(change)))
    }

    /// The fault waits for a request of this verb.
    #[must_use]
    pub fn on_verb(self, verb: Verb) -> Self {
        Self { verb: Some(verb), ..self }
    }

    /// The fault waits for a request for this resource.
    #[must_use]
    pub fn on(self, resource: ApiResource) -> Self {
        Self { resource: Some(resource), ..self }
    }

    fn new(verb: Option<Verb>, effect: Effect) -> Self {
        Self { verb, resource: None, effect }
    }

    fn matches(&self, verb: Verb, resource: ApiResource, options: &ListOptions) -> bool {
        self.verb.is_none_or(|wanted| wanted == verb)
            && self.resource.is_none_or(|wanted| wanted == resource)
            && (!matches!(self.effect, Effect::ExpirePage) || options.page.is_some())
    }
}

/// Takes the first fault that fits a request out of the armed ones.
pub(super) fn take(
    faults: &mut Vec<Fault>,
    verb: Verb,
    resource: ApiResource,
    options: &ListOptions,
) -> Option<Effect> {
    let index = faults.iter().position(|fault| fault.matches(verb, resource, options))?;
    Some(faults.remove(index).effect)
}

impl Answer {
    pub(super) fn to_error(self, user: &str, verb: Verb, target: &ResourcePath) -> StatusError {
        match self {
            Self::TooManyRequests(seconds) => {
                let message = "too many requests, please try again later";
                StatusError::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message).retry_after(seconds)
            }
            Self::Unauthorized => StatusError::unauthorized(),
            Self::Forbidden => StatusError::forbidden(user, verb, target),
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
