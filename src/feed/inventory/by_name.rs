//! Shared views of one resource in the order of their names. The key of a view is the name inside the view, so that no
//! name is stored twice.
//!
//! *Guarantees:*
//! - A clone copies one pointer for each chunk of views, and no view. A change of a clone copies one chunk. Snapshots of
//!   a namespace that changes therefore share what has not changed, and cost the writer little, although it makes them
//!   under the lock of the feed.
//! - Chunks are not empty, and hold at most [`MAX_CHUNK`] views.

use std::sync::Arc;

use crate::event::{Claim, Instance};

/// Maximum number of views in one chunk: 1 KiB of pointers.
const MAX_CHUNK: usize = 128;

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
pub struct ByName<T> {
    /// The views in the order of their names, in chunks.
    chunks: Vec<Chunk<T>>,
    len: usize,
}

type Chunk<T> = Arc<Vec<Arc<T>>>;

impl<T: HasName> ByName<T> {
    /// Returns the view with this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<T>> {
        let (chunk, index) = self.find(name);
        self.chunks.get(chunk)?.get(index).filter(|view| view.name() == name)
    }

    /// Stores a view and returns the one that had its name.
    pub fn insert(&mut self, view: Arc<T>) -> Option<Arc<T>> {
        let (chunk, index) = self.find(view.name());
        let Some(shared) = self.chunks.get_mut(chunk) else {
            self.chunks.push(Arc::new(vec![view]));
            self.len += 1;
            return None;
        };
        let views = Arc::make_mut(shared);
        match views.get_mut(index) {
            Some(old) if old.name() == view.name() => return Some(std::mem::replace(old, view)),
            Some(_) | None => views.insert(index, view),
        }
        self.len += 1;
        if views.len() > MAX_CHUNK {
            // A list arrives in the order of the names: then all chunks but the last one stay full.
            let at = if index + 1 == views.len() { MAX_CHUNK } else { MAX_CHUNK / 2 };
            let rest = views.split_off(at);
            self.chunks.insert(chunk + 1, Arc::new(rest));
        }
        None
    }

    /// Removes and returns the view with this name.
    pub fn remove(&mut self, name: &str) -> Option<Arc<T>> {
        let (chunk, index) = self.find(name);
        self.chunks.get(chunk)?.get(index).filter(|view| view.name() == name)?;
        let views = Arc::make_mut(&mut self.chunks[chunk]);
        let removed = views.remove(index);
        if views.is_empty() {
            self.chunks.remove(chunk);
        }
        self.len -= 1;
        Some(removed)
    }

    /// Iterates over all views by name.
    pub fn values(&self) -> impl Iterator<Item = &Arc<T>> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// Iterates by name over the views whose names are not before `name`.
    pub fn values_from(&self, name: &str) -> impl Iterator<Item = &Arc<T>> {
        let (chunk, index) = self.find(name);
        let mut chunks = self.chunks[chunk.min(self.chunks.len())..].iter();
        let first = chunks.next().map_or(&[][..], |views| &views[index..]);
        first.iter().chain(chunks.flat_map(|chunk| chunk.iter()))
    }

    /// Iterates by name over the views of which `other` has no view with the same name that is `same`. It visits each view
    /// of both once.
    pub fn missing_in<'a>(
        &'a self,
        other: &'a ByName<T>,
        same: impl Fn(&T, &T) -> bool,
    ) -> impl Iterator<Item = &'a Arc<T>> {
        let mut others = other.values().peekable();
        self.values().filter(move |view| {
            while others.next_if(|other| other.name() < view.name()).is_some() {}
            !others.peek().is_some_and(|other| other.name() == view.name() && same(view, other))
        })
    }

    /// Removes all views and iterates over them by name.
    pub fn drain(&mut self) -> impl Iterator<Item = Arc<T>> + use<T> {
        self.len = 0;
        std::mem::take(&mut self.chunks).into_iter().flat_map(Arc::unwrap_or_clone)
    }

    /// Returns the number of views.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there is no view.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the place of the first view whose name is not before `name`: the chunk, and the index in it. The index is
    /// the length of the chunk if the view is the first one of the next chunk, or does not exist.
    fn find(&self, name: &str) -> (usize, usize) {
        // The last chunk that starts at or before the name, or the first chunk.
        let starts_before = |chunk: &Chunk<T>| chunk.first().is_some_and(|first| first.name() <= name);
        let chunk = self.chunks.partition_point(starts_before).saturating_sub(1);
        let index = self.chunks.get(chunk).map_or(0, |views| views.partition_point(|view| view.name() < name));
        (chunk, index)
    }
}

// Not derived: a derived `Clone` would require `T: Clone`, but the views are shared, not copied.
impl<T> Clone for ByName<T> {
    fn clone(&self) -> Self {
        ByName { chunks: self.chunks.clone(), len: self.len }
    }
}

impl<T> Default for ByName<T> {
    fn default() -> Self {
        ByName { chunks: Vec::new(), len: 0 }
    }
}

/// Compares complete views.
impl<T: HasName + Eq> PartialEq for ByName<T> {
    fn eq(&self, other: &Self) -> bool {
        self.values().eq(other.values())
    }
}

impl<T: HasName + Eq> Eq for ByName<T> {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::test_support::{PodBuilder, ReplayCommand, SeededRng, seeds_to_run};

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

    #[test]
    fn random_changes_match_an_ordered_map_and_leave_copies_unchanged() {
        for seed in seeds_to_run(0..20) {
            let _hint = ReplayCommand::on_panic(crate::test_name!(), seed);
            let mut rng = SeededRng(seed);
            let (mut views, mut model) = (ByName::default(), BTreeMap::new());
            let mut copies: Vec<(ByName<Instance>, Vec<Arc<Instance>>)> = Vec::new();
            for step in 0..3000 {
                let view = pod(&format!("pod-{:04}", rng.below(700)), &step.to_string());
                // More views at first, fewer at the end, so that chunks are split and removed.
                if rng.below(3000) > step {
                    assert_eq!(views.insert(view.clone()), model.insert(view.name.clone(), view));
                } else {
                    assert_eq!(views.remove(&view.name), model.remove(&view.name));
                }
                let from = format!("pod-{:04}", rng.below(800));
                let next = views.values_from(&from).next();
                assert_eq!(next, model.range(from.clone()..).next().map(|(_, view)| view), "from {from}");
                assert_eq!((views.get(&from), views.len()), (model.get(&from), model.len()));
                if rng.below(300) == 0 {
                    copies.push((views.clone(), model.values().cloned().collect()));
                }
            }
            for (copy, expected) in &copies {
                assert!(copy.values().eq(expected), "a copy is unchanged");
                assert!(copy.values_from("").eq(expected));
            }
            assert!(views.chunks.iter().all(|chunk| (1..=MAX_CHUNK).contains(&chunk.len())));
            assert!(views.drain().eq(model.into_values()) && views.is_empty());
        }
    }

    #[test]
    fn missing_views_have_another_name_or_are_not_the_same() {
        let set = |pods: &[(&str, &str)]| {
            let mut views = ByName::default();
            for (name, uid) in pods {
                views.insert(pod(name, uid));
            }
            views
        };
        let one = set(&[("a", "1"), ("b", "1"), ("c", "1"), ("e", "1")]);
        let other = set(&[("0", "1"), ("a", "1"), ("b", "2"), ("d", "1")]);
        let missing = one.missing_in(&other, |one, other| one.uid == other.uid);
        assert_eq!(missing.map(|view| view.name.as_str()).collect::<Vec<_>>(), ["b", "c", "e"]);
        assert_eq!(one.missing_in(&one, |one, other| one.uid == other.uid).count(), 0);
        assert_eq!(one.missing_in(&ByName::default(), |_, _| true).count(), 4);
    }

    #[test]
    fn list_in_name_order_fills_its_chunks() {
        let mut views = ByName::default();
        for number in 0..1000 {
            views.insert(pod(&format!("pod-{number:04}"), "1"));
        }
        assert_eq!(views.chunks.len(), 1000_usize.div_ceil(MAX_CHUNK));
    }
}
