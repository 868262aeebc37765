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

use super::{Initial, Reason};
use crate::event::ResourceVersion;

/// Frames that a lens keeps: more than any reader that keeps up is ever behind.
pub(in crate::feed) const FRAMES: usize = 1024;
/// Bytes of frames that a lens keeps.
const FRAMES_BYTES: usize = 256 << 10;
/// Bytes charged for a frame beside its own: its place in a queue that may have grown to twice what is in it.
const FRAME_COST: usize = 2 * size_of::<Frame>();

/// The frames of one step, or of several of which nothing passes the lens: those have no bytes.
#[derive(Clone, Debug)]
pub(in crate::feed) struct Frame {
    /// The position after it.
    pub(in crate::feed) to: u64,
    pub(in crate::feed) bytes: Bytes,
    pub(in crate::feed) after: [ResourceVersion; 2],
    pub(in crate::feed) restart: bool,
    /// Whoever looks through the lens must see for himself what this means for him: another history, or the upstream.
    pub(in crate::feed) own: bool,
}

impl Frame {
    /// Whether there is nothing in it for anybody.
    pub(super) fn is_silent(&self) -> bool {
        self.bytes.is_empty() && !self.own
    }

    fn cost(&self) -> usize {
        FRAME_COST + self.bytes.len()
    }
}

/// What is kept, and charged.
#[derive(Debug)]
pub(super) struct Kept {
    /// Positions: of the first step framed, and after the last one.
    first: u64,
    end: u64,
    frames: VecDeque<Frame>,
    /// Of the frames.
    bytes: usize,
    initial: Option<Last>,
    charged: usize,
    /// What all lenses have charged.
    all: Gauge,
}

/// The last initial state. It can be found for as long as somebody is being sent it, too, which costs nothing here.
#[derive(Debug)]
struct Last {
    reason: Reason,
    initial: Weak<Initial>,
    kept: Option<Arc<Initial>>,
}

impl Kept {
    pub(super) fn new(all: Gauge) -> Kept {
        Kept { first: 0, end: 0, frames: VecDeque::new(), bytes: 0, initial: None, charged: 0, all }
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
    pub(super) fn since(&self, from: u64) -> vec_deque::Iter<'_, Frame> {
        // From the end, where nearly all readers are.
        let mut first = self.frames.len();
        while first > 0 && self.frames[first - 1].to > from {
            first -= 1;
        }
        self.frames.range(first..)
    }

    /// Forgets all frames and begins anew at a position.
    pub(super) fn begin(&mut self, at: u64) {
        (self.first, self.end, self.frames, self.bytes) = (at, at, VecDeque::new(), 0);
        self.charge();
    }

    /// Takes the frame of the step at the end.
    #[inline]
    pub(super) fn push(&mut self, frame: Frame) {
        self.end = frame.to;
        match self.frames.back_mut() {
            Some(last) if last.is_silent() && frame.is_silent() => *last = frame,
            _ => {
                self.bytes += frame.cost();
                self.frames.push_back(frame);
            }
        }
        while self.frames.len() > FRAMES || (self.bytes > FRAMES_BYTES && self.frames.len() > 1) {
            self.drop_oldest();
        }
        // Something has changed, so it will not be given to anybody any more.
        if let Some(last) = &mut self.initial
            && last.kept.as_ref().is_some_and(|initial| initial.is_old())
        {
            last.kept = None;
        }
        self.charge();
    }

    /// The last initial state with this reason, if it is still there.
    pub(super) fn initial(&self, reason: Reason) -> Option<Arc<Initial>> {
        self.initial.as_ref().filter(|last| last.reason == reason)?.initial.upgrade()
    }

    /// Keeps an initial state in place of the last one.
    pub(super) fn keep(&mut self, reason: Reason, initial: &Arc<Initial>) {
        let last = Last { reason, initial: Arc::downgrade(initial), kept: Some(initial.clone()) };
        self.initial = Some(last);
        self.charge();
    }

    /// Lets go of the initial state, and of all but the newest frames, so many.
    pub(super) fn let_go(&mut self, but: usize) {
        if let Some(last) = &mut self.initial {
            last.kept = None;
        }
        if self.frames.len() > but {
            while self.frames.len() > but {
                self.drop_oldest();
            }
            self.frames.shrink_to_fit();
        }
        self.charge();
    }

    fn drop_oldest(&mut self) {
        if let Some(gone) = self.frames.pop_front() {
            self.first = gone.to;
            self.bytes -= gone.cost();
        }
    }

    fn charge(&mut self) {
        let initial = self.initial.as_ref().and_then(|last| last.kept.as_ref());
        let bytes = self.bytes + initial.map_or(0, |initial| initial.bytes());
        if bytes != self.charged {
            self.all.inc_by(bytes.cast_signed() as i64 - self.charged.cast_signed() as i64);
            self.charged = bytes;
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.all.dec_by(self.charged.cast_signed() as i64);
    }
}
