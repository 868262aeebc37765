//! Log entries: the elements of the ring log. An entry is a change set or an ephemeral event.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use super::{Instance, MqttMessage, PerResource, Resource, ResourceVersion, Telemetry, View};

/// The old and the new view of one object. At least one side is present, and both sides have the same uid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The view before the change; `None` if the object was created.
    pub old: Option<View>,
    /// The view after the change; `None` if the object was deleted.
    pub new: Option<View>,
}

/// One entry of the ring log.
#[derive(Clone, Debug)]
pub struct LogEntry {
    /// The versions of both resources after this entry. Each replica interleaves the two resources in its own way.
    pub versions_after: PerResource<ResourceVersion>,
    /// When this replica received it, in milliseconds since the Unix epoch.
    pub observed_at_ms: u64,
    /// The content.
    pub kind: EntryKind,
}

/// The content of a log entry.
#[derive(Clone, Debug)]
pub enum EntryKind {
    /// Changes of objects, which have a resourceVersion.
    ChangeSet(ChangeSet),
    /// An event without a resourceVersion. It reaches the streams that are open, and it is not sent again.
    Ephemeral(EphemeralEvent),
}

/// All changes of one resourceVersion; after a re-list, all differences that the list shows.
#[derive(Clone, Debug)]
pub struct ChangeSet {
    /// The resource of `version`.
    pub resource: Resource,
    /// The resourceVersion after the changes.
    pub version: ResourceVersion,
    /// After a re-list, deletions come first, then the other changes in resourceVersion order.
    pub changes: Box<[Change]>,
    /// Set if the changes are the difference to this earlier version of the resource. States between the two versions
    /// may be missing, and so are objects that existed only in between. The difference is therefore correct for clients
    /// at this version, and not for clients between the two versions.
    pub coalesced_from: Option<ResourceVersion>,
    /// Set if resourceVersions went backwards, because etcd was restored from an older backup. Versions before this
    /// entry belong to another history.
    pub history_reset: bool,
}

/// An event without a resourceVersion. Except for MQTT messages, the newest one of a kind replaces older ones.
#[derive(Clone, Debug)]
pub enum EphemeralEvent {
    /// `upstream.down` (with a reason) or `upstream.up`.
    Upstream {
        /// What is down or up: the plural of a resource, or `nats`.
        resource: &'static str,
        /// Why it is down; `None` if it is up again.
        down_reason: Option<Arc<str>>,
        /// When the last byte arrived before it went down, in milliseconds since the Unix epoch.
        last_byte_ms: u64,
    },
    /// `pool.depth`.
    PoolDepth(PoolDepth),
    /// `telemetry`.
    Telemetry {
        /// The instance, as it was when the telemetry was published: rights and filters are those of this view.
        instance: Arc<Instance>,
        /// The values.
        telemetry: Arc<Telemetry>,
    },
    /// `mqtt.message`.
    MqttMessage {
        /// The message.
        message: Arc<MqttMessage>,
        /// [`MqttMessage::charged_bytes`], so that it is not computed under the lock of a feed.
        charged_bytes: usize,
    },
}

impl EphemeralEvent {
    /// Returns the bytes that are charged for what the event holds beside its own size. The instance of a `telemetry` event
    /// is charged to the inventory or to the change that replaced it.
    fn charged_bytes(&self) -> usize {
        match self {
            EphemeralEvent::Upstream { .. } | EphemeralEvent::PoolDepth(_) => 0,
            EphemeralEvent::Telemetry { telemetry, .. } => telemetry.charged_bytes(),
            EphemeralEvent::MqttMessage { charged_bytes, .. } => *charged_bytes,
        }
    }
}

/// Number of instances of one workload by pool status (docs/protocol.md#objects).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Pool")]
pub struct PoolDepth {
    /// The workload.
    pub workload_ref: String,
    /// Instances with pool status `warming`.
    pub warming: u64,
    /// Instances with pool status `ready`.
    pub ready: u64,
    /// Instances with pool status `acquired`.
    pub acquired: u64,
}

impl Change {
    /// Returns the new view, or the old view if the object was deleted.
    #[must_use]
    pub fn any_side(&self) -> Option<&View> {
        self.new.as_ref().or(self.old.as_ref())
    }
}

impl ChangeSet {
    /// Returns the bytes that are charged for holding the log entry of this change set: [`LogEntry::charged_bytes`].
    #[must_use]
    pub fn charged_bytes(&self) -> usize {
        let old = self.changes.iter().map(|c| size_of::<Change>() + c.old.as_ref().map_or(0, View::charged_bytes));
        size_of::<LogEntry>() + old.sum::<usize>()
    }
}

impl LogEntry {
    /// Returns the bytes that are charged for holding the entry: its own size, and the old view of each change or the
    /// content of an ephemeral event.
    ///
    /// The new view is charged to the inventory. It becomes the old view of the object's next change and is charged
    /// there.
    #[must_use]
    pub fn charged_bytes(&self) -> usize {
        match &self.kind {
            EntryKind::ChangeSet(change_set) => change_set.charged_bytes(),
            EntryKind::Ephemeral(event) => size_of::<LogEntry>() + event.charged_bytes(),
        }
    }

    /// Returns the change set, or `None` for an ephemeral event.
    #[must_use]
    pub fn change_set(&self) -> Option<&ChangeSet> {
        match &self.kind {
            EntryKind::ChangeSet(change_set) => Some(change_set),
            EntryKind::Ephemeral(_) => None,
        }
    }

    /// Returns what `upstream.down` or `upstream.up` is about, and whether that is down; `None` for another entry.
    #[must_use]
    pub fn upstream(&self) -> Option<(&'static str, bool)> {
        match &self.kind {
            EntryKind::Ephemeral(EphemeralEvent::Upstream { resource, down_reason, .. }) => {
                Some((resource, down_reason.is_some()))
            }
            _ => None,
        }
    }
}
