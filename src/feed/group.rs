//! Those who look through one lens, for whoever tells all of them when there is something to read.

use std::sync::Arc;

use bytes::Bytes;

use super::{Shared, SharedLens};
use crate::event::ResourceVersion;

/// A lens of a feed, from the side of those who look through it.
#[derive(Clone, Debug)]
pub struct Audience {
    shared: Arc<Shared>,
    lens: Arc<SharedLens>,
}

/// What is shown to everybody of an audience who is at one position.
#[derive(Clone, Debug)]
pub struct Shown {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) after: [ResourceVersion; 2],
    /// Complete frames.
    pub bytes: Bytes,
}

impl Shown {
    /// The position after it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.to
    }
}

impl Audience {
    pub(super) fn new(shared: Arc<Shared>, lens: Arc<SharedLens>) -> Audience {
        Audience { shared, lens }
    }

    /// The same number for the same audience, as long as one of both is there.
    #[must_use]
    pub fn key(&self) -> usize {
        Arc::as_ptr(&self.lens).addr()
    }

    /// The position up to which there are steps now.
    #[must_use]
    pub fn end(&self) -> u64 {
        *self.shared.head.borrow()
    }

    /// How far the log goes from a position, and whether anything on the way concerns this audience. The steps are
    /// rendered by it, once for all.
    #[must_use]
    pub fn news(&self, from: u64) -> (u64, bool) {
        self.lens.news(&self.shared, from)
    }

    /// What everybody is shown who is at this position, if it is at most `max_bytes` and no more than frames.
    #[must_use]
    pub fn shown(&self, from: u64, max_bytes: usize) -> Option<Shown> {
        self.lens.shown(from, max_bytes)
    }
}
