//! The clients of a measurement, in a process of their own: they connect, read, and note when each change came.
//!
//! They look for marks in the bytes and know neither HTTP, SSE nor WebSockets beyond the request, so that they cost
//! little beside what they measure, and the same for every server.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    future::poll_fn,
    io::{self, BufRead},
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, ready},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use http::Uri;
use memchr::memmem;
use rustls::ClientConfig;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWriteExt, ReadBuf},
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{
    MARK,
    connect::{Stream, connect, is_websocket},
    histogram::Histogram,
    now_micros, tls,
};

/// A read takes at most this many bytes.
const SCRATCH: usize = 64 << 10;
/// Connections that are made at a time: as many as fit a listener's queue.
const AT_A_TIME: usize = 64;
/// No step takes longer, or the run fails.
const BOUND: Duration = Duration::from_secs(60);
/// An unasked pong (RFC 6455 section 5.5.3): a WebSocket client without a byte for 45 s would be taken for gone.
const PONG: &[u8] = b"\x8a\x80\0\0\0\0";
const PONG_EVERY: Duration = Duration::from_secs(15);
/// What precedes a cursor in an event of the full stream.
const ID: &[u8] = b"\"id\":\"";
/// Bytes in which a mark may be incomplete: the mark, sixteen digits, a quote, and some more.
const TAIL: usize = 48;
/// A whole new state, which a client that resumes must not be given.
const STATE: &[u8] = b"\"type\":\"state.initial\"";

thread_local! {
    static READ: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH]);
}

/// What the process is told to do; each is answered with a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Order {
    /// So many connections more; answered with `true` once all of them have been answered.
    Connect(usize),
    /// Notes changes made from now on; answered with `true`.
    Begin,
    /// Waits, for `patience` at most, until `deliveries` have been noted; answered with a [`Report`].
    End {
        /// How many are expected.
        deliveries: u64,
        /// Milliseconds.
        patience: u64,
    },
    /// Cuts all connections at once and comes back with the cursors; answered with a [`Storm`].
    Storm,
}

/// What has been noted.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Report {
    /// Microseconds from a change to its receipt.
    pub(super) latency: Histogram,
    /// The same for the last client of each change that all have been told.
    pub(super) last: Histogram,
    /// Bytes received.
    pub(super) bytes: u64,
    /// Reads that brought any.
    pub(super) reads: u64,
}

/// How a storm of reconnecting clients went.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Storm {
    /// Milliseconds until the last client had its first event.
    pub(super) millis: u64,
    /// Clients that were given a whole new state instead of what they had missed.
    pub(super) new_states: u64,
}

#[derive(Debug, Default)]
struct Board {
    report: Report,
    /// Notes are made of changes from here on, microseconds; how many there are, and when somebody wants to know.
    from: u64,
    deliveries: u64,
    awaited: u64,
    /// For each change: how many have been told, and how long the last of them took.
    changes: BTreeMap<u64, (usize, u64)>,
    connections: usize,
    /// Clients that have come back.
    back: usize,
    new_states: u64,
}

/// What the clients of this process share.
struct Shared {
    uri: Uri,
    /// What is trusted; plain TCP without it.
    trust: Option<Arc<ClientConfig>>,
    filters: usize,
    /// Whether cursors are kept for a storm.
    storms: bool,
    board: Mutex<Board>,
    /// Something has changed on the board.
    noted: tokio::sync::Notify,
    /// Which storm it is.
    storm: watch::Sender<u64>,
    connecting: Semaphore,
}

impl Shared {
    /// Path and query of this client's request.
    fn path(&self, index: usize, cursor: Option<&str>) -> String {
        let mut path = self.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let mut add = |key: &str, value: &str| {
            path += if path.contains('?') { "&" } else { "?" };
            path += &format!("{key}={value}");
        };
        if let Some(cursor) = cursor {
            add("lastEventId", cursor);
        }
        if self.filters > 0 {
            let filter = format!("{{\"instances\":{{\"name\":\"bench-{}\"}}}}", index % self.filters);
            let encoded = percent_encoding::utf8_percent_encode(&filter, percent_encoding::NON_ALPHANUMERIC);
            add("params", &encoded.to_string());
        }
        path
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the board says so.
    async fn until(&self, limit: Duration, is_it: impl Fn(&Board) -> bool) -> bool {
        let wait = async {
            loop {
                let noted = self.noted.notified();
                if is_it(&self.board()) {
                    return;
                }
                noted.await;
            }
        };
        timeout(limit, wait).await.is_ok()
    }

    /// Waits until the board says so, or a client has ended, which none should.
    async fn all(&self, clients: &mut JoinSet<Result<()>>, is_it: impl Fn(&Board) -> bool) -> Result<()> {
        tokio::select! {
            there = self.until(BOUND, is_it) => if there { Ok(()) } else { bail!("it takes longer than {BOUND:?}") },
            Some(ended) = clients.join_next() => ended?,
        }
    }
}

/// Runs until stdin ends. With a file of trusted certificates over TLS. `filters`: client `i` asks for the instance
/// `bench-<i mod filters>` only; 0: for everything.
pub(super) fn run(uri: Uri, ca: Option<&Path>, filters: usize, storms: bool) -> Result<()> {
    let trust = ca.map(tls::client).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (send, mut orders) = mpsc::channel::<Order>(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let Ok(order) = serde_json::from_str(&line) else { return };
            if send.blocking_send(order).is_err() {
                return;
            }
        }
    });
    let shared = Arc::new(Shared {
        uri,
        trust,
        filters,
        storms,
        board: Mutex::default(),
        noted: tokio::sync::Notify::new(),
        storm: watch::Sender::new(0),
        connecting: Semaphore::new(AT_A_TIME),
    });
    runtime.block_on(async {
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(order) => {
                        let answer = follow(&shared, &mut clients, order).await?;
                        super::super::print(&format!("{answer}\n"))?;
                    }
                    None => return Ok(()),
                },
                Some(ended) = clients.join_next() => {
                    ended?.context("a client of the measurement")?;
                }
            }
        }
    })
}

async fn follow(shared: &Arc<Shared>, clients: &mut JoinSet<Result<()>>, order: Order) -> Result<String> {
    match order {
        Order::Connect(count) => {
            let before = shared.board().connections;
            for index in before..before + count {
                clients.spawn(client(shared.clone(), index));
            }
            shared.all(clients, |board| board.connections == before + count).await.context("they could not connect")?;
            Ok("true".to_owned())
        }
        Order::Begin => {
            let mut board = shared.board();
            (board.report, board.from) = (Report::default(), now_micros());
            (board.deliveries, board.awaited) = (0, u64::MAX);
            board.changes.clear();
            Ok("true".to_owned())
        }
        Order::End { deliveries, patience } => {
            shared.board().awaited = deliveries;
            shared.until(Duration::from_millis(patience), |board| board.deliveries >= deliveries).await;
            let mut board = shared.board();
            let all = board.connections;
            let changes = std::mem::take(&mut board.changes);
            changes.values().filter(|(told, _)| *told == all).for_each(|(_, late)| board.report.last.add(*late));
            board.from = u64::MAX;
            Ok(serde_json::to_string(&std::mem::take(&mut board.report))?)
        }
        Order::Storm => {
            let (began, all) = (Instant::now(), shared.board().connections);
            shared.storm.send_modify(|storm| *storm += 1);
            shared.all(clients, |board| board.back == all).await.context("they could not come back")?;
            let mut board = shared.board();
            board.back = 0;
            let new_states = std::mem::take(&mut board.new_states);
            let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            Ok(serde_json::to_string(&Storm { millis, new_states })?)
        }
    }
}

/// What one client knows.
#[derive(Debug, Default)]
struct Client {
    /// The end of what came last, where a mark may have begun.
    tail: Vec<u8>,
    /// The last change it was told of.
    told: u64,
    cursor: Option<String>,
    /// It has come back and was told nothing yet.
    returning: bool,
}

async fn client(shared: Arc<Shared>, index: usize) -> Result<()> {
    let mut storm = shared.storm.subscribe();
    let mut client = Client::default();
    let mut pongs = interval(PONG_EVERY);
    pongs.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut first = true;
    loop {
        let (mut stream, start) = {
            let _turn = shared.connecting.acquire().await?;
            let path = shared.path(index, client.cursor.as_deref());
            let connected = timeout(BOUND, connect(&shared.uri, &path, shared.trust.as_ref())).await;
            connected.context("no answer")?.with_context(|| format!("a client of {}", shared.uri))?
        };
        client.received(&shared, &start);
        if std::mem::take(&mut first) {
            shared.board().connections += 1;
            shared.noted.notify_waiters();
        }
        loop {
            tokio::select! {
                length = client.receive(&shared, &mut stream) => if length? == 0 {
                    bail!("{} has ended a connection", shared.uri);
                },
                _ = pongs.tick(), if is_websocket(&shared.uri) => {
                    stream.write_all(PONG).await?;
                    stream.flush().await?;
                }
                _ = storm.changed() => break,
            }
        }
        (client.tail, client.returning) = (Vec::new(), true);
    }
}

impl Client {
    /// Takes in what has come, once anything has; how many bytes.
    async fn receive(&mut self, shared: &Shared, stream: &mut Stream) -> io::Result<usize> {
        let read = |context: &mut std::task::Context<'_>| {
            READ.with_borrow_mut(|scratch| {
                let mut piece = ReadBuf::new(scratch);
                ready!(Pin::new(&mut *stream).poll_read(context, &mut piece))?;
                self.received(shared, piece.filled());
                Poll::Ready(Ok(piece.filled().len()))
            })
        };
        poll_fn(read).await
    }

    fn received(&mut self, shared: &Shared, bytes: &[u8]) {
        let now = now_micros();
        let joined = [self.tail.as_slice(), bytes].concat();
        let mut board = shared.board();
        board.report.bytes += bytes.len() as u64;
        board.report.reads += 1;
        for made in marks(&joined) {
            // An event of the full stream says its phase twice, and so does a tail.
            if made <= self.told {
                continue;
            }
            self.told = made;
            if made < board.from {
                continue;
            }
            let late = now.saturating_sub(made);
            board.report.latency.add(late);
            board.deliveries += 1;
            let (told, last) = board.changes.entry(made).or_default();
            (*told, *last) = (*told + 1, late.max(*last));
        }
        if shared.storms
            && let Some(at) = memmem::rfind(&joined, ID)
        {
            let id = joined[at + ID.len()..].split(|byte| *byte == b'"').next();
            self.cursor = id.map(|id| String::from_utf8_lossy(id).into_owned());
            if std::mem::take(&mut self.returning) {
                board.back += 1;
                board.new_states += u64::from(memmem::find(&joined, STATE).is_some());
            }
            shared.noted.notify_waiters();
        }
        if board.deliveries >= board.awaited {
            shared.noted.notify_waiters();
        }
        drop(board);
        // Neither ends a mark nor stands within one.
        let whole = matches!(joined.last(), Some(b'}' | b'\n'));
        self.tail = if whole { Vec::new() } else { joined[joined.len().saturating_sub(TAIL)..].to_vec() };
    }
}

/// When the changes in these bytes were made, as far as they are complete.
fn marks(bytes: &[u8]) -> impl Iterator<Item = u64> {
    memmem::find_iter(bytes, MARK.as_bytes()).filter_map(|at| {
        let digits = &bytes[at + MARK.len()..];
        let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
        std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_yields_only_complete_marks() {
        let text = format!("{{{MARK}12\",\"previousPhase\":\"t11\",{MARK}13\"}}{MARK}x{MARK}14");
        assert_eq!(marks(text.as_bytes()).collect::<Vec<_>>(), [12, 13]);
    }
}
