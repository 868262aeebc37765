//! A subscription: one reader of a feed.
//!
//! *Owns* a position in the log, a projection, and the versions delivered to the client so far.
//!
//! *Guarantees:*
//! - It uses the same memory however many entries it has not read.
//! - A resume starts at the first entry that the cursor does not cover. It skips everything at or below the two versions
//!   of the cursor until both are passed, because replicas interleave Pods and claims differently
//!   (docs/architecture.md#feed-contract, item 2).
//! - The versions in its cursors never go back, for either resource.

mod catch_up;
mod cursor;
mod outages;
mod wake;

use std::{fmt, pin::Pin, sync::Arc};

use bytes::Bytes;
use tokio::{sync::watch, time::Instant};

use super::{
    framing::Framing,
    inner::Inner,
    projection_cache::{InitialState, ProjectionCache},
    resume::{PendingBackfill, PendingOutcome, ResumeError, locate},
    types::{NotSynced, ReadResult, SnapshotReason, StartAt},
};
use crate::{
    event::{LogEntry, NamespaceId, PerResource, ResourceVersion, projection::EventFormat},
    wire::CloseReason,
};

/// The position of one client in a feed.
pub struct Subscription {
    inner: Arc<Inner>,
    cache: Arc<ProjectionCache>,
    namespace: NamespaceId,
    phase: Phase,
    position: u64,
    /// The end of the log when the subscription started. It receives the ephemeral events from here on.
    started_at: u64,
    /// The versions up to which the client has received everything, in the history of `history_epoch`.
    delivered_versions: PerResource<ResourceVersion>,
    history_epoch: u64,
    log_end: watch::Receiver<u64>,
    /// When a read may have a result although the log has not changed.
    wake_at: Option<Instant>,
    /// The number of the version check for which the client waits; 0: none.
    version_check: u64,
    /// What was down when the subscription started, until the client is informed. Streams that do not start with
    /// `state.initial` start with a heartbeat and this.
    greeting: Option<Vec<Arc<LogEntry>>>,
    /// The `upstream.down` events that the client has received without an `upstream.up` after them: at most one a resource.
    known_outages: Vec<Arc<LogEntry>>,
    /// The position of the log at which `known_outages` are what is down. `upstream.*` entries before it are old.
    outages_at: u64,
    /// The last heartbeat said that the resume is being prepared.
    sent_syncing: bool,
    /// Its fan-out group delivers new entries to it.
    in_fan_out: bool,
    /// What it waits for, if it waits by itself.
    wake_future: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

#[derive(Debug)]
enum Phase {
    /// The cursor is older than the log, and a backfill is requested.
    PendingBackfill(Box<PendingBackfill>),
    /// The current state is next, as soon as it is not older than these versions.
    SnapshotPending(SnapshotReason, PerResource<ResourceVersion>),
    /// The current state is being sent: this number of its parts has been returned.
    SendingSnapshot(Arc<InitialState>, usize),
    /// The client already has what is at or below these versions. Entries are rendered for it alone.
    CatchUp(PerResource<ResourceVersion>),
    /// The client has everything before the position. It receives the shared frames of its projection.
    Live,
}

impl Subscription {
    /// Creates a subscription. A cursor that cannot be resumed leads to the current state with the reason.
    ///
    /// # Errors
    /// [`NotSynced`] before both resources have been listed.
    pub(super) fn start(
        inner: Arc<Inner>,
        cache: Arc<ProjectionCache>,
        start_at: StartAt,
    ) -> Result<Subscription, NotSynced> {
        let log_end = inner.log_end.subscribe();
        let mut state = inner.state();
        let namespace = state.synced_namespace()?;
        let end = state.log.end_position();
        let (phase, position, delivered_versions) = match start_at {
            StartAt::Live => (Phase::Live, end, state.latest_versions),
            StartAt::Snapshot { reason, not_before } => {
                (Phase::SnapshotPending(reason, not_before), end, PerResource::default())
            }
            StartAt::Cursor(cursor) => {
                let (phase, position) = match locate(&state, namespace, &cache.projection, &cursor) {
                    Ok(position) => (Phase::CatchUp(cursor.versions), position),
                    Err(ResumeError::BeforeLog | ResumeError::Unproven) => {
                        let pending =
                            PendingBackfill::new(&inner.shared, &mut state, &cache.projection, cursor.versions);
                        inner.backfill_requested.notify_waiters();
                        (Phase::PendingBackfill(Box::new(pending)), end)
                    }
                    Err(ResumeError::InsideCoalesced | ResumeError::NoHistory) => {
                        (Phase::SnapshotPending(SnapshotReason::Expired, cursor.versions), end)
                    }
                    Err(ResumeError::ProjectionMismatch) => {
                        (Phase::SnapshotPending(SnapshotReason::Filter, cursor.versions), end)
                    }
                    Err(ResumeError::ForeignHistory) => {
                        (Phase::SnapshotPending(SnapshotReason::Foreign, PerResource::default()), end)
                    }
                };
                (phase, position, cursor.versions)
            }
        };
        let history_epoch = state.history_epoch;
        let greeting = (cache.projection.format == EventFormat::Full).then(|| state.outages());
        drop(state);
        Ok(Subscription {
            inner,
            cache,
            namespace,
            phase,
            position,
            started_at: end,
            delivered_versions,
            history_epoch,
            log_end,
            wake_at: None,
            version_check: 0,
            greeting,
            known_outages: Vec::new(),
            outages_at: 0,
            sent_syncing: false,
            in_fan_out: false,
            wake_future: None,
        })
    }

    /// Returns the next frames: about `max_bytes` of them, always complete entries or complete parts of an initial state.
    pub fn read(&mut self, max_bytes: usize) -> ReadResult {
        // Created again by the next wait: this read may change `wake_at`.
        self.wake_future = None;
        if let Some(greeting) = self.greet() {
            return greeting;
        }
        let is_initial = matches!(self.phase, Phase::SnapshotPending(..) | Phase::SendingSnapshot(..));
        loop {
            let frames = match &mut self.phase {
                Phase::PendingBackfill(pending) => {
                    match pending.poll(&self.cache.projection, self.delivered_versions) {
                        PendingOutcome::Waiting => {
                            self.wake_at = Some(pending.deadline);
                            return self.report_now().unwrap_or(ReadResult::Idle);
                        }
                        PendingOutcome::Resume(position) => {
                            (self.position, self.phase) = (position, Phase::CatchUp(self.delivered_versions));
                        }
                        PendingOutcome::Snapshot(reason) => self.restart_with_snapshot(reason),
                    }
                    self.wake_at = None;
                    continue;
                }
                Phase::SnapshotPending(_, not_before) => {
                    let floor = *not_before;
                    if self.take_snapshot() {
                        if is_initial || !self.prepare_read() {
                            continue;
                        }
                        // The caller could not know that this read would encode.
                        return ReadResult::Batch(Vec::new());
                    }
                    // The state may come only after the outage. It is the first event of a stream that starts with it.
                    if self.greeting.is_none()
                        && let Some(report) = self.report_now()
                    {
                        return report;
                    }
                    if self.cursor_beyond_history(floor) {
                        self.restart_with_snapshot(SnapshotReason::Foreign);
                        continue;
                    }
                    return self.idle();
                }
                Phase::SendingSnapshot(initial, sent) => {
                    let Some(part) = self.inner.initial_state_part(&self.cache, initial, *sent) else {
                        let initial = initial.clone();
                        self.delivered_versions = initial.snapshot.versions;
                        self.go_live();
                        match self.report(&initial.outages, initial.snapshot.position, initial.snapshot_at_ms) {
                            Some(report) => return ReadResult::Batch(vec![report]),
                            None => continue,
                        }
                    };
                    *sent += 1;
                    if part.is_empty() {
                        continue;
                    }
                    return ReadResult::Batch(vec![part]);
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
                        // The next phase may have something to send.
                        continue;
                    }
                    frames
                }
                Phase::Live => match self.live(max_bytes) {
                    // The client learns that the resume has ended when it has all missed events.
                    Some(frames) if frames.is_empty() && self.sent_syncing && matches!(self.phase, Phase::Live) => {
                        Some(self.heartbeat().into_iter().collect())
                    }
                    frames => frames,
                },
            };
            match frames {
                Some(frames) if !frames.is_empty() => return ReadResult::Batch(frames),
                Some(_) if matches!(self.phase, Phase::SnapshotPending(..)) => {}
                Some(_) => return self.idle(),
                None if self.cache.projection.format == EventFormat::Boilerhouse => {
                    self.inner.metrics.lagged.inc();
                    return ReadResult::End(CloseReason::Lagged);
                }
                // A history reset cleared the log, with entries that the client had not read.
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

    /// Returns whether the next read encodes a part of an initial state, which can take milliseconds.
    pub fn prepare_read(&mut self) -> bool {
        self.take_snapshot();
        matches!(&self.phase, Phase::SendingSnapshot(initial, sent) if !initial.has_part(*sent))
    }

    /// Starts to send the current state, if it is next and available. Returns whether it has started.
    fn take_snapshot(&mut self) -> bool {
        let Phase::SnapshotPending(reason, not_before) = self.phase else { return false };
        let initial = self.inner.initial_state(&self.cache, reason, not_before, self.outages_at);
        let Some(initial) = initial else { return false };
        (self.namespace, self.position, self.history_epoch) =
            (initial.snapshot.namespace, initial.snapshot.position, initial.history_epoch);
        self.greeting = None;
        self.phase = Phase::SendingSnapshot(initial, 0);
        true
    }

    /// Returns the framing for events that the transport adds to the stream; `None` on `/ws`, which has no such events.
    #[must_use]
    pub fn framing(&self) -> Option<Framing> {
        (self.cache.projection.format == EventFormat::Full).then_some(self.cache.framing)
    }

    /// Returns the time of the feed's clock in milliseconds since the Unix epoch.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        (self.inner.config.wall_clock_ms)()
    }

    /// Restarts the stream: the next read returns the current state with this reason. Unless the reason is
    /// [`SnapshotReason::Foreign`], the state is not older than what the client has received.
    pub fn restart_with_snapshot(&mut self, reason: SnapshotReason) {
        let not_before =
            if reason == SnapshotReason::Foreign { PerResource::default() } else { self.delivered_versions };
        self.phase = Phase::SnapshotPending(reason, not_before);
        (self.wake_at, self.version_check) = (None, 0);
    }

    /// Enters [`Phase::Live`]. It clears `wake_at`: a deadline in the past would wake the stream again and again.
    fn go_live(&mut self) {
        self.phase = Phase::Live;
        (self.wake_at, self.version_check) = (None, 0);
    }

    /// Reads the shared frames of the projection. `None` means that the log has evicted the next entry.
    fn live(&mut self, max_bytes: usize) -> Option<Vec<Bytes>> {
        let mut out = Vec::new();
        while out.is_empty() {
            if self.inner.hub_feed.is_some() {
                self.inner.state().log.discard_before(self.position);
                self.inner.capacity_freed.notify_waiters();
            }
            let frames = self.inner.frames(&self.cache, self.position, max_bytes)?;
            if frames.is_empty() {
                break;
            }
            for frame in frames {
                if frame.history_reset && self.on_history_reset() {
                    return Some(out);
                }
                self.position = frame.to;
                self.delivered_versions = frame.versions_after;
                let is_known = frame.upstream.is_some_and(|entry| !self.is_news(&entry, frame.to));
                if !frame.bytes.is_empty() && !is_known {
                    out.push(frame.bytes);
                }
            }
        }
        Some(out)
    }

    /// Processes a history reset. On the full stream it restarts with the current state and returns true, because
    /// cursors of two histories are not comparable. `/ws` has no cursor and receives the difference.
    fn on_history_reset(&mut self) -> bool {
        let full = self.cache.projection.format == EventFormat::Full;
        if full {
            self.restart_with_snapshot(SnapshotReason::Foreign);
        }
        full
    }

    /// Returns `Idle`; on `/ws`, `End` if the upstream has been down for `max_upstream_downtime`.
    fn idle(&mut self) -> ReadResult {
        if self.cache.projection.format == EventFormat::Boilerhouse {
            let hub_down = self.inner.hub_feed.as_ref().map_or(PerResource::default(), |hub| hub.state().down_at);
            let down_at = self.inner.state().down_at;
            let down = down_at.into_array().into_iter().chain(hub_down.into_array()).flatten().min();
            self.wake_at = down.map(|at| at + self.inner.config.max_upstream_downtime);
            if self.wake_at.is_some_and(|deadline| deadline <= Instant::now()) {
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
