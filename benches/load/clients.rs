//! The clients of a measurement, in a process of their own: the commands that it accepts, and the handle that sends
//! them.
//!
//! A client connects, reads, and records when each change arrives. It searches the bytes for time stamps, and parses
//! neither HTTP, SSE nor WebSocket frames after its request. So it costs little beside the server, and the same for
//! every server.

mod connection;
mod measurements;
mod pool;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::Args;
use http::Uri;
use serde::{Deserialize, Serialize};

use crate::{connect, latency::Latencies, processes::ChildProcess};

/// Clients that connect at once: as many as the queue of a listener holds.
const CONCURRENT_CONNECTS: usize = 64;

/// Arguments of the clients' process.
#[derive(Clone, Debug, Args)]
pub(crate) struct ClientOptions {
    /// URL of the stream
    #[arg(value_parser = connect::url)]
    pub(crate) url: Uri,

    /// Certificates in PEM that the clients trust; without it, they use plain TCP
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,

    /// Client `i` requests the instance `bench-<i mod N>` only; 0: all instances
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) filters: usize,

    /// Record cursors, so that the clients can resume
    #[arg(long)]
    pub(crate) track_cursors: bool,

    /// Maximum number of clients that connect at once
    #[arg(long, default_value_t = CONCURRENT_CONNECTS, value_name = "N")]
    pub(crate) concurrent_connects: usize,
}

/// What the process does. It answers each command with one line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum ClientCommand {
    /// Opens this many more connections. The answer, `true`, comes after the last response.
    Connect(usize),
    /// Records the changes that are made from now on. The answer is `true`.
    Start,
    /// Waits until `deliveries` have been recorded, for at most `timeout` milliseconds. The answer is a
    /// [`ClientReport`].
    Finish {
        /// The expected number.
        deliveries: u64,
        /// Milliseconds.
        timeout: u64,
    },
    /// Closes all connections at once and resumes with the cursors. The answer is a [`ReconnectStorm`].
    ReconnectAll,
}

/// What the clients have recorded.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct ClientReport {
    /// Microseconds from a change to its receipt.
    pub(crate) latency: Latencies,
    /// The same for the last client of each change that all clients have received.
    pub(crate) last_client: Latencies,
    /// Bytes received.
    pub(crate) bytes: u64,
    /// Reads that returned bytes.
    pub(crate) reads: u64,
}

impl ClientReport {
    /// Adds what clients of another process have recorded. `last_client` then means the last client of one process.
    pub(crate) fn merge(&mut self, other: &ClientReport) {
        self.latency.merge(&other.latency);
        self.last_client.merge(&other.last_client);
        self.bytes += other.bytes;
        self.reads += other.reads;
    }
}

/// The result of a simultaneous reconnect of all clients.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ReconnectStorm {
    /// Milliseconds until the last client received its first event.
    pub(crate) millis: u64,
    /// Clients that received a complete initial state and not only the events that they had missed.
    pub(crate) initial_states: u64,
}

/// The process with the clients. They disconnect when this value is dropped.
#[derive(Debug)]
pub(crate) struct Clients {
    process: ChildProcess,
    connections: usize,
}

impl ClientOptions {
    pub(crate) fn new(url: &str) -> Result<ClientOptions> {
        let url = url.parse().with_context(|| format!("{url} is not a URL"))?;
        Ok(ClientOptions {
            url,
            ca_file: None,
            filters: 0,
            track_cursors: false,
            concurrent_connects: CONCURRENT_CONNECTS,
        })
    }

    /// Runs the clients in this process until stdin ends.
    pub(crate) fn run(self) -> Result<()> {
        pool::run(self)
    }

    /// Starts a process for the clients. None of them is connected yet.
    pub(crate) fn start(&self) -> Result<Clients> {
        let ClientOptions { url, ca_file, filters, track_cursors, concurrent_connects } = self;
        let mut args = vec![
            url.to_string(),
            format!("--filters={filters}"),
            format!("--concurrent-connects={concurrent_connects}"),
        ];
        args.extend(ca_file.iter().map(|file| format!("--ca-file={}", file.display())));
        args.extend(track_cursors.then(|| "--track-cursors".to_owned()));
        Ok(Clients { process: ChildProcess::start("clients", &args)?, connections: 0 })
    }
}

impl Clients {
    /// Opens connections until there are this many.
    pub(crate) fn connect(&mut self, connections: usize) -> Result<()> {
        let _: bool = self.process.request(&ClientCommand::Connect(connections - self.connections))?;
        self.connections = connections;
        Ok(())
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections
    }

    /// Starts to record.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.process.request::<bool>(&ClientCommand::Start).map(drop)
    }

    /// Waits for the remaining deliveries and returns what has been recorded.
    pub(crate) fn finish(&mut self, deliveries: u64, timeout: Duration) -> Result<ClientReport> {
        let timeout = u64::try_from(timeout.as_millis())?;
        self.process.request(&ClientCommand::Finish { deliveries, timeout })
    }

    pub(crate) fn reconnect_all(&mut self) -> Result<ReconnectStorm> {
        self.process.request(&ClientCommand::ReconnectAll)
    }
}
