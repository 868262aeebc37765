//! Types that the files of the feed share: its configuration, the health of a source, and what a subscription starts
//! with and reads.
//!
//! *Must not import* any other file of the feed.

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

/// Bounds and intervals of a feed.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Bounds of the log.
    pub log: ring::Limits,
    /// How long the upstream may be down before `/ws` streams are closed, so that their clients detect the outage
    /// (docs/protocol.md#boilerhouse-stream). Default: 60 s.
    pub max_upstream_downtime: Duration,
    /// How long a snapshot GET waits until the feed has reached everything that this replica has delivered
    /// (docs/protocol.md#boilerhouse-stream). Default: 1 s.
    pub read_your_writes_timeout: Duration,
    /// Interval of `pool.depth` events (docs/protocol.md#full-stream: at most 4 per second). Default: 250 ms.
    pub pool_depth_interval: Duration,
    /// How long the telemetry of a tunnel is served after it was received (docs/protocol.md#telemetry). Default: 5 min.
    pub telemetry_ttl: Duration,
    /// Maximum size of a `state.initial` message in bytes, unless one object alone is larger, and of the events that a
    /// `/ws` connection receives in one write at its start. Default: 32 KiB less 64 bytes, because common WebSocket
    /// clients accept messages of less than 32 KiB (docs/protocol.md#full-stream).
    pub initial_state_part_bytes: usize,
    /// Bytes that the projection caches may hold together, so that the number of different filters does not determine
    /// the memory. Default: 32 MiB, half of the log.
    pub projection_cache_bytes: usize,
    /// How long a subscription whose cursor is older than the log waits for a backfill. After that it sends the current
    /// state. Default: 30 s, which is two rounds, because one round may already be running.
    pub backfill_wait_timeout: Duration,
    /// How long a subscription whose cursor is ahead of this replica waits before it requests a version check
    /// (docs/protocol.md#full-stream). Default: 2 s.
    pub ahead_cursor_wait: Duration,
    /// Returns the current time in milliseconds since the Unix epoch. Events carry it as `time`.
    pub wall_clock_ms: fn() -> u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            log: ring::Limits::default(),
            max_upstream_downtime: Duration::from_secs(60),
            read_your_writes_timeout: Duration::from_secs(1),
            pool_depth_interval: Duration::from_millis(250),
            telemetry_ttl: Duration::from_secs(300),
            initial_state_part_bytes: (32 << 10) - 64,
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

/// The health of a source for one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// The first list is not complete yet.
    #[default]
    Connecting,
    /// The resource is listed, and has been watched without a gap since then.
    Live,
    /// The watch could not be resumed, or was silent for longer than its limit.
    Down {
        /// When the last byte was received.
        since: Instant,
        /// The reason, in words for operators.
        reason: Arc<str>,
    },
}

/// The health of a source for both resources together: `state` of `/api/v1/connections` (docs/protocol.md#snapshots).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceState {
    /// The first list of at least one resource is not complete yet.
    #[default]
    Syncing,
    /// Both resources are listed and watched.
    Live,
    /// At least one resource cannot be watched.
    Down,
}

impl SourceState {
    pub(super) fn from_health(health: &PerResource<Health>) -> SourceState {
        if health.iter().any(|health| matches!(health, Health::Down { .. })) {
            SourceState::Down
        } else if health.iter().any(|health| *health == Health::Connecting) {
            SourceState::Syncing
        } else {
            SourceState::Live
        }
    }
}

/// Where a subscription starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// At the end of the log, without an initial state.
    Live,
    /// With the current state, as soon as it has reached the versions that the client already has.
    Snapshot {
        /// `reason` of `state.initial`.
        reason: SnapshotReason,
        /// The state is sent when no resource is older than these versions.
        not_before: PerResource<ResourceVersion>,
    },
    /// After the cursor, where the log has the history after it; otherwise with the current state and the reason
    /// (docs/protocol.md#full-stream).
    Cursor(Cursor),
}

/// Why a client receives the current state: `reason` of `state.initial` (docs/protocol.md#full-stream).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotReason {
    /// The client connected without a cursor.
    Connect,
    /// The history after its cursor is no longer available.
    Expired,
    /// Its cursor belongs to another cluster or another history, or could not be decoded.
    Foreign,
    /// Its cursor belongs to another filter or other rights, or does not cover a resource that the projection needs.
    Filter,
    /// The log evicted entries that the client had not read.
    Lagged,
}

impl SnapshotReason {
    /// Returns the text of `reason`.
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

/// The feed cannot serve a complete state yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the current state is not complete yet; retry later")]
pub struct NotSynced;

/// The result of one read of a subscription.
#[derive(Debug)]
pub enum ReadResult {
    /// Complete frames, to be written in this order. There are none if the next read has to encode them.
    Batch(Vec<Bytes>),
    /// Nothing to send until [`Subscription::readable`](super::Subscription::readable) resolves.
    Idle,
    /// The stream ends here, for this reason.
    End(CloseReason),
}

/// Returns the resources of the projection's event types. A cursor of the projection must cover them.
pub(super) fn required_resources(projection: &Projection) -> impl Iterator<Item = Resource> {
    let required = projection.types.resources();
    Resource::ALL.into_iter().filter(move |resource| required[*resource])
}
