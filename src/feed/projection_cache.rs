//! The projection cache: renders and frames each log entry once for all subscriptions with the same projection and
//! framing, which share the bytes.
//!
//! *Owns* the cached frames ([`frame_cache`]) and the initial states of one projection ([`initial_state`]).
//!
//! *Guarantees:* correctness does not depend on the cache. If the frames at a position are no longer cached, the entries
//! are rendered again for that one read.
//!
//! The methods that fill the cache do not keep the common byte budget: `feed/inner.rs` trims after each of them.

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
use super::{filter_index::Marks, framing::Framing, state::Shared, types::SnapshotReason};
use crate::{
    event::{
        ChangeSet, Cursor, EntryKind, EphemeralEvent, LogEntry, NamespaceId, PerResource, Resource, ResourceVersion,
        projection::{EventFormat, Projection},
        render,
    },
    wire::json,
};

/// Entries read from the log at once. It bounds the work under the lock of the feed.
pub(super) const ENTRIES_PER_READ: usize = 256;

/// A projection in use, with the bytes that its subscriptions share.
#[derive(Debug)]
pub struct ProjectionCache {
    pub(super) projection: Projection,
    pub(super) framing: Framing,
    /// [`Projection::fingerprint`], which is part of each cursor.
    fingerprint: u64,
    frame_cache: Mutex<FrameCache>,
    /// The entries that can concern the projection; `None` if each one can.
    marks: Option<Arc<Marks>>,
    /// Its number. No other projection of the process has it.
    id: usize,
    /// Bytes cached for all projections.
    cached_bytes: Gauge,
    /// The number of projections in use.
    in_use: Gauge,
}

/// What a heartbeat says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeartbeatKind {
    /// How far the client has been served.
    Periodic,
    /// As `Periodic`, and that the resume of the client is being prepared.
    Syncing,
    /// The cursor passes a difference without an event for the client.
    Coalesced,
}

/// The bytes that every member of a fan-out group at one position receives.
#[derive(Clone, Debug)]
pub struct SharedBatch {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) versions_after: PerResource<ResourceVersion>,
    /// Complete frames.
    pub bytes: Bytes,
}

impl SharedBatch {
    /// Returns a batch of a log that has no resource versions.
    #[must_use]
    pub fn new(from: u64, to: u64, bytes: Bytes) -> SharedBatch {
        SharedBatch { from, to, versions_after: PerResource::default(), bytes }
    }

    /// Returns the position of the first entry.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.from
    }

    /// Returns the position after the batch.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.to
    }
}

impl ProjectionCache {
    /// Creates an empty cache. It adds its bytes to `cached_bytes` and itself to `in_use`, until it is dropped.
    pub(super) fn new(
        projection: Projection,
        framing: Framing,
        id: usize,
        marks: Option<Arc<Marks>>,
        cached_bytes: Gauge,
        in_use: Gauge,
    ) -> ProjectionCache {
        in_use.inc();
        let fingerprint = projection.fingerprint();
        ProjectionCache {
            projection,
            framing,
            fingerprint,
            frame_cache: Mutex::new(FrameCache::new(cached_bytes.clone())),
            marks,
            id,
            cached_bytes,
            in_use,
        }
    }

    /// Returns the number of the projection.
    pub(super) fn id(&self) -> usize {
        self.id
    }

    /// Returns whether the index of filters marks the entries that can concern the projection.
    pub(super) fn is_indexed(&self) -> bool {
        self.marks.is_some()
    }

    /// Drops the cached parts of initial states, and all frames but this number of newest ones.
    pub(super) fn shrink_to(&self, max_frames: usize) {
        self.frame_cache().shrink(max_frames);
    }

    fn frame_cache(&self) -> MutexGuard<'_, FrameCache> {
        lock(&self.frame_cache)
    }

    /// Returns the cursor of a client of this projection that has received everything up to these versions.
    pub(super) fn cursor(&self, namespace: NamespaceId, versions: PerResource<ResourceVersion>) -> String {
        Cursor::new(namespace, self.fingerprint, self.projection.types.resources(), versions).encode()
    }

    /// Returns the current state, or a recent one from which the log continues, at `min_position` or later. `None` while the
    /// state is below `not_before`, or not complete.
    pub(super) fn initial_state(
        &self,
        shared: &Shared,
        reason: SnapshotReason,
        not_before: PerResource<ResourceVersion>,
        min_position: u64,
    ) -> Option<Arc<InitialState>> {
        // A subscription that starts meanwhile waits here, and then finds the state in the cache.
        let mut cache = self.frame_cache();
        let state = shared.state();
        if let Some(cached) = cache
            .initial_state(reason)
            .filter(|cached| cached.is_reusable(&state) && self.covers(cached.snapshot.versions, not_before))
            .filter(|cached| cached.snapshot.position >= min_position)
        {
            return Some(cached);
        }
        if !self.covers(state.latest_versions, not_before) {
            return None;
        }
        let (snapshot, history_epoch, outages) = (state.snapshot().ok()?, state.history_epoch, state.outages());
        drop(state);
        let cached_bytes = self.cached_bytes.clone();
        let initial = Arc::new(InitialState::new(shared, snapshot, history_epoch, outages, reason, cached_bytes));
        if shared.hub_feed.is_none() {
            cache.store_initial(&initial);
        }
        Some(initial)
    }

    /// Returns the frames from a position of the log on: about `max_bytes` of them, at least one. `None` means that the
    /// log has evicted the entry at the position.
    pub(super) fn frames(&self, shared: &Shared, from: u64, max_bytes: usize) -> Option<Vec<Frame>> {
        if shared.hub_feed.is_some() {
            return self.render_uncached(shared, from, max_bytes);
        }
        let cache = self.catch_up(shared, from)?;
        let frames = (from >= cache.first()).then(|| take_up_to(cache.frames_from(from).cloned(), max_bytes));
        drop(cache);
        frames.or_else(|| self.render_uncached(shared, from, max_bytes))
    }

    /// Returns the end of the log, and whether an entry from `from` up to it is relevant for this projection. If the
    /// cache cannot decide, the answer is `true`.
    pub(super) fn has_relevant_since(&self, shared: &Shared, from: u64) -> (u64, bool) {
        let cache = self.catch_up(shared, from);
        let relevant = cache.filter(|cache| from >= cache.first()).map(|cache| {
            let is_relevant = cache.frames_from(from).any(|frame| !frame.is_empty_for_all());
            (cache.end(), is_relevant)
        });
        relevant.unwrap_or_else(|| (*shared.log_end.borrow(), true))
    }

    /// Returns all cached frames from a position on as one batch. `None` if there is nothing to send, if the batch
    /// exceeds `max_bytes`, or if each subscription must process a frame by itself.
    pub(super) fn shared_batch(&self, from: u64, max_bytes: usize) -> Option<SharedBatch> {
        let cache = self.frame_cache();
        if from < cache.first() {
            return None;
        }
        let frames = cache.frames_from(from);
        if frames.clone().any(Frame::is_per_client) {
            return None;
        }
        let versions_after = frames.clone().last()?.versions_after;
        let total_bytes: usize = frames.clone().map(|frame| frame.bytes.len()).sum();
        let mut non_empty = frames.map(|frame| &frame.bytes).filter(|bytes| !bytes.is_empty());
        let bytes = match (non_empty.next()?, non_empty.next()) {
            _ if total_bytes > max_bytes => return None,
            (only, None) => only.clone(),
            (first, Some(second)) => {
                [first, second].into_iter().chain(non_empty).flatten().copied().collect::<Vec<u8>>().into()
            }
        };
        Some(SharedBatch { from, to: cache.end(), versions_after, bytes })
    }

    /// Renders the newest entries of the log into the cache and returns the cache. `None` means that the log has evicted
    /// an entry that is needed. The frame at `from` may have been evicted from the cache.
    fn catch_up(&self, shared: &Shared, from: u64) -> Option<MutexGuard<'_, FrameCache>> {
        let mut cache = self.frame_cache();
        if from > cache.end() {
            cache.reset_to(from);
        }
        // For most reads another subscription has rendered everything. They do not need the lock of the feed.
        loop {
            let log_end = *shared.log_end.borrow();
            if from < cache.first() || cache.end() >= log_end {
                break;
            }
            let mut max_entries = ENTRIES_PER_READ;
            if let Some(marks) = &self.marks {
                let next = marks.next_from(cache.end(), log_end);
                if next > cache.end() {
                    let last_skipped = read_entries(shared, next - 1, 1)?.1.pop()?;
                    cache.push(Frame::empty(next, last_skipped.versions_after));
                    continue;
                }
                max_entries = 1;
            }
            let (namespace, entries) = read_entries(shared, cache.end(), max_entries)?;
            if entries.is_empty() {
                break;
            }
            for (entry, to) in entries.iter().zip(cache.end() + 1..) {
                let frame = self.render_entry(shared, namespace, entry, to, entry.versions_after);
                cache.push(frame);
            }
        }
        Some(cache)
    }

    /// Renders entries for one read, until there are `max_bytes`.
    fn render_uncached(&self, shared: &Shared, from: u64, max_bytes: usize) -> Option<Vec<Frame>> {
        let (namespace, entries) = read_entries(shared, from, ENTRIES_PER_READ)?;
        let frames = entries
            .iter()
            .zip(from + 1..)
            .map(|(entry, to)| self.render_entry(shared, namespace, entry, to, entry.versions_after));
        Some(take_up_to(frames, max_bytes))
    }

    /// Renders one entry. The last event that passes the projection carries the cursor at `versions`. `to` is the
    /// position after the entry.
    pub(super) fn render_entry(
        &self,
        shared: &Shared,
        namespace: NamespaceId,
        entry: &Arc<LogEntry>,
        to: u64,
        versions: PerResource<ResourceVersion>,
    ) -> Frame {
        shared.metrics.renders.inc();
        let mut bytes = Vec::new();
        match &entry.kind {
            EntryKind::ChangeSet(change_set) => {
                self.append_change_set(&mut bytes, shared, namespace, entry.observed_at_ms, change_set, versions)
            }
            EntryKind::Ephemeral(event) => self.append_ephemeral(&mut bytes, event, entry.observed_at_ms),
        }
        let history_reset = entry.change_set().is_some_and(|change_set| change_set.history_reset);
        let upstream = entry.upstream().map(|_| entry.clone());
        Frame { to, bytes: bytes.into(), versions_after: versions, history_reset, upstream }
    }

    fn append_change_set(
        &self,
        out: &mut Vec<u8>,
        shared: &Shared,
        namespace: NamespaceId,
        observed_at_ms: u64,
        change_set: &ChangeSet,
        versions: PerResource<ResourceVersion>,
    ) {
        let full = self.projection.format == EventFormat::Full;
        let time = full.then(|| render::format_timestamp(observed_at_ms));
        // Each event is appended when the next one is rendered: only the last one has an `id`.
        let mut last = None;
        render::render_change_set(change_set, &self.projection, |event| {
            if let Some(previous) = last.replace(event) {
                self.append_event(out, previous, None, time.as_deref());
            }
        });
        match last {
            Some(last) => {
                let id = full.then(|| self.cursor(namespace, versions));
                self.append_event(out, last, id.as_deref(), time.as_deref());
            }
            // G3: an object may have been created and deleted in between. The client is informed, even if no event of
            // the difference passes its projection.
            None if full
                && change_set.coalesced_from.is_some()
                && self.projection.types.resources()[change_set.resource] =>
            {
                self.append_heartbeat(out, shared, namespace, versions, HeartbeatKind::Coalesced);
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

    /// Appends a heartbeat of a client that has received everything up to these versions.
    pub(super) fn append_heartbeat(
        &self,
        out: &mut Vec<u8>,
        shared: &Shared,
        namespace: NamespaceId,
        versions: PerResource<ResourceVersion>,
        kind: HeartbeatKind,
    ) {
        let id = self.cursor(namespace, versions);
        let timestamp = render::format_timestamp((shared.config.wall_clock_ms)());
        let (is_live, upstream_age_ms) = shared.upstream_status();
        let upstream = match kind {
            _ if !is_live => "down",
            HeartbeatKind::Syncing => "syncing",
            HeartbeatKind::Periodic | HeartbeatKind::Coalesced => "live",
        };
        let coalesced = kind == HeartbeatKind::Coalesced;
        let body = render::Heartbeat { id: &id, timestamp: &timestamp, upstream, upstream_age_ms, coalesced };
        self.append_body(out, "heartbeat", Some(&id), body);
    }

    /// Appends a `pool.depth` event for each pool that the projection includes.
    pub(super) fn append_pool_depths(&self, out: &mut Vec<u8>, shared: &Shared) {
        let inventory = shared.state().inventory.clone();
        let now_ms = (shared.config.wall_clock_ms)();
        for pool in inventory.pools() {
            self.append_ephemeral(out, &EphemeralEvent::PoolDepth(pool), now_ms);
        }
    }

    /// Appends an ephemeral event without an id, if the projection includes it.
    pub(super) fn append_ephemeral(&self, out: &mut Vec<u8>, event: &EphemeralEvent, observed_at_ms: u64) {
        let time = render::format_timestamp(observed_at_ms);
        if let Some((name, body)) = render::render_ephemeral(event, &self.projection, &time) {
            self.append_body(out, name, None, body);
        }
    }

    fn append_body(&self, out: &mut Vec<u8>, name: &'static str, id: Option<&str>, body: impl Serialize) {
        let event_type = self.framing.name(name);
        let json = json::to_string(&TypedBody { event_type, body }).expect("events have string keys only");
        self.framing.append_frame(out, event_type, id, &json);
    }

    /// Returns whether `versions` are not below `floor` for any resource that the projection needs.
    pub(super) fn covers(&self, versions: PerResource<ResourceVersion>, floor: PerResource<ResourceVersion>) -> bool {
        let required = self.projection.types.resources();
        Resource::ALL.into_iter().all(|resource| !required[resource] || versions[resource] >= floor[resource])
    }
}

impl Drop for ProjectionCache {
    fn drop(&mut self) {
        self.in_use.dec();
    }
}

/// An event whose body does not contain its type.
#[derive(Serialize)]
struct TypedBody<T> {
    #[serde(rename = "type")]
    event_type: &'static str,
    #[serde(flatten)]
    body: T,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads at most `max` entries from a position on, and the namespace to which they belong. A reader may still
/// have an earlier namespace. `None` means that the log has evicted the first entry.
pub(super) fn read_entries(shared: &Shared, from: u64, max: usize) -> Option<(NamespaceId, Vec<Arc<LogEntry>>)> {
    let state = shared.state();
    let entries = state.log.read_from(from, max)?.cloned().collect();
    Some((state.namespace?, entries))
}

/// Collects frames while they have at most `max_bytes` together. The first frame with bytes may be larger.
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
