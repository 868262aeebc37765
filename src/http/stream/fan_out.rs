//! Writers: one a core, each with a share of the streams, which it tells one after the other what an audience is told.
//!
//! A task a stream would be woken and scheduled for each event, which costs a quarter of the system call beside it
//! (docs/performance.md). So a stream that has read everything sits down here, and its own task sleeps until its client,
//! its clock or a full kernel needs it. Always: who sits down reads once more afterwards, so that nothing falls between;
//! everybody is told at least every [`MAX_SILENT_ENTRIES`] steps, so that nobody falls off the log for having nothing to read.

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

use crate::feed::{Feed, Group, SharedBatch};

/// Streams that are told before other tasks of the core get their turn: a third of a millisecond of system calls.
const MEMBERS_PER_YIELD: usize = 64;
/// Bytes that are prepared once for all, as much as a stream reads at a time: 64 KiB. More is read by each for itself.
const MAX_SHARED_BATCH_BYTES: usize = 64 << 10;
/// Steps of which nothing passes a lens before its streams are told all the same: half of what a lens keeps framed.
const MAX_SILENT_ENTRIES: u64 = 512;
/// Members that are gone are looked for when there are this many more than the last time...
const PRUNE_SLACK: usize = 64;

/// Somebody who can be told that there is something to read.
pub(super) trait Member: Send + Sync {
    /// Sends what its audience is shown, if it is where that begins; else its own task is to read what there is.
    fn deliver(&self, batch: Option<&SharedBatch>);
}

/// The writers and who sits where.
#[derive(Debug)]
pub struct FanOut {
    shards: Box<[Shard]>,
    next_shard: AtomicUsize,
    running_writers: AtomicUsize,
}

/// A writer's streams.
#[derive(Debug, Default)]
struct Shard(Mutex<ShardGroups>);

/// By audience.
#[derive(Debug, Default)]
struct ShardGroups {
    by_id: HashMap<usize, GroupMembers>,
    /// How many there were when empty ones were last looked for.
    len_at_last_prune: usize,
}

/// Those of an audience that one writer tells.
struct GroupMembers {
    group: Group,
    /// How far the audience has been looked at, and how far its members have been told.
    scanned_to: u64,
    delivered_to: u64,
    members: Members,
    /// How many there were when those who are gone were last looked for.
    len_at_last_prune: usize,
    /// The members are being told, elsewhere.
    delivering: bool,
}

impl std::fmt::Debug for GroupMembers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupMembers")
            .field("scanned_to", &self.scanned_to)
            .field("members", &self.members.len())
            .finish_non_exhaustive()
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

impl FanOut {
    /// One share a core; nobody writes yet.
    pub(super) fn new() -> FanOut {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = (0..cores).map(|_| Shard::default()).collect();
        FanOut { shards, next_shard: AtomicUsize::new(0), running_writers: AtomicUsize::new(0) }
    }

    /// How many writers there are to run.
    pub fn writer_count(&self) -> usize {
        self.shards.len()
    }

    /// Whether all of them run: who sat down before would not be told.
    pub(super) fn is_running(&self) -> bool {
        self.running_writers.load(Relaxed) == self.shards.len()
    }

    pub(super) fn join(&self, group: Group, member: Weak<dyn Member>) {
        let shard = &self.shards[self.next_shard.fetch_add(1, Relaxed) % self.shards.len()];
        let mut groups = shard.lock();
        if groups.by_id.len() >= 2 * groups.len_at_last_prune + PRUNE_SLACK {
            groups.by_id.retain(|_, group_members| {
                group_members.delivering || group_members.members.iter().any(|member| member.strong_count() > 0)
            });
            groups.len_at_last_prune = groups.by_id.len();
        }
        let group_members = groups.by_id.entry(group.id()).or_insert_with(|| {
            let end = group.end();
            GroupMembers {
                group,
                scanned_to: end,
                delivered_to: end,
                members: Vec::new(),
                len_at_last_prune: 0,
                delivering: false,
            }
        });
        if group_members.members.len() >= 2 * group_members.len_at_last_prune + PRUNE_SLACK {
            group_members.members.retain(|member| member.strong_count() > 0);
            group_members.len_at_last_prune = group_members.members.len();
        }
        group_members.members.push(member);
    }

    /// Writes to the streams of one share, for ever.
    pub async fn run(&self, shard: usize, feed: Feed) -> Infallible {
        self.running_writers.fetch_add(1, Relaxed);
        let _running = Running(&self.running_writers);
        let shard = &self.shards[shard];
        let mut changes = feed.log_end();
        // Its own turns keep it fair; a budget would make writes fail that would not block.
        unconstrained(async {
            // The sender lives in `feed`.
            while changes.changed().await.is_ok() {
                changes.borrow_and_update();
                let groups: Vec<usize> = shard.lock().by_id.keys().copied().collect();
                for group_members in groups {
                    shard.deliver_to_group(group_members).await;
                }
            }
            pending().await
        })
        .await
    }
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, ShardGroups> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the members of one hall, if there is anything to tell.
    async fn deliver_to_group(&self, group_id: usize) {
        let Some((batch, mut members)) = self.members_to_deliver(group_id) else { return };
        let mut at = 0;
        while let Some(member) = members.get(at) {
            match member.upgrade() {
                Some(live_member) => {
                    live_member.deliver(batch.as_ref());
                    at += 1;
                }
                None => drop(members.swap_remove(at)),
            }
            if at % MEMBERS_PER_YIELD == MEMBERS_PER_YIELD - 1 {
                yield_now().await;
            }
        }
        let mut groups = self.lock();
        if let Some(group_members) = groups.by_id.get_mut(&group_id) {
            group_members.delivering = false;
            group_members.members.append(&mut members);
            group_members.len_at_last_prune = group_members.members.len();
            if group_members.members.is_empty() {
                groups.by_id.remove(&group_id);
            }
        }
    }

    /// The members who are to be told now. Who sits down meanwhile has read what they are told.
    fn members_to_deliver(&self, group_id: usize) -> Option<(Option<SharedBatch>, Members)> {
        let mut groups = self.lock();
        let group_members = groups.by_id.get_mut(&group_id)?;
        let (scanned_to, has_relevant) = group_members.group.has_relevant_since(group_members.scanned_to);
        group_members.scanned_to = scanned_to;
        if !has_relevant && scanned_to - group_members.delivered_to < MAX_SILENT_ENTRIES {
            return None;
        }
        // Who has been told everything is where the last round ended.
        let batch =
            group_members.group.batch_from(group_members.delivered_to, MAX_SHARED_BATCH_BYTES).filter(|_| has_relevant);
        (group_members.delivered_to, group_members.delivering) =
            (batch.as_ref().map_or(scanned_to, SharedBatch::end), true);
        group_members.scanned_to = group_members.delivered_to;
        Some((batch, std::mem::take(&mut group_members.members)))
    }
}
