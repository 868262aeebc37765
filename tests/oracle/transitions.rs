//! The transitions of docs/protocol.md#objects, computed for one uid: ready, claimed and released.

use boilerhouse_bridge::event::Resource;

use super::object::ExpectedObject;

/// A transition, which is sent as an event of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transition {
    /// `pool.instance.ready`
    Ready,
    /// `tenant.claimed`
    Claimed,
    /// `tenant.released`
    Released,
}

impl Transition {
    /// The transition of a change of one object, whether or not a client may see it.
    ///
    /// - Ready: the pool status becomes `ready`.
    /// - Claimed: the phase becomes `Active`.
    /// - Released: the phase becomes `Released`, or the claim is deleted in another phase. A claim that is `Released`
    ///   from its creation was not released.
    pub(crate) fn of(before: Option<&ExpectedObject>, after: Option<&ExpectedObject>) -> Option<Transition> {
        if after.or(before)?.resource == Resource::Pods {
            let is_ready = |object: Option<&ExpectedObject>| object.is_some_and(ExpectedObject::is_ready);
            return (is_ready(after) && !is_ready(before)).then_some(Transition::Ready);
        }
        match (before.map(ExpectedObject::phase), after.map(ExpectedObject::phase)) {
            (Some("Active"), Some("Active")) => None,
            (_, Some("Active")) => Some(Transition::Claimed),
            (Some("Released") | None, _) => None,
            (Some(_), Some("Released") | None) => Some(Transition::Released),
            (Some(_), Some(_)) => None,
        }
    }

    /// The `type` of the event.
    pub(crate) fn event_type(self) -> &'static str {
        match self {
            Transition::Ready => "pool.instance.ready",
            Transition::Claimed => "tenant.claimed",
            Transition::Released => "tenant.released",
        }
    }

    /// The members of the view that the event repeats.
    pub(crate) fn members(self) -> &'static [&'static str] {
        match self {
            Transition::Ready => &["workloadRef"],
            Transition::Claimed => &["tenantId", "workloadRef", "source"],
            Transition::Released => &["tenantId"],
        }
    }
}
