//! What a lens keeps for its readers: the frames of the newest steps, and the last initial state.
//!
//! Always: every byte of it is charged, in a sum over all lenses of the feed. Steps of which nothing passes are one entry
//! however many they are, so a filter that little passes costs little.

use std::{
    collections::{VecDeque, vec_deque},
    sync::{Arc, Weak},
};

use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;

use super::initial_state::InitialState;
use crate::{
    event::{PerResource, ResourceVersion},
    feed::types::SnapshotReason,
};

/// Frames that a lens keeps: more than any reader that keeps up is ever behind.
pub(in crate::feed) const MAX_FRAMES: usize = 1024;
/// Bytes of frames that a lens keeps.
const MAX_FRAMES_BYTES: usize = 256 << 10;
/// Bytes charged for a frame beside its own: its place in a queue that may have grown to twice what is in it.
const FRAME_COST: usize = 2 * size_of::<Frame>();

/// The frames of one step, or of several of which nothing passes the lens: those have no bytes.
#[derive(Clone, Debug)]
pub(in crate::feed) struct Frame {
    /// The position after it.
    pub(in crate::feed) to: u64,
    pub(in crate::feed) bytes: Bytes,
    pub(in crate::feed) versions_after: PerResource<ResourceVersion>,
    pub(in crate::feed) history_reset: bool,
    /// Whoever looks through the lens must see for himself what this means for him: another history, or the upstream.
    pub(in crate::feed) per_client: bool,
}

impl Frame {
    /// Whether there is nothing in it for anybody.
    pub(super) fn is_empty_for_all(&self) -> bool {
        self.bytes.is_empty() && !self.per_client
    }

    fn cost(&self) -> usize {
        FRAME_COST + self.bytes.len()
    }
}

/// What is kept, and charged.
#[derive(Debug)]
pub(super) struct FrameCache {
    /// Positions: of the first step framed, and after the last one.
    first: u64,
    end: u64,
    frames: VecDeque<Frame>,
    /// Of the frames.
    bytes: usize,
    initial: Option<CachedInitialState>,
    charged: usize,
    /// What all lenses have charged.
    all: Gauge,
}

/// The last initial state. It can be found for as long as somebody is being sent it, too, which costs nothing here.
#[derive(Debug)]
struct CachedInitialState {
    reason: SnapshotReason,
    initial: Weak<InitialState>,
    cached: Option<Arc<InitialState>>,
}

impl FrameCache {
    pub(super) fn new(all: Gauge) -> FrameCache {
        FrameCache { first: 0, end: 0, frames: VecDeque::new(), bytes: 0, initial: None, charged: 0, all }
    }

    /// The position of the first step framed.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// The position after the last one.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The frames from a position on; the first may begin before it, if it is empty.
    pub(super) fn frames_from(&self, from: u64) -> vec_deque::Iter<'_, Frame> {
        // From the end, where nearly all readers are.
        let mut first = self.frames.len();
        while first > 0 && self.frames[first - 1].to > from {
            first -= 1;
        }
        self.frames.range(first..)
    }

    /// Forgets all frames and begins anew at a position.
    pub(super) fn reset_to(&mut self, at: u64) {
        (self.first, self.end, self.frames, self.bytes) = (at, at, VecDeque::new(), 0);
        self.update_charge();
    }

    /// Takes the frame of the step at the end.
    #[inline]
    pub(super) fn push(&mut self, frame: Frame) {
        self.end = frame.to;
        match self.frames.back_mut() {
            Some(last) if last.is_empty_for_all() && frame.is_empty_for_all() => *last = frame,
            _ => {
                self.bytes += frame.cost();
                self.frames.push_back(frame);
            }
        }
        while self.frames.len() > MAX_FRAMES || (self.bytes > MAX_FRAMES_BYTES && self.frames.len() > 1) {
            self.drop_oldest();
        }
        // Something has changed, so it will not be given to anybody any more.
        if let Some(last) = &mut self.initial
            && last.cached.as_ref().is_some_and(|initial| initial.is_stale())
        {
            last.cached = None;
        }
        self.update_charge();
    }

    /// The last initial state with this reason, if it is still there.
    pub(super) fn initial(&self, reason: SnapshotReason) -> Option<Arc<InitialState>> {
        self.initial.as_ref().filter(|last| last.reason == reason)?.initial.upgrade()
    }

    /// Keeps an initial state in place of the last one.
    pub(super) fn store_initial(&mut self, reason: SnapshotReason, initial: &Arc<InitialState>) {
        let last = CachedInitialState { reason, initial: Arc::downgrade(initial), cached: Some(initial.clone()) };
        self.initial = Some(last);
        self.update_charge();
    }

    /// Lets go of the initial state, and of all but the newest frames, so many.
    pub(super) fn shrink(&mut self, but: usize) {
        if let Some(last) = &mut self.initial {
            last.cached = None;
        }
        if self.frames.len() > but {
            while self.frames.len() > but {
                self.drop_oldest();
            }
            self.frames.shrink_to_fit();
        }
        self.update_charge();
    }

    fn drop_oldest(&mut self) {
        if let Some(gone) = self.frames.pop_front() {
            self.first = gone.to;
            self.bytes -= gone.cost();
        }
    }

    fn update_charge(&mut self) {
        let initial = self.initial.as_ref().and_then(|last| last.cached.as_ref());
        let bytes = self.bytes + initial.map_or(0, |initial| initial.bytes());
        if bytes != self.charged {
            self.all.inc_by(bytes.cast_signed() as i64 - self.charged.cast_signed() as i64);
            self.charged = bytes;
        }
    }
}

impl Drop for FrameCache {
    fn drop(&mut self) {
        self.all.dec_by(self.charged.cast_signed() as i64);
    }
}
