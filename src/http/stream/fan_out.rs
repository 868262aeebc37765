//! Shards: at most one for each processor core. The task of a shard delivers shared batches to the streams of the shard,
//! one after the other.
//!
//! Without shards each event would wake and schedule the task of each stream, which costs a quarter of the system call
//! that the task then makes (docs/performance.md#cost-of-a-delivery). A stream without unread entries therefore joins
//! its fan-out group here. Its own task then wakes only for input, a deadline or a full socket buffer.
//!
//! Owns: the members of all fan-out groups.
//!
//! Guarantees:
//! - An entry that is appended while a stream joins is not missed: the stream polls its subscription once more after it
//!   has joined.
//! - Each member advances at least every [`ENTRIES_PER_FULL_VISIT`] and [`MAX_SILENT_ENTRIES`] log entries together, so that a member whose projection matches
//!   nothing is not evicted from the log.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    future::pending,
    sync::{
        Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::task::{unconstrained, yield_now};

use super::log::{Group, Log};
use crate::{feed::SharedBatch, weak_table::PruneSchedule};

/// Members of a shard before the next shard is used: about 8 ms of system calls for one event. Several shards at once cost
/// each other processor time (docs/performance.md#cost-of-a-delivery), so a few streams share one.
const MEMBERS_BEFORE_NEXT_SHARD: usize = 1024;
/// Members that a shard visits before other tasks of its thread run: about 0.3 ms of system calls.
const MEMBERS_PER_YIELD: usize = 64;
/// Maximum size of a shared batch: 64 KiB, because its members share the bytes. If more is unread, each member reads for itself.
const MAX_SHARED_BATCH_BYTES: usize = 64 << 10;
/// Number of log entries after which a shard visits all groups, and not only those that new entries can concern. It bounds
/// how far the members of the others fall back in the log.
const ENTRIES_PER_FULL_VISIT: u64 = 512;
/// Maximum number of log entries without an event for a group, before its members advance nevertheless. It is half of
/// the frames that a projection cache holds.
const MAX_SILENT_ENTRIES: u64 = 512;

/// A stream, as a shard sees it.
pub(super) trait Member: Send + Sync {
    /// Sends the shared batch, if the member is at its start. Otherwise the member's own task reads the feed.
    fn deliver(&self, batch: Option<&SharedBatch>);
}

/// The shards of a listener. Each needs a task that calls [`FanOut::run`].
#[derive(Debug)]
pub struct FanOut {
    shards: Box<[Shard]>,
    running_writers: AtomicUsize,
}

/// The groups of one shard.
#[derive(Debug, Default)]
struct Shard {
    groups: Mutex<ShardGroups>,
    /// The number of members. It includes closed ones that were not yet removed.
    members: AtomicUsize,
}

/// The members of a shard, by group.
#[derive(Debug, Default)]
struct ShardGroups {
    by_id: HashMap<usize, GroupMembers>,
    /// The groups that each entry can concern.
    unindexed: HashSet<usize>,
    prune_schedule: PruneSchedule,
}

/// The members of one group in one shard.
struct GroupMembers {
    group: Group,
    /// The position up to which the log was searched for entries with events for the group.
    scanned_to: u64,
    /// The position up to which the members have been served.
    delivered_to: u64,
    members: Members,
    prune_schedule: PruneSchedule,
    /// True while the shard's task delivers to the members, which are then not in `members`.
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

/// Counts the visit of a group or a member, and yields after [`MEMBERS_PER_YIELD`] of them.
async fn count_visit(visited: &mut usize) {
    *visited += 1;
    if *visited >= MEMBERS_PER_YIELD {
        *visited = 0;
        yield_now().await;
    }
}

/// Counts a shard's task as running until it is dropped.
struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl FanOut {
    /// Returns one shard for each processor core. Their tasks do not run yet.
    pub(super) fn new() -> FanOut {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = (0..cores).map(|_| Shard::default()).collect();
        FanOut { shards, running_writers: AtomicUsize::new(0) }
    }

    /// Returns the number of shards.
    pub fn writer_count(&self) -> usize {
        self.shards.len()
    }

    /// Returns true if the tasks of all shards run. Before that, a member of a group would receive nothing.
    pub(super) fn is_running(&self) -> bool {
        self.running_writers.load(Relaxed) == self.shards.len()
    }

    /// Adds a member to a group, in the first shard with room for it, or else in the one with the fewest members.
    pub(super) fn join(&self, group: Group, member: Weak<dyn Member>) {
        let count = |shard: &&Shard| shard.members.load(Relaxed).max(MEMBERS_BEFORE_NEXT_SHARD - 1);
        let Some(shard) = self.shards.iter().min_by_key(count) else { return };
        shard.members.fetch_add(1, Relaxed);
        let mut groups = shard.lock();
        if groups.prune_schedule.is_due(groups.by_id.len()) {
            groups.by_id.retain(|_, group_members| {
                let is_used =
                    group_members.delivering || group_members.members.iter().any(|member| member.strong_count() > 0);
                if !is_used {
                    shard.members.fetch_sub(group_members.members.len(), Relaxed);
                }
                is_used
            });
            let ShardGroups { by_id, unindexed, prune_schedule } = &mut *groups;
            prune_schedule.pruned(by_id.len());
            unindexed.retain(|id| by_id.contains_key(id));
        }
        if !group.is_indexed() {
            groups.unindexed.insert(group.id());
        }
        let group_members = groups.by_id.entry(group.id()).or_insert_with(|| {
            let end = group.end();
            GroupMembers {
                group,
                scanned_to: end,
                delivered_to: end,
                members: Vec::new(),
                prune_schedule: PruneSchedule::default(),
                delivering: false,
            }
        });
        if group_members.prune_schedule.is_due(group_members.members.len()) {
            let before = group_members.members.len();
            group_members.members.retain(|member| member.strong_count() > 0);
            shard.members.fetch_sub(before - group_members.members.len(), Relaxed);
            group_members.prune_schedule.pruned(group_members.members.len());
        }
        group_members.members.push(member);
    }

    /// Delivers the entries of `log` to the streams of one shard until shutdown.
    pub async fn run(&self, shard: usize, log: Log) -> Infallible {
        let mut changes = log.end();
        let reader = log.add_concern_reader();
        // From now on streams rely on this shard.
        self.running_writers.fetch_add(1, Relaxed);
        let _running = Running(&self.running_writers);
        let shard = &self.shards[shard];
        let (mut fully_visited_to, mut visited) = (0, 0);
        // The loop yields by itself. tokio's cooperative budget would make writes pending that do not block.
        unconstrained(async {
            // `log` owns the sender, so that the channel does not close.
            while changes.changed().await.is_ok() {
                let end = *changes.borrow_and_update();
                let concerned = log.take_concerned(reader, end);
                let visits_all = end - fully_visited_to >= ENTRIES_PER_FULL_VISIT;
                if visits_all {
                    fully_visited_to = end;
                }
                for group_id in shard.group_ids(&concerned, visits_all) {
                    shard.deliver_to_group(group_id, &mut visited).await;
                }
            }
            pending().await
        })
        .await
    }
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, ShardGroups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the groups that new entries can concern: those in `concerned`, and those that are not indexed. With `all` it
    /// returns all groups.
    fn group_ids(&self, concerned: &[usize], all: bool) -> Vec<usize> {
        let groups = self.lock();
        if all {
            return groups.by_id.keys().copied().collect();
        }
        groups.unindexed.iter().chain(concerned).copied().collect()
    }

    /// Delivers new entries to the members of one group, if there are any. `visited` counts groups and members, so that the
    /// shard yields also among small groups.
    async fn deliver_to_group(&self, group_id: usize, visited: &mut usize) {
        count_visit(visited).await;
        let Some((batch, mut members)) = self.members_to_deliver(group_id) else { return };
        let mut index = 0;
        while let Some(member) = members.get(index) {
            match member.upgrade() {
                Some(live_member) => {
                    live_member.deliver(batch.as_ref());
                    index += 1;
                }
                None => {
                    drop(members.swap_remove(index));
                    self.members.fetch_sub(1, Relaxed);
                }
            }
            count_visit(visited).await;
        }
        let mut groups = self.lock();
        if let Some(group_members) = groups.by_id.get_mut(&group_id) {
            group_members.delivering = false;
            group_members.members.append(&mut members);
            group_members.prune_schedule.pruned(group_members.members.len());
            if group_members.members.is_empty() {
                groups.by_id.remove(&group_id);
                groups.unindexed.remove(&group_id);
            }
        }
    }

    /// Removes the members that are due from the shard, and returns them with the batch to deliver. A stream that joins
    /// meanwhile has read the entries of the batch.
    fn members_to_deliver(&self, group_id: usize) -> Option<(Option<SharedBatch>, Members)> {
        let mut groups = self.lock();
        let group_members = groups.by_id.get_mut(&group_id)?;
        let (scanned_to, has_relevant) = group_members.group.has_relevant_since(group_members.scanned_to);
        group_members.scanned_to = scanned_to;
        if !has_relevant && scanned_to - group_members.delivered_to < MAX_SILENT_ENTRIES {
            return None;
        }
        // A member that received everything is at the end of the last delivery.
        let batch =
            group_members.group.batch_from(group_members.delivered_to, MAX_SHARED_BATCH_BYTES).filter(|_| has_relevant);
        (group_members.delivered_to, group_members.delivering) =
            (batch.as_ref().map_or(scanned_to, SharedBatch::end), true);
        group_members.scanned_to = group_members.delivered_to;
        Some((batch, std::mem::take(&mut group_members.members)))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future as _,
        pin::pin,
        sync::Arc,
        task::{Context, Waker},
    };

    use super::*;
    use crate::{
        event::projection::{EventFormat, Projection},
        feed::{self, Feed, Framing, StartAt},
        test_support::PodBuilder,
    };

    /// The writer of an empty feed, and a subscription that has read everything.
    fn empty_feed() -> (feed::Writer, feed::Subscription) {
        let (mut writer, feed) = Feed::new(feed::Config::default());
        writer.set_namespace(crate::event::NamespaceId::from_uid("a namespace"));
        for resource in crate::event::Resource::ALL {
            writer.replace(resource, Vec::new(), 1);
        }
        let cache = feed.projection_cache(Projection::everything(EventFormat::Full), Framing::WEBSOCKET);
        let mut subscription = feed.subscribe(cache, StartAt::Live).unwrap();
        while matches!(subscription.read(usize::MAX), feed::ReadResult::Batch(_)) {}
        (writer, subscription)
    }

    /// A few streams share one shard, because several busy shards cost each other processor time.
    #[tokio::test]
    async fn next_shard_is_used_when_the_first_is_full_and_room_is_used_again() {
        let (mut writer, mut subscription) = empty_feed();
        let fan_out = FanOut { shards: Box::new([Shard::default(), Shard::default()]), ..FanOut::new() };
        let mut join = |count: usize| {
            let members: Vec<Arc<dyn Member>> = (0..count).map(|_| Arc::new(Idle) as Arc<dyn Member>).collect();
            for member in &members {
                fan_out.join(Group::Feed(subscription.join_group().unwrap()), Arc::downgrade(member));
            }
            members
        };
        let counts = || fan_out.shards.iter().map(|shard| shard.members.load(Relaxed)).collect::<Vec<_>>();
        let first = join(MEMBERS_BEFORE_NEXT_SHARD);
        assert_eq!(counts(), [MEMBERS_BEFORE_NEXT_SHARD, 0]);
        let second = join(MEMBERS_BEFORE_NEXT_SHARD + 10);
        assert_eq!(counts(), [MEMBERS_BEFORE_NEXT_SHARD + 5; 2], "full shards get members in turn");
        drop(first);
        writer.upsert(PodBuilder::new("p").version(2).view());
        let group = *fan_out.shards[0].lock().by_id.keys().next().unwrap();
        for shard in &fan_out.shards {
            shard.deliver_to_group(group, &mut 0).await;
        }
        assert_eq!(counts().iter().sum::<usize>(), second.len(), "closed members are not counted");
        let _third = join(MEMBERS_BEFORE_NEXT_SHARD - 10);
        assert_eq!(counts(), [MEMBERS_BEFORE_NEXT_SHARD - 5, MEMBERS_BEFORE_NEXT_SHARD + 5]);
    }

    struct Idle;

    impl Member for Idle {
        fn deliver(&self, _: Option<&SharedBatch>) {}
    }

    /// A closed member takes a turn like an open one, at every position.
    #[tokio::test]
    async fn shard_yields_once_for_each_64_members() {
        const OPEN: usize = MEMBERS_PER_YIELD - 1;
        const CLOSED: usize = 2 * MEMBERS_PER_YIELD + 1;
        let (mut writer, mut subscription) = empty_feed();
        let fan_out = FanOut { shards: Box::new([Shard::default()]), ..FanOut::new() };
        let mut members: Vec<Arc<dyn Member>> = Vec::new();
        for _ in 0..OPEN + CLOSED {
            members.push(Arc::new(Idle));
            fan_out.join(Group::Feed(subscription.join_group().unwrap()), Arc::downgrade(members.last().unwrap()));
        }
        // The open ones come first, so that all closed ones are removed at one position.
        members.truncate(OPEN);
        writer.upsert(PodBuilder::new("p").version(2).view());
        let group = *fan_out.shards[0].lock().by_id.keys().next().unwrap();
        let mut visited = 0;
        let mut yields_of = |group_id| {
            let mut delivery = pin!(fan_out.shards[0].deliver_to_group(group_id, &mut visited));
            let mut yields = 0;
            while delivery.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                yields += 1;
            }
            yields
        };
        // The visit of the group counts too.
        assert_eq!(yields_of(group), (1 + OPEN + CLOSED) / MEMBERS_PER_YIELD);
        let small_groups: usize = (0..MEMBERS_PER_YIELD).map(|_| yields_of(usize::MAX)).sum();
        assert_eq!(small_groups, 1, "the shard yields among groups without members as well");
        assert_eq!(fan_out.shards[0].lock().by_id[&group].members.len(), OPEN);
    }
}
