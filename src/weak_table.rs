//! Tables whose unused entries stay until they are looked for. Pure.
//!
//! Guarantees: a table has at most twice the entries that were in use at the last prune, and [`PRUNE_SLACK`] more. All
//! prunes together cost constant time for each new entry, on average.

use std::{
    borrow::Borrow,
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Weak},
};

/// Entries beyond twice the number at the last prune that a table may have before it is pruned (docs/limits.md).
pub(crate) const PRUNE_SLACK: usize = 64;

/// When a table is pruned. A prune is O(number of entries), and the number doubles between two prunes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PruneSchedule {
    len_at_last_prune: usize,
}

impl PruneSchedule {
    /// Returns whether a table with this number of entries must be pruned before the next one is added.
    pub(crate) fn is_due(self, len: usize) -> bool {
        len >= 2 * self.len_at_last_prune + PRUNE_SLACK
    }

    /// Records a prune that has left this number of entries.
    pub(crate) fn pruned(&mut self, len: usize) {
        self.len_at_last_prune = len;
    }
}

/// Shared values by key. A value exists while it is used elsewhere.
#[derive(Debug)]
pub(crate) struct WeakTable<K, V> {
    entries: HashMap<K, Weak<V>>,
    schedule: PruneSchedule,
}

impl<K, V> Default for WeakTable<K, V> {
    fn default() -> Self {
        WeakTable { entries: HashMap::new(), schedule: PruneSchedule::default() }
    }
}

impl<K: Eq + Hash, V> WeakTable<K, V> {
    /// Returns the value, if it is in use.
    pub(crate) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<Arc<V>>
    where
        K: Borrow<Q>,
    {
        self.entries.get(key)?.upgrade()
    }

    /// Stores a value in place of the one that has its key.
    pub(crate) fn insert(&mut self, key: K, value: &Arc<V>) {
        if self.schedule.is_due(self.entries.len()) {
            self.entries.retain(|_, value| value.strong_count() > 0);
            self.schedule.pruned(self.entries.len());
        }
        self.entries.insert(key, Arc::downgrade(value));
    }

    /// Returns the value in use, or stores and returns a new one.
    pub(crate) fn get_or_insert(&mut self, key: K, new: impl FnOnce() -> V) -> Arc<V> {
        self.get(&key).unwrap_or_else(|| {
            let value = Arc::new(new());
            self.insert(key, &value);
            value
        })
    }

    /// Iterates over the values in use.
    pub(crate) fn values(&self) -> impl Iterator<Item = Arc<V>> {
        self.entries.values().filter_map(Weak::upgrade)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_exists_while_it_is_used() {
        let mut table = WeakTable::default();
        let first = table.get_or_insert("a", || 1);
        assert!(Arc::ptr_eq(&first, &table.get_or_insert("a", || 2)));
        assert_eq!((table.get("a"), table.get("b")), (Some(first.clone()), None));
        assert!(table.values().eq([first.clone()]));
        drop(first);
        assert_eq!((table.get("a"), table.values().count()), (None, 0));
        assert_eq!(*table.get_or_insert("a", || 3), 3);
    }

    #[test]
    fn unused_entries_are_removed() {
        let mut table = WeakTable::default();
        let used: Vec<_> = (0..100).map(|key| table.get_or_insert(key, || ())).collect();
        for key in 100..10_000 {
            drop(table.get_or_insert(key, || ()));
            let entries = table.entries.len();
            assert!(entries <= 2 * used.len() + PRUNE_SLACK, "found {entries} entries");
        }
        assert_eq!(table.values().count(), 100);
    }

    #[test]
    fn all_prunes_together_examine_each_entry_a_few_times() {
        const ENTRIES: usize = 10_000;
        let (mut table, mut used, mut examined) = (WeakTable::default(), Vec::new(), 0);
        for key in 0..ENTRIES {
            let before = table.schedule.len_at_last_prune;
            used.push(table.get_or_insert(key, || ()));
            let after = table.schedule.len_at_last_prune;
            // A prune examines all entries, and here it keeps all of them.
            examined += if after == before { 0 } else { after };
        }
        assert!((1..=2 * ENTRIES).contains(&examined), "{ENTRIES} new entries examined {examined} others");
    }
}
