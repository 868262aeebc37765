//! What the oracle has to assume about a replica of the bridge.

use super::timeline::ReplicaTimeline;

/// What is known about a replica.
#[derive(Debug)]
pub(crate) enum ReplicaKnowledge {
    /// Every response of its API server was recorded.
    Recorded(Box<ReplicaTimeline>),
    /// Its responses were not recorded, but nothing disturbed it: it kept its watches and its log, and could read all
    /// of the history. So it has no reason for a further snapshot, for `upstream.down`, or for a difference, except where
    /// the objects are the same at both ends.
    Undisturbed,
    /// Its responses were not recorded. It may have listed again at any version, and may have lost any part of its log.
    Unknown,
}

impl ReplicaKnowledge {
    pub(super) fn timeline(&self) -> Option<&ReplicaTimeline> {
        match self {
            ReplicaKnowledge::Recorded(timeline) => Some(timeline),
            ReplicaKnowledge::Undisturbed | ReplicaKnowledge::Unknown => None,
        }
    }
}
