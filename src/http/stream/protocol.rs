//! The state machine of one stream, from the response head to the end: events, pings, deadlines, closing.
//!
//! Guarantees:
//! - All deadlines follow from the state, so that one timer covers the nearest one. The stream's task moves the timer
//!   only to an earlier time or after it has fired, and never because of a write.
//! - A close frame is sent only between frames. The content of frames is not inspected.

mod closing;
mod input;

use std::{
    ops::ControlFlow,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{buffered_conn::BufferedConn, config::Config, end::StreamEnd, jitter::random_fraction, outbound::Outbound};
use crate::{
    feed::{FrameFormat, ReadResult, SharedBatch},
    http::conn::HijackedSocket,
    wire::{
        CloseReason,
        chunked::LAST_CHUNK,
        sse,
        websocket::{self, FrameReader},
    },
};

/// Maximum number of batches that a stream sends before other tasks run. It is enough for a burst and too little to
/// delay other streams.
const BATCHES_PER_TURN: usize = 4;

/// The phase of a stream.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// The stream sends events.
    Open,
    /// The stream sends events, and closes at this time because the process drains.
    Draining { at: Instant },
    /// The last frame is queued or written. At the deadline the connection is closed.
    Closing { end: StreamEnd, wait_for: CloseWait, deadline: Instant },
}

/// What a closing stream waits for after its last frame is written.
#[derive(Debug, Clone, Copy)]
pub(super) enum CloseWait {
    /// Nothing.
    Flushed,
    /// Nothing, and the peer sends nothing more.
    FlushedAfterInput,
    /// The peer's close frame.
    PeerClose,
    /// The peer's end of input, because the peer's frames can no longer be parsed. The bridge ends its output after the
    /// close frame, so that a peer that waits for the end of the connection ends it at once.
    PeerEof,
}

/// The transport of a stream.
#[derive(Debug)]
pub(super) enum Peer {
    /// The reader parses the client's frames.
    WebSocket(FrameReader),
    /// The client's bytes are dropped.
    Sse(FrameFormat),
}

impl Peer {
    fn is_websocket(&self) -> bool {
        matches!(self, Peer::WebSocket(_))
    }

    /// Returns what ends the stream: the close frame, or the last chunk of the body.
    fn encode_end(&self, close: CloseReason) -> Bytes {
        match self {
            Peer::WebSocket(_) => {
                let mut frame = Vec::new();
                websocket::close(&mut frame, close);
                frame.into()
            }
            Peer::Sse(format) if format.is_chunked() => Bytes::from_static(LAST_CHUNK),
            Peer::Sse(_) => Bytes::new(),
        }
    }
}

/// The state of one stream.
#[derive(Debug)]
pub(super) struct StreamProtocol {
    pub(super) conn: BufferedConn,
    peer: Peer,
    /// The bytes that the client sent after its request.
    read_ahead: Box<[u8]>,
    phase: Phase,
    /// The answer to the latest ping, while writes are blocked. Earlier pings need no answer (RFC 6455 section 5.5.3).
    pending_pong: Option<Box<[u8]>>,
    next_ping: Instant,
    last_received: Instant,
}

/// The outcome of one turn of sending.
#[derive(Debug)]
pub(super) enum SendOutcome {
    /// Everything is sent.
    Drained,
    /// There can be more to send.
    More,
    /// Nothing more can be sent now: the socket buffer is full, or the stream is closing.
    Blocked,
    /// The stream has ended.
    Ended(StreamEnd),
}

impl StreamProtocol {
    /// Returns the state of a new stream.
    pub(super) fn new(socket: HijackedSocket, peer: Peer, config: &Config) -> Self {
        let HijackedSocket { conn, head, read_ahead } = socket;
        let (mut conn, read_ahead) = (BufferedConn::new(conn), read_ahead[..].into());
        conn.push(head);
        let now = Instant::now();
        let next_ping = now + config.ping_interval;
        Self { conn, peer, read_ahead, phase: Phase::Open, pending_pong: None, next_ping, last_received: now }
    }

    /// Returns true if the stream neither drains nor closes.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// Returns true if the last frame is queued or written.
    pub(super) fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. })
    }

    /// Returns true if nothing waits to be sent, so that a shared batch can be written directly.
    pub(super) fn is_idle(&self) -> bool {
        self.conn.is_drained() && self.pending_pong.is_none() && !self.is_closing()
    }

    /// Writes a shared batch. [`StreamProtocol::is_idle`] must be true.
    pub(super) fn send_shared(&mut self, cx: &mut Context<'_>, batch: &SharedBatch) -> SendOutcome {
        match self.conn.poll_write_direct(cx, &batch.bytes) {
            Poll::Ready(Ok(())) => SendOutcome::Drained,
            Poll::Ready(Err(_)) => SendOutcome::Ended(self.on_disconnect()),
            Poll::Pending => SendOutcome::Blocked,
        }
    }

    /// Schedules the close of the stream at a random time, because the process drains.
    pub(super) fn drain(&mut self, config: &Config) {
        self.phase = Phase::Draining { at: Instant::now() + random_fraction(config.drain_spread) };
    }

    /// Handles pending events of the connection before a deadline is checked: at most one read and one write.
    ///
    /// A process that was stopped or did not get a processor must not count its own inactivity as the peer's.
    pub(super) fn poll_io_before_deadline<O: Outbound>(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut O,
        config: &Config,
    ) -> ControlFlow<StreamEnd> {
        for _ in 0..2 {
            match self.poll_conn(cx, config) {
                Poll::Ready(event) => self.on_io(&event, out, config)?,
                Poll::Pending => break,
            }
        }
        ControlFlow::Continue(())
    }

    /// Sends at most [`BATCHES_PER_TURN`] batches. It never waits.
    pub(super) fn send<O: Outbound>(&mut self, cx: &mut Context<'_>, out: &mut O, config: &Config) -> SendOutcome {
        for _ in 0..BATCHES_PER_TURN {
            // Queued bytes are written first. While they are blocked, the feed is not read.
            let must_encode = self.can_queue_next() && out.prepare_read();
            let idle = self.conn.blocked_since().is_none() && !must_encode && !self.queue_next(out, config);
            match self.conn.poll_write(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return SendOutcome::Ended(self.on_disconnect()),
                Poll::Pending => return SendOutcome::Blocked,
            }
            match &mut self.phase {
                Phase::Closing { end, wait_for: CloseWait::Flushed | CloseWait::FlushedAfterInput, .. } => {
                    return SendOutcome::Ended(*end);
                }
                Phase::Closing {
                    wait_for: wait_for @ (CloseWait::PeerClose | CloseWait::PeerEof), deadline, ..
                } => {
                    *deadline = (*deadline).min(Instant::now() + config.close_timeout);
                    if matches!(wait_for, CloseWait::PeerEof) {
                        self.conn.end_output(cx);
                    }
                    return SendOutcome::Blocked;
                }
                // The caller reads the next frames on a blocking thread.
                Phase::Open | Phase::Draining { .. } if must_encode => return SendOutcome::More,
                Phase::Open | Phase::Draining { .. } if idle => return SendOutcome::Drained,
                Phase::Open | Phase::Draining { .. } => {}
            }
        }
        SendOutcome::More
    }

    /// Returns true if the next frames can be queued: writes are not blocked, and the stream is not closing.
    pub(super) fn can_queue_next(&self) -> bool {
        self.conn.blocked_since().is_none() && !self.is_closing()
    }

    /// Queues the next frames. Returns false if there were none.
    pub(super) fn queue_next<O: Outbound>(&mut self, out: &mut O, config: &Config) -> bool {
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

    /// Returns the time of the nearest deadline.
    pub(super) fn deadline(&self, config: &Config) -> Instant {
        let stall_deadline = self.conn.blocked_since().map(|since| since + config.write_timeout);
        let idle_deadline = self.peer.is_websocket().then(|| self.last_received + config.peer_idle_timeout);
        let usual = match self.phase {
            Phase::Open => idle_deadline.map_or(self.next_ping, |idle_deadline| idle_deadline.min(self.next_ping)),
            Phase::Draining { at } => at.min(self.next_ping),
            Phase::Closing { deadline, .. } => deadline,
        };
        [stall_deadline, self.reads_paused_until(config)].into_iter().flatten().fold(usual, Instant::min)
    }

    /// Handles the deadlines that have passed.
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
                if self.peer.is_websocket() && now >= self.last_received + config.peer_idle_timeout {
                    self.close(CloseReason::Idle, out, config);
                } else if now >= self.next_ping {
                    self.next_ping = now + config.ping_interval;
                    self.queue_ping(out, config);
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Queues a ping, a heartbeat or a comment line, unless a write is blocked.
    fn queue_ping<O: Outbound>(&mut self, out: &mut O, config: &Config) {
        if self.conn.blocked_since().is_some() {
            return;
        }
        // A read moves the cursor past entries without an event for the stream. The heartbeat then has the newest
        // cursor. While an initial state is being sent there is no cursor, and a read would encode.
        if !out.prepare_read() {
            self.queue_next(out, config);
        }
        if self.is_closing() {
            // Nothing follows a close frame (RFC 6455 section 5.5.1).
            return;
        }
        let heartbeat = out.heartbeat();
        let mut frame = Vec::new();
        match (&self.peer, &heartbeat) {
            (Peer::WebSocket(_), _) => websocket::ping(&mut frame),
            (Peer::Sse(_), Some(_)) => {}
            (Peer::Sse(format), None) => format.append_part(&mut frame, |out| sse::comment(out, "")),
        }
        if !frame.is_empty() {
            self.conn.push(frame.into());
        }
        if let Some(heartbeat) = heartbeat {
            self.conn.push(heartbeat);
        }
    }
}
