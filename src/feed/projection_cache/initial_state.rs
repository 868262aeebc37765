//! An initial state: a snapshot, and the parts of it that have been encoded so far.
//!
//! *Guarantees:*
//! - A part is encoded when a subscription reaches it. The parts are a function of the snapshot and the projection, so all
//!   subscriptions of a projection share them, and a part that was dropped can be encoded again.
//! - Every cached byte is charged to the sum over all projections of the feed.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::Instant;

use crate::{
    event::{LogEntry, Resource},
    feed::{
        snapshot::Snapshot,
        state::{Shared, State},
        types::SnapshotReason,
    },
};

/// After a change, an initial state whose parts are all encoded is reused for at most this many times the time of the
/// encoding...
const REUSE_FACTOR: u32 = 10;
/// ...and for at most this time (docs/architecture.md#feed-contract, item 6).
const REUSE_LIMIT: Duration = Duration::from_secs(1);

/// A snapshot that subscriptions send part by part. [`Snapshot::position`] is the position of the log after it.
#[derive(Debug)]
pub(in crate::feed) struct InitialState {
    pub(in crate::feed) snapshot: Snapshot,
    pub(in crate::feed) history_epoch: u64,
    /// What was down at the position of the snapshot.
    pub(in crate::feed) outages: Vec<Arc<LogEntry>>,
    pub(super) reason: SnapshotReason,
    /// The time of the snapshot, in milliseconds since the Unix epoch.
    pub(in crate::feed) snapshot_at_ms: u64,
    created_at: Instant,
    /// Nanoseconds that the encoding of all parts has taken; 0 until the last one is encoded.
    encode_nanos: AtomicU64,
    parts: Mutex<Parts>,
}

/// The parts that have been encoded, and the place of the next one.
#[derive(Debug)]
struct Parts {
    list: Vec<Part>,
    /// The time that the encoding of the list has taken.
    encode_time: Duration,
    /// The bytes of the cached parts. They are part of `cached_bytes`.
    charged: usize,
    /// The sum over all projections.
    cached_bytes: Gauge,
}

#[derive(Debug)]
struct Part {
    /// `None` for the end.
    start: Option<PartStart>,
    bytes: Option<Bytes>,
}

/// The first object of a part.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PartStart {
    /// The first object of this resource whose name is not before this one.
    Object(Resource, String),
    /// The pool with this index.
    Pool(usize),
}

impl Default for PartStart {
    /// The first object.
    fn default() -> PartStart {
        PartStart::Object(Resource::Pods, String::new())
    }
}

impl InitialState {
    /// Creates an initial state of which nothing is encoded yet.
    pub(super) fn new(
        shared: &Shared,
        snapshot: Snapshot,
        history_epoch: u64,
        outages: Vec<Arc<LogEntry>>,
        reason: SnapshotReason,
        cached_bytes: Gauge,
    ) -> InitialState {
        shared.metrics.initial_states_encoded.inc();
        let list = vec![Part { start: Some(PartStart::default()), bytes: None }];
        InitialState {
            snapshot,
            history_epoch,
            outages,
            reason,
            snapshot_at_ms: (shared.config.wall_clock_ms)(),
            created_at: Instant::now(),
            encode_nanos: AtomicU64::new(0),
            parts: Mutex::new(Parts { list, encode_time: Duration::ZERO, charged: 0, cached_bytes }),
        }
    }

    /// Returns the part with this index, or `None` after the last one. A part may be empty. `encode` returns the part that
    /// starts at a place, and the start of the next part; `None` after the last part.
    ///
    /// Encoding takes about 0.1 ms, and 2 ms for a filter that excludes 10,000 objects. Meanwhile
    /// other subscriptions of the projection wait here, and then share the result. The parts before the index must have
    /// been returned before.
    pub(super) fn part(
        &self,
        shared: &Shared,
        index: usize,
        encode: impl FnOnce(&PartStart) -> (Bytes, Option<PartStart>),
    ) -> Option<Bytes> {
        let mut parts = self.lock_parts();
        let part = parts.list.get(index)?;
        let start = part.start.as_ref()?;
        if let Some(bytes) = &part.bytes {
            return Some(bytes.clone());
        }
        let started_at = Instant::now();
        let (bytes, next) = encode(start);
        // A dedicated feed has one subscription, which reads each part once.
        if shared.hub_feed.is_none() {
            parts.cache(index, &bytes);
        }
        if parts.list.len() == index + 1 {
            parts.encode_time += started_at.elapsed();
            if next.is_none() {
                shared.metrics.initial_state_encode_seconds.observe(parts.encode_time.as_secs_f64());
                let nanos = u64::try_from(parts.encode_time.as_nanos()).unwrap_or(u64::MAX);
                self.encode_nanos.store(nanos.max(1), Relaxed);
            }
            parts.list.push(Part { start: next, bytes: None });
        }
        Some(bytes)
    }

    /// Returns whether [`InitialState::part`] returns this part without encoding or waiting.
    pub(in crate::feed) fn has_part(&self, index: usize) -> bool {
        self.parts
            .try_lock()
            .is_ok_and(|parts| parts.list.get(index).is_none_or(|part| part.start.is_none() || part.bytes.is_some()))
    }

    /// Drops the cached parts.
    pub(super) fn drop_parts(&self) {
        self.lock_parts().drop_all();
    }

    /// Returns whether it must not be reused after a change of the state. It never waits for an encoding.
    pub(super) fn is_stale(&self) -> bool {
        let (age, encode_nanos) = (self.created_at.elapsed(), self.encode_nanos.load(Relaxed));
        let is_encoded = encode_nanos > 0;
        age >= REUSE_LIMIT || (is_encoded && age >= Duration::from_nanos(encode_nanos) * REUSE_FACTOR)
    }

    /// Returns whether it may be sent to another subscription now: nothing has changed, or it is not stale and the log
    /// continues from it in the same history.
    pub(super) fn is_reusable(&self, state: &State) -> bool {
        let position = self.snapshot.position;
        if self.history_epoch != state.history_epoch {
            return false;
        }
        // The reason of an outage can change without an entry of the log.
        let is_current = position == state.log.end_position()
            && self.outages.iter().map(Arc::as_ptr).eq(state.outages.values().map(Arc::as_ptr));
        is_current || (!self.is_stale() && position >= state.log.first_position())
    }

    fn lock_parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Parts {
    fn cache(&mut self, index: usize, bytes: &Bytes) {
        self.list[index].bytes = Some(bytes.clone());
        self.charged += bytes.len();
        self.cached_bytes.inc_by(bytes.len().cast_signed() as i64);
    }

    fn drop_all(&mut self) {
        for part in &mut self.list {
            part.bytes = None;
        }
        self.cached_bytes.dec_by(self.charged.cast_signed() as i64);
        self.charged = 0;
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.drop_all();
    }
}
