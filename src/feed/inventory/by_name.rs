//! Shared views of one resource in the order of their names. The key of a view is the name inside the view, so that no
//! name is stored twice.
//!
//! *Guarantees:* a clone increments reference counts and copies no view. The writer makes one under the lock of the feed
//! if a reader still holds the state before a change.

use std::{borrow::Borrow, cmp::Ordering, collections::BTreeSet, sync::Arc};

use crate::event::{Claim, Instance};

/// An object whose name is unique among the objects of its resource.
pub trait HasName {
    /// Returns the name.
    fn name(&self) -> &str;
}

impl HasName for Instance {
    fn name(&self) -> &str {
        &self.name
    }
}

impl HasName for Claim {
    fn name(&self) -> &str {
        &self.name
    }
}

/// Shared views by name.
#[derive(Debug)]
pub struct ByName<T: HasName>(BTreeSet<NameKey<T>>);

impl<T: HasName> ByName<T> {
    /// Returns the view with this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<T>> {
        self.0.get(name).map(|entry| &entry.0)
    }

    /// Stores a view and returns the one that had its name.
    pub fn insert(&mut self, view: Arc<T>) -> Option<Arc<T>> {
        self.0.replace(NameKey(view)).map(|entry| entry.0)
    }

    /// Removes and returns the view with this name.
    pub fn remove(&mut self, name: &str) -> Option<Arc<T>> {
        self.0.take(name).map(|entry| entry.0)
    }

    /// Iterates over all views by name.
    pub fn values(&self) -> impl Iterator<Item = &Arc<T>> {
        self.0.iter().map(|entry| &entry.0)
    }

    /// Removes all views and iterates over them by name.
    pub fn drain(&mut self) -> impl Iterator<Item = Arc<T>> + use<T> {
        std::mem::take(&mut self.0).into_iter().map(|entry| entry.0)
    }

    /// Returns the number of views.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there is no view.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

// Not derived: a derived `Clone` would require `T: Clone`, but the views are shared, not copied.
impl<T: HasName> Clone for ByName<T> {
    fn clone(&self) -> Self {
        ByName(self.0.clone())
    }
}

impl<T: HasName> Default for ByName<T> {
    fn default() -> Self {
        ByName(BTreeSet::new())
    }
}

/// Compares complete views, unlike `NameKey`.
impl<T: HasName + Eq> PartialEq for ByName<T> {
    fn eq(&self, other: &Self) -> bool {
        self.values().eq(other.values())
    }
}

impl<T: HasName + Eq> Eq for ByName<T> {}

/// A view that is compared by its name only.
#[derive(Debug)]
struct NameKey<T: HasName>(Arc<T>);

impl<T: HasName> Clone for NameKey<T> {
    fn clone(&self) -> Self {
        NameKey(self.0.clone())
    }
}

impl<T: HasName> Borrow<str> for NameKey<T> {
    fn borrow(&self) -> &str {
        self.0.name()
    }
}

impl<T: HasName> Ord for NameKey<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.name().cmp(other.0.name())
    }
}

impl<T: HasName> PartialOrd for NameKey<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: HasName> PartialEq for NameKey<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T: HasName> Eq for NameKey<T> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::PodBuilder;

    fn pod(name: &str, uid: &str) -> Arc<Instance> {
        PodBuilder::new(name).uid(uid).instance()
    }

    #[test]
    fn copies_share_entries_and_iterate_in_name_order() {
        let mut pods = ByName::default();
        for name in ["b", "a", "c"] {
            assert!(pods.insert(pod(name, "1")).is_none());
        }
        let copy = pods.clone();
        assert_eq!(pods.insert(pod("b", "2")), Some(pod("b", "1")));
        let uids: Vec<_> = pods.values().map(|pod| format!("{}{}", pod.name, pod.uid)).collect();
        assert_eq!(uids, ["a1", "b2", "c1"]);
        assert!(copy != pods, "the same name with another uid is another state");
        assert_eq!(pods.remove("b"), Some(pod("b", "2")));
        assert_eq!((pods.get("b"), copy.get("b"), pods.len()), (None, Some(&pod("b", "1")), 2));
        assert!(Arc::ptr_eq(copy.get("a").unwrap(), pods.get("a").unwrap()));
    }
}
