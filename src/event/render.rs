//! From a step and a lens to events: the one place where it is decided what a client is told of a change.
//!
//! Pure, and the same for every transport. Edges are computed per life (uid): a [`Change`] never joins two lives.

use jiff::fmt::temporal::DateTimePrinter;
use serde::Serialize;

use super::{
    Change, Claim, Instance, Notice, Pool, Version, View,
    projection::{Format, Lens, Type},
};

/// One event, with the keys of protocol.md sections 2 and 3 that its type and format have.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event<'a> {
    /// `type`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The cursor, on the last event of a step only. Set by whoever knows how far the client is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a str>,
    /// When this replica saw the change, RFC 3339 with milliseconds.
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
    /// `<uid>.<resourceVersion>.<type>`: what a receiver deduplicates by.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    coalesced: bool,
}

/// A sign of life that moves the cursor on (protocol.md section 3). With `coalesced` it stands for a difference in which
/// the client sees no change: states between may have been skipped (G3).
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat<'a> {
    /// How far the client has been served.
    pub id: &'a str,
    /// When, RFC 3339 with milliseconds.
    pub timestamp: &'a str,
    /// `live` or `down`.
    pub upstream: &'static str,
    /// Milliseconds since the last byte of the quieter resource.
    pub upstream_age_ms: u64,
    /// Whether something may have come and gone unseen.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub coalesced: bool,
}

/// A notice as an event.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Told<'a> {
    /// `upstream.down`, `upstream.up`.
    Upstream {
        /// When this replica saw it.
        time: &'a str,
        /// The plural of the resource.
        resource: &'static str,
        /// Why it is down.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'a str>,
        /// When its last byte came.
        since: String,
    },
    /// `pool.depth`.
    PoolDepth {
        /// When this replica saw it.
        time: &'a str,
        /// The counts.
        #[serde(flatten)]
        pool: &'a Pool,
    },
}

/// A notice's type and body, if a client of this lens is told of it. Control events always pass.
#[must_use]
pub fn render_notice<'a>(notice: &'a Notice, lens: &Lens, time: &'a str) -> Option<(&'static str, Told<'a>)> {
    if lens.format == Format::Boilerhouse {
        return None;
    }
    match notice {
        Notice::Upstream { kind, down, since_ms } => {
            let name = if down.is_some() { "upstream.down" } else { "upstream.up" };
            let since = self::time(*since_ms);
            Some((name, Told::Upstream { time, resource: kind.resource(), reason: down.as_deref(), since }))
        }
        Notice::PoolDepth(pool) => {
            let passes = lens.types.has(Type::PoolDepth) && lens.shows_pool(&pool.workload_ref);
            passes.then_some((Type::PoolDepth.name(), Told::PoolDepth { time, pool }))
        }
    }
}

/// The events that a client of this lens is told of a version, in order.
pub fn render<'a>(version: &'a Version, lens: &Lens, mut tell: impl FnMut(Event<'a>)) {
    for change in &version.changes {
        // In a difference each object keeps its own version, which is the same on every replica.
        let rv = change.new.as_ref().map_or(version.rv, View::rv);
        render_change(change, lens, |mut event| {
            if lens.format == Format::Full {
                let uid = change.view().map_or("", View::uid);
                event.key = Some([uid, ".", &rv.to_string(), ".", event.kind].concat());
                event.coalesced = version.since.is_some();
            }
            tell(event);
        });
    }
}

/// The events with which `/ws` opens: the object as it is, then the edges that make it so (protocol.md section 2).
pub fn render_first<'a>(view: &'a View, lens: &Lens, mut tell: impl FnMut(Event<'a>)) {
    if !lens.includes(view) {
        return;
    }
    if let View::Instance(instance) = view
        && lens.types.has(Type::InstanceState)
    {
        tell(instance_state(instance, &instance.phase));
    }
    if let Some(edge) = edge(None, Some(view))
        && lens.types.has(edge)
    {
        tell(edge_event(edge, view, lens.format));
    }
}

/// Rights come first, and each side is judged by itself: what may not be seen is as if it were not there, and no word
/// of it reaches the events. The filter then chooses among what may be seen.
fn render_change<'a>(change: &'a Change, lens: &Lens, mut tell: impl FnMut(Event<'a>)) {
    let seen = |side: &'a Option<View>| side.as_ref().filter(|view| lens.scope.has(view));
    let (old, new) = (seen(&change.old), seen(&change.new));
    let (shown_old, shown_new) = (old.filter(|view| lens.includes(view)), new.filter(|view| lens.includes(view)));
    if let Some(state) = state(shown_old, shown_new, change.new.is_some(), lens) {
        tell(state);
    }
    if let Some(edge) = edge(old, new)
        && (shown_old.is_some() || shown_new.is_some())
        && lens.types.has(edge)
        && let Some(view) = new.or(old)
    {
        tell(edge_event(edge, view, lens.format));
    }
}

/// The state event: what the client knew (`old`) against what it may know now (`new`); whether the object `lives` on is
/// what its `Deleted` says.
fn state<'a>(old: Option<&'a View>, new: Option<&'a View>, lives: bool, lens: &Lens) -> Option<Event<'a>> {
    let view = new.or(old)?;
    let kind = match view {
        View::Instance(_) => Type::InstanceState,
        View::Claim(_) => Type::ClaimState,
    };
    if !lens.types.has(kind) {
        return None;
    }
    let full = lens.format == Format::Full;
    if full && old.zip(new).is_some_and(|(old, new)| old.looks_like(new)) {
        return None;
    }
    let phase = new.map_or("Deleted", phase);
    let mut event = match view {
        View::Instance(instance) => instance_state(instance, phase),
        View::Claim(claim) => claim_state(claim, phase),
    };
    if full {
        event.previous_phase = old.map(self::phase).filter(|previous| *previous != phase);
        event.cause = match (new, lives) {
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

/// The transition between two sides of one life, if there is one (protocol.md section 2).
fn edge(old: Option<&View>, new: Option<&View>) -> Option<Type> {
    match (old, new) {
        (old, Some(View::Instance(new))) => {
            let was = matches!(old, Some(View::Instance(old)) if old.is_ready());
            (new.is_ready() && !was).then_some(Type::PoolInstanceReady)
        }
        (old, Some(View::Claim(new))) => {
            let old = match old {
                Some(View::Claim(old)) => Some(old),
                Some(View::Instance(_)) | None => None,
            };
            if new.is_active() && !old.is_some_and(|old| old.is_active()) {
                Some(Type::TenantClaimed)
            } else if new.is_released() && old.is_some_and(|old| !old.is_released()) {
                Some(Type::TenantReleased)
            } else {
                None
            }
        }
        (Some(View::Claim(old)), None) => (!old.is_released()).then_some(Type::TenantReleased),
        (Some(View::Instance(_)) | None, None) => None,
    }
}

fn edge_event<'a>(edge: Type, view: &'a View, format: Format) -> Event<'a> {
    let mut event = bare(edge, view.name());
    if format == Format::Full {
        event.uid = Some(view.uid());
    }
    match view {
        View::Instance(instance) => event.workload_ref = instance.workload_ref.as_deref(),
        View::Claim(claim) => {
            event.tenant_id = filled(&claim.tenant_id);
            if edge == Type::TenantClaimed {
                event.workload_ref = filled(&claim.workload_ref);
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
        ..bare(Type::InstanceState, &instance.name)
    }
}

fn claim_state<'a>(claim: &'a Claim, phase: &'a str) -> Event<'a> {
    Event {
        phase: Some(phase),
        workload_ref: Some(&claim.workload_ref),
        tenant_id: Some(&claim.tenant_id),
        ..bare(Type::ClaimState, &claim.name)
    }
}

fn bare(kind: Type, name: &str) -> Event<'_> {
    Event {
        kind: kind.name(),
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

fn filled(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// `time` of an event: RFC 3339 in UTC with milliseconds.
#[must_use]
pub fn time(at_ms: u64) -> String {
    const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(3));
    let at = i64::try_from(at_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    PRINTER.timestamp_to_string(&at.unwrap_or_default())
}
