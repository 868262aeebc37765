//! The lenses in use, and how much they keep for their readers, all together.
//!
//! Equal lenses are one, so they render once. Always: when a read or a new state is done, what all lenses keep is within the
//! budget, however many lenses there are. Whoever puts too much in makes room, half of the budget at once. The lock of all
//! lenses comes before that of one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use prometheus_client::metrics::gauge::Gauge;

use super::{
    framing::Framing,
    projection_cache::{MAX_FRAMES, ProjectionCache},
};
use crate::event::projection::Projection;

type All = HashMap<(Projection, Framing), Weak<ProjectionCache>>;

#[derive(Debug)]
pub(super) struct ProjectionRegistry {
    all: Mutex<All>,
    /// Bytes that they may keep...
    budget_bytes: i64,
    /// ...and do keep.
    cached_bytes: Gauge,
    in_use: Gauge,
}

impl ProjectionRegistry {
    /// Counts what is kept in `kept`, where nothing else is counted.
    pub(super) fn new(budget: usize, cached_bytes: Gauge, in_use: Gauge) -> ProjectionRegistry {
        ProjectionRegistry {
            all: Mutex::default(),
            budget_bytes: i64::try_from(budget).unwrap_or(i64::MAX),
            cached_bytes,
            in_use,
        }
    }

    /// The one that is equal to this, and how many there are now.
    pub(super) fn get(&self, projection: Projection, framing: Framing) -> Arc<ProjectionCache> {
        let mut all = self.lock();
        let key = (projection, framing);
        if let Some(shared) = all.get(&key).and_then(Weak::upgrade) {
            return shared;
        }
        // Dead entries go when a new lens comes, so the map is bounded by the lenses in use.
        all.retain(|_, projection| projection.strong_count() > 0);
        let shared =
            Arc::new(ProjectionCache::new(key.0.clone(), framing, self.cached_bytes.clone(), self.in_use.clone()));
        all.insert(key, Arc::downgrade(&shared));
        shared
    }

    /// Makes room where the budget is exceeded: initial states go first, then frames, of those who have most of them.
    #[inline]
    pub(super) fn trim(&self) {
        if self.cached_bytes.get() > self.budget_bytes {
            self.evict_to_budget();
        }
    }

    fn evict_to_budget(&self) {
        let all = self.lock();
        let (mut enough, mut frames) = (self.budget_bytes, MAX_FRAMES);
        // Another may have made room meanwhile.
        while self.cached_bytes.get() > enough {
            for projection in all.values().filter_map(Weak::upgrade) {
                projection.shrink_to(frames);
            }
            if frames == 0 {
                return;
            }
            (enough, frames) = (self.budget_bytes / 2, frames / 2);
        }
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
