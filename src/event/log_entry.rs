//! A step: what one resourceVersion changed, or a notice. The log is made of these.

use std::sync::Arc;

use serde::Serialize;

use super::{PerResource, Resource, ResourceVersion, View};

/// One object before and after. At least one side is there, and both sides are one life (one uid).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What was known of it before; `None`: first seen.
    pub old: Option<View>,
    /// What is known of it now; `None`: deleted.
    pub new: Option<View>,
}

/// One entry of the log.
#[derive(Clone, Debug)]
pub struct LogEntry {
    /// Both resources' versions once it is applied, as this replica interleaved them.
    pub versions_after: PerResource<ResourceVersion>,
    /// When this replica saw it, milliseconds since the Unix epoch.
    pub observed_at_ms: u64,
    /// What it tells.
    pub kind: EntryKind,
}

/// What a step tells.
#[derive(Clone, Debug)]
pub enum EntryKind {
    /// The objects moved on to another version.
    ChangeSet(ChangeSet),
    /// Something that has no version: told to whoever is there, and not again.
    Ephemeral(EphemeralEvent),
}

/// What one resourceVersion changed; for the difference of a re-list, all that a list found changed.
#[derive(Clone, Debug)]
pub struct ChangeSet {
    /// The resource whose version this is.
    pub resource: Resource,
    /// The version reached by it.
    pub version: ResourceVersion,
    /// In a difference deletions come first, then changes in resourceVersion order.
    pub changes: Box<[Change]>,
    /// Computed from the difference to this earlier version of the resource: states between may have been skipped,
    /// and objects that lived only between are not in it. So it is true for whoever was at `since`, and for nobody
    /// who was between.
    pub coalesced_from: Option<ResourceVersion>,
    /// The history before it is another one (an older copy of etcd was restored): versions went back.
    pub history_reset: bool,
}

/// An event without a version: latest wins.
#[derive(Clone, Debug)]
pub enum EphemeralEvent {
    /// `upstream.down` (with a reason) or `upstream.up`.
    Upstream {
        /// The resource that is concerned.
        resource: Resource,
        /// Why it is down; `None`: it is up again.
        down_reason: Option<Arc<str>>,
        /// When its last byte came before it went down, milliseconds since the Unix epoch.
        last_byte_ms: u64,
    },
    /// `pool.depth`.
    PoolDepth(PoolDepth),
}

/// Instances of a workload by pool status (docs/protocol.md#objects).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolDepth {
    /// The workload.
    pub workload_ref: String,
    /// Instances whose status is `warming`.
    pub warming: u64,
    /// Instances whose status is `ready`.
    pub ready: u64,
    /// Instances whose status is `acquired`.
    pub acquired: u64,
}

impl Change {
    /// The side that is there, the new one first.
    #[must_use]
    pub fn any_side(&self) -> Option<&View> {
        self.new.as_ref().or(self.old.as_ref())
    }
}

impl LogEntry {
    /// Bytes charged for keeping it: itself, and the views it alone holds (the old side of each change; the new side
    /// is the inventory's until it becomes somebody's old side).
    #[must_use]
    pub fn charged_bytes(&self) -> usize {
        let changes = self.change_set().map_or(&[][..], |change_set| &change_set.changes);
        let old = changes.iter().map(|c| size_of::<Change>() + c.old.as_ref().map_or(0, View::charged_bytes));
        size_of::<LogEntry>() + old.sum::<usize>()
    }

    /// The version it is, unless it is a notice.
    #[must_use]
    pub fn change_set(&self) -> Option<&ChangeSet> {
        match &self.kind {
            EntryKind::ChangeSet(change_set) => Some(change_set),
            EntryKind::Ephemeral(_) => None,
        }
    }
}
