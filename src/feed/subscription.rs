//! One reader: a position in the log, a lens, and what its client already has.
//!
//! A resumed client is served per resource, because replicas interleave pods and claims differently: it starts at the
//! first step that its cursor does not cover and skips what is at or below its two numbers until both are passed
//! (docs/architecture.md#feed-contract, item 2). Its ids never move back in either.

mod wake;

use std::{fmt, pin::Pin, sync::Arc};

use bytes::Bytes;
use tokio::{sync::watch, time::Instant};

use super::{
    framing::Framing,
    inner::Inner,
    projection_cache::{self, InitialState, ProjectionCache},
    resume::{PendingBackfill, PendingOutcome, ResumeError, is_inside_coalesced, locate},
    types::{NotSynced, ReadResult, SnapshotReason, StartAt, required_resources},
};
use crate::{
    event::{NamespaceId, PerResource, ResourceVersion, cursor, projection::EventFormat},
    wire::CloseReason,
};

/// A client's place in a feed. Costs the same however far behind it is.
pub struct Subscription {
    inner: Arc<Inner>,
    cache: Arc<ProjectionCache>,
    namespace: NamespaceId,
    phase: Phase,
    position: u64,
    /// Versions up to which this client has been served, and in which history.
    delivered_versions: PerResource<ResourceVersion>,
    history_epoch: u64,
    log_end: watch::Receiver<u64>,
    /// When a read may yield something though nothing has changed.
    wake_at: Option<Instant>,
    /// The confirmation that this client waits for, if it does (0: none).
    version_check: u64,
    /// What comes before anything else: a heartbeat, where no `state.initial` opens the stream.
    heartbeat_first: bool,
    /// Somebody else tells it what its audience is shown.
    in_fan_out: bool,
    /// What it waits with, where it waits by itself.
    wake_future: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

#[derive(Debug)]
enum Phase {
    /// The log does not reach back to its cursor, but soon may.
    PendingBackfill(Box<PendingBackfill>),
    /// The current state comes next, once it is not older than these versions.
    SnapshotPending(SnapshotReason, PerResource<ResourceVersion>),
    /// The current state is on its way: this many parts have been handed out.
    SendingSnapshot(Arc<InitialState>, usize),
    /// Some of what the log holds is known to the client: up to these versions.
    CatchUp(PerResource<ResourceVersion>),
    /// The client's picture is the log's at its position.
    Live,
}

impl Subscription {
    pub(super) fn start(
        inner: Arc<Inner>,
        cache: Arc<ProjectionCache>,
        from: StartAt,
    ) -> Result<Subscription, NotSynced> {
        let log_end = inner.log_end.subscribe();
        let mut state = inner.state();
        let namespace = state.synced_namespace()?;
        let (phase, position, served) = match from {
            StartAt::Live => (Phase::Live, state.log.end_position(), state.latest_versions),
            StartAt::Snapshot { reason, not_before } => {
                (Phase::SnapshotPending(reason, not_before), state.log.end_position(), PerResource::default())
            }
            StartAt::Cursor(cursor) => {
                let (phase, at) = match locate(&state, namespace, &cache.projection, &cursor) {
                    Ok(at) => (Phase::CatchUp(cursor.versions), at),
                    Err(ResumeError::BeforeLog) => {
                        let parked = PendingBackfill::new(
                            &mut state,
                            &cache.projection,
                            cursor.versions,
                            inner.config.backfill_wait_timeout,
                        );
                        inner.backfill_requested.notify_waiters();
                        (Phase::PendingBackfill(Box::new(parked)), state.log.end_position())
                    }
                    Err(ResumeError::InsideCoalesced) => {
                        (Phase::SnapshotPending(SnapshotReason::Expired, cursor.versions), state.log.end_position())
                    }
                    Err(ResumeError::ProjectionMismatch) => {
                        (Phase::SnapshotPending(SnapshotReason::Filter, cursor.versions), state.log.end_position())
                    }
                    Err(ResumeError::ForeignHistory) => (
                        Phase::SnapshotPending(SnapshotReason::Foreign, PerResource::default()),
                        state.log.end_position(),
                    ),
                };
                (phase, at, cursor.versions)
            }
        };
        let history = state.history_epoch;
        drop(state);
        let greet = cache.projection.format == EventFormat::Full && !matches!(phase, Phase::SnapshotPending(..));
        inner.metrics.subscriptions.inc();
        Ok(Subscription {
            inner,
            cache,
            namespace,
            phase,
            position,
            delivered_versions: served,
            history_epoch: history,
            log_end,
            wake_at: None,
            version_check: 0,
            heartbeat_first: greet,
            in_fan_out: false,
            wake_future: None,
        })
    }

    /// The next frames: at most about `max_bytes` of them, but always whole steps or whole parts.
    pub fn read(&mut self, max_bytes: usize) -> ReadResult {
        // What it waited for may be another moment now.
        self.wake_future = None;
        if std::mem::take(&mut self.heartbeat_first)
            && let Some(heartbeat) = self.heartbeat()
        {
            return ReadResult::Batch(vec![heartbeat]);
        }
        loop {
            let frames = match &mut self.phase {
                Phase::PendingBackfill(parked) => {
                    match parked.poll(&self.inner, &self.cache.projection, self.delivered_versions) {
                        PendingOutcome::Waiting => {
                            self.wake_at = Some(parked.deadline);
                            return ReadResult::Idle;
                        }
                        PendingOutcome::Resume(position) => {
                            (self.position, self.phase) = (position, Phase::CatchUp(self.delivered_versions));
                        }
                        PendingOutcome::Snapshot(reason) => self.restart_with_snapshot(reason),
                    }
                    self.wake_at = None;
                    continue;
                }
                Phase::SnapshotPending(reason, at_least) => {
                    let floor = *at_least;
                    let Some(initial) = self.inner.initial(&self.cache, *reason, floor) else {
                        if self.cursor_beyond_history(floor) {
                            self.restart_with_snapshot(SnapshotReason::Foreign);
                            continue;
                        }
                        return self.idle();
                    };
                    (self.namespace, self.position, self.history_epoch) =
                        (initial.namespace, initial.position, initial.history_epoch);
                    self.phase = Phase::SendingSnapshot(initial, 0);
                    continue;
                }
                Phase::SendingSnapshot(initial, sent) => {
                    let Some(part) = initial.parts.get(*sent) else {
                        self.delivered_versions = initial.versions;
                        self.go_live();
                        continue;
                    };
                    *sent += 1;
                    return ReadResult::Batch(vec![part.clone()]);
                }
                Phase::CatchUp(floor) => {
                    let floor = *floor;
                    let frames = self.catch_up(floor, max_bytes);
                    if frames.as_ref().is_some_and(Vec::is_empty)
                        && matches!(self.phase, Phase::CatchUp(_))
                        && self.cursor_beyond_history(floor)
                    {
                        self.restart_with_snapshot(SnapshotReason::Foreign);
                    }
                    if frames.as_ref().is_some_and(Vec::is_empty) && !matches!(self.phase, Phase::CatchUp(_)) {
                        // Another phase has begun, with what it has to tell.
                        continue;
                    }
                    frames
                }
                Phase::Live => self.live(max_bytes),
            };
            match frames {
                Some(frames) if !frames.is_empty() => return ReadResult::Batch(frames),
                Some(_) if matches!(self.phase, Phase::SnapshotPending(..)) => {}
                Some(_) => return self.idle(),
                None if self.cache.projection.format == EventFormat::Boilerhouse => {
                    self.inner.metrics.lagged.inc();
                    return ReadResult::End(CloseReason::Lagged);
                }
                // What it had not read yet went with its history.
                None if self.inner.state().history_epoch != self.history_epoch => {
                    self.restart_with_snapshot(SnapshotReason::Foreign)
                }
                None => {
                    self.inner.metrics.lagged.inc();
                    self.phase = Phase::SnapshotPending(SnapshotReason::Lagged, self.delivered_versions);
                }
            }
        }
    }

    /// The cursor up to which this client has been served; `None` while its picture is not whole.
    #[must_use]
    pub fn cursor(&mut self) -> Option<String> {
        let reached = self.advance_delivered()?;
        Some(self.cache.cursor(self.namespace, reached))
    }

    fn advance_delivered(&mut self) -> Option<PerResource<ResourceVersion>> {
        match self.phase {
            Phase::SnapshotPending(..) | Phase::SendingSnapshot(..) => None,
            Phase::PendingBackfill(_) => Some(self.delivered_versions),
            Phase::CatchUp(_) | Phase::Live => {
                let state = self.inner.state();
                if self.position == state.log.end_position() {
                    // Bookmarks move a quiet stream's cursor on (G6), but only past what was read.
                    self.delivered_versions = cursor::max_versions(self.delivered_versions, state.latest_versions);
                }
                Some(self.delivered_versions)
            }
        }
    }

    /// A heartbeat with this client's own cursor (docs/protocol.md#full-stream); `None` on `/ws`, and while the picture is not
    /// whole.
    #[must_use]
    pub fn heartbeat(&mut self) -> Option<Bytes> {
        if self.cache.projection.format == EventFormat::Boilerhouse {
            return None;
        }
        let mut out = Vec::new();
        let reached = self.advance_delivered()?;
        self.cache.heartbeat(&mut out, &self.inner, self.namespace, reached, false);
        Some(out.into())
    }

    /// How a transport lays its own events beside these on the wire; `None` on `/ws`, which has none.
    #[must_use]
    pub fn framing(&self) -> Option<Framing> {
        (self.cache.projection.format == EventFormat::Full).then_some(self.cache.framing)
    }

    /// Milliseconds since the Unix epoch, by the feed's clock.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        (self.inner.config.wall_clock_ms)()
    }

    /// Replaces the client's picture: the next read yields the current state with this reason.
    pub fn restart_with_snapshot(&mut self, reason: SnapshotReason) {
        let at_least = if reason == SnapshotReason::Foreign { PerResource::default() } else { self.delivered_versions };
        self.phase = Phase::SnapshotPending(reason, at_least);
        (self.wake_at, self.version_check) = (None, 0);
    }

    /// Whether a client that is ahead of this replica is at versions that do not exist. Replicas differ by moments, so this
    /// is found out only after a while, and once for all who wait (docs/architecture.md#feed-contract, item 3).
    fn cursor_beyond_history(&mut self, floor: PerResource<ResourceVersion>) -> bool {
        let mut state = self.inner.state();
        if self
            .cache
            .covers(cursor::max_versions(state.latest_versions, state.backfill_requests.checked_versions()), floor)
        {
            (self.wake_at, self.version_check) = (None, 0);
            return false;
        }
        if self.version_check > 0 {
            return state.backfill_requests.version_check_result(self.version_check).is_some();
        }
        let now = Instant::now();
        let limit = *self.wake_at.get_or_insert_with(|| now + self.inner.config.ahead_cursor_wait);
        if now >= limit {
            self.wake_at = None;
            self.version_check = state.backfill_requests.request_version_check();
            drop(state);
            self.inner.backfill_requested.notify_waiters();
        }
        false
    }

    /// Steps on behalf of a client that has some of them: rendered for it alone.
    fn catch_up(&mut self, floor: PerResource<ResourceVersion>, max_bytes: usize) -> Option<Vec<Bytes>> {
        let mut frames = Vec::new();
        let mut bytes = 0;
        loop {
            let steps = projection_cache::read_entries(&self.inner, self.position)?;
            if steps.is_empty() {
                let newest = self.inner.state().latest_versions;
                if self.finish_catch_up(floor, newest) {
                    frames.extend(self.pools());
                }
                return Some(frames);
            }
            for step in steps {
                if bytes > max_bytes {
                    return Some(frames);
                }
                let version = step.change_set();
                if version.is_some_and(|version| version.history_reset) && self.on_history_reset() {
                    return Some(frames);
                }
                let concerns = version
                    .is_some_and(|v| required_resources(&self.cache.projection).any(|resource| resource == v.resource));
                if concerns && is_inside_coalesced(&step, floor) {
                    self.restart_with_snapshot(SnapshotReason::Expired);
                    return Some(frames);
                }
                self.position += 1;
                self.delivered_versions = cursor::max_versions(self.delivered_versions, step.versions_after);
                // Notices of before say nothing about now.
                if version.is_some_and(|version| version.version > floor[version.resource]) {
                    let frame = self.cache.render_entry(
                        &self.inner,
                        self.namespace,
                        &step,
                        self.position,
                        self.delivered_versions,
                    );
                    if !frame.bytes.is_empty() {
                        bytes += frame.bytes.len();
                        frames.push(frame.bytes);
                    }
                }
                if self.finish_catch_up(floor, step.versions_after) {
                    frames.extend(self.pools());
                    return Some(frames);
                }
            }
        }
    }

    /// All pools: those that changed while the client was away were told to others.
    fn pools(&self) -> Option<Bytes> {
        let mut out = Vec::new();
        self.cache.pools(&mut out, &self.inner);
        (!out.is_empty()).then(|| out.into())
    }

    /// Goes live once the log has passed the floor in every resource that the lens needs.
    fn finish_catch_up(&mut self, floor: PerResource<ResourceVersion>, reached: PerResource<ResourceVersion>) -> bool {
        let passed = self.cache.covers(reached, floor);
        if passed {
            self.go_live();
        }
        passed
    }

    /// What it waited for is there, so it waits for that no more: a moment that has passed would wake it for ever.
    fn go_live(&mut self) {
        self.phase = Phase::Live;
        (self.wake_at, self.version_check) = (None, 0);
    }

    fn live(&mut self, max_bytes: usize) -> Option<Vec<Bytes>> {
        let mut out = Vec::new();
        while out.is_empty() {
            if self.inner.hub_feed.is_some() {
                self.inner.state().log.discard_before(self.position);
                self.inner.capacity_freed.notify_waiters();
            }
            let frames = self.inner.frames(&self.cache, self.namespace, self.position, max_bytes)?;
            if frames.is_empty() {
                break;
            }
            for frame in frames {
                if frame.history_reset && self.on_history_reset() {
                    return Some(out);
                }
                self.position = frame.to;
                self.delivered_versions = frame.versions_after;
                if !frame.bytes.is_empty() {
                    out.push(frame.bytes);
                }
            }
        }
        Some(out)
    }

    /// Another history begins here: whoever holds a cursor starts over; `/ws` takes the difference.
    fn on_history_reset(&mut self) -> bool {
        let full = self.cache.projection.format == EventFormat::Full;
        if full {
            self.restart_with_snapshot(SnapshotReason::Foreign);
        }
        full
    }

    /// Nothing to say; but a `/ws` client must not stay connected to a dead upstream for long.
    fn idle(&mut self) -> ReadResult {
        if self.cache.projection.format == EventFormat::Boilerhouse {
            let hub_down = self.inner.hub_feed.as_ref().map_or(PerResource::default(), |hub| hub.state().down_at);
            let down_at = self.inner.state().down_at;
            let down = down_at.into_array().into_iter().chain(hub_down.into_array()).flatten().min();
            self.wake_at = down.map(|at| at + self.inner.config.max_upstream_downtime);
            if self.wake_at.is_some_and(|limit| limit <= Instant::now()) {
                return ReadResult::End(CloseReason::UpstreamUnavailable);
            }
        }
        ReadResult::Idle
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Subscription { phase, position, delivered_versions, .. } = self;
        f.debug_struct("Subscription")
            .field("phase", phase)
            .field("position", position)
            .field("delivered_versions", delivered_versions)
            .finish()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.inner.metrics.subscriptions.dec();
    }
}
