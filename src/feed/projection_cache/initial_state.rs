//! An encoded initial state, and the parts into which it is divided.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    event::{Claim, Instance, NamespaceId, PerResource, ResourceVersion},
    feed::state::State,
};

/// After a change, an initial state is reused for at most this many times the time of its encoding...
const REUSE_FACTOR: u32 = 10;
/// ...and for at most this time (docs/architecture.md#feed-contract, item 6).
const REUSE_LIMIT: Duration = Duration::from_secs(1);

/// An encoded initial state, and the position of the log after it.
#[derive(Debug)]
pub(in crate::feed) struct InitialState {
    pub(in crate::feed) namespace: NamespaceId,
    pub(in crate::feed) parts: Vec<Bytes>,
    pub(in crate::feed) position: u64,
    pub(in crate::feed) versions: PerResource<ResourceVersion>,
    pub(in crate::feed) history_epoch: u64,
    pub(super) encoded_at: Instant,
    pub(super) encode_time: Duration,
}

impl InitialState {
    /// Returns the bytes charged for caching it.
    pub(super) fn charged_bytes(&self) -> usize {
        size_of::<InitialState>() + self.parts.iter().map(|part| size_of::<Bytes>() + part.len()).sum::<usize>()
    }

    /// Returns whether it must not be reused after a change of the state.
    pub(super) fn is_stale(&self) -> bool {
        let age = self.encoded_at.elapsed();
        age >= REUSE_LIMIT || age >= self.encode_time * REUSE_FACTOR
    }

    /// Returns whether it may be sent now: nothing has changed, or it is not stale and the log continues from it.
    pub(super) fn is_reusable(&self, state: &State) -> bool {
        self.position == state.log.end_position() || (!self.is_stale() && self.position >= state.log.first_position())
    }
}

/// The objects of one part of `state.initial`.
#[derive(Default)]
pub(super) struct Part<'a> {
    pub(super) instances: Vec<&'a Arc<Instance>>,
    pub(super) claims: Vec<&'a Arc<Claim>>,
    charged_bytes: usize,
}

impl<'a> Part<'a> {
    /// Returns the part for an object that is charged `bytes`: the last part, or a new one if the last part has objects
    /// and would exceed `max_bytes`.
    pub(super) fn with_capacity_for<'p>(
        parts: &'p mut Vec<Part<'a>>,
        bytes: usize,
        max_bytes: usize,
    ) -> &'p mut Part<'a> {
        if parts.last().is_none_or(|part| part.charged_bytes > 0 && part.charged_bytes + bytes > max_bytes) {
            parts.push(Part::default());
        }
        let last = parts.len() - 1;
        parts[last].charged_bytes += bytes;
        &mut parts[last]
    }
}
