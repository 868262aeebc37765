//! A lens in use: renders and frames each step once for all who look the same way, and shares the bytes.
//!
//! Two caches, both bounded: the frames of the newest steps, and the last initial state. Neither is needed for
//! correctness; whoever reads behind the cache renders for himself.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use serde::Serialize;
use tokio::time::Instant;

use super::{Reason, Shared, Snapshot, snapshot};
use crate::{
    event::{
        Claim, Home, Instance, Rv, Step,
        lens::{Format, Lens},
        render,
    },
    wire::{sse, websocket},
};

/// Steps whose frames a lens keeps: more than any reader that keeps up is ever behind.
const FRAMES: usize = 1024;
/// Bytes of frames that a lens keeps.
const FRAMES_BYTES: usize = 256 << 10;
/// Target size of one part of an initial state (protocol.md section 3: over 256 KiB it comes in parts).
const PART_BYTES: usize = 240 << 10;
/// An initial state is rebuilt when it is older than this many times what building it took...
const REUSE_FACTOR: u32 = 10;
/// ...but never reused when it is older than this (architecture.md, the feed's contract, 6).
const REUSE_LIMIT: Duration = Duration::from_secs(1);

/// How events are laid on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Framing {
    /// One text message an event.
    WebSocket,
    /// An event stream; `named` events carry their type as `event:`.
    Sse {
        /// Whether `event:` is written.
        named: bool,
    },
}

/// A lens with the bytes that its readers share.
#[derive(Debug)]
pub struct SharedLens {
    pub(super) lens: Lens,
    framing: Framing,
    frames: Mutex<Frames>,
    initial: Mutex<Option<(Reason, Arc<Initial>)>>,
}

/// The frames of one step; empty when nothing of it passes the lens.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) bytes: Bytes,
    pub(super) after: [Rv; 2],
    pub(super) restart: bool,
}

#[derive(Debug, Default)]
struct Frames {
    first: u64,
    frames: VecDeque<Frame>,
    bytes: usize,
}

/// An encoded state, and where the log goes on from it.
#[derive(Debug)]
pub(super) struct Initial {
    pub(super) parts: Vec<Bytes>,
    pub(super) position: u64,
    pub(super) rv: [Rv; 2],
    built: Instant,
    cost: Duration,
}

impl SharedLens {
    pub(super) fn new(lens: Lens, framing: Framing) -> SharedLens {
        SharedLens { lens, framing, frames: Mutex::default(), initial: Mutex::default() }
    }

    /// The frames from a position of the log on, until about `max_bytes` of them are there; `None` when the log no
    /// longer reaches back to it.
    pub(super) fn frames(&self, shared: &Shared, home: Home, from: u64, max_bytes: usize) -> Option<Vec<Frame>> {
        let mut cache = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        let end = cache.first + cache.frames.len() as u64;
        if from < cache.first {
            drop(cache);
            let steps = steps(shared, from)?;
            return Some(take(steps.iter().map(|step| self.frame(shared, home, step, step.after)), max_bytes));
        }
        if from > end {
            *cache = Frames { first: from, ..Frames::default() };
        }
        let end = cache.first + cache.frames.len() as u64;
        for step in steps(shared, end)? {
            let frame = self.frame(shared, home, &step, step.after);
            cache.push(frame);
        }
        let skip = usize::try_from(from.saturating_sub(cache.first)).unwrap_or(usize::MAX);
        Some(take(cache.frames.iter().skip(skip).cloned(), max_bytes))
    }

    /// One step as frames, the cursor `at` on the last event that passes.
    pub(super) fn frame(&self, shared: &Shared, home: Home, step: &Step, at: [Rv; 2]) -> Frame {
        shared.metrics.renders.inc();
        let full = self.lens.format == Format::Full;
        let mut events = Vec::new();
        render::render(step, &self.lens, |event| events.push(event));
        let mut bytes = Vec::new();
        let id = full.then(|| self.lens.cursor(home, at).encode());
        let time = full.then(|| render::time(step.at_ms));
        if let Some(last) = events.last_mut() {
            last.id = id.as_deref();
            for event in &mut events {
                event.time = time.as_deref();
                self.put(&mut bytes, event.kind, event.id, event);
            }
        } else if let Some((id, time)) = id.zip(time)
            && step.since.is_some()
            && self.lens.types.kinds()[step.kind as usize]
        {
            // G3: something may have come and gone unseen, and the client is told so.
            let mark = render::Heartbeat { kind: "heartbeat", id: &id, timestamp: &time, coalesced: true };
            self.put(&mut bytes, mark.kind, Some(&id), &mark);
        }
        Frame { bytes: bytes.into(), after: at, restart: step.restart }
    }

    /// The state now, or as it was a moment ago if the log goes on from it; `None` while it is older than `at_least`.
    pub(super) fn initial(
        &self,
        shared: &Shared,
        home: Home,
        reason: Reason,
        at_least: [Rv; 2],
    ) -> Option<Arc<Initial>> {
        let mut cached = self.initial.lock().unwrap_or_else(PoisonError::into_inner);
        let state = shared.state();
        if let Some((why, initial)) = &*cached {
            let age = initial.built.elapsed();
            let fresh = age < REUSE_LIMIT && age < initial.cost * REUSE_FACTOR && initial.position >= state.log.first();
            if *why == reason && (initial.position == state.log.end() || fresh) && self.reached(initial.rv, at_least) {
                return Some(initial.clone());
            }
        }
        if !self.reached(state.newest, at_least) {
            return None;
        }
        let (inventory, rv, position) = (state.inventory.clone(), state.newest, state.log.end());
        drop(state);
        let snapshot = Snapshot { home, inventory, rv, position };
        let initial = Arc::new(self.build(shared, &snapshot, reason));
        *cached = Some((reason, initial.clone()));
        Some(initial)
    }

    /// Whether a state at `rv` is not older than `floor` in any resource that the lens needs.
    pub(super) fn reached(&self, rv: [Rv; 2], floor: [Rv; 2]) -> bool {
        let kinds = self.lens.types.kinds();
        (0..2).all(|k| !kinds[k] || rv[k] >= floor[k])
    }

    fn build(&self, shared: &Shared, snapshot: &Snapshot, reason: Reason) -> Initial {
        shared.metrics.snapshots.inc();
        let started = Instant::now();
        let parts = match self.lens.format {
            Format::Boilerhouse => self.burst(snapshot),
            Format::Full => self.state_initial(snapshot, reason, (shared.config.clock)()),
        };
        let (position, rv) = (snapshot.position, snapshot.rv);
        Initial { parts, position, rv, built: started, cost: started.elapsed() }
    }

    /// `/ws`: the state as events.
    fn burst(&self, snapshot: &Snapshot) -> Vec<Bytes> {
        let mut parts = Vec::new();
        let mut bytes = Vec::new();
        for view in snapshot.inventory.views() {
            render::render_first(&view, &self.lens, |event| self.put(&mut bytes, event.kind, None, &event));
            if bytes.len() > PART_BYTES {
                parts.push(std::mem::take(&mut bytes).into());
            }
        }
        if !bytes.is_empty() {
            parts.push(bytes.into());
        }
        parts
    }

    /// The full stream: the state as one or more `state.initial`.
    fn state_initial(&self, snapshot: &Snapshot, reason: Reason, now_ms: u64) -> Vec<Bytes> {
        let id = self.lens.cursor(snapshot.home, snapshot.rv).encode();
        let snapshot_at = render::time(now_ms);
        let connection_id = snapshot.home.connection_id.to_string();
        let [pods, claims] = self.lens.types.kinds();
        let instances = snapshot.inventory.instances.values().filter(|i| pods && self.lens.shows_instance(i));
        let claims = snapshot.inventory.claims.values().filter(|c| claims && self.lens.shows_claim(c));
        let pools = snapshot::pools(instances.clone().map(|i| &**i));

        let mut parts = vec![Part::default()];
        for instance in instances {
            Part::with_room(&mut parts, instance.cost()).instances.push(instance);
        }
        for claim in claims {
            Part::with_room(&mut parts, claim.cost()).claims.push(claim);
        }
        let last = parts.len() - 1;
        let message = |(at, part): (usize, Part<'_>)| {
            let id = (at == last).then_some(id.as_str());
            let message = StateInitial {
                kind: "state.initial",
                id,
                snapshot_at: &snapshot_at,
                reason: reason.name(),
                connection_id: &connection_id,
                instances: &part.instances,
                claims: &part.claims,
                pools: if at == last { &pools } else { &[] },
                more: at != last,
            };
            let mut bytes = Vec::new();
            self.put(&mut bytes, message.kind, id, &message);
            Bytes::from(bytes)
        };
        parts.into_iter().enumerate().map(message).collect()
    }

    fn put(&self, out: &mut Vec<u8>, name: &str, id: Option<&str>, message: &impl Serialize) {
        let json = serde_json::to_string(message).expect("views and events have string keys only");
        match self.framing {
            Framing::WebSocket => websocket::text(out, &json),
            Framing::Sse { named } => sse::event(out, named.then_some(name), id, &json),
        }
    }
}

impl Frames {
    fn push(&mut self, frame: Frame) {
        self.bytes += frame.bytes.len();
        self.frames.push_back(frame);
        while self.frames.len() > FRAMES || (self.bytes > FRAMES_BYTES && self.frames.len() > 1) {
            if let Some(gone) = self.frames.pop_front() {
                self.first += 1;
                self.bytes -= gone.bytes.len();
            }
        }
    }
}

#[derive(Default)]
struct Part<'a> {
    instances: Vec<&'a Arc<Instance>>,
    claims: Vec<&'a Arc<Claim>>,
    bytes: usize,
}

impl<'a> Part<'a> {
    fn with_room<'p>(parts: &'p mut Vec<Part<'a>>, bytes: usize) -> &'p mut Part<'a> {
        if parts.last().is_none_or(|part| part.bytes > 0 && part.bytes + bytes > PART_BYTES) {
            parts.push(Part::default());
        }
        let at = parts.len() - 1;
        parts[at].bytes += bytes;
        &mut parts[at]
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StateInitial<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    snapshot_at: &'a str,
    reason: &'static str,
    connection_id: &'a str,
    instances: &'a [&'a Arc<Instance>],
    claims: &'a [&'a Arc<Claim>],
    pools: &'a [snapshot::Pool<'a>],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    more: bool,
}

impl Reason {
    /// As it stands in `reason`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Reason::Connect => "connect",
            Reason::Expired => "expired",
            Reason::Foreign => "foreign",
            Reason::Filter => "filter",
            Reason::Lagged => "lagged",
        }
    }
}

/// Steps fetched from the log at once: bounds what is cloned under its lock.
const STEPS: usize = 256;

pub(super) fn steps(shared: &Shared, from: u64) -> Option<Vec<Arc<Step>>> {
    let state: MutexGuard<'_, _> = shared.state();
    let steps = state.log.range(from, STEPS)?.cloned().collect();
    Some(steps)
}

fn take(frames: impl Iterator<Item = Frame>, max_bytes: usize) -> Vec<Frame> {
    let mut bytes = 0;
    let mut taken = Vec::new();
    for frame in frames {
        if bytes > 0 && bytes + frame.bytes.len() > max_bytes {
            break;
        }
        bytes += frame.bytes.len();
        taken.push(frame);
    }
    taken
}
