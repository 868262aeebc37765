//! The cached bytes of one projection: the frames of the newest log entries, and the initial states.
//!
//! *Guarantees:*
//! - Every cached byte of a frame is charged to the sum over all projections of the feed. An initial state charges its own.
//! - Adjacent entries without an event for the projection share one frame. A filter that few entries pass costs little.

use std::{
    collections::{VecDeque, vec_deque},
    sync::{Arc, Weak},
};

use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;

use super::initial_state::InitialState;
use crate::{
    event::{LogEntry, PerResource, ResourceVersion},
    feed::types::SnapshotReason,
};

/// Maximum number of cached frames. A subscription that keeps up is never that far behind.
pub(in crate::feed) const MAX_FRAMES: usize = 1024;
/// Maximum bytes of cached frames. One frame may be larger.
const MAX_FRAMES_BYTES: usize = 256 << 10;
/// Bytes charged for a frame in addition to its own: its slot in a queue whose capacity may be twice its length.
const FRAME_OVERHEAD_BYTES: usize = 2 * size_of::<Frame>();

/// The framed events of one log entry, or of several entries without an event for the projection. The latter have no
/// bytes.
#[derive(Clone, Debug)]
pub(in crate::feed) struct Frame {
    /// The position after the entry.
    pub(in crate::feed) to: u64,
    pub(in crate::feed) bytes: Bytes,
    pub(in crate::feed) versions_after: PerResource<ResourceVersion>,
    pub(in crate::feed) history_reset: bool,
    /// The entry, if it is `upstream.down` or `upstream.up`.
    pub(in crate::feed) upstream: Option<Arc<LogEntry>>,
}

impl Frame {
    /// Returns the frame of entries that do not concern the projection. `versions_after` are those after the last of them.
    pub(super) fn empty(to: u64, versions_after: PerResource<ResourceVersion>) -> Frame {
        Frame { to, bytes: Bytes::new(), versions_after, history_reset: false, upstream: None }
    }

    /// Returns whether each subscription must process the entry by itself.
    pub(super) fn is_per_client(&self) -> bool {
        self.history_reset || self.upstream.is_some()
    }

    /// Returns whether the entry has no effect on any subscription of the projection.
    pub(super) fn is_empty_for_all(&self) -> bool {
        self.bytes.is_empty() && !self.is_per_client()
    }

    fn charged_bytes(&self) -> usize {
        FRAME_OVERHEAD_BYTES + self.bytes.len()
    }
}

/// The cached bytes of one projection and their charge.
#[derive(Debug)]
pub(super) struct FrameCache {
    /// The position of the first cached entry.
    first: u64,
    /// The position after the last cached entry.
    end: u64,
    frames: VecDeque<Frame>,
    /// Bytes charged for the frames.
    frame_bytes: usize,
    /// The last initial state, for the next subscription.
    initial_state: Option<Arc<InitialState>>,
    /// All initial states that exist. Subscriptions hold those that are not the last one.
    initial_states: Vec<Weak<InitialState>>,
    /// The part of `cached_bytes` that this cache has added.
    charged: usize,
    /// The sum over all projections.
    cached_bytes: Gauge,
}

impl FrameCache {
    pub(super) fn new(cached_bytes: Gauge) -> FrameCache {
        FrameCache {
            first: 0,
            end: 0,
            frames: VecDeque::new(),
            frame_bytes: 0,
            initial_state: None,
            initial_states: Vec::new(),
            charged: 0,
            cached_bytes,
        }
    }

    /// Returns the position of the first cached entry.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Returns the position after the last cached entry.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Returns the frames from a position on. If the first one is empty, it may start before the position.
    pub(super) fn frames_from(&self, from: u64) -> vec_deque::Iter<'_, Frame> {
        // Searches from the end, because most subscriptions are there.
        let mut first = self.frames.len();
        while first > 0 && self.frames[first - 1].to > from {
            first -= 1;
        }
        self.frames.range(first..)
    }

    /// Drops all frames and starts at another position.
    pub(super) fn reset_to(&mut self, position: u64) {
        (self.first, self.end, self.frames, self.frame_bytes) = (position, position, VecDeque::new(), 0);
        self.update_charge();
    }

    /// Appends the frame of the entry at the end.
    #[inline]
    pub(super) fn push(&mut self, frame: Frame) {
        self.end = frame.to;
        match self.frames.back_mut() {
            Some(last) if last.is_empty_for_all() && frame.is_empty_for_all() => *last = frame,
            _ => {
                self.frame_bytes += frame.charged_bytes();
                self.frames.push_back(frame);
            }
        }
        while self.frames.len() > MAX_FRAMES || (self.frame_bytes > MAX_FRAMES_BYTES && self.frames.len() > 1) {
            self.drop_oldest();
        }
        // The state has changed, so a stale initial state cannot be reused any more.
        if self.initial_state.as_ref().is_some_and(|initial| initial.is_stale()) {
            self.initial_state = None;
        }
        self.update_charge();
    }

    /// Returns the newest initial state that exists and has this reason.
    pub(super) fn initial_state(&self, reason: SnapshotReason) -> Option<Arc<InitialState>> {
        let mut existing = self.initial_states.iter().rev().filter_map(Weak::upgrade);
        existing.find(|initial| initial.reason == reason)
    }

    /// Holds an initial state instead of the last one.
    pub(super) fn store_initial(&mut self, initial: &Arc<InitialState>) {
        self.initial_state = Some(initial.clone());
        self.initial_states.retain(|initial| initial.strong_count() > 0);
        self.initial_states.push(Arc::downgrade(initial));
    }

    /// Drops the cached parts of all initial states, and all frames but this number of newest ones.
    pub(super) fn shrink(&mut self, max_frames: usize) {
        self.initial_state = None;
        for initial in self.initial_states.iter().filter_map(Weak::upgrade) {
            initial.drop_parts();
        }
        if self.frames.len() > max_frames {
            while self.frames.len() > max_frames {
                self.drop_oldest();
            }
            self.frames.shrink_to_fit();
        }
        self.update_charge();
    }

    fn drop_oldest(&mut self) {
        if let Some(dropped) = self.frames.pop_front() {
            self.first = dropped.to;
            self.frame_bytes -= dropped.charged_bytes();
        }
    }

    fn update_charge(&mut self) {
        if self.frame_bytes != self.charged {
            self.cached_bytes.inc_by(self.frame_bytes.cast_signed() as i64 - self.charged.cast_signed() as i64);
            self.charged = self.frame_bytes;
        }
    }
}

impl Drop for FrameCache {
    fn drop(&mut self) {
        self.cached_bytes.dec_by(self.charged.cast_signed() as i64);
    }
}
