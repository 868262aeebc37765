//! Views of one resource by name, in the order of their names, which are not stored beside them.
//!
//! A copy counts references and allocates next to nothing: one is made under the feed's lock whenever something changes
//! while somebody still reads the state as it was.

use std::{borrow::Borrow, cmp::Ordering, collections::BTreeSet, sync::Arc};

use crate::event::{Claim, Instance};

/// What has a name that is its own at any one time.
pub trait HasName {
    /// The name.
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
    /// The one of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<T>> {
        self.0.get(name).map(|entry| &entry.0)
    }

    /// Puts one in, in place of that of the same name, which is returned.
    pub fn insert(&mut self, view: Arc<T>) -> Option<Arc<T>> {
        self.0.replace(NameKey(view)).map(|entry| entry.0)
    }

    /// Takes the one of this name out.
    pub fn remove(&mut self, name: &str) -> Option<Arc<T>> {
        self.0.take(name).map(|entry| entry.0)
    }

    /// All, by name.
    pub fn values(&self) -> impl Iterator<Item = &Arc<T>> {
        self.0.iter().map(|entry| &entry.0)
    }

    /// Takes all out, by name.
    pub fn drain(&mut self) -> impl Iterator<Item = Arc<T>> + use<T> {
        std::mem::take(&mut self.0).into_iter().map(|entry| entry.0)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

// By hand: the views need not be `Clone`, and nothing of them is copied.
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

/// As whole views, not as names.
impl<T: HasName + Eq> PartialEq for ByName<T> {
    fn eq(&self, other: &Self) -> bool {
        self.values().eq(other.values())
    }
}

impl<T: HasName + Eq> Eq for ByName<T> {}

/// Compares by name alone.
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

    fn pod(name: &str, uid: &str) -> Arc<Instance> {
        Arc::new(Instance { name: name.into(), uid: uid.into(), ..Instance::default() })
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
        assert!(copy != pods, "another life of a name is another state");
        assert_eq!(pods.remove("b"), Some(pod("b", "2")));
        assert_eq!((pods.get("b"), copy.get("b"), pods.len()), (None, Some(&pod("b", "1")), 2));
        assert!(Arc::ptr_eq(copy.get("a").unwrap(), pods.get("a").unwrap()));
    }
}
