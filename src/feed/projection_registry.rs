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

use super::{Framing, SharedLens, projection_cache::FRAMES};
use crate::event::projection::Lens;

type All = HashMap<(Lens, Framing), Weak<SharedLens>>;

#[derive(Debug)]
pub(super) struct Lenses {
    all: Mutex<All>,
    /// Bytes that they may keep...
    budget: i64,
    /// ...and do keep.
    kept: Gauge,
}

impl Lenses {
    /// Counts what is kept in `kept`, where nothing else is counted.
    pub(super) fn new(budget: usize, kept: Gauge) -> Lenses {
        Lenses { all: Mutex::default(), budget: i64::try_from(budget).unwrap_or(i64::MAX), kept }
    }

    /// The one that is equal to this, and how many there are now.
    pub(super) fn get(&self, lens: Lens, framing: Framing) -> (Arc<SharedLens>, usize) {
        let mut all = self.lock();
        let key = (lens, framing);
        if let Some(shared) = all.get(&key).and_then(Weak::upgrade) {
            return (shared, all.len());
        }
        // Dead entries go when a new lens comes, so the map is bounded by the lenses in use.
        all.retain(|_, lens| lens.strong_count() > 0);
        let shared = Arc::new(SharedLens::new(key.0.clone(), framing, self.kept.clone()));
        all.insert(key, Arc::downgrade(&shared));
        (shared, all.len())
    }

    /// Makes room where the budget is exceeded: initial states go first, then frames, of those who have most of them.
    #[inline]
    pub(super) fn trim(&self) {
        if self.kept.get() > self.budget {
            self.make_room();
        }
    }

    fn make_room(&self) {
        let all = self.lock();
        let (mut enough, mut frames) = (self.budget, FRAMES);
        // Another may have made room meanwhile.
        while self.kept.get() > enough {
            for lens in all.values().filter_map(Weak::upgrade) {
                lens.keep_at_most(frames);
            }
            if frames == 0 {
                return;
            }
            (enough, frames) = (self.budget / 2, frames / 2);
        }
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
