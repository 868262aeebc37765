//! Types that the files of the feed share.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use thiserror::Error;
use tokio::time::Instant;

use crate::{
    event::{Cursor, PerResource, Resource, ResourceVersion, projection::Projection},
    ring,
    wire::CloseReason,
};

/// Bounds of a feed.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// What the log may hold.
    pub log: ring::Limits,
    /// How long the upstream may be down before `/ws` clients are sent away, so that they see it (docs/protocol.md#boilerhouse-stream).
    pub max_upstream_downtime: Duration,
    /// How long a snapshot GET waits for the feed to reach what somebody has been told (docs/protocol.md#boilerhouse-stream).
    pub read_your_writes_timeout: Duration,
    /// How often the depths of the pools are told (docs/protocol.md#full-stream: 4 times a second).
    pub pool_depth_interval: Duration,
    /// About how many bytes an initial state has before it comes in parts (docs/protocol.md#full-stream: 256 KiB, and a part ends
    /// with the object that passes this).
    pub initial_state_part_bytes: usize,
    /// How many bytes of what has been rendered all lenses together may keep for their readers, so that a client is not
    /// paid for by how it looks: 32 MiB, half of the log.
    pub projection_cache_bytes: usize,
    /// How long a client whose cursor is older than the log waits for it to be extended backwards, before it is told the
    /// current state instead: two rounds, as one may be under way.
    pub backfill_wait_timeout: Duration,
    /// How long a client whose cursor is ahead of this replica waits before the API server is asked whether there is such
    /// a version (docs/protocol.md#full-stream: 2 s).
    pub ahead_cursor_wait: Duration,
    /// Milliseconds since the Unix epoch, for `time`.
    pub wall_clock_ms: fn() -> u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            log: ring::Limits::default(),
            max_upstream_downtime: Duration::from_secs(60),
            read_your_writes_timeout: Duration::from_secs(1),
            pool_depth_interval: Duration::from_millis(250),
            initial_state_part_bytes: 240 << 10,
            projection_cache_bytes: 32 << 20,
            backfill_wait_timeout: Duration::from_secs(30),
            ahead_cursor_wait: Duration::from_secs(2),
            wall_clock_ms: system_clock,
        }
    }
}

fn system_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// What a source says of itself, for one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// Not yet listed for the first time.
    #[default]
    Connecting,
    /// Listed, and watched without a gap since.
    Live,
    /// Re-watching failed, or the watch has been silent past the idle limit.
    Down {
        /// When its last byte came.
        since: Instant,
        /// A sentence for people.
        reason: Arc<str>,
    },
}

/// How a source is as a whole: `state` of `/api/v1/connections` (docs/protocol.md#snapshots).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceState {
    /// Not all has been listed yet.
    #[default]
    Syncing,
    /// All is listed and watched.
    Live,
    /// Some resource cannot be watched.
    Down,
}

impl SourceState {
    pub(super) fn from_health(all: &PerResource<Health>) -> SourceState {
        if all.iter().any(|health| matches!(health, Health::Down { .. })) {
            SourceState::Down
        } else if all.iter().any(|health| *health == Health::Connecting) {
            SourceState::Syncing
        } else {
            SourceState::Live
        }
    }
}

/// Where a subscription starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// Transitions from this moment on.
    Live,
    /// The current state first, once it has reached these versions: a client must not be taken back in time.
    Snapshot {
        /// `reason` of `state.initial`.
        reason: SnapshotReason,
        /// The state is sent when it is not older than these versions.
        not_before: PerResource<ResourceVersion>,
    },
    /// Exactly what came after the cursor, where the log has it; otherwise the current state, with the reason
    /// (docs/protocol.md#full-stream).
    Cursor(Cursor),
}

/// Why a client's picture is (re)placed: `reason` of `state.initial` (docs/protocol.md#full-stream).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotReason {
    /// It has just come.
    Connect,
    /// Its cursor is older than the log.
    Expired,
    /// Its cursor is of another cluster or another history, or is none.
    Foreign,
    /// Its cursor was made under another filter or other rights, or does not cover a resource.
    Filter,
    /// It read too slowly.
    Lagged,
}

impl SnapshotReason {
    /// As it stands in `reason`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            SnapshotReason::Connect => "connect",
            SnapshotReason::Expired => "expired",
            SnapshotReason::Foreign => "foreign",
            SnapshotReason::Filter => "filter",
            SnapshotReason::Lagged => "lagged",
        }
    }
}

/// No complete state yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the first lists are not complete yet")]
pub struct NotSynced;

/// What a read yields.
#[derive(Debug)]
pub enum ReadResult {
    /// Complete frames, to be written in order.
    Batch(Vec<Bytes>),
    /// Nothing to tell until [`Subscription::readable`](super::Subscription::readable) resolves.
    Idle,
    /// The stream ends here, for this reason.
    End(CloseReason),
}

/// The resources that a lens tells of: a cursor of it must cover them.
pub(super) fn required_resources(projection: &Projection) -> impl Iterator<Item = Resource> {
    let kinds = projection.types.resources();
    Resource::ALL.into_iter().filter(move |resource| kinds[*resource])
}
