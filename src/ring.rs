//! A bounded ring of shared items with positions that never repeat.
//!
//! Readers hold positions, not items: however slow one is, it costs nothing here. What it missed is known by
//! comparing its position with [`RingLog::first_position`]. Nothing here knows what an item is, or reads a clock.

use std::{collections::VecDeque, sync::Arc};

/// Positions start here, so that older items can be put in front.
const FIRST_POSITION: u64 = 1 << 32;

/// What the ring may hold. Whichever bound is reached first evicts the oldest items.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Number of items.
    pub items: usize,
    /// Bytes, as charged by whoever pushes.
    pub bytes: usize,
    /// Age in milliseconds.
    pub age_ms: u64,
}

impl Default for Limits {
    /// 64 Ki items and 64 MiB for at most 10 minutes: long enough for any reconnect, small enough for any pod.
    fn default() -> Self {
        Limits { items: 64 << 10, bytes: 64 << 20, age_ms: 600_000 }
    }
}

/// The ring.
#[derive(Debug)]
pub struct RingLog<T> {
    entries: VecDeque<Entry<T>>,
    first: u64,
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
    /// An empty ring.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        RingLog { entries: VecDeque::new(), first: FIRST_POSITION, bytes: 0, limits }
    }

    /// Position of the oldest item held; equal to [`RingLog::end_position`] when there is none.
    #[must_use]
    pub fn first_position(&self) -> u64 {
        self.first
    }

    /// Position that the next item will have.
    #[must_use]
    pub fn end_position(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Bytes held, as charged.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends an item that is charged `bytes` and was made at `now_ms`.
    pub fn push(&mut self, item: Arc<T>, bytes: usize, now_ms: u64) {
        self.entries.push_back(Entry { item, bytes, at_ms: now_ms });
        self.bytes += bytes;
    }

    /// Puts items with their charges in front of all others, made at `now_ms`. False when there is no room for them: then
    /// nothing is taken.
    pub fn prepend(&mut self, items: Vec<(Arc<T>, usize)>, now_ms: u64) -> bool {
        let bytes: usize = items.iter().map(|(_, bytes)| bytes).sum();
        let has_room = self.entries.len() + items.len() <= self.limits.items
            && self.bytes.saturating_add(bytes) <= self.limits.bytes
            && self.first >= items.len() as u64;
        if has_room {
            self.first -= items.len() as u64;
            self.bytes += bytes;
            for (item, bytes) in items.into_iter().rev() {
                self.entries.push_front(Entry { item, bytes, at_ms: now_ms });
            }
        }
        has_room
    }

    /// Takes out the oldest item if a limit is exceeded; call until `None`. The newest item always stays.
    pub fn evict(&mut self, now_ms: u64) -> Option<Arc<T>> {
        let oldest = self.entries.front()?;
        let over = self.entries.len() > self.limits.items
            || self.bytes > self.limits.bytes
            || now_ms.saturating_sub(oldest.at_ms) > self.limits.age_ms;
        if !over || self.entries.len() == 1 {
            return None;
        }
        let evicted = self.entries.pop_front()?;
        self.first += 1;
        self.bytes -= evicted.bytes;
        Some(evicted.item)
    }

    /// Forgets what is before a position: its only reader has read it.
    pub fn discard_before(&mut self, position: u64) {
        while self.first < position
            && let Some(evicted) = self.entries.pop_front()
        {
            self.first += 1;
            self.bytes -= evicted.bytes;
        }
    }

    /// Forgets everything; positions go on.
    pub fn clear(&mut self) {
        self.first = self.end_position();
        self.entries.clear();
        self.bytes = 0;
    }

    /// At most `max` items from a position on; `None` when items after the position are gone.
    #[must_use]
    pub fn read_from(&self, position: u64, max: usize) -> Option<impl Iterator<Item = &Arc<T>>> {
        let skip = usize::try_from(position.checked_sub(self.first)?).ok()?;
        Some(self.entries.iter().skip(skip).take(max).map(|entry| &entry.item))
    }

    /// The first position whose item does not satisfy `before`, which holds for a prefix of the ring.
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
        assert!(log.read_from(start, 9).is_none(), "the first item is gone");
        let rest: Vec<i32> = log.read_from(start + 1, 9).unwrap().map(|i| **i).collect();
        assert_eq!(rest, [1, 2]);
        assert_eq!(log.read_from(log.end_position(), 9).unwrap().count(), 0);
        assert_eq!(log.bytes(), 20);
    }

    #[test]
    fn each_limit_evicts_old_items() {
        let full = |limits, now_ms| {
            let mut log = RingLog::new(limits);
            for _ in 0..4 {
                log.push(Arc::new(()), 10, 0);
            }
            std::iter::from_fn(|| log.evict(now_ms)).count()
        };
        let wide = Limits { items: 99, bytes: 999, age_ms: 99 };
        assert_eq!(full(wide, 0), 0);
        assert_eq!(full(Limits { items: 3, ..wide }, 0), 1);
        assert_eq!(full(Limits { bytes: 20, ..wide }, 0), 2);
        assert_eq!(full(wide, 100), 3, "the newest stays");
    }

    proptest! {
        #[test]
        fn positions_stay_stable_across_push_and_evict(ops in proptest::collection::vec(0u8..8, 0..200)) {
            let mut log = RingLog::new(Limits { items: 7, bytes: 1 << 20, age_ms: 1 << 40 });
            let origin = log.end_position();
            let mut pushed = 0u64;
            for op in ops {
                if op == 1 && log.first_position() > origin {
                    // What was dropped comes back, as far as there is room.
                    let from = origin + (log.first_position() - origin) / 2;
                    let items = (from..log.first_position()).map(|at| (Arc::new(at - origin), 1)).collect();
                    let first = log.first_position();
                    let taken = log.prepend(items, 0);
                    prop_assert_eq!(log.first_position(), if taken { from } else { first });
                } else if op == 0 {
                    log.clear();
                } else {
                    log.push(Arc::new(pushed), 1, 0);
                    pushed += 1;
                    while log.evict(0).is_some() {}
                }
                prop_assert_eq!(log.end_position(), origin + pushed);
                for (at, item) in (log.first_position()..).zip(log.read_from(log.first_position(), 99).unwrap()) {
                    prop_assert_eq!(at, origin + **item);
                }
                let middle = (log.first_position() + log.end_position()) / 2;
                prop_assert_eq!(log.partition_point(|item| origin + item < middle), middle);
            }
        }
    }
}
