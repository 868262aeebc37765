//! An encoded initial state, and its parts while it is encoded.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    event::{Claim, Instance, NamespaceId, PerResource, ResourceVersion},
    feed::state::State,
};

/// An initial state is rebuilt when it is older than this many times what building it took...
const REUSE_FACTOR: u32 = 10;
/// ...but never reused when it is older than this (docs/architecture.md#feed-contract, item 6), unless nothing has changed.
const REUSE_LIMIT: Duration = Duration::from_secs(1);

/// An encoded state, and where the log goes on from it.
#[derive(Debug)]
pub(in crate::feed) struct InitialState {
    pub(in crate::feed) namespace: NamespaceId,
    pub(in crate::feed) parts: Vec<Bytes>,
    pub(in crate::feed) position: u64,
    pub(in crate::feed) versions: PerResource<ResourceVersion>,
    /// How many histories had ended before.
    pub(in crate::feed) history_epoch: u64,
    pub(super) built: Instant,
    pub(super) cost: Duration,
}

impl InitialState {
    /// Bytes charged for keeping it.
    pub(super) fn bytes(&self) -> usize {
        size_of::<InitialState>() + self.parts.iter().map(|part| size_of::<Bytes>() + part.len()).sum::<usize>()
    }

    /// Whether nobody is given it any more once something has changed.
    pub(super) fn is_stale(&self) -> bool {
        let age = self.built.elapsed();
        age >= REUSE_LIMIT || age >= self.cost * REUSE_FACTOR
    }

    pub(super) fn is_reusable(&self, state: &State) -> bool {
        self.position == state.log.end_position() || (!self.is_stale() && self.position >= state.log.first_position())
    }
}

#[derive(Default)]
pub(super) struct Part<'a> {
    pub(super) instances: Vec<&'a Arc<Instance>>,
    pub(super) claims: Vec<&'a Arc<Claim>>,
    bytes: usize,
}

impl<'a> Part<'a> {
    pub(super) fn with_capacity_for<'p>(parts: &'p mut Vec<Part<'a>>, bytes: usize, most: usize) -> &'p mut Part<'a> {
        if parts.last().is_none_or(|part| part.bytes > 0 && part.bytes + bytes > most) {
            parts.push(Part::default());
        }
        let at = parts.len() - 1;
        parts[at].bytes += bytes;
        &mut parts[at]
    }
}
