//! A step: what one resourceVersion changed, or a notice. The log is made of these.

use std::sync::Arc;

use serde::Serialize;

use super::{Resource, ResourceVersion, View};

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
pub struct Step {
    /// Both resources' versions once it is applied, as this replica interleaved them.
    pub after: [ResourceVersion; 2],
    /// When this replica saw it, milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// What it tells.
    pub what: What,
}

/// What a step tells.
#[derive(Clone, Debug)]
pub enum What {
    /// The objects moved on to another version.
    Version(Version),
    /// Something that has no version: told to whoever is there, and not again.
    Notice(Notice),
}

/// What one resourceVersion changed; for the difference of a re-list, all that a list found changed.
#[derive(Clone, Debug)]
pub struct Version {
    /// The resource whose version this is.
    pub kind: Resource,
    /// The version reached by it.
    pub rv: ResourceVersion,
    /// In a difference deletions come first, then changes in resourceVersion order.
    pub changes: Box<[Change]>,
    /// Computed from the difference to this earlier version of the resource: states between may have been skipped,
    /// and objects that lived only between are not in it. So it is true for whoever was at `since`, and for nobody
    /// who was between.
    pub since: Option<ResourceVersion>,
    /// The history before it is another one (an older copy of etcd was restored): versions went back.
    pub restart: bool,
}

/// An event without a version: latest wins.
#[derive(Clone, Debug)]
pub enum Notice {
    /// `upstream.down` (with a reason) or `upstream.up`.
    Upstream {
        /// The resource that is concerned.
        kind: Resource,
        /// Why it is down; `None`: it is up again.
        down: Option<Arc<str>>,
        /// When its last byte came before it went down, milliseconds since the Unix epoch.
        since_ms: u64,
    },
    /// `pool.depth`.
    PoolDepth(Pool),
}

/// Instances of a workload by pool status (protocol.md section 1).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
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
    pub fn view(&self) -> Option<&View> {
        self.new.as_ref().or(self.old.as_ref())
    }
}

impl Step {
    /// Bytes charged for keeping it: itself, and the views it alone holds (the old side of each change; the new side
    /// is the inventory's until it becomes somebody's old side).
    #[must_use]
    pub fn cost(&self) -> usize {
        let changes = self.version().map_or(&[][..], |version| &version.changes);
        let old = changes.iter().map(|c| size_of::<Change>() + c.old.as_ref().map_or(0, View::cost));
        size_of::<Step>() + old.sum::<usize>()
    }

    /// The version it is, unless it is a notice.
    #[must_use]
    pub fn version(&self) -> Option<&Version> {
        match &self.what {
            What::Version(version) => Some(version),
            What::Notice(_) => None,
        }
    }
}
