//! A step: what one resourceVersion changed. The log is made of these.

use super::{Kind, Rv, View};

/// One object before and after. At least one side is there, and both sides are one life (one uid).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What was known of it before; `None`: first seen.
    pub old: Option<View>,
    /// What is known of it now; `None`: deleted.
    pub new: Option<View>,
}

/// What one resourceVersion changed; for the difference of a re-list, all that a list found changed.
#[derive(Clone, Debug)]
pub struct Step {
    /// The resource whose version this is.
    pub kind: Kind,
    /// The version reached by it.
    pub rv: Rv,
    /// Both resources' versions once it is applied, as this replica interleaved them.
    pub after: [Rv; 2],
    /// In a difference deletions come first, then changes in resourceVersion order.
    pub changes: Box<[Change]>,
    /// Computed from the difference to this earlier version of the resource: states between may have been skipped,
    /// and objects that lived only between are not in it. So it is true for whoever was at `since`, and for nobody
    /// who was between.
    pub since: Option<Rv>,
    /// The history before it is another one (an older copy of etcd was restored): versions went back.
    pub restart: bool,
    /// When this replica saw it, milliseconds since the Unix epoch.
    pub at_ms: u64,
}

impl Change {
    /// The side that is there, the new one first.
    #[must_use]
    pub fn view(&self) -> Option<&View> {
        self.new.as_ref().or(self.old.as_ref())
    }
}

impl Step {
    /// Bytes charged for keeping it: itself, and the views it alone holds (the old side of each change; the new side
    /// is the inventory's until it becomes somebody's old side).
    #[must_use]
    pub fn cost(&self) -> usize {
        let changes = self.changes.iter().map(|c| size_of::<Change>() + c.old.as_ref().map_or(0, View::cost));
        size_of::<Step>() + changes.sum::<usize>()
    }
}
