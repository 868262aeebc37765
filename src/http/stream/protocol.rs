//! The state machine of one stream, from the response head to the end: events, pings, deadlines, closing.
//!
//! Guarantees:
//! - All deadlines follow from the state, so that one timer covers the nearest one. The stream's task moves the timer
//!   only to an earlier time or after it has fired, and never because of a write.
//! - A close frame is sent only between frames. The content of frames is not inspected.

use std::{
    ops::ControlFlow,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    buffered_conn::{BufferedConn, IoEvent, with_read_buffer},
    config::Config,
    end::StreamEnd,
    jitter::random_fraction,
    outbound::Outbound,
};
use crate::{
    feed::{ReadResult, SharedBatch},
    http::conn::HijackedSocket,
    wire::{
        CloseReason, sse,
        websocket::{self, FrameReader, MessagePart},
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

/// The state of one stream.
#[derive(Debug)]
pub(super) struct StreamProtocol {
    pub(super) conn: BufferedConn,
    /// Parses the client's frames. `None` on SSE, where the client's bytes are dropped.
    reader: Option<FrameReader>,
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
    /// Returns the state of a new stream: WebSocket with a `reader`, SSE without.
    pub(super) fn new(socket: HijackedSocket, reader: Option<FrameReader>, config: &Config) -> Self {
        let HijackedSocket { conn, head, read_ahead } = socket;
        let (mut conn, read_ahead) = (BufferedConn::new(conn), read_ahead[..].into());
        conn.push(head);
        let now = Instant::now();
        let next_ping = now + config.ping_interval;
        Self { conn, reader, read_ahead, phase: Phase::Open, pending_pong: None, next_ping, last_received: now }
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

    /// Writes queued bytes and reads, unless the client has sent too much or sends nothing more.
    pub(super) fn poll_conn(&mut self, cx: &mut Context<'_>, config: &Config) -> Poll<IoEvent> {
        let input_ended = matches!(self.phase, Phase::Closing { wait_for: CloseWait::FlushedAfterInput, .. });
        self.conn.poll(cx, !input_ended && self.reads_paused_until(config).is_none())
    }

    /// Returns the time until which the client is not read, because it has sent more than
    /// [`Config::max_frames_per_second`].
    fn reads_paused_until(&self, config: &Config) -> Option<Instant> {
        let pause = self.conn.input_debt.pause(config.max_frames_per_second);
        // The usual case needs no clock.
        if pause.is_zero() {
            return None;
        }
        Some(self.last_received + pause).filter(|until| *until > Instant::now())
    }

    /// Handles an event of the connection.
    pub(super) fn on_io<O: Outbound>(
        &mut self,
        event: &IoEvent,
        out: &mut O,
        config: &Config,
    ) -> ControlFlow<StreamEnd> {
        match event {
            IoEvent::Flushed => ControlFlow::Continue(()),
            IoEvent::Received(len) => {
                let before = std::mem::replace(&mut self.last_received, Instant::now());
                let frames = with_read_buffer(*len, |bytes| self.on_input(bytes, out, config));
                let elapsed = self.last_received - before;
                self.conn.input_debt.add(frames, *len, elapsed, config.max_frames_per_second);
                ControlFlow::Continue(())
            }
            IoEvent::InputEnded => self.on_input_ended(config),
            IoEvent::Failed => ControlFlow::Break(self.on_disconnect()),
        }
    }

    /// Ends the stream after the end of the client's input. What is queued is still written, because the client may have
    /// closed only its side of the connection.
    fn on_input_ended(&mut self, config: &Config) -> ControlFlow<StreamEnd> {
        if self.conn.is_drained() {
            return ControlFlow::Break(self.on_disconnect());
        }
        match &mut self.phase {
            Phase::Closing { wait_for, .. } => *wait_for = CloseWait::FlushedAfterInput,
            Phase::Open | Phase::Draining { .. } => {
                let (end, deadline) = (StreamEnd::Disconnected, Instant::now() + config.write_timeout);
                self.phase = Phase::Closing { end, wait_for: CloseWait::FlushedAfterInput, deadline };
            }
        }
        ControlFlow::Continue(())
    }

    /// Processes the bytes that the client sent after its request.
    pub(super) fn process_read_ahead<O: Outbound>(&mut self, out: &mut O, config: &Config) {
        let mut read_ahead = std::mem::take(&mut self.read_ahead);
        let frames = self.on_input(&mut read_ahead, out, config);
        self.conn.input_debt.add(frames, read_ahead.len(), Duration::ZERO, config.max_frames_per_second);
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

    /// Processes bytes from the peer. Returns the number of frames that were parsed.
    fn on_input<O: Outbound>(&mut self, mut bytes: &mut [u8], out: &mut O, config: &Config) -> usize {
        let Some(reader) = &mut self.reader else { return 0 };
        if matches!(self.phase, Phase::Closing { wait_for, .. } if !matches!(wait_for, CloseWait::PeerClose)) {
            return 0;
        }
        let mut frames = 0;
        let blocked = self.conn.blocked_since().is_some();
        let mut pongs = Vec::new();
        let end = loop {
            if bytes.is_empty() {
                break None;
            }
            frames += 1;
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
            // Nothing follows the close frame of the bridge.
        } else if blocked {
            self.pending_pong = if pongs.is_empty() { self.pending_pong.take() } else { Some(pongs.into()) };
        } else {
            if !pongs.is_empty() {
                self.conn.push(pongs.into());
            }
            // Frames that answer earlier messages precede the close frame that answers the last one.
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
        frames
    }

    /// Queues the last frames. On WebSocket the stream then waits for the peer's close frame.
    pub(super) fn close<O: Outbound>(&mut self, close: CloseReason, out: &mut O, config: &Config) {
        self.close_with_event(close, self.close_wait(), out.closing_event(close, config.retry_delay()), config);
    }

    /// Returns what this transport waits for after the last frame.
    pub(super) fn close_wait(&self) -> CloseWait {
        if self.reader.is_some() { CloseWait::PeerClose } else { CloseWait::Flushed }
    }

    /// Closes the stream because the peer's bytes cannot be parsed further.
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

    /// Queues `closing_event` and starts to close.
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

    /// Handles the peer's close frame: the answer to the bridge's, or the first.
    fn on_client_close(&mut self, config: &Config) {
        match &mut self.phase {
            Phase::Closing { wait_for, .. } => *wait_for = CloseWait::Flushed,
            Phase::Open | Phase::Draining { .. } => {
                self.start_closing(CloseReason::Normal, StreamEnd::ClientClosed, CloseWait::Flushed, config);
            }
        }
    }

    /// Queues the close frame, on WebSocket, and sets the deadline.
    fn start_closing(&mut self, close: CloseReason, end: StreamEnd, wait_for: CloseWait, config: &Config) {
        if self.reader.is_some() {
            self.conn.push(encode_close_frame(close));
        }
        self.phase = Phase::Closing { end, wait_for, deadline: Instant::now() + config.write_timeout };
    }

    /// Returns the end of a stream whose connection was closed. A stream that was already closing keeps its end.
    fn on_disconnect(&self) -> StreamEnd {
        match self.phase {
            Phase::Closing { end, .. } => end,
            Phase::Open | Phase::Draining { .. } => StreamEnd::Disconnected,
        }
    }

    /// Returns the time of the nearest deadline.
    pub(super) fn deadline(&self, config: &Config) -> Instant {
        let stall_deadline = self.conn.blocked_since().map(|since| since + config.write_timeout);
        let idle_deadline = self.reader.as_ref().map(|_| self.last_received + config.peer_idle_timeout);
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

    /// Queues a ping, a heartbeat or a comment line, unless a write is blocked.
    fn queue_ping<O: Outbound>(&mut self, out: &mut O, config: &Config) {
        if self.conn.blocked_since().is_some() {
            return;
        }
        // A read moves the cursor past entries without an event for the stream. The heartbeat then has the newest
        // cursor.
        self.queue_next(out, config);
        if self.is_closing() {
            // Nothing follows a close frame (RFC 6455 section 5.5.1).
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

    /// Ends the stream after the write timeout. The last frames are written only if they fit at once.
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
