//! One reader: a position in the log, a lens, and what its client already has.
//!
//! A resumed client is served per resource, because replicas interleave pods and claims differently: it starts at the
//! first step that its cursor does not cover and skips what is at or below its two numbers until both are passed
//! (architecture.md, the feed's contract, 2). Its ids never move back in either.

mod wake;

use std::{fmt, pin::Pin, sync::Arc};

use bytes::Bytes;
use tokio::{sync::watch, time::Instant};

use super::{
    Framing, From, Reason, Refused, Shared, SharedLens, needs, projection_cache,
    projection_cache::Initial,
    resume::{Looked, Parked, place, straddles},
};
use crate::{
    event::{Home, ResourceVersion, cursor, projection::Format},
    wire::Close,
};

/// What a read yields.
#[derive(Debug)]
pub enum Read {
    /// Complete frames, to be written in order.
    Batch(Vec<Bytes>),
    /// Nothing to tell until [`Subscription::changed`] resolves.
    Idle,
    /// The stream ends here, for this reason.
    End(Close),
}

/// A client's place in a feed. Costs the same however far behind it is.
pub struct Subscription {
    shared: Arc<Shared>,
    lens: Arc<SharedLens>,
    home: Home,
    phase: Phase,
    position: u64,
    /// Versions up to which this client has been served, and in which history.
    served: [ResourceVersion; 2],
    history: u64,
    head: watch::Receiver<u64>,
    /// When a read may yield something though nothing has changed.
    limit: Option<Instant>,
    /// The confirmation that this client waits for, if it does (0: none).
    confirm: u64,
    /// What comes before anything else: a heartbeat, where no `state.initial` opens the stream.
    greet: bool,
    /// Somebody else tells it what its audience is shown.
    seated: bool,
    /// What it waits with, where it waits by itself.
    wait: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

#[derive(Debug)]
enum Phase {
    /// The log does not reach back to its cursor, but soon may.
    Parked(Box<Parked>),
    /// The current state comes next, once it is not older than these versions.
    Snapshot(Reason, [ResourceVersion; 2]),
    /// The current state is on its way: this many parts have been handed out.
    Sending(Arc<Initial>, usize),
    /// Some of what the log holds is known to the client: up to these versions.
    CatchUp([ResourceVersion; 2]),
    /// The client's picture is the log's at its position.
    Live,
}

impl Subscription {
    pub(super) fn start(shared: Arc<Shared>, lens: Arc<SharedLens>, from: From) -> Result<Subscription, Refused> {
        let head = shared.head.subscribe();
        let mut state = shared.state();
        let home = state.ready()?;
        let (phase, position, served) = match from {
            From::Now => (Phase::Live, state.log.end(), state.newest),
            From::Snapshot(reason, at_least) => (Phase::Snapshot(reason, at_least), state.log.end(), [0; 2]),
            From::After(cursor) => {
                let at = place(&state, home, &lens.lens, &cursor)?;
                (Phase::CatchUp(cursor.rv), at, cursor.rv)
            }
            From::Resume(cursor) => {
                let (phase, at) = match place(&state, home, &lens.lens, &cursor) {
                    Ok(at) => (Phase::CatchUp(cursor.rv), at),
                    Err(Refused::Below) => {
                        let parked = Parked::new(&mut state, &lens.lens, cursor.rv, shared.config.park_limit);
                        shared.asked.notify_waiters();
                        (Phase::Parked(Box::new(parked)), state.log.end())
                    }
                    Err(Refused::Between) => (Phase::Snapshot(Reason::Expired, cursor.rv), state.log.end()),
                    Err(Refused::OtherLens) => (Phase::Snapshot(Reason::Filter, cursor.rv), state.log.end()),
                    Err(Refused::Foreign) => (Phase::Snapshot(Reason::Foreign, [0; 2]), state.log.end()),
                    Err(Refused::NotReady) => return Err(Refused::NotReady),
                };
                (phase, at, cursor.rv)
            }
        };
        let history = state.history;
        drop(state);
        let greet = lens.lens.format == Format::Full && !matches!(phase, Phase::Snapshot(..));
        shared.metrics.subscriptions.inc();
        Ok(Subscription {
            shared,
            lens,
            home,
            phase,
            position,
            served,
            history,
            head,
            limit: None,
            confirm: 0,
            greet,
            seated: false,
            wait: None,
        })
    }

    /// The next frames: at most about `max_bytes` of them, but always whole steps or whole parts.
    pub fn read(&mut self, max_bytes: usize) -> Read {
        // What it waited for may be another moment now.
        self.wait = None;
        if std::mem::take(&mut self.greet)
            && let Some(heartbeat) = self.heartbeat()
        {
            return Read::Batch(vec![heartbeat]);
        }
        loop {
            let frames = match &mut self.phase {
                Phase::Parked(parked) => {
                    match parked.look(&self.shared, &self.lens.lens, self.served) {
                        Looked::Not => {
                            self.limit = Some(parked.limit);
                            return Read::Idle;
                        }
                        Looked::At(position) => {
                            (self.position, self.phase) = (position, Phase::CatchUp(self.served));
                        }
                        Looked::Never(reason) => self.start_over(reason),
                    }
                    self.limit = None;
                    continue;
                }
                Phase::Snapshot(reason, at_least) => {
                    let floor = *at_least;
                    let Some(initial) = self.lens.initial(&self.shared, *reason, floor) else {
                        if self.is_refuted(floor) {
                            self.start_over(Reason::Foreign);
                            continue;
                        }
                        return self.idle();
                    };
                    (self.home, self.position, self.history) = (initial.home, initial.position, initial.history);
                    self.phase = Phase::Sending(initial, 0);
                    continue;
                }
                Phase::Sending(initial, sent) => {
                    let Some(part) = initial.parts.get(*sent) else {
                        self.served = initial.rv;
                        self.go_live();
                        continue;
                    };
                    *sent += 1;
                    return Read::Batch(vec![part.clone()]);
                }
                Phase::CatchUp(floor) => {
                    let floor = *floor;
                    let frames = self.catch_up(floor, max_bytes);
                    if frames.as_ref().is_some_and(Vec::is_empty)
                        && matches!(self.phase, Phase::CatchUp(_))
                        && self.is_refuted(floor)
                    {
                        self.start_over(Reason::Foreign);
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
                Some(frames) if !frames.is_empty() => return Read::Batch(frames),
                Some(_) if matches!(self.phase, Phase::Snapshot(..)) => {}
                Some(_) => return self.idle(),
                None if self.lens.lens.format == Format::Boilerhouse => {
                    self.shared.metrics.lagged.inc();
                    return Read::End(Close::Lagged);
                }
                // What it had not read yet went with its history.
                None if self.shared.state().history != self.history => self.start_over(Reason::Foreign),
                None => {
                    self.shared.metrics.lagged.inc();
                    self.phase = Phase::Snapshot(Reason::Lagged, self.served);
                }
            }
        }
    }

    /// The cursor up to which this client has been served; `None` while its picture is not whole.
    #[must_use]
    pub fn cursor(&mut self) -> Option<String> {
        let reached = self.reached()?;
        Some(self.lens.cursor(self.home, reached))
    }

    fn reached(&mut self) -> Option<[ResourceVersion; 2]> {
        match self.phase {
            Phase::Snapshot(..) | Phase::Sending(..) => None,
            Phase::Parked(_) => Some(self.served),
            Phase::CatchUp(_) | Phase::Live => {
                let state = self.shared.state();
                if self.position == state.log.end() {
                    // Bookmarks move a quiet stream's cursor on (G6), but only past what was read.
                    self.served = cursor::join(self.served, state.newest);
                }
                Some(self.served)
            }
        }
    }

    /// A heartbeat with this client's own cursor (protocol.md section 3); `None` on `/ws`, and while the picture is not
    /// whole.
    #[must_use]
    pub fn heartbeat(&mut self) -> Option<Bytes> {
        if self.lens.lens.format == Format::Boilerhouse {
            return None;
        }
        let mut out = Vec::new();
        let reached = self.reached()?;
        self.lens.heartbeat(&mut out, &self.shared, self.home, reached, false);
        Some(out.into())
    }

    /// How a transport lays its own events beside these on the wire; `None` on `/ws`, which has none.
    #[must_use]
    pub fn framing(&self) -> Option<Framing> {
        (self.lens.lens.format == Format::Full).then_some(self.lens.framing)
    }

    /// Milliseconds since the Unix epoch, by the feed's clock.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        (self.shared.config.clock)()
    }

    /// Replaces the client's picture: the next read yields the current state with this reason.
    pub fn start_over(&mut self, reason: Reason) {
        let at_least = if reason == Reason::Foreign { [0; 2] } else { self.served };
        self.phase = Phase::Snapshot(reason, at_least);
        (self.limit, self.confirm) = (None, 0);
    }

    /// Whether a client that is ahead of this replica is at versions that do not exist. Replicas differ by moments, so this
    /// is found out only after a while, and once for all who wait (architecture.md, the feed's contract, 3).
    fn is_refuted(&mut self, floor: [ResourceVersion; 2]) -> bool {
        let mut state = self.shared.state();
        if self.lens.reached(cursor::join(state.newest, state.wanted.confirmed()), floor) {
            (self.limit, self.confirm) = (None, 0);
            return false;
        }
        if self.confirm > 0 {
            return state.wanted.versions(self.confirm).is_some();
        }
        let now = Instant::now();
        let limit = *self.limit.get_or_insert_with(|| now + self.shared.config.ahead_wait);
        if now >= limit {
            self.limit = None;
            self.confirm = state.wanted.ask_versions();
            drop(state);
            self.shared.asked.notify_waiters();
        }
        false
    }

    /// Steps on behalf of a client that has some of them: rendered for it alone.
    fn catch_up(&mut self, floor: [ResourceVersion; 2], max_bytes: usize) -> Option<Vec<Bytes>> {
        let mut frames = Vec::new();
        let mut bytes = 0;
        loop {
            let steps = projection_cache::steps(&self.shared, self.position)?;
            if steps.is_empty() {
                let newest = self.shared.state().newest;
                if self.pass(floor, newest) {
                    frames.extend(self.pools());
                }
                return Some(frames);
            }
            for step in steps {
                if bytes > max_bytes {
                    return Some(frames);
                }
                let version = step.version();
                if version.is_some_and(|version| version.restart) && self.foreign() {
                    return Some(frames);
                }
                let concerns = version.is_some_and(|v| needs(&self.lens.lens).any(|kind| kind == v.kind));
                if concerns && straddles(&step, floor) {
                    self.start_over(Reason::Expired);
                    return Some(frames);
                }
                self.position += 1;
                self.served = cursor::join(self.served, step.after);
                // Notices of before say nothing about now.
                if version.is_some_and(|version| version.rv > floor[version.kind as usize]) {
                    let frame = self.lens.frame(&self.shared, self.home, &step, self.position, self.served);
                    if !frame.bytes.is_empty() {
                        bytes += frame.bytes.len();
                        frames.push(frame.bytes);
                    }
                }
                if self.pass(floor, step.after) {
                    frames.extend(self.pools());
                    return Some(frames);
                }
            }
        }
    }

    /// All pools: those that changed while the client was away were told to others.
    fn pools(&self) -> Option<Bytes> {
        let mut out = Vec::new();
        self.lens.pools(&mut out, &self.shared);
        (!out.is_empty()).then(|| out.into())
    }

    /// Goes live once the log has passed the floor in every resource that the lens needs.
    fn pass(&mut self, floor: [ResourceVersion; 2], reached: [ResourceVersion; 2]) -> bool {
        let passed = self.lens.reached(reached, floor);
        if passed {
            self.go_live();
        }
        passed
    }

    /// What it waited for is there, so it waits for that no more: a moment that has passed would wake it for ever.
    fn go_live(&mut self) {
        self.phase = Phase::Live;
        (self.limit, self.confirm) = (None, 0);
    }

    fn live(&mut self, max_bytes: usize) -> Option<Vec<Bytes>> {
        let mut out = Vec::new();
        while out.is_empty() {
            if self.shared.hub.is_some() {
                self.shared.state().log.release(self.position);
                self.shared.room.notify_waiters();
            }
            let frames = self.lens.frames(&self.shared, self.home, self.position, max_bytes)?;
            if frames.is_empty() {
                break;
            }
            for frame in frames {
                if frame.restart && self.foreign() {
                    return Some(out);
                }
                self.position = frame.to;
                self.served = frame.after;
                if !frame.bytes.is_empty() {
                    out.push(frame.bytes);
                }
            }
        }
        Some(out)
    }

    /// Another history begins here: whoever holds a cursor starts over; `/ws` takes the difference.
    fn foreign(&mut self) -> bool {
        let full = self.lens.lens.format == Format::Full;
        if full {
            self.start_over(Reason::Foreign);
        }
        full
    }

    /// Nothing to say; but a `/ws` client must not stay connected to a dead upstream for long.
    fn idle(&mut self) -> Read {
        if self.lens.lens.format == Format::Boilerhouse {
            let hub_down = self.shared.hub.as_ref().map_or([None; 2], |hub| hub.state().down_at);
            let down_at = self.shared.state().down_at;
            let down = down_at.into_iter().chain(hub_down).flatten().min();
            self.limit = down.map(|at| at + self.shared.config.upstream_limit);
            if self.limit.is_some_and(|limit| limit <= Instant::now()) {
                return Read::End(Close::UpstreamUnavailable);
            }
        }
        Read::Idle
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Subscription { phase, position, served, .. } = self;
        f.debug_struct("Subscription")
            .field("phase", phase)
            .field("position", position)
            .field("served", served)
            .finish()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.shared.metrics.subscriptions.dec();
    }
}
