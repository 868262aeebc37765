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
    Config, Outbound, StreamEnd, Transport,
    buffered_conn::{BufferedConn, IoEvent, with_read_buffer},
    random_fraction,
};
use crate::{
    feed::{ReadResult, SharedBatch},
    http::conn::HijackedSocket,
    wire::{
        CloseReason, sse,
        websocket::{self, FrameReader, MessagePart},
    },
};

/// Batches a stream may send before others get their turn: enough to empty a burst, far from starving anybody.
const BATCHES_PER_TURN: usize = 4;

/// Where a stream is in its life.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// It sends what there is.
    Open,
    /// So it does, but at this moment it closes, because the process drains.
    Draining { at: Instant },
    /// The last frame is queued, and goes out, or it is written, and the peer has its say: until this moment.
    Closing { end: StreamEnd, wait_for: CloseWait, deadline: Instant },
}

/// What a closing stream waits for once its last frame is written.
#[derive(Debug, Clone, Copy)]
pub(super) enum CloseWait {
    /// Nothing.
    Flushed,
    /// The peer's close frame.
    PeerClose,
    /// The peer's end of file, because its frames can no longer be read.
    PeerEof,
}

/// The state of one stream.
#[derive(Debug)]
pub(super) struct StreamProtocol {
    pub(super) conn: BufferedConn,
    /// Of a WebSocket; an SSE client has nothing to say.
    reader: Option<FrameReader>,
    /// What came with the request.
    read_ahead: Box<[u8]>,
    phase: Phase,
    /// The answer to the latest ping, while writes are blocked. The earlier ones need none (RFC 6455 section 5.5.3).
    pending_pong: Option<Box<[u8]>>,
    next_ping: Instant,
    last_received: Instant,
}

/// What a turn of sending came to.
#[derive(Debug)]
pub(super) enum SendOutcome {
    /// All there is has been sent.
    Drained,
    /// There may be more.
    More,
    /// Nothing more will be sent for now: the kernel is full, or the stream is closing.
    Blocked,
    /// This was the end.
    Ended(StreamEnd),
}

impl StreamProtocol {
    /// `reader` makes it a WebSocket, none an SSE stream.
    pub(super) fn new(socket: HijackedSocket, reader: Option<FrameReader>, config: &Config) -> Self {
        let HijackedSocket { conn, head, read_ahead } = socket;
        let (mut conn, read_ahead) = (BufferedConn::new(conn), read_ahead[..].into());
        conn.push(head);
        let now = Instant::now();
        let next_ping = now + config.ping_interval;
        Self { conn, reader, read_ahead, phase: Phase::Open, pending_pong: None, next_ping, last_received: now }
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
        self.conn.is_drained() && self.pending_pong.is_none() && !self.is_closing()
    }

    /// Sends what the audience is shown.
    pub(super) fn send_shared(&mut self, cx: &mut Context<'_>, batch: &SharedBatch) -> SendOutcome {
        match self.conn.poll_write_direct(cx, &batch.bytes) {
            Poll::Ready(Ok(())) => SendOutcome::Drained,
            Poll::Ready(Err(_)) => SendOutcome::Ended(self.on_disconnect()),
            Poll::Pending => SendOutcome::Blocked,
        }
    }

    /// The process ends: so does this stream, at a moment of its own.
    pub(super) fn drain(&mut self, config: &Config) {
        self.phase = Phase::Draining { at: Instant::now() + random_fraction(config.drain_spread) };
    }

    /// What has happened on the connection while nobody looked: a process that was frozen, or kept from its processor,
    /// must not take its own silence for the peer's. Reading and writing have a turn each.
    pub(super) fn poll_io_before_deadline<O: Outbound>(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut O,
        config: &Config,
    ) -> ControlFlow<StreamEnd> {
        for _ in 0..2 {
            match self.conn.poll(cx) {
                Poll::Ready(event) => self.on_io(&event, out, config)?,
                Poll::Pending => break,
            }
        }
        ControlFlow::Continue(())
    }

    pub(super) fn on_io<O: Outbound>(
        &mut self,
        event: &IoEvent,
        out: &mut O,
        config: &Config,
    ) -> ControlFlow<StreamEnd> {
        match event {
            IoEvent::Flushed => ControlFlow::Continue(()),
            IoEvent::Received(len) => {
                self.last_received = Instant::now();
                with_read_buffer(*len, |bytes| self.on_input(bytes, out, config));
                ControlFlow::Continue(())
            }
            IoEvent::Closed => ControlFlow::Break(self.on_disconnect()),
        }
    }

    /// Takes what came with the request.
    pub(super) fn process_read_ahead<O: Outbound>(&mut self, out: &mut O, config: &Config) {
        let mut read_ahead = std::mem::take(&mut self.read_ahead);
        self.on_input(&mut read_ahead, out, config);
    }

    /// Sends for one turn. Never waits.
    pub(super) fn send<O: Outbound>(&mut self, cx: &mut Context<'_>, out: &mut O, config: &Config) -> SendOutcome {
        for _ in 0..BATCHES_PER_TURN {
            // What is begun goes first; a client that does not take it is read for no further.
            let idle = self.conn.blocked_since().is_none() && !self.queue_next(out, config);
            match self.conn.poll_write(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return SendOutcome::Ended(self.on_disconnect()),
                Poll::Pending => return SendOutcome::Blocked,
            }
            match &mut self.phase {
                Phase::Closing { end, wait_for: CloseWait::Flushed, .. } => return SendOutcome::Ended(*end),
                Phase::Closing { wait_for: CloseWait::PeerClose | CloseWait::PeerEof, deadline, .. } => {
                    *deadline = (*deadline).min(Instant::now() + config.close_timeout);
                    return SendOutcome::Blocked;
                }
                Phase::Open | Phase::Draining { .. } if idle => return SendOutcome::Drained,
                Phase::Open | Phase::Draining { .. } => {}
            }
        }
        SendOutcome::More
    }

    /// Queues what is to be sent next; false when the feed had nothing.
    fn queue_next<O: Outbound>(&mut self, out: &mut O, config: &Config) -> bool {
        if matches!(self.phase, Phase::Closing { .. }) {
            return false;
        }
        if let Some(pong) = self.pending_pong.take() {
            self.conn.push(pong.into());
        }
        match out.read(config.batch_bytes) {
            ReadResult::Batch(frames) => self.conn.push_all(frames),
            ReadResult::Idle => return false,
            ReadResult::End(close) => self.close(close, out, config),
        }
        true
    }

    /// Takes what the peer sent.
    fn on_input<O: Outbound>(&mut self, mut bytes: &mut [u8], out: &mut O, config: &Config) {
        let Some(reader) = &mut self.reader else { return };
        if matches!(self.phase, Phase::Closing { wait_for: CloseWait::Flushed | CloseWait::PeerEof, .. }) {
            return;
        }
        let blocked = self.conn.blocked_since().is_some();
        let mut pongs = Vec::new();
        let end = loop {
            if bytes.is_empty() {
                break None;
            }
            match reader.read(bytes) {
                Ok((_, Some(MessagePart::Close(_)))) => break Some(Ok(())),
                Err(close) => break Some(Err(close)),
                Ok((used, part)) => {
                    match part {
                        Some(MessagePart::Ping(payload)) => {
                            if blocked {
                                pongs.clear();
                            }
                            websocket::pong(&mut pongs, &payload);
                        }
                        Some(part) => out.on_message_part(&part),
                        None => {}
                    }
                    bytes = &mut bytes[used..];
                }
            }
        };
        if matches!(self.phase, Phase::Closing { .. }) {
            // Our close frame was the last one.
        } else if blocked {
            self.pending_pong = if pongs.is_empty() { self.pending_pong.take() } else { Some(pongs.into()) };
        } else {
            if !pongs.is_empty() {
                self.conn.push(pongs.into());
            }
            // What answers earlier messages goes before the close frame that answers the last one.
            if end.is_some()
                && let ReadResult::Batch(frames) = out.read(config.batch_bytes)
            {
                self.conn.push_all(frames);
            }
        }
        match end {
            None => {}
            Some(Ok(())) => self.on_client_close(config),
            Some(Err(close)) => self.close_on_protocol_error(close, out, config),
        }
    }

    /// Queues the last frames; the peer's answer is waited for where it can give one.
    pub(super) fn close<O: Outbound>(&mut self, close: CloseReason, out: &mut O, config: &Config) {
        self.close_with_event(close, self.close_wait(), out.closing_event(close, config.retry_delay()), config);
    }

    pub(super) fn close_wait(&self) -> CloseWait {
        if self.reader.is_some() { CloseWait::PeerClose } else { CloseWait::Flushed }
    }

    /// What the peer sent cannot be read any further.
    fn close_on_protocol_error<O: Outbound>(&mut self, close: CloseReason, out: &mut O, config: &Config) {
        match &mut self.phase {
            Phase::Closing { wait_for, .. } => *wait_for = CloseWait::PeerEof,
            Phase::Open | Phase::Draining { .. } => {
                self.close_with_event(
                    close,
                    CloseWait::PeerEof,
                    out.closing_event(close, config.retry_delay()),
                    config,
                );
            }
        }
    }

    pub(super) fn close_with_event(
        &mut self,
        close: CloseReason,
        wait_for: CloseWait,
        closing_event: Option<Bytes>,
        config: &Config,
    ) {
        if let Some(closing_event) = closing_event {
            self.conn.push(closing_event);
        }
        self.start_closing(close, StreamEnd::ByBridge(close), wait_for, config);
    }

    /// The peer's close frame: the answer to ours, or the first.
    fn on_client_close(&mut self, config: &Config) {
        match &mut self.phase {
            Phase::Closing { wait_for, .. } => *wait_for = CloseWait::Flushed,
            Phase::Open | Phase::Draining { .. } => {
                self.start_closing(CloseReason::Normal, StreamEnd::ClientClosed, CloseWait::Flushed, config);
            }
        }
    }

    fn start_closing(&mut self, close: CloseReason, end: StreamEnd, wait_for: CloseWait, config: &Config) {
        if self.reader.is_some() {
            self.conn.push(encode_close_frame(close));
        }
        self.phase = Phase::Closing { end, wait_for, deadline: Instant::now() + config.write_timeout };
    }

    /// The connection ended: while closing that is what was waited for.
    fn on_disconnect(&self) -> StreamEnd {
        match self.phase {
            Phase::Closing { end, .. } => end,
            Phase::Open | Phase::Draining { .. } => StreamEnd::Disconnected,
        }
    }

    /// The nearest moment at which something is due.
    pub(super) fn deadline(&self, config: &Config) -> Instant {
        let stall_deadline = self.conn.blocked_since().map(|since| since + config.write_timeout);
        let idle_deadline = self.reader.as_ref().map(|_| self.last_received + config.peer_idle_timeout);
        let usual = match self.phase {
            Phase::Open => idle_deadline.map_or(self.next_ping, |idle_deadline| idle_deadline.min(self.next_ping)),
            Phase::Draining { at } => at.min(self.next_ping),
            Phase::Closing { deadline, .. } => deadline,
        };
        stall_deadline.map_or(usual, |stall_deadline| stall_deadline.min(usual))
    }

    /// Does what is due.
    pub(super) fn on_deadline<O: Outbound>(&mut self, out: &mut O, config: &Config) -> ControlFlow<StreamEnd> {
        let now = Instant::now();
        if self.conn.blocked_since().is_some_and(|since| now >= since + config.write_timeout) {
            return ControlFlow::Break(self.on_write_timeout(out, config));
        }
        match self.phase {
            Phase::Closing { end, deadline, .. } if now >= deadline => return ControlFlow::Break(end),
            Phase::Closing { .. } => {}
            Phase::Draining { at } if now >= at => self.close(CloseReason::Draining, out, config),
            Phase::Open | Phase::Draining { .. } => {
                if self.reader.is_some() && now >= self.last_received + config.peer_idle_timeout {
                    self.close(CloseReason::Idle, out, config);
                } else if now >= self.next_ping {
                    self.next_ping = now + config.ping_interval;
                    self.queue_ping(out, config);
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// A sign of life, unless the kernel is full of what the peer does not read.
    fn queue_ping<O: Outbound>(&mut self, out: &mut O, config: &Config) {
        if self.conn.blocked_since().is_some() {
            return;
        }
        // What passes it by moves its cursor on, and a heartbeat says how far.
        self.queue_next(out, config);
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
            self.conn.push(frame.into());
        }
        if let Some(heartbeat) = heartbeat {
            self.conn.push(heartbeat);
        }
    }

    /// A write has moved nothing for too long.
    fn on_write_timeout<O: Outbound>(&mut self, out: &mut O, config: &Config) -> StreamEnd {
        if let Phase::Closing { end, .. } = self.phase {
            return end;
        }
        let closing_event = out.closing_event(CloseReason::SlowConsumer, config.retry_delay()).unwrap_or_default();
        let close = if self.reader.is_some() { encode_close_frame(CloseReason::SlowConsumer) } else { Bytes::new() };
        if !(closing_event.is_empty() && close.is_empty()) {
            self.conn.try_write_final(&[closing_event, close].concat());
        }
        StreamEnd::ByBridge(CloseReason::SlowConsumer)
    }
}

fn encode_close_frame(close: CloseReason) -> Bytes {
    let mut frame = Vec::new();
    websocket::close(&mut frame, close);
    frame.into()
}
