//! The projections in use, and the common byte budget of their caches.
//!
//! *Owns* weak references to the caches: a cache lives while a subscription uses it.
//!
//! *Guarantees:*
//! - Equal projections with equal framing share one cache, so each entry is rendered once for them.
//! - After [`ProjectionRegistry::trim`] all caches together are within the budget, for any number of projections.
//! - The lock of the registry is taken before the lock of a cache.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use prometheus_client::metrics::gauge::Gauge;

use super::{
    framing::Framing,
    projection_cache::{MAX_FRAMES, ProjectionCache},
    state::Shared,
};
use crate::{event::projection::Projection, weak_table::WeakTable};

/// The number of the next projection.
static NEXT_ID: AtomicUsize = AtomicUsize::new(0);

type Caches = WeakTable<(Projection, Framing), ProjectionCache>;

/// The projections in use.
#[derive(Debug)]
pub(super) struct ProjectionRegistry {
    caches: Mutex<Caches>,
    /// Maximum number of bytes that the caches may hold.
    budget_bytes: i64,
    /// Bytes that the caches hold.
    cached_bytes: Gauge,
    /// The number of caches.
    in_use: Gauge,
}

impl ProjectionRegistry {
    /// Creates an empty registry. Nothing else may count in these gauges.
    pub(super) fn new(budget_bytes: usize, cached_bytes: Gauge, in_use: Gauge) -> ProjectionRegistry {
        ProjectionRegistry {
            caches: Mutex::default(),
            budget_bytes: i64::try_from(budget_bytes).unwrap_or(i64::MAX),
            cached_bytes,
            in_use,
        }
    }

    /// Returns the cache of this projection. It is created if no subscription uses an equal one.
    pub(super) fn get(&self, shared: &Shared, projection: Projection, framing: Framing) -> Arc<ProjectionCache> {
        let mut caches = self.lock();
        let key = (projection, framing);
        if let Some(cache) = caches.get(&key) {
            return cache;
        }
        let id = NEXT_ID.fetch_add(1, Relaxed);
        // The frames of a dedicated feed are not cached.
        let marks = shared.hub_feed.is_none().then(|| {
            let state = shared.state();
            shared.filter_index.add(id, &key.0, state.log.end_position())
        });
        let (cached_bytes, in_use) = (self.cached_bytes.clone(), self.in_use.clone());
        let cache = ProjectionCache::new(key.0.clone(), framing, id, marks.flatten(), cached_bytes, in_use);
        let cache = Arc::new(cache);
        caches.insert(key, &cache);
        cache
    }

    /// Evicts cached bytes if they exceed the budget.
    #[inline]
    pub(super) fn trim(&self) {
        if self.cached_bytes.get() > self.budget_bytes {
            self.evict_to_budget();
        }
    }

    /// Evicts to the budget or, if that takes more than dropping the initial states, to half of it. The caches with the
    /// most frames lose frames first.
    fn evict_to_budget(&self) {
        let caches = self.lock();
        let (mut target_bytes, mut max_frames) = (self.budget_bytes, MAX_FRAMES);
        // The condition may be false at once: another task may have evicted meanwhile.
        while self.cached_bytes.get() > target_bytes {
            for cache in caches.values() {
                cache.shrink_to(max_frames);
            }
            if max_frames == 0 {
                return;
            }
            (target_bytes, max_frames) = (self.budget_bytes / 2, max_frames / 2);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Caches> {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
