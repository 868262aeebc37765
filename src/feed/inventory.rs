//! The current state: every view by name, and what a new list or a single change makes of it.
//!
//! Keyed by name, which is unique at any one time and gives the order of the burst and of the GETs; a name found with
//! another uid is two lives, and becomes a deletion and a first sight.

mod by_name;

use std::collections::BTreeMap;

pub use self::by_name::{ByName, HasName};
use crate::event::{Change, Claim, Instance, PoolDepth, Resource, View};

/// Both resources by name. Cheap to clone while nobody changes it: the feed shares it behind an `Arc`.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// Managed Pods.
    pub instances: ByName<Instance>,
    /// Claims.
    pub claims: ByName<Claim>,
    /// Instances of each workload by pool status; a workload without instances is not in it.
    pool_counts: BTreeMap<String, PoolCounts>,
}

/// The counts of one workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PoolCounts {
    instances: u64,
    warming: u64,
    ready: u64,
    acquired: u64,
}

impl PoolCounts {
    fn of(&mut self, status: Option<&str>) -> Option<&mut u64> {
        match status {
            Some("warming") => Some(&mut self.warming),
            Some("ready") => Some(&mut self.ready),
            Some("acquired") => Some(&mut self.acquired),
            _ => None,
        }
    }
}

impl Inventory {
    /// What is known under this name.
    #[must_use]
    pub fn get(&self, resource: Resource, name: &str) -> Option<View> {
        match resource {
            Resource::Pods => self.instances.get(name).cloned().map(View::Instance),
            Resource::Claims => self.claims.get(name).cloned().map(View::Claim),
        }
    }

    /// All views, pods by name, then claims by name.
    pub fn views(&self) -> impl Iterator<Item = View> {
        let instances = self.instances.values().cloned().map(View::Instance);
        instances.chain(self.claims.values().cloned().map(View::Claim))
    }

    /// Instances of each workload by pool status, by workloadRef; those without a workload belong to no pool.
    #[must_use]
    pub fn pools(&self) -> Vec<PoolDepth> {
        let pool = |(workload_ref, depth): (&String, &PoolCounts)| PoolDepth {
            workload_ref: workload_ref.clone(),
            warming: depth.warming,
            ready: depth.ready,
            acquired: depth.acquired,
        };
        self.pool_counts.iter().map(pool).collect()
    }

    /// Takes an added or modified object in. Empty when it is not newer than what is known; two changes when the name
    /// has begun another life.
    pub fn upsert(&mut self, view: View) -> Vec<Change> {
        match self.insert(view.clone()) {
            Some(known) if known.uid() == view.uid() && known.resource_version() >= view.resource_version() => {
                self.insert(known);
                Vec::new()
            }
            Some(old) if old.uid() != view.uid() => {
                vec![Change { old: Some(old), new: None }, Change { old: None, new: Some(view) }]
            }
            old => vec![Change { old, new: Some(view) }],
        }
    }

    /// Takes a deleted object out, if it is still the life that is known.
    pub fn remove(&mut self, resource: Resource, name: &str, uid: &str) -> Option<Change> {
        let old = self.get(resource, name).filter(|old| old.uid() == uid)?;
        self.remove_view(&old);
        Some(Change { old: Some(old), new: None })
    }

    /// Puts a complete list in place of one resource and returns the difference: deletions by name, then what is new or
    /// changed in resourceVersion order.
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
            // The whole view: in a restored older copy the same version is given out again, for another change.
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

    /// Takes a change back.
    pub fn revert(&mut self, change: &Change) {
        if let Some(new) = &change.new {
            self.remove_view(new);
        }
        if let Some(old) = &change.old {
            self.insert(old.clone());
        }
    }

    /// Puts a view in place of what is known under its name, and returns that.
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
        let depth = match self.pool_counts.get_mut(workload_ref) {
            Some(depth) => depth,
            None => self.pool_counts.entry(workload_ref.clone()).or_default(),
        };
        depth.instances = depth.instances.saturating_add_signed(by);
        if let Some(count) = depth.of(instance.pool_status.as_deref()) {
            *count = count.saturating_add_signed(by);
        }
        if depth.instances == 0 {
            self.pool_counts.remove(workload_ref);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::event::ResourceVersion;

    fn pod(name: &str, uid: &str, rv: ResourceVersion) -> View {
        View::Instance(Arc::new(Instance {
            name: name.into(),
            uid: uid.into(),
            resource_version: rv,
            ..Instance::default()
        }))
    }

    fn told(changes: &[Change]) -> Vec<(Option<ResourceVersion>, Option<ResourceVersion>)> {
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
            told(&changes),
            [(Some(5), None), (Some(7), None), (None, Some(10)), (None, Some(11)), (Some(6), Some(12))],
            "a is gone, c is another life, d is new, b has changed"
        );
        let same = state.replace(Resource::Pods, vec![pod("b", "2", 12), pod("c", "9", 11), pod("d", "4", 10)]);
        assert!(same.is_empty(), "the same list says nothing");
    }

    #[test]
    fn equal_version_with_different_content_is_a_change() {
        let running = Instance {
            name: "a".into(),
            uid: "1".into(),
            resource_version: 5,
            phase: "Running".into(),
            ..Instance::default()
        };
        let mut state = Inventory::default();
        state.replace(Resource::Pods, vec![pod("a", "1", 5)]);
        let changes = state.replace(Resource::Pods, vec![View::Instance(Arc::new(running))]);
        assert_eq!(told(&changes), [(Some(5), Some(5))]);
    }

    #[test]
    fn new_uid_under_the_same_name_deletes_the_old_object() {
        let mut state = Inventory::default();
        state.upsert(pod("a", "1", 5));
        assert_eq!(told(&state.upsert(pod("a", "2", 8))), [(Some(5), None), (None, Some(8))]);
        assert!(state.upsert(pod("a", "2", 8)).is_empty(), "not newer");
        assert!(state.upsert(pod("a", "2", 7)).is_empty(), "older");
        assert_eq!(state.get(Resource::Pods, "a").map(|view| view.resource_version()), Some(8));
        assert!(state.remove(Resource::Pods, "a", "1").is_none(), "the first life ended already");
        assert_eq!(told(&state.remove(Resource::Pods, "a", "2").into_iter().collect::<Vec<_>>()), [(Some(8), None)]);
        assert!(state.views().next().is_none());
    }
    #[test]
    fn pool_counts_ignore_versions_that_are_not_newer() {
        let pod = |rv, status: &str| {
            let (workload_ref, pool_status) = (Some("web".to_owned()), Some(status.to_owned()));
            let name = "a".to_owned();
            View::Instance(Arc::new(Instance {
                name,
                workload_ref,
                pool_status,
                resource_version: rv,
                ..Instance::default()
            }))
        };
        let mut state = Inventory::default();
        for (rv, status) in [(5, "warming"), (6, "ready"), (4, "acquired"), (6, "warming")] {
            state.upsert(pod(rv, status));
        }
        assert_eq!(state.pools(), [PoolDepth { workload_ref: "web".into(), ready: 1, ..PoolDepth::default() }]);
    }
}
