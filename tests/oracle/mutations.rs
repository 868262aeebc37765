//! Mutations of valid records. The validators must reject each of them, which shows that they can fail.

pub(crate) mod delivery;
pub(crate) mod full_stream;
pub(crate) mod ws;

use std::collections::BTreeMap;

use boilerhouse_bridge::test_support::SeededRng;

/// How often each mutation was applied, by its name.
#[derive(Debug)]
pub(crate) struct Applied(BTreeMap<&'static str, u64>);

impl Applied {
    fn none(names: impl Iterator<Item = &'static str>) -> Applied {
        Applied(names.map(|name| (name, 0)).collect())
    }

    /// The number of mutations that were applied at least once.
    pub(crate) fn applicable(&self) -> u64 {
        self.0.values().filter(|times| **times > 0).count() as u64
    }

    /// Prints how often each mutation was applied.
    ///
    /// # Panics
    /// If one was applied less often than `min` times.
    pub(crate) fn assert_each_at_least(&self, min: u64) {
        println!("{} mutations, applied: {:#?}", self.0.len(), self.0);
        for (name, times) in &self.0 {
            assert!(*times >= min, "this mutation was applied only {times} times: {name}");
        }
    }
}

/// One of the values, by chance.
fn pick<T: Clone>(rng: &mut SeededRng, fitting: &[T]) -> Option<T> {
    if fitting.is_empty() { None } else { Some(rng.choose(fitting).clone()) }
}
