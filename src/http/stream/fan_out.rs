//! Writers: one a core, each with a share of the streams, which it tells one after the other what an audience is told.
//!
//! A task a stream would be woken and scheduled for each event, which costs a quarter of the system call beside it
//! (docs/performance.md). So a stream that has read everything sits down here, and its own task sleeps until its client,
//! its clock or a full kernel needs it. Always: who sits down reads once more afterwards, so that nothing falls between;
//! everybody is told at least every [`ROUND`] steps, so that nobody falls off the log for having nothing to read.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::pending,
    sync::{
        Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::task::{unconstrained, yield_now};

use crate::feed::{Audience, Feed, Shown};

/// Streams that are told before other tasks of the core get their turn: a third of a millisecond of system calls.
const TURN: usize = 64;
/// Bytes that are prepared once for all, as much as a stream reads at a time: 64 KiB. More is read by each for itself.
const SHOWN: usize = 64 << 10;
/// Steps of which nothing passes a lens before its streams are told all the same: half of what a lens keeps framed.
const ROUND: u64 = 512;
/// Members that are gone are looked for when there are this many more than the last time...
const SPARE: usize = 64;

/// Somebody who can be told that there is something to read.
pub(super) trait Member: Send + Sync {
    /// Sends what its audience is shown, if it is where that begins; else its own task is to read what there is.
    fn tell(&self, shown: Option<&Shown>);
}

/// The writers and who sits where.
#[derive(Debug)]
pub struct Fan {
    shares: Box<[Share]>,
    next: AtomicUsize,
    running: AtomicUsize,
}

/// A writer's streams.
#[derive(Debug, Default)]
struct Share(Mutex<Halls>);

/// By audience.
#[derive(Debug, Default)]
struct Halls {
    all: HashMap<usize, Hall>,
    /// How many there were when empty ones were last looked for.
    counted: usize,
}

/// Those of an audience that one writer tells.
struct Hall {
    audience: Audience,
    /// How far the audience has been looked at, and how far its members have been told.
    seen: u64,
    told: u64,
    members: Members,
    /// How many there were when those who are gone were last looked for.
    counted: usize,
    /// The members are being told, elsewhere.
    busy: bool,
}

impl std::fmt::Debug for Hall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hall").field("seen", &self.seen).field("members", &self.members.len()).finish_non_exhaustive()
    }
}

type Members = Vec<Weak<dyn Member>>;

/// Counts a writer as running.
struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Fan {
    /// One share a core; nobody writes yet.
    pub(super) fn new() -> Fan {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shares = (0..cores).map(|_| Share::default()).collect();
        Fan { shares, next: AtomicUsize::new(0), running: AtomicUsize::new(0) }
    }

    /// How many writers there are to run.
    pub fn writers(&self) -> usize {
        self.shares.len()
    }

    /// Whether all of them run: who sat down before would not be told.
    pub(super) fn is_running(&self) -> bool {
        self.running.load(Relaxed) == self.shares.len()
    }

    pub(super) fn seat(&self, audience: Audience, member: Weak<dyn Member>) {
        let share = &self.shares[self.next.fetch_add(1, Relaxed) % self.shares.len()];
        let mut halls = share.lock();
        if halls.all.len() >= 2 * halls.counted + SPARE {
            halls.all.retain(|_, hall| hall.busy || hall.members.iter().any(|member| member.strong_count() > 0));
            halls.counted = halls.all.len();
        }
        let hall = halls.all.entry(audience.key()).or_insert_with(|| {
            let end = audience.end();
            Hall { audience, seen: end, told: end, members: Vec::new(), counted: 0, busy: false }
        });
        if hall.members.len() >= 2 * hall.counted + SPARE {
            hall.members.retain(|member| member.strong_count() > 0);
            hall.counted = hall.members.len();
        }
        hall.members.push(member);
    }

    /// Writes to the streams of one share, for ever.
    pub async fn run(&self, share: usize, feed: Feed) -> Infallible {
        self.running.fetch_add(1, Relaxed);
        let _running = Running(&self.running);
        let share = &self.shares[share];
        let mut changes = feed.changes();
        // Its own turns keep it fair; a budget would make writes fail that would not block.
        unconstrained(async {
            // The sender lives in `feed`.
            while changes.changed().await.is_ok() {
                changes.borrow_and_update();
                let halls: Vec<usize> = share.lock().all.keys().copied().collect();
                for hall in halls {
                    share.round(hall).await;
                }
            }
            pending().await
        })
        .await
    }
}

impl Share {
    fn lock(&self) -> MutexGuard<'_, Halls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the members of one hall, if there is anything to tell.
    async fn round(&self, key: usize) {
        let Some((shown, mut members)) = self.members(key) else { return };
        let mut at = 0;
        while let Some(member) = members.get(at) {
            match member.upgrade() {
                Some(here) => {
                    here.tell(shown.as_ref());
                    at += 1;
                }
                None => drop(members.swap_remove(at)),
            }
            if at % TURN == TURN - 1 {
                yield_now().await;
            }
        }
        let mut halls = self.lock();
        if let Some(hall) = halls.all.get_mut(&key) {
            hall.busy = false;
            hall.members.append(&mut members);
            hall.counted = hall.members.len();
            if hall.members.is_empty() {
                halls.all.remove(&key);
            }
        }
    }

    /// The members who are to be told now. Who sits down meanwhile has read what they are told.
    fn members(&self, key: usize) -> Option<(Option<Shown>, Members)> {
        let mut halls = self.lock();
        let hall = halls.all.get_mut(&key)?;
        let (seen, news) = hall.audience.news(hall.seen);
        hall.seen = seen;
        if !news && seen - hall.told < ROUND {
            return None;
        }
        // Who has been told everything is where the last round ended.
        let shown = hall.audience.shown(hall.told, SHOWN).filter(|_| news);
        (hall.told, hall.busy) = (shown.as_ref().map_or(seen, Shown::end), true);
        hall.seen = hall.told;
        Some((shown, std::mem::take(&mut hall.members)))
    }
}
