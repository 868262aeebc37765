//! The newest versions and the deletions that dedicated watchers have delivered. A snapshot GET waits until the hub's
//! feed has reached them, so that no GET is older than an event already delivered by this replica (read-your-writes,
//! docs/protocol.md#boilerhouse-stream).
//!
//! *Owns* one watermark for each hub feed, in its state.
//!
//! Changes and deletions that a watch reports have a version, and comparing versions is sufficient for them. A deletion
//! that only a list showed has no version of its own. A tombstone with its uid remains until the hub's feed lacks the
//! object as well, or holds it at a version newer than the list. kube-runtime hides the version of a list, so the
//! newest version among its objects stands for it.

use std::{collections::VecDeque, sync::Arc};

use super::inventory::Inventory;
use crate::event::{LogEntry, PerResource, Resource, ResourceVersion, View};

/// Maximum number of tombstones. They are needed only after a list, until the hub's feed has the deletions as well,
/// usually for milliseconds.
const MAX_TOMBSTONES: usize = 1024;

/// What dedicated feeds have delivered.
#[derive(Clone, Debug, Default)]
pub(super) struct DeliveredWatermark {
    versions: PerResource<ResourceVersion>,
    /// Shared with the snapshot GETs that wait. Mostly empty.
    tombstones: Arc<VecDeque<Tombstone>>,
}

/// The progress of a dedicated feed by one update.
pub(super) struct DedicatedProgress<'a> {
    pub(super) versions_before: PerResource<ResourceVersion>,
    pub(super) synced_before: PerResource<bool>,
    pub(super) versions: PerResource<ResourceVersion>,
    pub(super) synced: PerResource<bool>,
    pub(super) inventory: &'a Inventory,
}

/// An object that was missing from a list.
#[derive(Clone, Debug)]
struct Tombstone {
    resource: Resource,
    name: String,
    uid: String,
    /// The list is not older than this version.
    list_version: ResourceVersion,
}

impl Tombstone {
    fn new(view: &View, list_version: ResourceVersion) -> Tombstone {
        Tombstone { resource: view.resource(), name: view.name().to_owned(), uid: view.uid().to_owned(), list_version }
    }

    /// Returns whether an inventory holds the object in the state before its deletion. A view newer than the list is a
    /// reappeared object, for example a Pod whose label was removed and restored.
    fn is_still_listed(&self, inventory: &Inventory) -> bool {
        inventory
            .get(self.resource, &self.name)
            .is_some_and(|view| view.uid() == self.uid && view.resource_version() <= self.list_version)
    }
}

impl DeliveredWatermark {
    /// Records what one update of a dedicated feed will deliver. `hub` is the inventory from which GETs are answered,
    /// `entry` the log entry of the update. Returns the number of tombstones dropped because of [`MAX_TOMBSTONES`].
    pub(super) fn record(
        &mut self,
        hub: &Inventory,
        dedicated: &DedicatedProgress<'_>,
        entry: Option<&LogEntry>,
    ) -> u64 {
        let mut dropped = 0;
        for resource in Resource::ALL {
            let version = dedicated.versions[resource];
            if version != dedicated.versions_before[resource] {
                self.versions[resource] = self.versions[resource].max(version);
            }
            if dedicated.synced[resource] && !dedicated.synced_before[resource] {
                // An object that is missing from the first list is a deletion for the client. No later event reports it.
                for view in hub.missing_in(dedicated.inventory, resource) {
                    if view.resource_version() <= version {
                        dropped += self.push(Tombstone::new(&view, version));
                    }
                }
            }
        }
        let change_set = entry.and_then(LogEntry::change_set);
        if let Some(change_set) = change_set.filter(|change_set| change_set.coalesced_from.is_some()) {
            for change in change_set.changes.iter().filter(|change| change.new.is_none()) {
                if let Some(view) = change.any_side() {
                    dropped += self.push(Tombstone::new(view, change_set.version));
                }
            }
        }
        dropped
    }

    /// Adds a tombstone. Returns the number of old ones that it replaces.
    fn push(&mut self, tombstone: Tombstone) -> u64 {
        let tombstones = Arc::make_mut(&mut self.tombstones);
        let before = tombstones.len();
        tombstones.truncate(MAX_TOMBSTONES - 1);
        let dropped = before - tombstones.len();
        tombstones.push_front(tombstone);
        dropped as u64
    }

    /// Returns whether a state has reached this watermark. `now` is the current watermark: after a history reset it is
    /// lower than this one, and only the lower one counts.
    pub(super) fn is_covered_by(
        &self,
        now: &DeliveredWatermark,
        versions: PerResource<ResourceVersion>,
        inventory: &Inventory,
    ) -> bool {
        Resource::ALL
            .into_iter()
            .all(|resource| self.versions[resource].min(now.versions[resource]) <= versions[resource])
            && !self.tombstones.iter().any(|tombstone| tombstone.is_still_listed(inventory))
    }

    /// Drops the tombstones of deletions that the hub's feed has: it has reached the version of the list, and lacks the
    /// object.
    pub(super) fn prune(&mut self, versions: PerResource<ResourceVersion>, inventory: &Inventory) {
        if self.tombstones.is_empty() {
            return;
        }
        Arc::make_mut(&mut self.tombstones).retain(|tombstone| {
            versions[tombstone.resource] < tombstone.list_version || tombstone.is_still_listed(inventory)
        });
    }

    /// Drops everything about a resource after a history reset: versions of two histories are not comparable.
    pub(super) fn reset(&mut self, resource: Resource) {
        self.versions[resource] = 0;
        Arc::make_mut(&mut self.tombstones).retain(|tombstone| tombstone.resource != resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::NamespaceId,
        feed::{Config, Feed, NotSynced, Writer},
        test_support::PodBuilder,
    };

    fn pod(name: &str, version: ResourceVersion) -> View {
        PodBuilder::new(name).version(version).view()
    }

    /// A synced feed with these Pods, both resources at version 5.
    fn hub(pods: Vec<View>) -> (Writer, Feed) {
        let (mut writer, feed) =
            Feed::new(Config { read_your_writes_timeout: std::time::Duration::from_millis(1), ..Config::default() });
        writer.set_namespace(NamespaceId::from_uid("home"));
        writer.replace(Resource::Pods, pods, 5);
        writer.replace(Resource::Claims, Vec::new(), 5);
        (writer, feed)
    }

    /// The number of Pods in a snapshot.
    async fn get(feed: &Feed) -> Result<usize, NotSynced> {
        feed.snapshot().await.map(|snapshot| snapshot.inventory.instances.len())
    }

    #[tokio::test(start_paused = true)]
    async fn object_missing_from_the_first_dedicated_list_blocks_snapshots() {
        let (mut writer, feed) = hub(vec![pod("a", 3), pod("b", 4)]);
        let (mut dedicated, _reader) = feed.dedicated();
        dedicated.replace(Resource::Pods, vec![pod("b", 4)], 4);
        assert_eq!(get(&feed).await, Err(NotSynced), "a is deleted, but the hub still has it");
        assert_eq!(feed.inner.metrics.read_your_writes_timeouts.get(), 1);
        writer.remove(Resource::Pods, "a", "uid-a", 6);
        assert_eq!(get(&feed).await, Ok(1));
        assert_eq!(feed.inner.metrics.read_your_writes_timeouts.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn reappearing_object_clears_its_tombstone() {
        let (mut writer, feed) = hub(vec![pod("a", 3), pod("b", 5)]);
        let (mut dedicated, _reader) = feed.dedicated();
        dedicated.replace(Resource::Pods, vec![pod("a", 3), pod("b", 5)], 5);
        // A list from the time when the Pod lacked its label. Then the label is restored for both watches.
        dedicated.replace(Resource::Pods, vec![pod("b", 5)], 5);
        assert_eq!(get(&feed).await, Err(NotSynced));
        writer.upsert(pod("a", 7));
        dedicated.upsert(pod("a", 7));
        assert_eq!(get(&feed).await, Ok(2));
        assert!(feed.inner.state().delivered.tombstones.is_empty(), "the tombstone is dropped");
    }

    #[tokio::test(start_paused = true)]
    async fn delivered_versions_are_ignored_after_a_history_reset() {
        let (mut writer, feed) = hub(vec![pod("a", 3)]);
        let (mut dedicated, _reader) = feed.dedicated();
        dedicated.replace(Resource::Pods, vec![pod("a", 900)], 900);
        assert_eq!(get(&feed).await, Err(NotSynced));
        writer.bookmark(Resource::Pods, 1000);
        assert_eq!(get(&feed).await, Ok(1));
        writer.replace(Resource::Pods, vec![pod("a", 3)], 500);
        // A late change of the history before the reset.
        dedicated.upsert(pod("a", 1001));
        assert_eq!(get(&feed).await, Ok(1));
        dedicated.replace(Resource::Pods, vec![pod("a", 501)], 501);
        assert_eq!(get(&feed).await, Err(NotSynced), "versions of the new history count");
    }

    #[test]
    fn tombstones_beyond_the_maximum_replace_the_oldest_and_are_counted() {
        let pods = |from, to| (from..to).map(|n| pod(&format!("pod-{n}"), 5)).collect::<Vec<_>>();
        let total = MAX_TOMBSTONES + 3;
        let (_writer, feed) = hub(pods(0, total));
        let (mut dedicated, _reader) = feed.dedicated();
        dedicated.replace(Resource::Pods, pods(0, total), 5);
        dedicated.replace(Resource::Pods, Vec::new(), 5);
        assert_eq!(feed.inner.state().delivered.tombstones.len(), MAX_TOMBSTONES);
        assert_eq!(feed.inner.metrics.tombstones_dropped.get(), 3);
    }
}
