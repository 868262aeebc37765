//! What one replica went through, as its witness tells it: how far it had come when, where it had to list again, and
//! what went wrong. The reasons that a bridge may give to a client follow from it.

use boilerhouse_bridge::event::{Resource, ResourceVersion};
use tokio::time::Instant;

use crate::seeded_ws::api_recorder::{RecorderLog, ResponseKind};

/// A list after the first one.
#[derive(Clone, Debug)]
pub(super) struct Relist {
    pub(super) at: u64,
    pub(super) epoch: usize,
    pub(super) rv: ResourceVersion,
    /// What was known before it; of two lists with nothing between them the first may not have been taken in.
    pub(super) since: Vec<ResourceVersion>,
}

impl Relist {
    /// Whether versions went back.
    pub(super) fn is_restart(&self) -> bool {
        self.since.iter().any(|since| self.rv < *since)
    }

    /// Whether a version is within it, and so says nothing about it.
    pub(super) fn straddles(&self, rv: ResourceVersion) -> bool {
        self.since.iter().any(|since| *since < rv) && rv < self.rv
    }
}

/// How a replica was set up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub(super) born: u64,
    /// Whether its log forgets soon.
    pub(super) is_small: bool,
    /// How much later than it happens comes what its watches tell.
    pub(super) lag_ms: u64,
}

/// One life of a replica.
#[derive(Debug)]
pub(super) struct ReplicaTimeline {
    pub(super) setup: Setup,
    /// How far it was, and in which history, from when on.
    positions: [Vec<(u64, usize, ResourceVersion)>; 2],
    pub(super) relists: [Vec<Relist>; 2],
    /// Lists of the past: when, and at which version.
    pub(super) pasts: [Vec<(u64, ResourceVersion)>; 2],
    pub(super) unlisted: [Vec<u64>; 2],
    pub(super) unwatched: [Vec<u64>; 2],
    /// When something went wrong.
    pub(super) failed: [Vec<u64>; 2],
    /// When watches began.
    pub(super) watch_starts: [Vec<u64>; 2],
    /// When bytes came.
    pub(super) bytes: [Vec<u64>; 2],
}

impl ReplicaTimeline {
    pub(super) fn of(log: &RecorderLog, setup: Setup, started: Instant) -> ReplicaTimeline {
        let ms = |at: &Instant| u64::try_from(at.duration_since(started).as_millis()).unwrap();
        let all = |times: &Vec<Instant>| times.iter().map(ms).collect();
        let mut timeline = ReplicaTimeline {
            setup,
            positions: Default::default(),
            relists: Default::default(),
            pasts: Default::default(),
            unlisted: Default::default(),
            unwatched: Default::default(),
            failed: log.failed.each_ref().map(all),
            watch_starts: log.watch_starts.each_ref().map(all),
            bytes: log.bytes.each_ref().map(all),
        };
        for (k, responses) in log.responses.iter().enumerate() {
            let (mut known, mut listed_at): (Option<ResourceVersion>, Option<Vec<ResourceVersion>>) = (None, None);
            for one in responses {
                let at = ms(&one.at);
                match one.what {
                    ResponseKind::Line(rv) | ResponseKind::Bookmark(rv) => {
                        known = known.max(Some(rv));
                        listed_at = None;
                        timeline.positions[k].push((at, one.epoch, known.unwrap()));
                    }
                    ResponseKind::List(rv) => {
                        if let Some(known) = known {
                            let mut since = listed_at.take().unwrap_or_default();
                            since.push(known);
                            listed_at = Some(since.clone());
                            timeline.relists[k].push(Relist { at, epoch: one.epoch, rv, since });
                        }
                        known = Some(rv);
                        timeline.positions[k].push((at, one.epoch, rv));
                    }
                    ResponseKind::Gone | ResponseKind::Garbage => timeline.failed[k].push(at),
                    ResponseKind::Past(rv) => timeline.pasts[k].push((at, rv)),
                    ResponseKind::PastUnlisted => timeline.unlisted[k].push(at),
                    ResponseKind::PastUnwatched => timeline.unwatched[k].push(at),
                    ResponseKind::Probe(_) => {}
                }
            }
        }
        timeline
    }

    /// How far it had come before then, and in which history.
    pub(super) fn position(&self, kind: Resource, before: u64) -> Option<(usize, ResourceVersion)> {
        let positions = &self.positions[kind as usize];
        let next = positions.partition_point(|(at, ..)| *at < before);
        next.checked_sub(1).map(|nth| (positions[nth].1, positions[nth].2))
    }

    /// The version of its first list.
    pub(super) fn first(&self, kind: Resource) -> Option<ResourceVersion> {
        self.positions[kind as usize].first().map(|(_, _, rv)| *rv)
    }

    /// The last list before then: when it was read, and its version.
    pub(super) fn listed_before(&self, kind: Resource, at: u64) -> Option<(u64, ResourceVersion)> {
        let k = kind as usize;
        let first = self.positions[k].first().map(|position| (position.0, position.2));
        let lists = first.into_iter().chain(self.relists[k].iter().map(|relist| (relist.at, relist.rv)));
        lists.filter(|(listed, _)| *listed <= at).max()
    }

    /// Whether the watch that began then told anything after another moment.
    pub(super) fn has_delivered(&self, kind: Resource, began: u64, after: u64) -> bool {
        let next = self.watch_starts[kind as usize].iter().find(|next| **next > began).copied().unwrap_or(u64::MAX);
        self.positions[kind as usize].iter().any(|position| position.0 > after && position.0 < next)
    }

    /// Every version at which it has been by then, in the past, too: there its log may begin.
    pub(super) fn versions(&self, kind: Resource, at: u64) -> Vec<ResourceVersion> {
        let positions = self.positions[kind as usize].iter().map(|position| (position.0, position.2));
        let all = positions.chain(self.pasts[kind as usize].iter().copied());
        all.filter(|(when, _)| *when <= at).map(|(_, rv)| rv).collect()
    }

    /// Whether its log may have grown in a time: by what was heard, by its own words of the upstream, by depths of pools.
    pub(super) fn has_grown(&self, from: u64, to: u64) -> bool {
        let time = from.saturating_sub(POOLS)..=to;
        let responses = self.positions.iter().flatten().map(|(at, ..)| at);
        responses
            .chain(self.failed.iter().flatten())
            .chain(self.watch_starts.iter().flatten())
            .any(|at| time.contains(at))
    }

    /// Whether versions went back in a time.
    pub(super) fn has_restarted(&self, from: u64, to: u64) -> bool {
        self.relists.iter().flatten().any(|relist| relist.is_restart() && (from..=to).contains(&relist.at))
    }

    /// Whether a cursor is within what it has only as a difference.
    pub(super) fn is_between(&self, kind: Resource, rv: ResourceVersion, at: u64) -> bool {
        self.relists[kind as usize].iter().any(|relist| relist.at <= at && relist.straddles(rv))
    }

    /// Whether there is a reason to say that a resource is down.
    pub(super) fn may_be_down(&self, kind: Resource, at: u64) -> bool {
        let k = kind as usize;
        let lately = |times: &Vec<u64>| times.iter().any(|time| (at.saturating_sub(LATELY)..=at).contains(time));
        let last = self.bytes[k].iter().rev().find(|time| **time <= at);
        lately(&self.failed[k]) || last.is_none_or(|last| last + SILENCE <= at)
    }
}

/// Depths of pools follow their objects by then, a beat included.
const POOLS: u64 = 300;
/// A trouble is said to be one for no longer after it was met (a stalled answer takes 30 s to be given up).
const LATELY: u64 = 45_000;
/// Silence that is one.
const SILENCE: u64 = 15_000;
