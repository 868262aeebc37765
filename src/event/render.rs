//! Renders events: (log entry, projection) → the events of a client. No other module decides what a client receives.
//!
//! Guarantees:
//! - The functions are pure, and the events are the same for every transport.
//! - A transition belongs to one uid, because a [`Change`] never joins two objects with different uids.
//!
//! Implements `docs/protocol.md#boilerhouse-stream` and `docs/protocol.md#full-stream`.

use serde::Serialize;

pub use super::timestamp::format_timestamp;
use super::{
    Change, ChangeSet, Claim, EphemeralEvent, Instance, MqttMessage, PoolDepth, Telemetry, View,
    projection::{EventFormat, EventType, Projection, Scope},
};

/// One event about an object. Its type and format determine which keys are present
/// (docs/protocol.md#boilerhouse-stream, docs/protocol.md#full-stream).
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event<'a> {
    /// `type`.
    #[serde(rename = "type")]
    pub event_type: &'static str,
    /// The cursor, on the last event of a log entry only. The caller of this module sets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a str>,
    /// When this replica received the change: RFC 3339 with milliseconds. The caller of this module sets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<&'a str>,
    /// The object's name.
    pub name: &'a str,
    /// The object's phase, on state events.
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_phase: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload_ref: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<&'a Instance>,
    #[serde(skip_serializing_if = "Option::is_none")]
    claim: Option<&'a Claim>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    /// `<uid>.<resourceVersion>.<type>`: the key by which a receiver removes duplicates.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    coalesced: bool,
}

/// The periodic event that advances the client's cursor (docs/protocol.md#full-stream).
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat<'a> {
    /// The cursor: how far the client was served.
    pub id: &'a str,
    /// When the event was made: RFC 3339 with milliseconds.
    pub timestamp: &'a str,
    /// `live`, `syncing` or `down`.
    pub upstream: &'static str,
    /// Milliseconds since the last byte from the API server, of the resource with the older last byte.
    pub upstream_age_ms: u64,
    /// Set if the cursor passes a difference that contains no event for this client. States between the two versions
    /// may be missing (docs/guarantees.md#guarantees, G3).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub coalesced: bool,
}

/// The JSON of an ephemeral event, without its type.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum EphemeralBody<'a> {
    /// `upstream.down`, `upstream.up`.
    Upstream {
        /// When this replica observed it: RFC 3339 with milliseconds.
        time: &'a str,
        /// The plural of the resource, or `nats`.
        resource: &'static str,
        /// Why the resource is down; absent in `upstream.up`.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'a str>,
        /// When the last byte arrived before the resource went down.
        since: String,
    },
    /// `pool.depth`.
    PoolDepth {
        /// When this replica computed the counts: RFC 3339 with milliseconds.
        time: &'a str,
        /// The counts.
        #[serde(flatten)]
        pool: &'a PoolDepth,
    },
    /// `telemetry`.
    Telemetry {
        /// When this replica published it: RFC 3339 with milliseconds.
        time: &'a str,
        /// The values.
        #[serde(flatten)]
        telemetry: &'a Telemetry,
    },
    /// `mqtt.message`.
    MqttMessage {
        /// When this replica published it: RFC 3339 with milliseconds.
        time: &'a str,
        /// Topic and payload.
        #[serde(flatten)]
        message: &'a MqttMessage,
    },
}

/// Returns type and body of an ephemeral event, or `None` if a client of this projection does not receive it.
///
/// `/ws` clients receive no ephemeral event. On the full stream, every client receives `upstream.*`. `telemetry` is about an
/// instance, so rights and filters on instances apply to it. A `mqtt.message` is about no object: only rights to everything
/// include it, and no filter applies.
#[must_use]
pub fn render_ephemeral<'a>(
    event: &'a EphemeralEvent,
    projection: &Projection,
    time: &'a str,
) -> Option<(&'static str, EphemeralBody<'a>)> {
    if projection.format == EventFormat::Boilerhouse {
        return None;
    }
    match event {
        EphemeralEvent::Upstream { resource, down_reason, last_byte_ms } => {
            let name = if down_reason.is_some() { "upstream.down" } else { "upstream.up" };
            let since = format_timestamp(*last_byte_ms);
            Some((name, EphemeralBody::Upstream { time, resource, reason: down_reason.as_deref(), since }))
        }
        EphemeralEvent::PoolDepth(pool) => {
            let is_included =
                projection.types.contains(EventType::PoolDepth) && projection.includes_pool(&pool.workload_ref);
            is_included.then_some((EventType::PoolDepth.name(), EphemeralBody::PoolDepth { time, pool }))
        }
        EphemeralEvent::Telemetry { instance, telemetry } => {
            let is_included = projection.types.contains(EventType::Telemetry) && projection.includes_instance(instance);
            is_included.then_some((EventType::Telemetry.name(), EphemeralBody::Telemetry { time, telemetry }))
        }
        EphemeralEvent::MqttMessage { message, .. } => {
            let is_included = projection.types.contains(EventType::MqttMessage) && projection.scope == Scope::All;
            is_included.then_some((EventType::MqttMessage.name(), EphemeralBody::MqttMessage { time, message }))
        }
    }
}

/// Calls `emit` with each event of a change set that a client of this projection receives, in order.
pub fn render_change_set<'a>(change_set: &'a ChangeSet, projection: &Projection, mut emit: impl FnMut(Event<'a>)) {
    for change in &change_set.changes {
        // In a difference, the key has the object's own version, because that version is the same on every replica.
        let version = change.new.as_ref().map_or(change_set.version, View::resource_version);
        render_change(change, projection, |mut event| {
            if projection.format == EventFormat::Full {
                let uid = change.any_side().map_or("", View::uid);
                event.key = Some([uid, ".", &version.to_string(), ".", event.event_type].concat());
                event.coalesced = change_set.coalesced_from.is_some();
            }
            emit(event);
        });
    }
}

/// Calls `emit` with the events of one object in the initial state of `/ws`: the state event, then the transition that
/// leads from no object to this state (docs/protocol.md#boilerhouse-stream).
pub fn render_initial<'a>(view: &'a View, projection: &Projection, mut emit: impl FnMut(Event<'a>)) {
    if !projection.includes(view) {
        return;
    }
    if let View::Instance(instance) = view
        && projection.types.contains(EventType::InstanceState)
    {
        emit(instance_state(instance, &instance.phase));
    }
    if let Some(transition) = transition(None, Some(view))
        && projection.types.contains(transition)
    {
        emit(transition_event(transition, view, projection.format));
    }
}

/// Calls `emit` with the events of one change.
///
/// The scope is applied first, to each side by itself: a side outside the scope counts as absent, and none of its
/// fields reaches an event. The filter is then applied to the visible sides.
fn render_change<'a>(change: &'a Change, projection: &Projection, mut emit: impl FnMut(Event<'a>)) {
    let visible = |side: &'a Option<View>| side.as_ref().filter(|view| projection.scope.allows(view));
    let (old, new) = (visible(&change.old), visible(&change.new));
    let (matching_old, matching_new) =
        (old.filter(|view| projection.includes(view)), new.filter(|view| projection.includes(view)));
    if let Some(state) = state_event(matching_old, matching_new, change.new.is_some(), projection) {
        emit(state);
    }
    if let Some(transition) = transition(old, new)
        && (matching_old.is_some() || matching_new.is_some())
        && projection.types.contains(transition)
        && let Some(view) = new.or(old)
    {
        emit(transition_event(transition, view, projection.format));
    }
}

/// Returns the state event of a change, if there is one.
///
/// `old` and `new` are the sides that the projection includes. An event without `new` has the phase `Deleted`; its
/// cause is `filtered` if the object `still_exists`, and `deleted` otherwise.
fn state_event<'a>(
    old: Option<&'a View>,
    new: Option<&'a View>,
    still_exists: bool,
    projection: &Projection,
) -> Option<Event<'a>> {
    let view = new.or(old)?;
    let event_type = match view {
        View::Instance(_) => EventType::InstanceState,
        View::Claim(_) => EventType::ClaimState,
    };
    if !projection.types.contains(event_type) {
        return None;
    }
    let full = projection.format == EventFormat::Full;
    if full && old.zip(new).is_some_and(|(old, new)| old.same_on_wire(new)) {
        return None;
    }
    let phase = new.map_or("Deleted", phase);
    let mut event = match view {
        View::Instance(instance) => instance_state(instance, phase),
        View::Claim(claim) => claim_state(claim, phase),
    };
    if full {
        event.previous_phase = old.map(self::phase).filter(|previous| *previous != phase);
        event.cause = match (new, still_exists) {
            (Some(_), _) => None,
            (None, true) => Some("filtered"),
            (None, false) => Some("deleted"),
        };
        match view {
            View::Instance(instance) => event.instance = Some(instance),
            View::Claim(claim) => event.claim = Some(claim),
        }
    }
    Some(event)
}

/// Returns the transition between two visible sides of one object, if there is one
/// (docs/protocol.md#boilerhouse-stream).
fn transition(old: Option<&View>, new: Option<&View>) -> Option<EventType> {
    match (old, new) {
        (old, Some(View::Instance(new))) => {
            let was_ready = matches!(old, Some(View::Instance(old)) if old.is_ready());
            (new.is_ready() && !was_ready).then_some(EventType::PoolInstanceReady)
        }
        (old, Some(View::Claim(new))) => {
            let old = match old {
                Some(View::Claim(old)) => Some(old),
                Some(View::Instance(_)) | None => None,
            };
            if new.is_active() && !old.is_some_and(|old| old.is_active()) {
                Some(EventType::TenantClaimed)
            } else if new.is_released() && old.is_some_and(|old| !old.is_released()) {
                Some(EventType::TenantReleased)
            } else {
                None
            }
        }
        (Some(View::Claim(old)), None) => (!old.is_released()).then_some(EventType::TenantReleased),
        (Some(View::Instance(_)) | None, None) => None,
    }
}

fn transition_event<'a>(transition: EventType, view: &'a View, format: EventFormat) -> Event<'a> {
    let mut event = base_event(transition, view.name());
    if format == EventFormat::Full {
        event.uid = Some(view.uid());
    }
    match view {
        View::Instance(instance) => event.workload_ref = instance.workload_ref.as_deref(),
        View::Claim(claim) => {
            event.tenant_id = non_empty(&claim.tenant_id);
            if transition == EventType::TenantClaimed {
                event.workload_ref = non_empty(&claim.workload_ref);
                event.source = claim.source.as_deref();
            }
        }
    }
    event
}

fn instance_state<'a>(instance: &'a Instance, phase: &'a str) -> Event<'a> {
    Event {
        phase: Some(phase),
        workload_ref: instance.workload_ref.as_deref(),
        tenant_id: instance.tenant_id.as_deref(),
        ..base_event(EventType::InstanceState, &instance.name)
    }
}

fn claim_state<'a>(claim: &'a Claim, phase: &'a str) -> Event<'a> {
    Event {
        phase: Some(phase),
        workload_ref: Some(&claim.workload_ref),
        tenant_id: Some(&claim.tenant_id),
        ..base_event(EventType::ClaimState, &claim.name)
    }
}

fn base_event(event_type: EventType, name: &str) -> Event<'_> {
    Event {
        event_type: event_type.name(),
        id: None,
        time: None,
        name,
        phase: None,
        previous_phase: None,
        tenant_id: None,
        workload_ref: None,
        source: None,
        uid: None,
        instance: None,
        claim: None,
        cause: None,
        key: None,
        coalesced: false,
    }
}

fn phase(view: &View) -> &str {
    match view {
        View::Instance(instance) => &instance.phase,
        View::Claim(claim) => &claim.phase,
    }
}

fn non_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}
