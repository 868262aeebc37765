//! The rest of a history that a backfill has not read to its end (docs/architecture.md#feed-contract, item 5).
//!
//! *Guarantees:* an entry counts as complete only after the proof, and only if its difference has no change.

use std::sync::Arc;

use crate::event::{ChangeSet, EntryKind, LogEntry, Resource, ResourceVersion};

/// The part of a history in which objects that were created and deleted can be missing.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnprovenRest {
    from: ResourceVersion,
    to: ResourceVersion,
}

impl UnprovenRest {
    pub(super) fn new(from: ResourceVersion, to: ResourceVersion) -> UnprovenRest {
        UnprovenRest { from, to }
    }

    /// Returns whether a difference of this resource lies in the rest.
    pub(super) fn contains(self, change_set: &ChangeSet) -> bool {
        change_set.coalesced_from.is_some_and(|from| self.from <= from && change_set.version <= self.to)
    }

    /// Returns the entry as it is when nothing is missing in the rest, if it lies there.
    pub(super) fn proven(self, resource: Resource, entry: &LogEntry) -> Option<Arc<LogEntry>> {
        let EntryKind::ChangeSet(change_set) = &entry.kind else { return None };
        if change_set.resource != resource || !change_set.changes.is_empty() || !self.contains(change_set) {
            return None;
        }
        let change_set = ChangeSet { coalesced_from: None, ..change_set.clone() };
        Some(Arc::new(LogEntry { kind: EntryKind::ChangeSet(change_set), ..entry.clone() }))
    }
}
