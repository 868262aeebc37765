//! What somebody has been told by another feed of the same upstream: no GET may be older (docs/protocol.md#boilerhouse-stream).
//!
//! Versions do for what a watch says. A deletion that a list showed has no version of its own, so its uid is kept until
//! the object is gone here, too, or is known here from later than the list. How much later is known as well as kube-runtime
//! lets us: it hides the list's version, so the newest version among the objects stands for it.

use std::collections::VecDeque;

use super::inventory::Inventory;
use crate::event::{LogEntry, PerResource, Resource, ResourceVersion, View};

/// Deletions that are kept. They matter until the hub knows of them, which is a moment, and only after a list.
const MAX_TOMBSTONES: usize = 1024;

#[derive(Clone, Debug, Default)]
pub(super) struct DeliveredWatermark {
    versions: PerResource<ResourceVersion>,
    tombstones: VecDeque<Tombstone>,
}

/// What a change made of a dedicated feed.
pub(super) struct DedicatedProgress<'a> {
    pub(super) versions_before: PerResource<ResourceVersion>,
    pub(super) synced_before: PerResource<bool>,
    pub(super) versions: PerResource<ResourceVersion>,
    pub(super) synced: PerResource<bool>,
    pub(super) inventory: &'a Inventory,
}

/// An object that a list no longer showed.
#[derive(Clone, Debug)]
struct Tombstone {
    resource: Resource,
    name: String,
    uid: String,
    /// The list is not older than this.
    at: ResourceVersion,
}

impl Tombstone {
    fn of(view: &View, at: ResourceVersion) -> Tombstone {
        Tombstone { resource: view.resource(), name: view.name().to_owned(), uid: view.uid().to_owned(), at }
    }

    /// Whether an inventory still shows it as it was before it went. A later version has come back, as a Pod does that
    /// loses its label and regains it.
    fn is_still_listed(&self, inventory: &Inventory) -> bool {
        inventory
            .get(self.resource, &self.name)
            .is_some_and(|view| view.uid() == self.uid && view.resource_version() <= self.at)
    }
}

impl DeliveredWatermark {
    /// Notes what a change of a single reader's feed is about to tell him. `hub` is the inventory that GETs are answered from.
    pub(super) fn record(&mut self, hub: &Inventory, single: &DedicatedProgress<'_>, step: Option<&LogEntry>) {
        for resource in Resource::ALL {
            if single.versions[resource] != single.versions_before[resource] {
                self.versions[resource] = self.versions[resource].max(single.versions[resource]);
            }
            if single.synced[resource] && !single.synced_before[resource] {
                // A first list tells by what it lacks: nothing will say later that those are gone.
                let at = single.versions[resource];
                let lacks =
                    |view: &View| single.inventory.get(resource, view.name()).is_none_or(|v| v.uid() != view.uid());
                for view in hub
                    .views()
                    .filter(|view| view.resource() == resource && view.resource_version() <= at && lacks(view))
                {
                    self.push(Tombstone::of(&view, at));
                }
            }
        }
        if let Some(version) = step.and_then(LogEntry::change_set).filter(|version| version.coalesced_from.is_some()) {
            for change in version.changes.iter().filter(|change| change.new.is_none()) {
                if let Some(view) = change.any_side() {
                    self.push(Tombstone::of(view, version.version));
                }
            }
        }
    }

    fn push(&mut self, gone: Tombstone) {
        self.tombstones.truncate(MAX_TOMBSTONES - 1);
        self.tombstones.push_front(gone);
    }

    /// Whether a state holds everything that had been told by the time this was taken. `now` is what has been told since:
    /// less than this where another history has begun.
    pub(super) fn is_covered_by(
        &self,
        now: &DeliveredWatermark,
        newest: PerResource<ResourceVersion>,
        inventory: &Inventory,
    ) -> bool {
        Resource::ALL
            .into_iter()
            .all(|resource| self.versions[resource].min(now.versions[resource]) <= newest[resource])
            && !self.tombstones.iter().any(|gone| gone.is_still_listed(inventory))
    }

    /// Forgets the deletions that the hub knows of: it has come as far as the list, and lacks the object.
    pub(super) fn prune(&mut self, newest: PerResource<ResourceVersion>, inventory: &Inventory) {
        self.tombstones.retain(|gone| newest[gone.resource] < gone.at || gone.is_still_listed(inventory));
    }

    /// Another history of one resource has begun: its versions mean something else.
    pub(super) fn reset(&mut self, resource: Resource) {
        self.versions[resource] = 0;
        self.tombstones.retain(|gone| gone.resource != resource);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::{
        event::{Instance, NamespaceId, Resource, ResourceVersion, View},
        feed::{Config, Feed, NotSynced, Writer},
    };

    fn pod(name: &str, rv: ResourceVersion) -> View {
        View::Instance(Arc::new(Instance {
            name: name.into(),
            uid: format!("u-{name}"),
            resource_version: rv,
            ..Instance::default()
        }))
    }

    /// A hub with these pods, at 5.
    fn hub(pods: Vec<View>) -> (Writer, Feed) {
        let (mut writer, feed) =
            Feed::new(Config { read_your_writes_timeout: std::time::Duration::from_millis(1), ..Config::default() });
        writer.set_namespace(NamespaceId::from_uid("home"));
        writer.replace(Resource::Pods, pods, 5);
        writer.replace(Resource::Claims, Vec::new(), 5);
        (writer, feed)
    }

    async fn get(feed: &Feed) -> Result<usize, NotSynced> {
        feed.snapshot().await.map(|snapshot| snapshot.inventory.instances.len())
    }

    #[tokio::test(start_paused = true)]
    async fn object_missing_from_the_first_dedicated_list_blocks_snapshots() {
        let (mut writer, feed) = hub(vec![pod("a", 3), pod("b", 4)]);
        let (mut own, _single) = feed.dedicated();
        own.replace(Resource::Pods, vec![pod("b", 4)], 4);
        assert_eq!(get(&feed).await, Err(NotSynced), "a is gone, and the hub does not know yet");
        writer.remove(Resource::Pods, "a", "u-a", 6);
        assert_eq!(get(&feed).await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn reappearing_object_clears_its_tombstone() {
        let (mut writer, feed) = hub(vec![pod("a", 3), pod("b", 5)]);
        let (mut own, _single) = feed.dedicated();
        own.replace(Resource::Pods, vec![pod("a", 3), pod("b", 5)], 5);
        // A list made while the Pod had lost its label; then the label is back, for the hub and for the own watcher.
        own.replace(Resource::Pods, vec![pod("b", 5)], 5);
        assert_eq!(get(&feed).await, Err(NotSynced));
        writer.upsert(pod("a", 7));
        own.upsert(pod("a", 7));
        assert_eq!(get(&feed).await, Ok(2));
        assert!(feed.inner.state().delivered.tombstones.is_empty(), "and is not kept");
    }

    #[tokio::test(start_paused = true)]
    async fn delivered_versions_are_ignored_after_a_history_reset() {
        let (mut writer, feed) = hub(vec![pod("a", 3)]);
        let (mut own, _single) = feed.dedicated();
        own.replace(Resource::Pods, vec![pod("a", 900)], 900);
        assert_eq!(get(&feed).await, Err(NotSynced));
        writer.bookmark(Resource::Pods, 1000);
        assert_eq!(get(&feed).await, Ok(1));
        writer.replace(Resource::Pods, vec![pod("a", 3)], 500);
        // Still of the old history, and late.
        own.upsert(pod("a", 1001));
        assert_eq!(get(&feed).await, Ok(1));
        own.replace(Resource::Pods, vec![pod("a", 501)], 501);
        assert_eq!(get(&feed).await, Err(NotSynced), "the new history counts again");
    }
}
