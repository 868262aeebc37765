//! One client: it connects, reads, and records the time stamps in what it reads.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use memchr::memmem;
use tokio::{
    io::{AsyncRead, AsyncWriteExt, ReadBuf},
    time::{MissedTickBehavior, interval, timeout},
};

use super::pool::{ClientPool, TIMEOUT};
use crate::{
    clock::{now_micros, timestamps},
    connect::{Stream, connect, is_websocket},
};

/// A read returns at most this many bytes.
const READ_BYTES: usize = 64 << 10;
/// An unsolicited pong (RFC 6455 section 5.5.3). The bridge closes a WebSocket from which it receives no byte for 45 s.
const PONG: &[u8] = b"\x8a\x80\0\0\0\0";
const PONG_INTERVAL: Duration = Duration::from_secs(15);
/// Text in front of a cursor in an event of the full stream.
const ID: &[u8] = b"\"id\":\"";
/// Bytes that hold a time stamp with its marker and its closing quote. A read may end inside of them.
const TAIL: usize = 48;
/// A complete initial state. A client that resumes must not receive it.
const INITIAL_STATE: &[u8] = b"\"type\":\"state.initial\"";

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// State of one client.
#[derive(Debug, Default)]
struct Client {
    /// The end of the last read, where a time stamp may be incomplete.
    tail: Vec<u8>,
    /// The last change that it has received.
    last_change: u64,
    cursor: Option<String>,
    /// It has reconnected and has not received an event yet.
    resuming: bool,
}

/// Runs client `index` until an error.
pub(super) async fn run(pool: Arc<ClientPool>, index: usize) -> Result<()> {
    let url = &pool.options.url;
    let mut reconnects = pool.reconnects.subscribe();
    let mut client = Client::default();
    let mut pongs = interval(PONG_INTERVAL);
    pongs.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut first = true;
    loop {
        let (mut stream, start) = {
            let _permit = pool.connecting.acquire().await?;
            let path = pool.path(index, client.cursor.as_deref());
            let connected = timeout(TIMEOUT, connect(url, &path, pool.trust.as_ref())).await;
            connected.context("no response in time")?.with_context(|| format!("a client of {url}"))?
        };
        client.received(&pool, &start);
        if std::mem::take(&mut first) {
            pool.measurements().connections += 1;
            pool.changed.notify_waiters();
        }
        loop {
            tokio::select! {
                length = client.read(&pool, &mut stream) => if length? == 0 {
                    bail!("{url} has closed a connection");
                },
                _ = pongs.tick(), if is_websocket(url) => {
                    stream.write_all(PONG).await?;
                    stream.flush().await?;
                }
                _ = reconnects.changed() => break,
            }
        }
        (client.tail, client.resuming) = (Vec::new(), true);
    }
}

impl Client {
    /// Waits for bytes and handles them. Returns their number. Cancel safe.
    async fn read(&mut self, pool: &ClientPool, stream: &mut Stream) -> io::Result<usize> {
        let read = |context: &mut std::task::Context<'_>| {
            READ_BUFFER.with_borrow_mut(|buffer| {
                let mut buffer = ReadBuf::new(buffer);
                ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer))?;
                self.received(pool, buffer.filled());
                Poll::Ready(Ok(buffer.filled().len()))
            })
        };
        poll_fn(read).await
    }

    fn received(&mut self, pool: &ClientPool, bytes: &[u8]) {
        let now = now_micros();
        let joined = [self.tail.as_slice(), bytes].concat();
        let mut measurements = pool.measurements();
        measurements.report.bytes += bytes.len() as u64;
        measurements.report.reads += 1;
        for made_at in timestamps(&joined) {
            // An event of the full stream contains its phase twice, and the tail repeats bytes.
            if made_at > self.last_change {
                self.last_change = made_at;
                measurements.record(made_at, now);
            }
        }
        if pool.options.track_cursors
            && let Some(at) = memmem::rfind(&joined, ID)
        {
            let id = joined[at + ID.len()..].split(|byte| *byte == b'"').next();
            self.cursor = id.map(|id| String::from_utf8_lossy(id).into_owned());
            if std::mem::take(&mut self.resuming) {
                measurements.resumed += 1;
                measurements.initial_states += u64::from(memmem::find(&joined, INITIAL_STATE).is_some());
            }
            pool.changed.notify_waiters();
        }
        if measurements.deliveries >= measurements.awaited {
            pool.changed.notify_waiters();
        }
        drop(measurements);
        // No time stamp and no marker contains one of these bytes.
        let is_complete = matches!(joined.last(), Some(b'}' | b'\n'));
        self.tail = if is_complete { Vec::new() } else { joined[joined.len().saturating_sub(TAIL)..].to_vec() };
    }
}
