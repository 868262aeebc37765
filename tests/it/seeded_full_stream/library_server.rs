//! The other end of the connections of the client library: it serves the streams of the two replicas, cuts connections at
//! any byte, falls silent, refuses, and records what was written completely.
//!
//! The library draws its delays at random. So that a seed repeats its history, the server opens the next connection at a
//! time of its own, which is later than the longest delay.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::client::Transport;
use boilerhouse_bridge::event::{Cursor, PerResource};
use boilerhouse_bridge::feed::{FrameFormat, Framing, SnapshotReason, StartAt};
use boilerhouse_bridge::test_support::SeededRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::client::READY_TIMEOUT;
use super::library::{Item, LibraryLog, Outcome};
use super::projections::{PROJECTIONS, to_projection};
use super::session::{ClientBehavior, Output, Recorder, Seat, Session, reconnect_delay};
use super::wire;
use crate::oracle::full_stream::Start;

/// Delays of the library before it connects again (docs/protocol.md#what-clients-must-do): from the first to the longest one.
const BACKOFF: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];
/// A connection that is silent for longer than this counts as dead.
const MAX_SILENCE: Duration = Duration::from_secs(130);
/// What the server asks for when it refuses.
const RETRY_AFTER: Duration = Duration::from_secs(3);

/// What the library waits for when it opens a connection.
pub(super) type Opening = oneshot::Sender<io::Result<DuplexStream>>;

/// The server of one client.
pub(super) struct LibraryServer {
    seat: Seat,
    recorder: Recorder,
    behavior: ClientBehavior,
    transport: Transport,
    rng: SeededRng,
    openings: mpsc::UnboundedReceiver<Opening>,
    log: Arc<Mutex<LibraryLog>>,
    /// Connections without an event since the last one with events.
    failures: u32,
}

/// How a connection ended, and the delay that the server has asked for.
struct End {
    outcome: Outcome,
    retry_after: Duration,
}

/// A request of the library.
struct Request {
    head: String,
}

/// The stream of one connection.
struct Wire {
    io: DuplexStream,
    framing: Framing,
    log: Arc<Mutex<LibraryLog>>,
    rng: SeededRng,
    /// The connection broke in the middle of a batch.
    is_broken: bool,
    /// The library has closed the connection.
    is_closed: bool,
    events: u64,
}

impl LibraryServer {
    pub(super) fn new(
        seat: Seat,
        behavior: ClientBehavior,
        transport: Transport,
        rng: SeededRng,
        openings: mpsc::UnboundedReceiver<Opening>,
        log: Arc<Mutex<LibraryLog>>,
    ) -> LibraryServer {
        let recorder = Recorder::new(seat.clone());
        LibraryServer { seat, recorder, behavior, transport, rng, openings, log, failures: 0 }
    }

    pub(super) async fn run(mut self) {
        let mut opens_at = self.seat.slot_after(self.behavior.starts_after);
        let mut expected = Instant::now()..=Instant::now();
        while let Some(opening) = self.openings.recv().await {
            if !expected.contains(&Instant::now()) {
                let outcome = Outcome::Violation("the library does not keep its delay");
                self.log.lock().unwrap().sent.push(Item::End(outcome));
            }
            sleep_until(opens_at).await;
            let End { outcome, retry_after } = self.serve(opening).await;
            self.log.lock().unwrap().sent.push(Item::End(outcome));
            let ended = Instant::now();
            let own = (BACKOFF[0] * 2_u32.pow(self.failures.min(8))).min(BACKOFF[1]);
            // Without a cursor that was rejected, the library tries again at once.
            let delays = if outcome == Outcome::CursorRejected {
                [Duration::ZERO; 2]
            } else {
                self.failures += 1;
                [own / 2, own].map(|delay| delay.max(retry_after))
            };
            let delay = if delays[1].is_zero() { Duration::ZERO } else { reconnect_delay(&mut self.rng) };
            opens_at = self.seat.slot_after(delays[1].max(delay));
            // Timers have a resolution of 1 ms.
            expected = ended + delays[0]..=ended + delays[1] + Duration::from_millis(2);
        }
    }

    /// One connection.
    async fn serve(&mut self, opening: Opening) -> End {
        let end = |outcome| End { outcome, retry_after: Duration::ZERO };
        let refusal = if self.seat.is_settling() { 99 } else { self.rng.below(40) };
        if refusal == 0 {
            let _ = opening.send(Err(io::ErrorKind::ConnectionRefused.into()));
            return end(Outcome::NotConnected);
        }
        let (client, mut io) = tokio::io::duplex(*self.rng.choose(&[64, 1 << 16]));
        if opening.send(Ok(client)).is_err() {
            return end(Outcome::Violation("the library has given up"));
        }
        let Some(request) = Request::read(&mut io).await else {
            return end(Outcome::Violation("the library sends no complete request"));
        };
        if refusal == 1 {
            // A part of the head.
            write(&mut io, b"HTTP/1.1 200 OK\r\ncontent-type: text/ev").await;
            return end(Outcome::NotConnected);
        }
        let replica = self.rng.below(2) as usize;
        let (feed, number, alive) = self.seat.deployment.replica(replica);
        let is_ready = timeout_at(self.seat.slot_after(READY_TIMEOUT), feed.wait_synced()).await.is_ok();
        // Not in the slot in which the replica became ready.
        self.seat.sleep_slot(Duration::ZERO).await;
        let start = if is_ready && refusal != 2 { self.choose_start(&request) } else { Err(Outcome::Refused) };
        let (start, start_at) = match start {
            Ok(start) => start,
            Err(outcome) => return refuse(&mut io, outcome).await,
        };
        let projection = self.behavior.projection[0];
        let framing = Framing { format: self.choose_format(), edgeplane_names: false };
        let cache = feed.projection_cache(to_projection(&PROJECTIONS[projection]), framing);
        let subscription = feed.subscribe(cache, start_at).ok().filter(|_| alive.has_changed().is_ok());
        let Some(subscription) = subscription else { return refuse(&mut io, Outcome::Refused).await };
        write(&mut io, request.answer(framing.format).as_bytes()).await;
        self.recorder.connect(number, projection, start);
        let (log, rng) = (self.log.clone(), self.rng.fork());
        let mut output = Wire { io, framing, log, rng, is_broken: false, is_closed: false, events: 0 };
        let LibraryServer { recorder, behavior, rng, .. } = self;
        let session = Session { behavior: *behavior, recorder, rng, output: &mut output, subscription, alive };
        session.run(&feed).await;
        // Also before a silence, so that a client that has not noticed it does not count as connected.
        self.recorder.disconnect();
        let stalls = !output.is_closed && !self.seat.is_settling() && self.rng.below(8) == 0;
        if stalls && timeout(2 * MAX_SILENCE, output.closed()).await.is_err() {
            return end(Outcome::Violation("the library keeps a silent connection"));
        }
        if output.events > 0 {
            self.failures = 0;
        }
        end(if output.is_closed { Outcome::Silent } else { Outcome::Cut })
    }

    fn choose_format(&mut self) -> FrameFormat {
        match self.transport {
            Transport::WebSocket => FrameFormat::WebSocket,
            Transport::Sse => FrameFormat::Sse { named: self.rng.below(2) == 0, chunked: self.rng.below(2) == 0 },
        }
    }

    /// How the stream starts, as for the other clients. A client that must not use its cursor gets a 400 for it.
    fn choose_start(&mut self, request: &Request) -> Result<(Start, StartAt), Outcome> {
        let is_settling = self.seat.is_settling();
        let Some(id) = request.cursor() else {
            self.recorder.last = None;
            return Ok(if self.behavior.snapshot {
                let not_before = PerResource::default();
                (Start::Snapshot, StartAt::Snapshot { reason: SnapshotReason::Connect, not_before })
            } else {
                (Start::Live, StartAt::Live)
            });
        };
        let (Some(mut cursor), Some(last)) = (Cursor::decode(&id), &self.recorder.last) else {
            return Err(Outcome::Violation("the library invents a cursor"));
        };
        let is_lost = self.seat.deployment.may_be_of_lost_history(&cursor, last.at);
        if is_lost || (!is_settling && self.rng.below(20) == 0) {
            return Err(Outcome::CursorRejected);
        }
        if !self.seat.deployment.is_reset_detected() {
            return Err(Outcome::Refused);
        }
        let is_forged = !is_settling && self.rng.below(25) == 0;
        if is_forged {
            cursor.namespace_hash ^= 1;
        }
        Ok((Start::Resume { id, projection: self.behavior.projection[0], is_forged }, StartAt::Cursor(cursor)))
    }
}

/// Answers with the status of an outcome.
async fn refuse(io: &mut DuplexStream, outcome: Outcome) -> End {
    let (status, parameter) = match outcome {
        Outcome::CursorRejected => ("400 Bad Request", r#","details":{"parameter":"lastEventId"}"#),
        _ => ("503 Service Unavailable", ""),
    };
    let body = format!(r#"{{"code":"CODE","message":"not now"{parameter}}}"#);
    let (length, seconds) = (body.len(), RETRY_AFTER.as_secs());
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nretry-after: {seconds}\r\n\r\n");
    write(io, (head + &body).as_bytes()).await;
    End { outcome, retry_after: RETRY_AFTER }
}

/// Writes. Returns false if the library has closed the connection.
async fn write(io: &mut DuplexStream, bytes: &[u8]) -> bool {
    io.write_all(bytes).await.is_ok()
}

impl Request {
    async fn read(io: &mut DuplexStream) -> Option<Request> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(io.read_u8().await.ok()?);
        }
        Some(Request { head: String::from_utf8(head).ok()? })
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(": "));
        headers.find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The cursor in the header of SSE or in the query of a WebSocket.
    fn cursor(&self) -> Option<String> {
        let query = self.head.split(' ').nth(1)?.split_once('?').map_or("", |(_, query)| query);
        let from_query = query.split('&').find_map(|parameter| parameter.strip_prefix("lastEventId="));
        self.header("last-event-id").or(from_query).map(str::to_owned)
    }

    /// The head of the answer.
    fn answer(&self, format: FrameFormat) -> String {
        let accept = self.header("sec-websocket-key").map(|key| derive_accept_key(key.as_bytes())).unwrap_or_default();
        match format {
            FrameFormat::Sse { chunked: true, .. } => {
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n".to_owned()
            }
            FrameFormat::Sse { .. } => "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n".to_owned(),
            _ => format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-accept: {accept}\r\n\r\n"
            ),
        }
    }
}

impl Wire {
    /// Writes the start of frames. The events that are complete have been sent.
    async fn write(&mut self, recorder: &mut Recorder, frames: &[u8], length: usize, idle: bool) {
        if !write(&mut self.io, &frames[..length]).await {
            self.is_closed = true;
            return;
        }
        for event in wire::events(self.framing, frames).into_iter().filter(|event| event.end <= length) {
            recorder.event(event.json.as_bytes(), idle);
            self.log.lock().unwrap().sent.push(Item::Event(event.json));
            self.events += 1;
        }
    }
}

impl Output for Wire {
    async fn deliver(&mut self, recorder: &mut Recorder, frames: &[u8], idle: bool) {
        self.is_broken = !recorder.seat.is_settling() && self.rng.below(12) == 0;
        let length = if self.is_broken { self.rng.below(frames.len() as u64 + 1) as usize } else { frames.len() };
        self.write(recorder, frames, length, idle).await;
    }

    async fn deliver_part(&mut self, recorder: &mut Recorder, frames: &[u8], rng: &mut SeededRng) {
        let length = rng.below(frames.len() as u64 + 1) as usize;
        self.write(recorder, frames, length, false).await;
    }

    fn is_open(&self) -> bool {
        !self.is_broken && !self.is_closed
    }

    async fn closed(&mut self) {
        // The library sends nothing after its request.
        let mut bytes = [0; 64];
        while !self.is_closed {
            self.is_closed = self.io.read(&mut bytes).await.unwrap_or(0) == 0;
        }
    }
}
