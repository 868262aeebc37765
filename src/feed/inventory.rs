//! The current state: all views by name, and the changes that a list or a single object makes to it.
//!
//! *Owns* the views and the counts of the pools.
//!
//! *Guarantees:*
//! - A name is unique at any time. Views are in the order of their names, as initial states and GETs send them.
//! - The two sides of a change have the same uid. A new uid under a stored name is two changes: a deletion and a creation.
//! - The pool counts are those of the instances that are in it.

mod by_name;

use std::collections::BTreeMap;

pub use self::by_name::{ByName, HasName};
use crate::event::{Change, Claim, Instance, PoolDepth, Resource, ResourceVersion, View};

/// The views of both resources. The feed shares it in an `Arc`, and a change clones it if a reader still holds it.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// Managed Pods.
    pub instances: ByName<Instance>,
    /// Claims.
    pub claims: ByName<Claim>,
    /// The counts of each workload. A workload without instances has no entry.
    pool_counts: BTreeMap<String, PoolCounts>,
}

/// The instances of one workload: all of them, and those of each pool status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PoolCounts {
    instances: u64,
    warming: u64,
    ready: u64,
    acquired: u64,
}

impl PoolCounts {
    fn of_status(&mut self, status: Option<&str>) -> Option<&mut u64> {
        match status {
            Some("warming") => Some(&mut self.warming),
            Some("ready") => Some(&mut self.ready),
            Some("acquired") => Some(&mut self.acquired),
            _ => None,
        }
    }
}

impl Inventory {
    /// Returns the view with this name.
    #[must_use]
    pub fn get(&self, resource: Resource, name: &str) -> Option<View> {
        match resource {
            Resource::Pods => self.instances.get(name).cloned().map(View::Instance),
            Resource::Claims => self.claims.get(name).cloned().map(View::Claim),
        }
    }

    /// Iterates over all views: Pods by name, then claims by name.
    pub fn views(&self) -> impl Iterator<Item = View> {
        let instances = self.instances.values().cloned().map(View::Instance);
        instances.chain(self.claims.values().cloned().map(View::Claim))
    }

    /// Iterates in the same order over the views from an object on: of this resource, the names that are not before `name`.
    pub fn views_from(&self, resource: Resource, name: &str) -> impl Iterator<Item = View> {
        let (first_claim, is_pods) = if resource == Resource::Pods { ("", true) } else { (name, false) };
        let instances = is_pods.then(|| self.instances.values_from(name)).into_iter().flatten();
        let claims = self.claims.values_from(first_claim);
        instances.cloned().map(View::Instance).chain(claims.cloned().map(View::Claim))
    }

    /// Returns the views of one resource of which `other` has no view with the same name and uid, by name.
    pub fn missing_in(&self, other: &Inventory, resource: Resource) -> Vec<View> {
        match resource {
            Resource::Pods => {
                let missing = self.instances.missing_in(&other.instances, |one, other| one.uid == other.uid);
                missing.cloned().map(View::Instance).collect()
            }
            Resource::Claims => {
                let missing = self.claims.missing_in(&other.claims, |one, other| one.uid == other.uid);
                missing.cloned().map(View::Claim).collect()
            }
        }
    }

    /// Returns the depth of each pool, in the order of the workloads. An instance without a workload is in no pool.
    #[must_use]
    pub fn pools(&self) -> Vec<PoolDepth> {
        let pool = |(workload_ref, counts): (&String, &PoolCounts)| PoolDepth {
            workload_ref: workload_ref.clone(),
            warming: counts.warming,
            ready: counts.ready,
            acquired: counts.acquired,
        };
        self.pool_counts.iter().map(pool).collect()
    }

    /// Applies an object that was added or modified. Returns no change if the object is not newer than the stored view,
    /// and two changes if the stored view has another uid.
    pub fn upsert(&mut self, view: View) -> Vec<Change> {
        match self.insert(view.clone()) {
            Some(old) if old.uid() == view.uid() && old.resource_version() >= view.resource_version() => {
                self.insert(old);
                Vec::new()
            }
            Some(old) if old.uid() != view.uid() => {
                vec![Change { old: Some(old), new: None }, Change { old: None, new: Some(view) }]
            }
            old => vec![Change { old, new: Some(view) }],
        }
    }

    /// Applies a deletion at this version. Returns `None` if no view has this name and uid, and if the view is newer than
    /// the deletion.
    pub fn remove(&mut self, resource: Resource, name: &str, uid: &str, version: ResourceVersion) -> Option<Change> {
        let old = self.get(resource, name).filter(|old| old.uid() == uid && old.resource_version() <= version)?;
        self.remove_view(&old);
        Some(Change { old: Some(old), new: None })
    }

    /// Replaces all views of one resource by a complete list. Returns the difference: deletions by name, then created and
    /// changed objects in resourceVersion order.
    pub fn replace(&mut self, resource: Resource, views: Vec<View>) -> Vec<Change> {
        let mut before: BTreeMap<String, View> = match resource {
            Resource::Pods => {
                self.pool_counts.clear();
                self.instances.drain().map(|i| (i.name.clone(), View::Instance(i))).collect()
            }
            Resource::Claims => self.claims.drain().map(|c| (c.name.clone(), View::Claim(c))).collect(),
        };
        let mut added_or_changed = Vec::new();
        for view in views {
            let old = match before.remove(view.name()) {
                Some(old) if old.uid() == view.uid() => Some(old),
                Some(replaced_object) => {
                    before.insert(view.name().to_owned(), replaced_object);
                    None
                }
                None => None,
            };
            // Compares complete views, not versions: after etcd was restored from an older backup, the API server assigns
            // the same versions again to other changes.
            let unchanged = old.as_ref() == Some(&view);
            self.insert(view.clone());
            if !unchanged {
                added_or_changed.push(Change { old, new: Some(view) });
            }
        }
        added_or_changed.sort_by_key(|change| change.new.as_ref().map_or(0, View::resource_version));
        let removed = before.into_values().map(|old| Change { old: Some(old), new: None });
        removed.chain(added_or_changed).collect()
    }

    /// Undoes a change.
    pub fn revert(&mut self, change: &Change) {
        if let Some(new) = &change.new {
            self.remove_view(new);
        }
        if let Some(old) = &change.old {
            self.insert(old.clone());
        }
    }

    /// Stores a view and returns the one that had its name.
    fn insert(&mut self, view: View) -> Option<View> {
        match view {
            View::Instance(instance) => {
                self.adjust_counts(&instance, 1);
                let old = self.instances.insert(instance)?;
                self.adjust_counts(&old, -1);
                Some(View::Instance(old))
            }
            View::Claim(claim) => self.claims.insert(claim).map(View::Claim),
        }
    }

    fn remove_view(&mut self, view: &View) {
        match view {
            View::Instance(instance) => {
                if let Some(old) = self.instances.remove(&instance.name) {
                    self.adjust_counts(&old, -1);
                }
            }
            View::Claim(claim) => drop(self.claims.remove(&claim.name)),
        }
    }

    fn adjust_counts(&mut self, instance: &Instance, by: i64) {
        let Some(workload_ref) = &instance.workload_ref else { return };
        // Two lookups, but a key is allocated only for a new workload.
        let counts = match self.pool_counts.get_mut(workload_ref) {
            Some(counts) => counts,
            None => self.pool_counts.entry(workload_ref.clone()).or_default(),
        };
        counts.instances = counts.instances.saturating_add_signed(by);
        if let Some(count) = counts.of_status(instance.pool_status.as_deref()) {
            *count = count.saturating_add_signed(by);
        }
        if counts.instances == 0 {
            self.pool_counts.remove(workload_ref);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::PodBuilder;

    fn pod(name: &str, uid: &str, version: ResourceVersion) -> View {
        PodBuilder::new(name).uid(uid).version(version).view()
    }

    /// The versions of both sides of each change.
    fn versions(changes: &[Change]) -> Vec<(Option<ResourceVersion>, Option<ResourceVersion>)> {
        changes
            .iter()
            .map(|c| (c.old.as_ref().map(View::resource_version), c.new.as_ref().map(View::resource_version)))
            .collect()
    }

    #[test]
    fn replace_returns_deletions_first_then_changes_by_version() {
        let mut state = Inventory::default();
        assert_eq!(state.replace(Resource::Pods, vec![pod("a", "1", 5), pod("b", "2", 6), pod("c", "3", 7)]).len(), 3);
        let changes = state.replace(Resource::Pods, vec![pod("b", "2", 12), pod("c", "9", 11), pod("d", "4", 10)]);
        assert_eq!(
            versions(&changes),
            [(Some(5), None), (Some(7), None), (None, Some(10)), (None, Some(11)), (Some(6), Some(12))],
            "a is deleted, c has a new uid, d is created, b is modified"
        );
        let changes = state.replace(Resource::Pods, vec![pod("b", "2", 12), pod("c", "9", 11), pod("d", "4", 10)]);
        assert!(changes.is_empty(), "an equal list is no change: {changes:?}");
    }

    #[test]
    fn equal_version_with_different_content_is_a_change() {
        let mut state = Inventory::default();
        state.replace(Resource::Pods, vec![pod("a", "1", 5)]);
        let pending = PodBuilder::new("a").uid("1").version(5).phase("Pending").view();
        let changes = state.replace(Resource::Pods, vec![pending]);
        assert_eq!(versions(&changes), [(Some(5), Some(5))]);
    }

    #[test]
    fn new_uid_under_the_same_name_deletes_the_old_object() {
        let mut state = Inventory::default();
        state.upsert(pod("a", "1", 5));
        assert_eq!(versions(&state.upsert(pod("a", "2", 8))), [(Some(5), None), (None, Some(8))]);
        assert!(state.upsert(pod("a", "2", 8)).is_empty(), "an equal version is not newer");
        assert!(state.upsert(pod("a", "2", 7)).is_empty(), "a lower version is not newer");
        assert_eq!(state.get(Resource::Pods, "a").map(|view| view.resource_version()), Some(8));
        assert!(state.remove(Resource::Pods, "a", "1", 9).is_none(), "the object with uid 1 is already deleted");
        assert!(state.remove(Resource::Pods, "a", "2", 7).is_none(), "the deletion is older than the view");
        let change = state.remove(Resource::Pods, "a", "2", 9);
        assert_eq!(versions(&change.into_iter().collect::<Vec<_>>()), [(Some(8), None)]);
        assert!(state.views().next().is_none());
    }

    #[test]
    fn pool_counts_ignore_versions_that_are_not_newer() {
        let pod = |version, status| PodBuilder::new("a").workload("web").pool(status).version(version).view();
        let mut state = Inventory::default();
        for (version, status) in [(5, "warming"), (6, "ready"), (4, "acquired"), (6, "warming")] {
            state.upsert(pod(version, status));
        }
        assert_eq!(state.pools(), [PoolDepth { workload_ref: "web".into(), ready: 1, ..PoolDepth::default() }]);
    }
}
