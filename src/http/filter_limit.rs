//! The number of different filters of each caller's open streams. Each filter in use costs memory, and time for each change
//! that it may select (docs/limits.md).
//!
//! Guarantees: the table has one entry for each filter of an open stream, and no other.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex},
};

use super::{caller::Caller, sync::lock};
use crate::event::projection::{Filter, Projection};

/// Default of [`FilterLimit::new`]: a quarter of the default of `--max-connections`.
pub const DEFAULT_MAX: usize = 2500;

/// Streams by a hash of their projection, for each caller. A projection has a cache of its own.
type OpenFilters = HashMap<Caller, HashMap<u64, usize>>;

/// The filters in use, by caller.
#[derive(Debug)]
pub struct FilterLimit {
    max: usize,
    /// Its key is random, so that no client can choose filters with equal hashes.
    hasher: RandomState,
    open: Arc<Mutex<OpenFilters>>,
}

/// One stream with a filter. Dropping it frees the filter, if no other stream of the caller has it.
#[derive(Debug)]
pub struct FilterSlot {
    caller: Caller,
    projection: u64,
    open: Arc<Mutex<OpenFilters>>,
}

/// The open streams of the caller have the maximum number of different filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyFilters;

impl FilterLimit {
    /// Allows each caller this number of different filters.
    #[must_use]
    pub fn new(max: usize) -> FilterLimit {
        FilterLimit { max, hasher: RandomState::new(), open: Arc::default() }
    }

    /// Counts a stream with this projection. Returns `None` for a stream without a filter, which is not limited.
    ///
    /// # Errors
    /// [`TooManyFilters`], if the filter is another one than those of the caller's streams and the maximum is reached.
    pub fn open(&self, caller: &Caller, projection: &Projection) -> Result<Option<FilterSlot>, TooManyFilters> {
        if projection.filter == Filter::default() {
            return Ok(None);
        }
        let projection = self.hasher.hash_one(projection);
        let mut open = lock(&self.open);
        let filters = open.entry(caller.clone()).or_default();
        if filters.len() >= self.max && !filters.contains_key(&projection) {
            return Err(TooManyFilters);
        }
        *filters.entry(projection).or_default() += 1;
        Ok(Some(FilterSlot { caller: caller.clone(), projection, open: self.open.clone() }))
    }
}

impl Drop for FilterSlot {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        let Some(filters) = open.get_mut(&self.caller) else { return };
        if let Some(streams) = filters.get_mut(&self.projection) {
            *streams -= 1;
            if *streams == 0 {
                filters.remove(&self.projection);
            }
        }
        if filters.is_empty() {
            open.remove(&self.caller);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::projection::EventFormat;

    #[test]
    fn different_filters_of_a_caller_are_limited_and_equal_ones_count_once() {
        let limit = FilterLimit::new(2);
        let [one, other] = [1, 2].map(|last| Caller::address([192, 0, 2, last].into()));
        let named = |name: &str| {
            let filter = Filter::parse(&format!(r#"{{"instances":{{"name":"{name}"}}}}"#)).unwrap();
            Projection { filter, ..Projection::everything(EventFormat::Full) }
        };
        let a = [limit.open(&one, &named("a")), limit.open(&one, &named("a"))];
        let b = limit.open(&one, &named("b")).unwrap();
        assert_eq!(limit.open(&one, &named("c")).unwrap_err(), TooManyFilters);
        assert!(limit.open(&one, &named("a")).is_ok() && limit.open(&other, &named("c")).is_ok());
        assert!(limit.open(&one, &Projection::everything(EventFormat::Full)).unwrap().is_none());
        drop(b);
        let c = limit.open(&one, &named("c")).unwrap();
        drop((a, c));
        assert!(lock(&limit.open).is_empty(), "nothing remains");
    }
}
