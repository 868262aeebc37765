//! The timeline of one replica, from its recording: which version it had reached at what time, where it listed again,
//! and what failed. It decides which reasons the replica may give to a client.

use boilerhouse_bridge::event::{PerResource, Resource, ResourceVersion};
use tokio::time::Instant;

use crate::oracle::recording::{Recording, ResponseKind};

/// The counts of `pool.depth` follow their objects within this time, one time slot included (milliseconds).
const POOL_DEPTH_DELAY: u64 = 300;
/// A failure justifies `upstream.down` for this time. A stalled response is given up after 30 s (milliseconds).
const FAILURE_LASTS: u64 = 45_000;
/// A watch that ends earlier, without a change, does not start the count of failures again (milliseconds).
const SHORT_WATCH: u64 = 1_000;
/// A silence of the API server justifies `upstream.down` after this time (milliseconds).
const SILENCE: u64 = 15_000;

/// A list after the first one.
#[derive(Clone, Debug)]
pub(crate) struct Relist {
    pub(crate) at: u64,
    pub(crate) epoch: usize,
    pub(crate) version: ResourceVersion,
    /// The possible versions before it. Of two lists with nothing between them the first may not have been applied.
    pub(crate) since: Vec<ResourceVersion>,
}

impl Relist {
    /// Whether versions went back.
    pub(crate) fn is_history_reset(&self) -> bool {
        self.since.iter().any(|since| self.version < *since)
    }

    /// Whether a version is inside the difference.
    fn contains(&self, version: ResourceVersion) -> bool {
        self.since.iter().any(|since| *since < version) && version < self.version
    }
}

/// The configuration of a replica.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// When it started.
    pub(crate) started_at: u64,
    /// Whether its log holds only a few entries.
    pub(crate) has_small_log: bool,
    /// How much later than the API server sends them its watch lines arrive.
    pub(crate) lag_ms: u64,
}

/// The timeline of one replica, from its start to its end. All times are milliseconds since the start of the test.
#[derive(Debug)]
pub(crate) struct ReplicaTimeline {
    pub(crate) setup: Setup,
    /// Since when it was in which epoch at which version.
    positions: PerResource<Vec<(u64, usize, ResourceVersion)>>,
    pub(crate) relists: PerResource<Vec<Relist>>,
    /// Lists of backfills: time and version.
    pub(crate) backfill_lists: PerResource<Vec<(u64, ResourceVersion)>>,
    pub(crate) backfill_list_failed: PerResource<Vec<u64>>,
    /// Versions that the API server no longer has, and when the replica found out.
    pub(crate) backfill_list_gone: PerResource<Vec<(u64, ResourceVersion)>>,
    pub(crate) backfill_watch_failed: PerResource<Vec<u64>>,
    failed: PerResource<Vec<u64>>,
    pub(crate) watch_starts: PerResource<Vec<u64>>,
    /// When bytes arrived.
    pub(crate) bytes: PerResource<Vec<u64>>,
}

impl ReplicaTimeline {
    /// `started` is the start of the test.
    pub(crate) fn of(recording: &Recording, setup: Setup, started: Instant) -> ReplicaTimeline {
        let ms = |at: &Instant| u64::try_from(at.duration_since(started).as_millis()).unwrap();
        let all = |times: &PerResource<Vec<Instant>>| {
            PerResource::from_fn(|resource| times[resource].iter().map(ms).collect::<Vec<u64>>())
        };
        let mut timeline = ReplicaTimeline {
            setup,
            positions: PerResource::default(),
            relists: PerResource::default(),
            backfill_lists: PerResource::default(),
            backfill_list_failed: PerResource::default(),
            backfill_list_gone: PerResource::default(),
            backfill_watch_failed: PerResource::default(),
            failed: all(&recording.failed),
            watch_starts: all(&recording.watch_starts),
            bytes: all(&recording.bytes),
        };
        for resource in Resource::ALL {
            let (mut position, mut unapplied): (Option<ResourceVersion>, Option<Vec<ResourceVersion>>) = (None, None);
            for response in &recording.responses[resource] {
                let (at, epoch) = (ms(&response.at), response.epoch);
                match response.kind {
                    ResponseKind::Line(version) | ResponseKind::Bookmark(version) => {
                        let version = position.map_or(version, |position| position.max(version));
                        (position, unapplied) = (Some(version), None);
                        timeline.positions[resource].push((at, epoch, version));
                    }
                    ResponseKind::List(version) => {
                        if let Some(position) = position {
                            let mut since = unapplied.take().unwrap_or_default();
                            since.push(position);
                            unapplied = Some(since.clone());
                            timeline.relists[resource].push(Relist { at, epoch, version, since });
                        }
                        position = Some(version);
                        timeline.positions[resource].push((at, epoch, version));
                    }
                    ResponseKind::Gone | ResponseKind::Garbage => timeline.failed[resource].push(at),
                    ResponseKind::BackfillList(version) => timeline.backfill_lists[resource].push((at, version)),
                    ResponseKind::BackfillListFailed => timeline.backfill_list_failed[resource].push(at),
                    ResponseKind::BackfillListGone(gone) => timeline.backfill_list_gone[resource].push((at, gone)),
                    ResponseKind::BackfillWatchFailed => timeline.backfill_watch_failed[resource].push(at),
                    ResponseKind::Probe(_) => {}
                }
            }
        }
        timeline
    }

    /// The epoch and the version that it had reached before a time.
    pub(crate) fn position(&self, resource: Resource, before: u64) -> Option<(usize, ResourceVersion)> {
        let positions = &self.positions[resource];
        let next = positions.partition_point(|(at, ..)| *at < before);
        next.checked_sub(1).map(|nth| (positions[nth].1, positions[nth].2))
    }

    /// The version of its first list.
    pub(crate) fn first_version(&self, resource: Resource) -> Option<ResourceVersion> {
        self.positions[resource].first().map(|(_, _, version)| *version)
    }

    /// The last list up to a time: its time and its version.
    pub(crate) fn last_list(&self, resource: Resource, at: u64) -> Option<(u64, ResourceVersion)> {
        let first = self.positions[resource].first().map(|position| (position.0, position.2));
        let lists = first.into_iter().chain(self.relists[resource].iter().map(|relist| (relist.at, relist.version)));
        lists.filter(|(listed, _)| *listed <= at).max()
    }

    /// Whether the watch that started at one time sent a line after another time.
    pub(crate) fn has_delivered(&self, resource: Resource, started: u64, after: u64) -> bool {
        let next = self.watch_starts[resource].iter().find(|next| **next > started).copied().unwrap_or(u64::MAX);
        self.positions[resource].iter().any(|position| position.0 > after && position.0 < next)
    }

    /// Every version that it had reached by a time, backfills included. Its log may start at each.
    pub(crate) fn versions(&self, resource: Resource, at: u64) -> Vec<ResourceVersion> {
        let positions = self.positions[resource].iter().map(|position| (position.0, position.2));
        let all = positions.chain(self.backfill_lists[resource].iter().copied());
        all.filter(|(when, _)| *when <= at).map(|(_, version)| version).collect()
    }

    /// Whether its log may have grown between two times: by changes, by `upstream.*`, by `pool.depth`.
    pub(crate) fn has_grown(&self, from: u64, to: u64) -> bool {
        let times = from.saturating_sub(POOL_DEPTH_DELAY)..=to;
        let responses = self.positions.iter().flatten().map(|(at, ..)| at);
        responses
            .chain(self.failed.iter().flatten())
            .chain(self.watch_starts.iter().flatten())
            .any(|at| times.contains(at))
    }

    /// Whether versions went back between two times.
    pub(crate) fn has_history_reset(&self, from: u64, to: u64) -> bool {
        self.relists.iter().flatten().any(|relist| relist.is_history_reset() && (from..=to).contains(&relist.at))
    }

    /// Whether a version is inside a difference that the replica has in place of the history.
    pub(crate) fn is_inside_difference(&self, resource: Resource, version: ResourceVersion, at: u64) -> bool {
        self.relists[resource].iter().any(|relist| relist.at <= at && relist.contains(version))
    }

    /// Whether there is a reason to report a resource as down.
    pub(crate) fn may_be_down(&self, resource: Resource, at: u64) -> bool {
        let recently = at.saturating_sub(FAILURE_LASTS)..=at;
        let last_byte = self.bytes[resource].iter().rev().find(|time| **time <= at);
        self.failed[resource].iter().any(|time| recently.contains(time))
            || last_byte.is_none_or(|last| last + SILENCE <= at)
            || self.watch_starts[resource]
                .windows(2)
                .any(|starts| recently.contains(&starts[1]) && self.is_short_and_empty(resource, starts[0], starts[1]))
    }

    /// Whether a watch ended soon and without a change. With the end of the watch before it and of the next one, it is one
    /// of three ends in a row (docs/failures.md#a-watch-ends-normally).
    fn is_short_and_empty(&self, resource: Resource, started: u64, ended: u64) -> bool {
        let is_empty = || !self.positions[resource].iter().any(|(at, ..)| (started + 1..ended).contains(at));
        ended - started < SHORT_WATCH && is_empty()
    }
}
