//! The state of one stream, from its head to its end, and what each thing that happens does to it.
//!
//! Always: deadlines are read off the state, and one timer covers the nearest; it is moved only to an earlier moment or
//! when it has fired, never on a write. Frames are not looked into; close frames go only between frames.
use std::{
    ops::ControlFlow,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Closed, Config, Outbound, Transport,
    buffered_conn::{Link, Moved, with_input},
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
    /// The last frame is queued, and goes out, or it is written, and the peer has its say: until this moment.
    Closing { closed: Closed, until: Until, by: Instant },
}

/// What a closing stream waits for once its last frame is written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
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
    pub(super) link: Link,
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

/// What a turn of sending came to.
#[derive(Debug)]
pub(super) enum Sent {
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

    pub(super) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    pub(super) fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. })
    }

    /// Nothing of its own waits to be sent.
    pub(super) fn is_idle(&self) -> bool {
        self.link.is_clear() && self.pong.is_none() && !self.is_closing()
    }

    /// Sends what the audience is shown.
    pub(super) fn show(&mut self, cx: &mut Context<'_>, shown: &Shown) -> Sent {
        match self.link.poll_send(cx, &shown.bytes) {
            Poll::Ready(Ok(())) => Sent::All,
            Poll::Ready(Err(_)) => Sent::End(self.hung_up()),
            Poll::Pending => Sent::Blocked,
        }
    }

    /// The process ends: so does this stream, at a moment of its own.
    pub(super) fn drain(&mut self, config: &Config) {
        self.phase = Phase::Draining { at: Instant::now() + random_part_of(config.drain_spread) };
    }

    /// What has happened on the connection while nobody looked: a process that was frozen, or kept from its processor,
    /// must not take its own silence for the peer's. Reading and writing have a turn each.
    pub(super) fn overdue<O: Outbound>(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut O,
        config: &Config,
    ) -> ControlFlow<Closed> {
        for _ in 0..2 {
            match self.link.poll(cx) {
                Poll::Ready(moved) => self.moved(&moved, out, config)?,
                Poll::Pending => break,
            }
        }
        ControlFlow::Continue(())
    }

    pub(super) fn moved<O: Outbound>(&mut self, moved: &Moved, out: &mut O, config: &Config) -> ControlFlow<Closed> {
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
    pub(super) fn early_input<O: Outbound>(&mut self, out: &mut O, config: &Config) {
        let mut early = std::mem::take(&mut self.early);
        self.input(&mut early, out, config);
    }

    /// Sends for one turn. Never waits.
    pub(super) fn send<O: Outbound>(&mut self, cx: &mut Context<'_>, out: &mut O, config: &Config) -> Sent {
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
                Phase::Closing { until: Until::Answered | Until::Hung, by, .. } => {
                    *by = (*by).min(Instant::now() + config.close_wait);
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
            Some(Ok(())) => self.client_closes(config),
            Some(Err(close)) => self.refuse(close, out, config),
        }
    }

    /// Queues the last frames; the peer's answer is waited for where it can give one.
    pub(super) fn close<O: Outbound>(&mut self, close: Close, out: &mut O, config: &Config) {
        self.end_with(close, self.until(), out.farewell(close, config.retry()), config);
    }

    pub(super) fn until(&self) -> Until {
        if self.reader.is_some() { Until::Answered } else { Until::Written }
    }

    /// What the peer sent cannot be read any further.
    fn refuse<O: Outbound>(&mut self, close: Close, out: &mut O, config: &Config) {
        match &mut self.phase {
            Phase::Closing { until, .. } => *until = Until::Hung,
            Phase::Open | Phase::Draining { .. } => {
                self.end_with(close, Until::Hung, out.farewell(close, config.retry()), config);
            }
        }
    }

    pub(super) fn end_with(&mut self, close: Close, until: Until, farewell: Option<Bytes>, config: &Config) {
        if let Some(farewell) = farewell {
            self.link.push(farewell);
        }
        self.close_with(close, Closed::Bridge(close), until, config);
    }

    /// The peer's close frame: the answer to ours, or the first.
    fn client_closes(&mut self, config: &Config) {
        match &mut self.phase {
            Phase::Closing { until, .. } => *until = Until::Written,
            Phase::Open | Phase::Draining { .. } => {
                self.close_with(Close::Normal, Closed::Client, Until::Written, config);
            }
        }
    }

    fn close_with(&mut self, close: Close, closed: Closed, until: Until, config: &Config) {
        if self.reader.is_some() {
            self.link.push(close_frame(close));
        }
        self.phase = Phase::Closing { closed, until, by: Instant::now() + config.write_stall };
    }

    /// The connection ended: while closing that is what was waited for.
    fn hung_up(&self) -> Closed {
        match self.phase {
            Phase::Closing { closed, .. } => closed,
            Phase::Open | Phase::Draining { .. } => Closed::Gone,
        }
    }

    /// The nearest moment at which something is due.
    pub(super) fn deadline(&self, config: &Config) -> Instant {
        let stall = self.link.blocked_since().map(|since| since + config.write_stall);
        let idle = self.reader.as_ref().map(|_| self.heard + config.peer_idle);
        let usual = match self.phase {
            Phase::Open => idle.map_or(self.next_ping, |idle| idle.min(self.next_ping)),
            Phase::Draining { at } => at.min(self.next_ping),
            Phase::Closing { by, .. } => by,
        };
        stall.map_or(usual, |stall| stall.min(usual))
    }

    /// Does what is due.
    pub(super) fn tick<O: Outbound>(&mut self, out: &mut O, config: &Config) -> ControlFlow<Closed> {
        let now = Instant::now();
        if self.link.blocked_since().is_some_and(|since| now >= since + config.write_stall) {
            return ControlFlow::Break(self.stalled(out, config));
        }
        match self.phase {
            Phase::Closing { closed, by, .. } if now >= by => return ControlFlow::Break(closed),
            Phase::Closing { .. } => {}
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
        if self.is_closing() {
            // Nothing follows a close frame (RFC 6455, section 5.5.1).
            return;
        }
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
