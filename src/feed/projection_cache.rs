//! A lens in use: renders and frames each step once for all who look the same way, and shares the bytes.
//!
//! What it keeps of them ([`frame_cache`]) is not needed for correctness: whoever reads behind that renders for himself.

mod encode_initial;
mod frame_cache;
mod initial_state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;
use serde::Serialize;

use self::frame_cache::FrameCache;
pub(super) use self::{
    frame_cache::{Frame, MAX_FRAMES},
    initial_state::InitialState,
};
use super::{framing::Framing, state::Shared};
use crate::{
    event::{
        ChangeSet, Cursor, EntryKind, EphemeralEvent, LogEntry, NamespaceId, PerResource, Resource, ResourceVersion,
        projection::{EventFormat, Projection},
        render,
    },
    wire::json,
};

/// A lens with the bytes that its readers share.
#[derive(Debug)]
pub struct ProjectionCache {
    pub(super) projection: Projection,
    pub(super) framing: Framing,
    /// [`Projection::fingerprint`], which stands in each cursor.
    hash: u64,
    frame_cache: Mutex<FrameCache>,
    /// Held while the current state is encoded, which is done by one at a time.
    encode_lock: Mutex<()>,
    /// How many are in use.
    in_use: Gauge,
}

impl ProjectionCache {
    /// Counts what it keeps in `all`, beside what other lenses do.
    pub(super) fn new(projection: Projection, framing: Framing, all: Gauge, in_use: Gauge) -> ProjectionCache {
        in_use.inc();
        let hash = projection.fingerprint();
        ProjectionCache {
            projection,
            framing,
            hash,
            frame_cache: Mutex::new(FrameCache::new(all)),
            encode_lock: Mutex::default(),
            in_use,
        }
    }

    /// Lets go of all but so many frames; who is being sent a state still has it.
    pub(super) fn shrink_to(&self, frames: usize) {
        self.frame_cache().shrink(frames);
    }

    fn frame_cache(&self) -> MutexGuard<'_, FrameCache> {
        lock(&self.frame_cache)
    }

    /// The cursor of a client of this lens that has been served up to `rv`.
    pub(super) fn cursor(&self, namespace: NamespaceId, rv: PerResource<ResourceVersion>) -> String {
        Cursor::new(namespace, self.hash, self.projection.types.resources(), rv).encode()
    }

    /// The frames from a position of the log on, until about `max_bytes` of them are there; `None` when the log no
    /// longer reaches back to it.
    pub(super) fn frames(
        &self,
        shared: &Shared,
        namespace: NamespaceId,
        from: u64,
        max_bytes: usize,
    ) -> Option<Vec<Frame>> {
        if shared.hub_feed.is_some() {
            return self.render_uncached(shared, namespace, from, max_bytes);
        }
        let kept = self.catch_up(shared, namespace, from)?;
        let frames = (from >= kept.first()).then(|| take_up_to(kept.frames_from(from).cloned(), max_bytes));
        drop(kept);
        frames.or_else(|| self.render_uncached(shared, namespace, from, max_bytes))
    }

    /// How far the log goes from a position, and whether anything on the way concerns those who look through the lens.
    /// Where it cannot be known here, something does.
    pub(super) fn has_relevant_since(&self, shared: &Shared, from: u64) -> (u64, bool) {
        let namespace = shared.state().synced_namespace();
        let kept = namespace.ok().and_then(|namespace| self.catch_up(shared, namespace, from));
        let news = kept.filter(|kept| from >= kept.first()).map(|kept| {
            let concerns = kept.frames_from(from).any(|frame| !frame.is_empty_for_all());
            (kept.end(), concerns)
        });
        news.unwrap_or_else(|| (*shared.log_end.borrow(), true))
    }

    /// What is shown to all who are at a position, as one piece of at most `max_bytes`.
    pub(super) fn shared_batch(&self, from: u64, max_bytes: usize) -> Option<SharedBatch> {
        let kept = self.frame_cache();
        if from < kept.first() {
            return None;
        }
        let new = kept.frames_from(from);
        if new.clone().any(|frame| frame.per_client) {
            return None;
        }
        let after = new.clone().last()?.versions_after;
        let bytes: usize = new.clone().map(|frame| frame.bytes.len()).sum();
        let mut told = new.map(|frame| &frame.bytes).filter(|bytes| !bytes.is_empty());
        let bytes = match (told.next()?, told.next()) {
            _ if bytes > max_bytes => return None,
            (only, None) => only.clone(),
            (first, Some(second)) => {
                [first, second].into_iter().chain(told).flatten().copied().collect::<Vec<u8>>().into()
            }
        };
        Some(SharedBatch { from, to: kept.end(), versions_after: after, bytes })
    }

    /// What is kept, with the newest steps framed, if the log goes on from it or from a position. What is at the position
    /// may no longer be kept.
    fn catch_up(&self, shared: &Shared, namespace: NamespaceId, from: u64) -> Option<MutexGuard<'_, FrameCache>> {
        let mut kept = self.frame_cache();
        if from > kept.end() {
            kept.reset_to(from);
        }
        // Most readers come when another has framed everything: they need not ask for the feed's lock.
        while from >= kept.first() && kept.end() < *shared.log_end.borrow() {
            let steps = read_entries(shared, kept.end())?;
            if steps.is_empty() {
                break;
            }
            for (step, to) in steps.iter().zip(kept.end() + 1..) {
                let frame = self.render_entry(shared, namespace, step, to, step.versions_after);
                kept.push(frame);
            }
        }
        Some(kept)
    }

    /// Frames for one reader, rendered until `max_bytes` are there.
    fn render_uncached(
        &self,
        shared: &Shared,
        namespace: NamespaceId,
        from: u64,
        max_bytes: usize,
    ) -> Option<Vec<Frame>> {
        let steps = read_entries(shared, from)?;
        let frames = steps
            .iter()
            .zip(from + 1..)
            .map(|(step, to)| self.render_entry(shared, namespace, step, to, step.versions_after));
        Some(take_up_to(frames, max_bytes))
    }

    /// One step as frames, the cursor `at` on the last event that passes; the log goes on at `to`.
    pub(super) fn render_entry(
        &self,
        shared: &Shared,
        namespace: NamespaceId,
        step: &LogEntry,
        to: u64,
        at: PerResource<ResourceVersion>,
    ) -> Frame {
        shared.metrics.renders.inc();
        let mut bytes = Vec::new();
        match &step.kind {
            EntryKind::ChangeSet(version) => {
                self.version(&mut bytes, shared, namespace, step.observed_at_ms, version, at)
            }
            EntryKind::Ephemeral(notice) => {
                let time = render::format_timestamp(step.observed_at_ms);
                if let Some((name, body)) = render::render_ephemeral(notice, &self.projection, &time) {
                    self.append_body(&mut bytes, name, None, body);
                }
            }
        }
        let restart = step.change_set().is_some_and(|version| version.history_reset);
        let own = restart || matches!(step.kind, EntryKind::Ephemeral(EphemeralEvent::Upstream { .. }));
        Frame { to, bytes: bytes.into(), versions_after: at, history_reset: restart, per_client: own }
    }

    fn version(
        &self,
        out: &mut Vec<u8>,
        shared: &Shared,
        namespace: NamespaceId,
        at_ms: u64,
        version: &ChangeSet,
        at: PerResource<ResourceVersion>,
    ) {
        let full = self.projection.format == EventFormat::Full;
        let time = full.then(|| render::format_timestamp(at_ms));
        // Each is put when the next one comes: only the last has an `id`.
        let mut last = None;
        render::render_change_set(version, &self.projection, |event| {
            if let Some(before) = last.replace(event) {
                self.append_event(out, before, None, time.as_deref());
            }
        });
        match last {
            Some(last) => {
                self.append_event(out, last, full.then(|| self.cursor(namespace, at)).as_deref(), time.as_deref())
            }
            // G3: something may have come and gone unseen, and the client is told so.
            None if full && version.coalesced_from.is_some() && self.projection.types.resources()[version.resource] => {
                self.heartbeat(out, shared, namespace, at, true);
            }
            None => {}
        }
    }

    fn append_event<'a>(
        &self,
        out: &mut Vec<u8>,
        mut event: render::Event<'a>,
        id: Option<&'a str>,
        time: Option<&'a str>,
    ) {
        (event.id, event.time) = (id, time);
        let json = json::to_string(&event).expect("events have string keys only");
        self.framing.append_frame(out, event.event_type, id, &json);
    }

    /// A heartbeat of a client that has been served up to `at`.
    pub(super) fn heartbeat(
        &self,
        out: &mut Vec<u8>,
        shared: &Shared,
        namespace: NamespaceId,
        at: PerResource<ResourceVersion>,
        coalesced: bool,
    ) {
        let id = self.cursor(namespace, at);
        let timestamp = render::format_timestamp((shared.config.wall_clock_ms)());
        let (upstream, upstream_age_ms) = shared.upstream_status();
        let body = render::Heartbeat { id: &id, timestamp: &timestamp, upstream, upstream_age_ms, coalesced };
        self.append_body(out, "heartbeat", Some(&id), body);
    }

    /// All pools that the lens shows, as `pool.depth`.
    pub(super) fn pools(&self, out: &mut Vec<u8>, shared: &Shared) {
        let inventory = shared.state().inventory.clone();
        let time = render::format_timestamp((shared.config.wall_clock_ms)());
        for pool in inventory.pools() {
            if let Some((name, body)) =
                render::render_ephemeral(&EphemeralEvent::PoolDepth(pool), &self.projection, &time)
            {
                self.append_body(out, name, None, body);
            }
        }
    }

    fn append_body(&self, out: &mut Vec<u8>, name: &'static str, id: Option<&str>, body: impl Serialize) {
        let kind = self.framing.name(name);
        let json = json::to_string(&Message { kind, body }).expect("events have string keys only");
        self.framing.append_frame(out, kind, id, &json);
    }

    /// Whether a state at `rv` is not older than `floor` in any resource that the lens needs.
    pub(super) fn covers(&self, rv: PerResource<ResourceVersion>, floor: PerResource<ResourceVersion>) -> bool {
        let required = self.projection.types.resources();
        Resource::ALL.into_iter().all(|resource| !required[resource] || rv[resource] >= floor[resource])
    }
}

impl Drop for ProjectionCache {
    fn drop(&mut self) {
        self.in_use.dec();
    }
}

/// What is shown to everybody of an audience who is at one position.
#[derive(Clone, Debug)]
pub struct SharedBatch {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) versions_after: PerResource<ResourceVersion>,
    /// Complete frames.
    pub bytes: Bytes,
}

impl SharedBatch {
    /// The position after it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.to
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

/// Steps fetched from the log at once: bounds what is cloned under its lock.
const ENTRIES_PER_READ: usize = 256;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn read_entries(shared: &Shared, from: u64) -> Option<Vec<Arc<LogEntry>>> {
    let state: MutexGuard<'_, _> = shared.state();
    let steps = state.log.read_from(from, ENTRIES_PER_READ)?.cloned().collect();
    Some(steps)
}

fn take_up_to(frames: impl Iterator<Item = Frame>, max_bytes: usize) -> Vec<Frame> {
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
