//! One stream from its head to its end: the loop, with every branch in sight.
//!
//! Always: deadlines are read off the state, and one timer covers the nearest; it is moved only to an earlier moment or
//! when it has fired, never on a write. Frames are not looked into; close frames go only between frames. Two may send:
//! the stream's own task and a writer that tells all of an audience ([`super::fan`]); each has the whole state meanwhile.
use std::{
    future::poll_fn,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    task::yield_now,
    time::{Instant, sleep_until},
};

use super::{
    Closed, Config, Outbound, Place, Transport,
    fan::Member,
    link::{Link, Moved, with_input},
    random_part_of,
};
use crate::{
    feed::{Read, Shown},
    http::conn::Socket,
    wire::{
        Close, sse,
        websocket::{self, Piece, Reader},
    },
};

/// Batches a stream may send before others get their turn: enough to empty a burst, far from starving anybody.
const BATCHES_A_TURN: usize = 4;

/// Where a stream is in its life.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// It sends what there is.
    Open,
    /// So it does, but at this moment it closes, because the process drains.
    Draining { at: Instant },
    /// The last frame is queued or, once it is written, the peer has until `patience`.
    Closing { closed: Closed, until: Until, patience: Option<Instant> },
}

/// What a closing stream waits for once its last frame is written.
#[derive(Debug, Clone, Copy)]
enum Until {
    /// Nothing.
    Written,
    /// The peer's close frame.
    Answered,
    /// The peer's end of file, because its frames can no longer be read.
    Hung,
}

/// The state of one stream.
#[derive(Debug)]
pub(super) struct Session {
    link: Link,
    /// Of a WebSocket; an SSE client has nothing to say.
    reader: Option<Reader>,
    /// What came with the request.
    early: Box<[u8]>,
    phase: Phase,
    /// The answer to the latest ping, while writes are blocked. The earlier ones need none (RFC 6455 section 5.5.3).
    pong: Option<Box<[u8]>>,
    next_ping: Instant,
    heard: Instant,
}

/// A stream where its task and a writer find it.
#[derive(Debug)]
pub(super) struct Stage<O> {
    pub(super) streams: Place,
    cast: Mutex<Cast<O>>,
}

/// Everything that sending needs.
#[derive(Debug)]
struct Cast<O> {
    session: Session,
    /// None once it has panicked.
    out: Option<O>,
    /// Of the stream's task.
    waker: Option<Waker>,
    /// A writer tells it what the audience is told.
    seated: bool,
    /// The writer has left something that is the task's: the kernel is full, or this was the end.
    look: bool,
    panicked: bool,
}

impl<O: Outbound + 'static> Stage<O> {
    pub(super) fn new(session: Session, out: O, streams: Place) -> Self {
        let out = Some(out);
        let cast = Cast { session, out, waker: None, seated: false, look: false, panicked: false };
        Self { streams, cast: Mutex::new(cast) }
    }

    /// What panics inside has said so by its panic.
    fn with<T>(&self, f: impl FnOnce(&mut Cast<O>, &Config) -> T) -> T {
        f(&mut self.cast.lock().unwrap_or_else(PoisonError::into_inner), &self.streams.config)
    }

    /// Finds a seat in its audience, if it has one: then what came meanwhile must be read once more.
    fn sit_down(self: &Arc<Self>) -> bool {
        self.with(|cast, _| {
            let Some(out) = cast.out.as_mut().filter(|_| self.streams.fan.is_running()) else { return false };
            let Some(audience) = out.audience() else { return false };
            let newly = !std::mem::replace(&mut cast.seated, true);
            if newly {
                let member: Weak<Self> = Arc::downgrade(self);
                self.streams.fan.seat(audience, member);
            }
            newly
        })
    }
}

impl<O: Outbound + 'static> Member for Stage<O> {
    fn tell(&self, shown: Option<&Shown>) {
        self.with(|cast, config| {
            let Cast { session, out, waker, look, panicked, .. } = cast;
            if session.is_closing() || session.link.blocked_since().is_some() {
                // The stream's own task is at it.
                return;
            }
            let Some(waker) = waker else {
                *look = true;
                return;
            };
            let mut cx = Context::from_waker(waker);
            let sent = catch_unwind(AssertUnwindSafe(|| {
                let shown = shown.filter(|shown| session.is_idle() && out.as_mut().is_some_and(|out| out.take(shown)));
                match shown {
                    Some(shown) => session.show(&mut cx, shown),
                    None => session.send(&mut cx, out, config),
                }
            }));
            match sent {
                Ok(Sent::All) => return,
                Ok(Sent::Some | Sent::Blocked | Sent::End(_)) => *look = true,
                Err(_) => *panicked = true,
            }
            waker.wake_by_ref();
        });
    }
}

/// Runs to the end, and ends the connection.
pub(super) async fn run<O: Outbound + 'static>(stage: &Arc<Stage<O>>) -> Closed {
    // What lives across an await has its place in every stream's memory: locals are few here, and short.
    stage.with(|cast, config| cast.session.early_input(&mut cast.out, config));
    let mut stop = pin!(stage.streams.stop.cancelled());
    let mut alarm = pin!(sleep_until(stage.with(|cast, config| cast.session.deadline(config))));
    let closed = loop {
        let sent = poll_fn(|cx| Poll::Ready(stage.with(|cast, config| cast.send(cx, config)))).await;
        if let Sent::End(closed) = sent {
            break closed;
        }
        if matches!(sent, Sent::All) && stage.sit_down() {
            continue;
        }
        let deadline = stage.with(|cast, config| cast.session.deadline(config));
        if deadline < alarm.deadline() {
            alarm.as_mut().reset(deadline);
        }
        let step = tokio::select! {
            // Rare things first: nothing can keep them waiting, and they hardly ever keep others waiting.
            biased;
            () = &mut stop, if stage.with(|cast, _| cast.session.is_open()) => {
                stage.with(|cast, config| cast.session.drain(config));
                ControlFlow::Continue(())
            }
            () = &mut alarm => {
                let step = poll_fn(|cx| Poll::Ready(stage.with(|cast, config| {
                    cast.session.overdue(cx, &mut cast.out, config)?;
                    cast.session.tick(&mut cast.out, config)
                }))).await;
                alarm.as_mut().reset(stage.with(|cast, config| cast.session.deadline(config)));
                step
            }
            step = poll_fn(|cx| stage.with(|cast, config| cast.poll_moved(cx, config))) => step,
            () = poll_fn(|cx| stage.with(|cast, _| cast.out.poll_changed(cx))), if matches!(sent, Sent::All) => {
                ControlFlow::Continue(())
            }
            () = yield_now(), if matches!(sent, Sent::Some) => ControlFlow::Continue(()),
        };
        if let ControlFlow::Break(closed) = step {
            break closed;
        }
    };
    poll_fn(|cx| stage.with(|cast, _| cast.session.link.poll_end(cx))).await;
    closed
}

/// After a panic in `run`: says so where it still can. What panicked is asked for its last frame, and nothing else.
pub(super) async fn apologize<O: Outbound + 'static>(stage: &Arc<Stage<O>>) -> Closed {
    stage.with(|cast, config| {
        (cast.look, cast.panicked) = (false, false);
        let farewell = cast.out.take().and_then(|mut out| {
            catch_unwind(AssertUnwindSafe(|| out.farewell(Close::Internal, config.retry()))).unwrap_or_default()
        });
        cast.session.end_with(Close::Internal, cast.session.until(), farewell);
    });
    run(stage).await
}

impl<O: Outbound> Cast<O> {
    fn send(&mut self, cx: &mut Context<'_>, config: &Config) -> Sent {
        self.session.send(cx, &mut self.out, config)
    }

    /// The next thing that happens on the connection, or that a writer has left to do.
    fn poll_moved(&mut self, cx: &mut Context<'_>, config: &Config) -> Poll<ControlFlow<Closed>> {
        if self.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
        assert!(!self.panicked, "a writer has met a panic");
        if std::mem::take(&mut self.look) {
            return Poll::Ready(ControlFlow::Continue(()));
        }
        self.session.link.poll(cx).map(|moved| self.session.moved(&moved, &mut self.out, config))
    }
}

/// What has panicked has nothing to say any more.
impl<O: Outbound> Outbound for Option<O> {
    fn read(&mut self, max_bytes: usize) -> Read {
        self.as_mut().map_or(Read::Idle, |out| out.read(max_bytes))
    }

    fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.as_mut().map_or(Poll::Pending, |out| out.poll_changed(cx))
    }

    fn received(&mut self, piece: &Piece<'_>) {
        if let Some(out) = self {
            out.received(piece);
        }
    }

    fn heartbeat(&mut self) -> Option<Bytes> {
        self.as_mut()?.heartbeat()
    }

    fn farewell(&mut self, close: Close, retry: Duration) -> Option<Bytes> {
        self.as_mut()?.farewell(close, retry)
    }
}

/// What a turn of sending came to.
#[derive(Debug)]
enum Sent {
    /// All there is has been sent.
    All,
    /// There may be more.
    Some,
    /// Nothing more will be sent for now: the kernel is full, or the stream is closing.
    Blocked,
    /// This was the end.
    End(Closed),
}

impl Session {
    /// `reader` makes it a WebSocket, none an SSE stream.
    pub(super) fn new(socket: Socket, reader: Option<Reader>, config: &Config) -> Self {
        let Socket { conn, head, early } = socket;
        let (mut link, early) = (Link::new(conn), early[..].into());
        link.push(head);
        let now = Instant::now();
        let next_ping = now + config.ping;
        Self { link, reader, early, phase: Phase::Open, pong: None, next_ping, heard: now }
    }

    pub(super) fn transport(&self) -> Transport {
        if self.reader.is_some() { Transport::WebSocket } else { Transport::Sse }
    }

    fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. })
    }

    /// Nothing of its own waits to be sent.
    fn is_idle(&self) -> bool {
        self.link.is_clear() && self.pong.is_none() && !self.is_closing()
    }

    /// Sends what the audience is shown.
    fn show(&mut self, cx: &mut Context<'_>, shown: &Shown) -> Sent {
        match self.link.poll_send(cx, &shown.bytes) {
            Poll::Ready(Ok(())) => Sent::All,
            Poll::Ready(Err(_)) => Sent::End(self.hung_up()),
            Poll::Pending => Sent::Blocked,
        }
    }

    /// The process ends: so does this stream, at a moment of its own.
    fn drain(&mut self, config: &Config) {
        self.phase = Phase::Draining { at: Instant::now() + random_part_of(config.drain_spread) };
    }

    /// What has happened on the connection while nobody looked: a process that was frozen, or kept from its processor,
    /// must not take its own silence for the peer's. Reading and writing have a turn each.
    fn overdue<O: Outbound>(&mut self, cx: &mut Context<'_>, out: &mut O, config: &Config) -> ControlFlow<Closed> {
        for _ in 0..2 {
            match self.link.poll(cx) {
                Poll::Ready(moved) => self.moved(&moved, out, config)?,
                Poll::Pending => break,
            }
        }
        ControlFlow::Continue(())
    }

    fn moved<O: Outbound>(&mut self, moved: &Moved, out: &mut O, config: &Config) -> ControlFlow<Closed> {
        match moved {
            Moved::Written => ControlFlow::Continue(()),
            Moved::Input(len) => {
                self.heard = Instant::now();
                with_input(*len, |bytes| self.input(bytes, out, config));
                ControlFlow::Continue(())
            }
            Moved::Gone => ControlFlow::Break(self.hung_up()),
        }
    }

    /// Takes what came with the request.
    fn early_input<O: Outbound>(&mut self, out: &mut O, config: &Config) {
        let mut early = std::mem::take(&mut self.early);
        self.input(&mut early, out, config);
    }

    /// Sends for one turn. Never waits.
    fn send<O: Outbound>(&mut self, cx: &mut Context<'_>, out: &mut O, config: &Config) -> Sent {
        for _ in 0..BATCHES_A_TURN {
            // What is begun goes first; a client that does not take it is read for no further.
            let idle = self.link.blocked_since().is_none() && !self.fill(out, config);
            match self.link.poll_write(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Sent::End(self.hung_up()),
                Poll::Pending => return Sent::Blocked,
            }
            match &mut self.phase {
                Phase::Closing { closed, until: Until::Written, .. } => return Sent::End(*closed),
                Phase::Closing { until: Until::Answered | Until::Hung, patience, .. } => {
                    patience.get_or_insert_with(|| Instant::now() + config.close_wait);
                    return Sent::Blocked;
                }
                Phase::Open | Phase::Draining { .. } if idle => return Sent::All,
                Phase::Open | Phase::Draining { .. } => {}
            }
        }
        Sent::Some
    }

    /// Queues what is to be sent next; false when the feed had nothing.
    fn fill<O: Outbound>(&mut self, out: &mut O, config: &Config) -> bool {
        if matches!(self.phase, Phase::Closing { .. }) {
            return false;
        }
        if let Some(pong) = self.pong.take() {
            self.link.push(pong.into());
        }
        match out.read(config.batch_bytes) {
            Read::Batch(frames) => self.link.push_all(frames),
            Read::Idle => return false,
            Read::End(close) => self.close(close, out, config),
        }
        true
    }

    /// Takes what the peer sent.
    fn input<O: Outbound>(&mut self, mut bytes: &mut [u8], out: &mut O, config: &Config) {
        let Some(reader) = &mut self.reader else { return };
        if matches!(self.phase, Phase::Closing { until: Until::Written | Until::Hung, .. }) {
            return;
        }
        let blocked = self.link.blocked_since().is_some();
        let mut pongs = Vec::new();
        let end = loop {
            if bytes.is_empty() {
                break None;
            }
            match reader.read(bytes) {
                Ok((_, Some(Piece::Close(_)))) => break Some(Ok(())),
                Err(close) => break Some(Err(close)),
                Ok((used, piece)) => {
                    match piece {
                        Some(Piece::Ping(payload)) => {
                            if blocked {
                                pongs.clear();
                            }
                            websocket::pong(&mut pongs, &payload);
                        }
                        Some(piece) => out.received(&piece),
                        None => {}
                    }
                    bytes = &mut bytes[used..];
                }
            }
        };
        if matches!(self.phase, Phase::Closing { .. }) {
            // Our close frame was the last one.
        } else if blocked {
            self.pong = if pongs.is_empty() { self.pong.take() } else { Some(pongs.into()) };
        } else {
            if !pongs.is_empty() {
                self.link.push(pongs.into());
            }
            // What answers earlier messages goes before the close frame that answers the last one.
            if end.is_some()
                && let Read::Batch(frames) = out.read(config.batch_bytes)
            {
                self.link.push_all(frames);
            }
        }
        match end {
            None => {}
            Some(Ok(())) => self.client_closes(),
            Some(Err(close)) => self.refuse(close, out, config),
        }
    }

    /// Queues the last frames; the peer's answer is waited for where it can give one.
    fn close<O: Outbound>(&mut self, close: Close, out: &mut O, config: &Config) {
        self.end_with(close, self.until(), out.farewell(close, config.retry()));
    }

    fn until(&self) -> Until {
        if self.reader.is_some() { Until::Answered } else { Until::Written }
    }

    /// What the peer sent cannot be read any further.
    fn refuse<O: Outbound>(&mut self, close: Close, out: &mut O, config: &Config) {
        match &mut self.phase {
            Phase::Closing { until, .. } => *until = Until::Hung,
            Phase::Open | Phase::Draining { .. } => {
                self.end_with(close, Until::Hung, out.farewell(close, config.retry()));
            }
        }
    }

    fn end_with(&mut self, close: Close, until: Until, farewell: Option<Bytes>) {
        if let Some(farewell) = farewell {
            self.link.push(farewell);
        }
        self.close_with(close, Closed::Bridge(close), until);
    }

    /// The peer's close frame: the answer to ours, or the first.
    fn client_closes(&mut self) {
        match &mut self.phase {
            Phase::Closing { until, .. } => *until = Until::Written,
            Phase::Open | Phase::Draining { .. } => self.close_with(Close::Normal, Closed::Client, Until::Written),
        }
    }

    fn close_with(&mut self, close: Close, closed: Closed, until: Until) {
        if self.reader.is_some() {
            self.link.push(close_frame(close));
        }
        self.phase = Phase::Closing { closed, until, patience: None };
    }

    /// The connection ended: while closing that is what was waited for.
    fn hung_up(&self) -> Closed {
        match self.phase {
            Phase::Closing { closed, .. } => closed,
            Phase::Open | Phase::Draining { .. } => Closed::Gone,
        }
    }

    /// The nearest moment at which something is due.
    fn deadline(&self, config: &Config) -> Instant {
        let stall = self.link.blocked_since().map(|since| since + config.write_stall);
        let idle = self.reader.as_ref().map(|_| self.heard + config.peer_idle);
        let usual = match self.phase {
            Phase::Open => idle.map_or(Some(self.next_ping), |idle| Some(idle.min(self.next_ping))),
            Phase::Draining { at } => Some(at.min(self.next_ping)),
            Phase::Closing { patience, .. } => patience,
        };
        // Neither is known just after a close frame was queued; the next turn of sending finds out which it will be.
        [stall, usual].into_iter().flatten().min().unwrap_or_else(|| Instant::now() + config.close_wait)
    }

    /// Does what is due.
    fn tick<O: Outbound>(&mut self, out: &mut O, config: &Config) -> ControlFlow<Closed> {
        let now = Instant::now();
        if self.link.blocked_since().is_some_and(|since| now >= since + config.write_stall) {
            return ControlFlow::Break(self.stalled(out, config));
        }
        match self.phase {
            Phase::Closing { closed, patience, .. } => {
                if patience.is_some_and(|until| now >= until) {
                    return ControlFlow::Break(closed);
                }
            }
            Phase::Draining { at } if now >= at => self.close(Close::Draining, out, config),
            Phase::Open | Phase::Draining { .. } => {
                if self.reader.is_some() && now >= self.heard + config.peer_idle {
                    self.close(Close::Idle, out, config);
                } else if now >= self.next_ping {
                    self.next_ping = now + config.ping;
                    self.ping(out, config);
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// A sign of life, unless the kernel is full of what the peer does not read.
    fn ping<O: Outbound>(&mut self, out: &mut O, config: &Config) {
        if self.link.blocked_since().is_some() {
            return;
        }
        // What passes it by moves its cursor on, and a heartbeat says how far.
        self.fill(out, config);
        let heartbeat = out.heartbeat();
        let mut frame = Vec::new();
        match (&self.reader, &heartbeat) {
            (Some(_), _) => websocket::ping(&mut frame),
            (None, Some(_)) => {}
            (None, None) => sse::comment(&mut frame, ""),
        }
        if !frame.is_empty() {
            self.link.push(frame.into());
        }
        if let Some(heartbeat) = heartbeat {
            self.link.push(heartbeat);
        }
    }

    /// A write has moved nothing for too long.
    fn stalled<O: Outbound>(&mut self, out: &mut O, config: &Config) -> Closed {
        if let Phase::Closing { closed, .. } = self.phase {
            return closed;
        }
        let farewell = out.farewell(Close::SlowConsumer, config.retry()).unwrap_or_default();
        let close = if self.reader.is_some() { close_frame(Close::SlowConsumer) } else { Bytes::new() };
        if !(farewell.is_empty() && close.is_empty()) {
            self.link.last_word(&[farewell, close].concat());
        }
        Closed::Bridge(Close::SlowConsumer)
    }
}

fn close_frame(close: Close) -> Bytes {
    let mut frame = Vec::new();
    websocket::close(&mut frame, close);
    frame.into()
}
