//! A bounded in-memory log of shared items, with positions that never repeat.
//!
//! Owns: the items that the limits allow.
//!
//! Guarantees:
//! - A reader holds a position and no item. A slow reader therefore uses no memory of the log.
//! - A reader has missed items if its position is before [`RingLog::first_position`].
//! - An item keeps its position, also when older items are evicted or added.
//!
//! Must not import: other modules of this crate, and clocks. The caller passes the time.

use std::{collections::VecDeque, sync::Arc};

/// Position of the first item of a new log. Positions below it are for older items that [`RingLog::prepend`] adds.
const FIRST_POSITION: u64 = 1 << 32;

/// The limits of a log. The limit that is reached first evicts the oldest items.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of items.
    pub items: usize,
    /// Maximum number of bytes, as charged by the caller of [`RingLog::push`].
    pub bytes: usize,
    /// Maximum age in milliseconds.
    pub age_ms: u64,
}

impl Default for Limits {
    /// 64 Ki items, 64 MiB and 10 minutes. Ten minutes cover the reconnect of a client, and 64 MiB fit the memory of a
    /// small Pod.
    fn default() -> Self {
        Limits { items: 64 << 10, bytes: 64 << 20, age_ms: 600_000 }
    }
}

/// The bounded log. See the module documentation.
#[derive(Debug)]
pub struct RingLog<T> {
    entries: VecDeque<Entry<T>>,
    first: u64,
    /// The lowest position that an item has had.
    lowest_used: u64,
    bytes: usize,
    limits: Limits,
}

#[derive(Debug)]
struct Entry<T> {
    item: Arc<T>,
    bytes: usize,
    at_ms: u64,
}

impl<T> RingLog<T> {
    /// Creates an empty log.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        RingLog { entries: VecDeque::new(), first: FIRST_POSITION, lowest_used: FIRST_POSITION, bytes: 0, limits }
    }

    /// Returns the position of the oldest item. It equals [`RingLog::end_position`] if the log is empty.
    #[must_use]
    pub fn first_position(&self) -> u64 {
        self.first
    }

    /// Returns the position of the next item that is pushed.
    #[must_use]
    pub fn end_position(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Returns the sum of the bytes charged for the items.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends an item that is charged `bytes` and was created at `now_ms`. The caller must then call
    /// [`RingLog::evict`].
    pub fn push(&mut self, item: Arc<T>, bytes: usize, now_ms: u64) {
        self.entries.push_back(Entry { item, bytes, at_ms: now_ms });
        self.bytes += bytes;
    }

    /// Returns whether [`RingLog::prepend`] can add items: no item has been removed. The position of a removed item may
    /// still be that of a reader, so it must not become the position of another item.
    #[must_use]
    pub fn is_extendable(&self) -> bool {
        self.first == self.lowest_used
    }

    /// Adds items with their charges before the oldest item, with the creation time `now_ms`. If they exceed the limit of
    /// items or bytes, it adds the newest of them that fit. Adds none if the log is not extendable. Returns the others.
    #[must_use]
    pub fn prepend(&mut self, mut items: Vec<(Arc<T>, usize)>, now_ms: u64) -> Vec<Arc<T>> {
        let (mut count, mut bytes) = (self.entries.len(), self.bytes);
        let fits = |(_, charged): &&(Arc<T>, usize)| {
            count += 1;
            bytes = bytes.saturating_add(*charged);
            count <= self.limits.items && bytes <= self.limits.bytes
        };
        let free_positions = if self.is_extendable() { self.first } else { 0 };
        let free_positions = usize::try_from(free_positions).unwrap_or(usize::MAX);
        let added = items.iter().rev().take(free_positions).take_while(fits).count();
        for (item, bytes) in items.drain(items.len() - added..).rev() {
            self.first -= 1;
            self.bytes += bytes;
            self.entries.push_front(Entry { item, bytes, at_ms: now_ms });
        }
        self.lowest_used = self.lowest_used.min(self.first);
        items.into_iter().map(|(item, _)| item).collect()
    }

    /// Replaces each item for which `with` returns another one. The position and the charge stay.
    pub fn replace(&mut self, mut with: impl FnMut(&T) -> Option<Arc<T>>) {
        for entry in &mut self.entries {
            if let Some(item) = with(&entry.item) {
                entry.item = item;
            }
        }
    }

    /// Removes and returns the oldest item if a limit is exceeded. The caller must repeat the call until it returns
    /// `None`. The newest item is never evicted.
    pub fn evict(&mut self, now_ms: u64) -> Option<Arc<T>> {
        let oldest = self.entries.front()?;
        let is_exceeded = self.entries.len() > self.limits.items
            || self.bytes > self.limits.bytes
            || now_ms.saturating_sub(oldest.at_ms) > self.limits.age_ms;
        if !is_exceeded || self.entries.len() == 1 {
            return None;
        }
        let evicted = self.entries.pop_front()?;
        self.first += 1;
        self.bytes -= evicted.bytes;
        Some(evicted.item)
    }

    /// Removes the items before a position. A log with one reader calls it when the reader has read them.
    pub fn discard_before(&mut self, position: u64) {
        while self.first < position
            && let Some(removed) = self.entries.pop_front()
        {
            self.first += 1;
            self.bytes -= removed.bytes;
        }
    }

    /// Removes all items. Later items continue with the next position.
    pub fn clear(&mut self) {
        self.first = self.end_position();
        self.entries.clear();
        self.bytes = 0;
    }

    /// Removes all items while the log has no reader, so that it is extendable afterwards.
    pub fn clear_before_first_reader(&mut self) {
        self.clear();
        self.lowest_used = self.first;
    }

    /// Returns at most `max` items, starting at a position. Returns `None` if the item at the position was evicted.
    #[must_use]
    pub fn read_from(&self, position: u64, max: usize) -> Option<impl Iterator<Item = &Arc<T>>> {
        let skip = usize::try_from(position.checked_sub(self.first)?).ok()?;
        Some(self.entries.iter().skip(skip).take(max).map(|entry| &entry.item))
    }

    /// Returns the first position whose item does not satisfy `before`. All items that satisfy it must come before the
    /// others.
    #[must_use]
    pub fn partition_point(&self, mut before: impl FnMut(&T) -> bool) -> u64 {
        self.first + self.entries.partition_point(|entry| before(&entry.item)) as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn read_from_an_evicted_position_returns_none() {
        let mut log = RingLog::new(Limits { items: 2, bytes: 100, age_ms: 1000 });
        let start = log.end_position();
        for item in 0..3 {
            log.push(Arc::new(item), 10, 0);
            while log.evict(0).is_some() {}
        }
        assert!(log.read_from(start, 9).is_none(), "the first item must be evicted");
        let rest: Vec<i32> = log.read_from(start + 1, 9).unwrap().map(|i| **i).collect();
        assert_eq!(rest, [1, 2]);
        assert_eq!(log.read_from(log.end_position(), 9).unwrap().count(), 0);
        assert_eq!(log.bytes(), 20);
    }

    #[test]
    fn each_limit_evicts_old_items() {
        let evicted = |limits, now_ms| {
            let mut log = RingLog::new(limits);
            for _ in 0..4 {
                log.push(Arc::new(()), 10, 0);
            }
            std::iter::from_fn(|| log.evict(now_ms)).count()
        };
        let wide = Limits { items: 99, bytes: 999, age_ms: 99 };
        assert_eq!(evicted(wide, 0), 0, "no limit is exceeded");
        assert_eq!(evicted(Limits { items: 3, ..wide }, 0), 1, "one item too many");
        assert_eq!(evicted(Limits { bytes: 20, ..wide }, 0), 2, "20 bytes too many");
        assert_eq!(evicted(wide, 100), 3, "all items are too old, and the newest is never evicted");
    }

    proptest! {
        #[test]
        fn positions_never_repeat_across_push_evict_and_prepend(ops in proptest::collection::vec(0u8..9, 0..200)) {
            let mut log = RingLog::new(Limits { items: 7, bytes: 1 << 20, age_ms: 1 << 40 });
            let (mut end, mut lowest) = (log.end_position(), log.end_position());
            for op in ops {
                match op {
                    0 => log.clear(),
                    1 | 2 => {
                        let first = log.first_position();
                        let items = (first - 3..first).map(|at| (Arc::new(at), 1)).collect();
                        let can_add = if first == lowest { 7 - (end - first) } else { 0 };
                        let dropped = log.prepend(items, 0);
                        prop_assert_eq!(log.first_position(), first - can_add.min(3));
                        prop_assert_eq!(dropped.len() as u64, 3 - can_add.min(3));
                        lowest = lowest.min(log.first_position());
                    }
                    _ => {
                        log.push(Arc::new(end), 1, 0);
                        end += 1;
                        while log.evict(0).is_some() {}
                    }
                }
                prop_assert_eq!(log.is_extendable(), log.first_position() == lowest);
                prop_assert_eq!(log.end_position(), end);
                for (at, item) in (log.first_position()..).zip(log.read_from(log.first_position(), 99).unwrap()) {
                    prop_assert_eq!(at, **item);
                }
                let middle = (log.first_position() + log.end_position()) / 2;
                prop_assert_eq!(log.partition_point(|item| *item < middle), middle);
            }
        }
    }
}
