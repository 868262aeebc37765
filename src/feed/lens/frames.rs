//! The cache of a lens: the frames of the newest steps, bounded in number and bytes.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::event::Rv;

/// Steps whose frames a lens keeps: more than any reader that keeps up is ever behind.
const FRAMES: usize = 1024;
/// Bytes of frames that a lens keeps.
const FRAMES_BYTES: usize = 256 << 10;

/// The frames of one step; empty when nothing of it passes the lens.
#[derive(Clone, Debug)]
pub(in crate::feed) struct Frame {
    pub(in crate::feed) bytes: Bytes,
    pub(in crate::feed) after: [Rv; 2],
    pub(in crate::feed) restart: bool,
    /// Whoever looks through the lens must see for himself what this means for him: another history, or the upstream.
    pub(in crate::feed) own: bool,
}

/// The frames of consecutive steps.
#[derive(Debug, Default)]
pub(super) struct Frames {
    first: u64,
    frames: VecDeque<Frame>,
    bytes: usize,
}

impl Frames {
    /// None yet; the first will be that of the step at this position of the log.
    pub(super) fn starting(first: u64) -> Frames {
        Frames { first, ..Frames::default() }
    }

    /// The position of the first one in the log.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Behind the last one.
    pub(super) fn end(&self) -> u64 {
        self.first + self.frames.len() as u64
    }

    /// From a position on.
    pub(super) fn since(&self, from: u64) -> impl Iterator<Item = &Frame> {
        self.frames.iter().skip(usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX))
    }

    /// Adds the frames of the next step, and drops the oldest beyond the bounds.
    pub(super) fn push(&mut self, frame: Frame) {
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
