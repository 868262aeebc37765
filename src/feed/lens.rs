//! A lens in use: renders and frames each step once for all who look the same way, and shares the bytes.
//!
//! Two caches, both bounded: the frames of the newest steps, and the last initial state. Neither is needed for
//! correctness; whoever reads behind the cache renders for himself.

mod frames;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use serde::Serialize;
use tokio::time::Instant;

pub(super) use self::frames::Frame;
use self::frames::Frames;
use super::{Config, Framing, Reason, Shared, Snapshot, audience::Shown};
use crate::{
    event::{
        Claim, Cursor, Home, Instance, Notice, Pool, Rv, Step, Version, What,
        lens::{Format, Lens, Type},
        render,
    },
    wire::json,
};

/// An initial state is rebuilt when it is older than this many times what building it took...
const REUSE_FACTOR: u32 = 10;
/// ...but never reused when it is older than this (architecture.md, the feed's contract, 6).
const REUSE_LIMIT: Duration = Duration::from_secs(1);

/// A lens with the bytes that its readers share.
#[derive(Debug)]
pub struct SharedLens {
    pub(super) lens: Lens,
    pub(super) framing: Framing,
    /// [`Lens::hash`], which stands in each cursor.
    hash: u64,
    frames: Mutex<Frames>,
    initial: Mutex<Option<(Reason, Arc<Initial>)>>,
}

/// An encoded state, and where the log goes on from it.
#[derive(Debug)]
pub(super) struct Initial {
    pub(super) home: Home,
    pub(super) parts: Vec<Bytes>,
    pub(super) position: u64,
    pub(super) rv: [Rv; 2],
    /// How many histories had ended before.
    pub(super) history: u64,
    built: Instant,
    cost: Duration,
}

impl SharedLens {
    pub(super) fn new(lens: Lens, framing: Framing) -> SharedLens {
        let hash = lens.hash();
        SharedLens { lens, framing, hash, frames: Mutex::default(), initial: Mutex::default() }
    }

    /// The cursor of a client of this lens that has been served up to `rv`.
    pub(super) fn cursor(&self, home: Home, rv: [Rv; 2]) -> String {
        Cursor::new(home, self.hash, self.lens.types.kinds(), rv).encode()
    }

    /// The frames from a position of the log on, until about `max_bytes` of them are there; `None` when the log no
    /// longer reaches back to it.
    pub(super) fn frames(&self, shared: &Shared, home: Home, from: u64, max_bytes: usize) -> Option<Vec<Frame>> {
        if shared.hub.is_some() {
            return self.private_frames(shared, home, from, max_bytes);
        }
        let cache = self.cached(shared, home, from)?;
        if from < cache.first() {
            drop(cache);
            return self.private_frames(shared, home, from, max_bytes);
        }
        Some(take(cache.since(from).cloned(), max_bytes))
    }

    /// How far the log goes from a position, and whether anything on the way concerns those who look through the lens.
    /// Where it cannot be known here, something does.
    pub(super) fn news(&self, shared: &Shared, from: u64) -> (u64, bool) {
        let home = shared.state().ready();
        match home.ok().and_then(|home| self.cached(shared, home, from)) {
            Some(cache) if from >= cache.first() => {
                (cache.end(), cache.since(from).any(|frame| frame.own || !frame.bytes.is_empty()))
            }
            _ => (*shared.head.borrow(), true),
        }
    }

    /// What is shown to all who are at a position, as one piece of at most `max_bytes`.
    pub(super) fn shown(&self, from: u64, max_bytes: usize) -> Option<Shown> {
        let cache = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        if from < cache.first() || cache.since(from).any(|frame| frame.own) {
            return None;
        }
        let after = cache.since(from).last()?.after;
        let bytes: usize = cache.since(from).map(|frame| frame.bytes.len()).sum();
        let mut told = cache.since(from).map(|frame| &frame.bytes).filter(|bytes| !bytes.is_empty());
        let bytes = match (told.next()?, told.next()) {
            _ if bytes > max_bytes => return None,
            (only, None) => only.clone(),
            (first, Some(second)) => {
                [first, second].into_iter().chain(told).flatten().copied().collect::<Vec<u8>>().into()
            }
        };
        Some(Shown { from, to: cache.end(), after, bytes })
    }

    /// The cache with the newest steps framed, if the log goes on from it or from a position. It may have dropped what is
    /// at the position.
    fn cached(&self, shared: &Shared, home: Home, from: u64) -> Option<MutexGuard<'_, Frames>> {
        let mut cache = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        if from > cache.end() {
            *cache = Frames::starting(from);
        }
        // Most readers come when another has framed everything: they need not ask for the feed's lock.
        while from >= cache.first() && cache.end() < *shared.head.borrow() {
            let steps = steps(shared, cache.end())?;
            if steps.is_empty() {
                break;
            }
            for step in steps {
                let frame = self.frame(shared, home, &step, step.after);
                cache.push(frame);
            }
        }
        Some(cache)
    }

    /// Frames for one reader, rendered until `max_bytes` are there.
    fn private_frames(&self, shared: &Shared, home: Home, from: u64, max_bytes: usize) -> Option<Vec<Frame>> {
        let steps = steps(shared, from)?;
        Some(take(steps.iter().map(|step| self.frame(shared, home, step, step.after)), max_bytes))
    }

    /// One step as frames, the cursor `at` on the last event that passes.
    pub(super) fn frame(&self, shared: &Shared, home: Home, step: &Step, at: [Rv; 2]) -> Frame {
        shared.metrics.renders.inc();
        let mut bytes = Vec::new();
        match &step.what {
            What::Version(version) => self.version(&mut bytes, shared, home, step.at_ms, version, at),
            What::Notice(notice) => {
                let time = render::time(step.at_ms);
                if let Some((name, body)) = render::render_notice(notice, &self.lens, &time) {
                    self.put_body(&mut bytes, name, None, body);
                }
            }
        }
        let restart = step.version().is_some_and(|version| version.restart);
        let own = restart || matches!(step.what, What::Notice(Notice::Upstream { .. }));
        Frame { bytes: bytes.into(), after: at, restart, own }
    }

    fn version(&self, out: &mut Vec<u8>, shared: &Shared, home: Home, at_ms: u64, version: &Version, at: [Rv; 2]) {
        let full = self.lens.format == Format::Full;
        let time = full.then(|| render::time(at_ms));
        // Each is put when the next one comes: only the last has an `id`.
        let mut last = None;
        render::render(version, &self.lens, |event| {
            if let Some(before) = last.replace(event) {
                self.put_event(out, before, None, time.as_deref());
            }
        });
        match last {
            Some(last) => self.put_event(out, last, full.then(|| self.cursor(home, at)).as_deref(), time.as_deref()),
            // G3: something may have come and gone unseen, and the client is told so.
            None if full && version.since.is_some() && self.lens.types.kinds()[version.kind as usize] => {
                self.heartbeat(out, shared, home, at, true);
            }
            None => {}
        }
    }

    fn put_event<'a>(
        &self,
        out: &mut Vec<u8>,
        mut event: render::Event<'a>,
        id: Option<&'a str>,
        time: Option<&'a str>,
    ) {
        (event.id, event.time) = (id, time);
        let json = json::to_string(&event).expect("events have string keys only");
        self.framing.put(out, event.kind, id, &json);
    }

    /// A heartbeat of a client that has been served up to `at`.
    pub(super) fn heartbeat(&self, out: &mut Vec<u8>, shared: &Shared, home: Home, at: [Rv; 2], coalesced: bool) {
        let id = self.cursor(home, at);
        let timestamp = render::time((shared.config.clock)());
        let (upstream, upstream_age_ms) = shared.upstream();
        let body = render::Heartbeat { id: &id, timestamp: &timestamp, upstream, upstream_age_ms, coalesced };
        self.put_body(out, "heartbeat", Some(&id), body);
    }

    /// All pools that the lens shows, as `pool.depth`.
    pub(super) fn pools(&self, out: &mut Vec<u8>, shared: &Shared) {
        let inventory = shared.state().inventory.clone();
        let time = render::time((shared.config.clock)());
        for pool in inventory.pools() {
            if let Some((name, body)) = render::render_notice(&Notice::PoolDepth(pool), &self.lens, &time) {
                self.put_body(out, name, None, body);
            }
        }
    }

    fn put_body(&self, out: &mut Vec<u8>, name: &'static str, id: Option<&str>, body: impl Serialize) {
        let kind = self.framing.name(name);
        let json = json::to_string(&Message { kind, body }).expect("events have string keys only");
        self.framing.put(out, kind, id, &json);
    }

    /// The state now, or as it was a moment ago if the log goes on from it; `None` while it is older than `at_least`.
    pub(super) fn initial(&self, shared: &Shared, reason: Reason, at_least: [Rv; 2]) -> Option<Arc<Initial>> {
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
        let home = state.ready().ok()?;
        let (inventory, rv, position) = (state.inventory.clone(), state.newest, state.log.end());
        let history = state.history;
        drop(state);
        let snapshot = Snapshot { home, inventory, rv, position };
        let initial = Arc::new(self.build(shared, &snapshot, reason, history));
        if shared.hub.is_none() {
            *cached = Some((reason, initial.clone()));
        }
        Some(initial)
    }

    /// Whether a state at `rv` is not older than `floor` in any resource that the lens needs.
    pub(super) fn reached(&self, rv: [Rv; 2], floor: [Rv; 2]) -> bool {
        let kinds = self.lens.types.kinds();
        (0..2).all(|k| !kinds[k] || rv[k] >= floor[k])
    }

    fn build(&self, shared: &Shared, snapshot: &Snapshot, reason: Reason, history: u64) -> Initial {
        shared.metrics.snapshots.inc();
        let started = Instant::now();
        let parts = match self.lens.format {
            Format::Boilerhouse => self.burst(snapshot, shared.config.part_bytes),
            Format::Full => self.state_initial(&shared.config, snapshot, reason),
        };
        let Snapshot { home, position, rv, .. } = *snapshot;
        Initial { home, parts, position, rv, history, built: started, cost: started.elapsed() }
    }

    /// `/ws`: the state as events.
    fn burst(&self, snapshot: &Snapshot, part_bytes: usize) -> Vec<Bytes> {
        let mut parts = Vec::new();
        let mut bytes = Vec::new();
        for view in snapshot.inventory.views() {
            render::render_first(&view, &self.lens, |event| {
                self.put_event(&mut bytes, event, None, None);
            });
            if bytes.len() > part_bytes {
                parts.push(std::mem::take(&mut bytes).into());
            }
        }
        if !bytes.is_empty() {
            parts.push(bytes.into());
        }
        parts
    }

    /// The full stream: the state as one or more `state.initial`.
    fn state_initial(&self, config: &Config, snapshot: &Snapshot, reason: Reason) -> Vec<Bytes> {
        let id = self.cursor(snapshot.home, snapshot.rv);
        let snapshot_at = render::time((config.clock)());
        let connection_id = snapshot.home.connection_id.to_string();
        let (pods, claims) = (self.lens.types.has(Type::InstanceState), self.lens.types.has(Type::ClaimState));
        let instances = snapshot.inventory.instances.values().filter(|i| pods && self.lens.shows_instance(i));
        let claims = snapshot.inventory.claims.values().filter(|c| claims && self.lens.shows_claim(c));
        let pools = if self.lens.types.has(Type::PoolDepth) { snapshot.pools(&self.lens) } else { Vec::new() };

        let mut parts = vec![Part::default()];
        for instance in instances {
            Part::with_room(&mut parts, instance.cost(), config.part_bytes).instances.push(instance);
        }
        for claim in claims {
            Part::with_room(&mut parts, claim.cost(), config.part_bytes).claims.push(claim);
        }
        let last = parts.len() - 1;
        let message = |(at, part): (usize, Part<'_>)| {
            let id = (at == last).then_some(id.as_str());
            let body = StateInitial {
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
            self.put_body(&mut bytes, "state.initial", id, body);
            Bytes::from(bytes)
        };
        parts.into_iter().enumerate().map(message).collect()
    }
}

#[derive(Default)]
struct Part<'a> {
    instances: Vec<&'a Arc<Instance>>,
    claims: Vec<&'a Arc<Claim>>,
    bytes: usize,
}

impl<'a> Part<'a> {
    fn with_room<'p>(parts: &'p mut Vec<Part<'a>>, bytes: usize, most: usize) -> &'p mut Part<'a> {
        if parts.last().is_none_or(|part| part.bytes > 0 && part.bytes + bytes > most) {
            parts.push(Part::default());
        }
        let at = parts.len() - 1;
        parts[at].bytes += bytes;
        &mut parts[at]
    }
}

/// An event that does not carry its type itself.
#[derive(Serialize)]
struct Message<T> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(flatten)]
    body: T,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StateInitial<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    snapshot_at: &'a str,
    reason: &'static str,
    connection_id: &'a str,
    instances: &'a [&'a Arc<Instance>],
    claims: &'a [&'a Arc<Claim>],
    pools: &'a [Pool],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    more: bool,
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

#[cfg(test)]
mod tests;
