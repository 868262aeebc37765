//! `idle-memory`: the memory of a bridge before idle connections are opened, with all of them, and after they are
//! closed.
//!
//! Each path has a bridge of its own. Without `--tls` the bridge is `demo`, with so few changes that the connections
//! are idle. As `demo` has no TLS, the bridge with `--tls` is `serve` on an empty simulated cluster. The goals are 2.5
//! KiB per connection, later 1.7 KiB, and 12 KiB with TLS (`docs/performance.md#goals`). Nothing is asserted.
//!
//! JSON: `connections`, `tls`, and `rows` with the keys of [`Row`]. Memory is in bytes.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::{
    clients::ClientOptions,
    http_client::wait_until_ready,
    print,
    proc_stats::{Memory, raise_file_limit, stable},
    processes::{BRIDGE, BridgeProcess},
    simulated_cluster::SimulatedCluster,
    tls::{self, CertificateFiles},
};

const NAMESPACE: &str = "boilerhouse";
/// Open before the first measurement and until the end. The first 50 connections to `/ws` have dedicated watchers,
/// which have another price; and what the bridge allocates once is not the cost of a connection.
const FIRST_CONNECTIONS: usize = 50;
/// Streams that the bridge allows besides the measured ones.
const OTHER_STREAMS: u64 = 100;
/// Memory counts as stable after 2 s without a change: the initial events are written and the allocator is idle.
const STABLE_FOR: Duration = Duration::from_secs(2);
const STABLE_TIMEOUT: Duration = Duration::from_secs(120);

/// Flags of `idle-memory`.
#[derive(Debug, Args)]
pub(crate) struct IdleMemory {
    /// Connections per bridge
    #[arg(long, default_value_t = 5000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub(crate) connections: u64,

    /// Serve over TLS, with a certificate that is made for this run
    #[arg(long)]
    pub(crate) tls: bool,

    /// Path of another build of the bridge
    #[arg(long, value_name = "FILE", default_value = BRIDGE, hide_default_value = true)]
    pub(crate) binary: PathBuf,

    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// The memory of the bridge for one path.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    pub(crate) path: &'static str,
    before: Memory,
    open: Memory,
    closed: Memory,
    resident_per_connection: f64,
    pub(crate) private_dirty_per_connection: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct IdleMemoryReport {
    connections: u64,
    tls: bool,
    pub(crate) rows: Vec<Row>,
}

impl IdleMemory {
    /// Measures and prints.
    pub(crate) fn run(&self) -> Result<()> {
        let report = self.measure()?;
        let text = if self.json { serde_json::to_string_pretty(&report)? + "\n" } else { report.table() };
        print(&text)
    }

    pub(crate) fn measure(&self) -> Result<IdleMemoryReport> {
        raise_file_limit(usize::try_from(self.connections)? + FIRST_CONNECTIONS)?;
        let paths = if self.tls { ["/ws", "/api/sse"] } else { ["/ws", "/ws?snapshot=none"] };
        let rows = paths.into_iter().map(|path| if self.tls { self.with_tls(path) } else { self.plain(path) });
        Ok(IdleMemoryReport { connections: self.connections, tls: self.tls, rows: rows.collect::<Result<_>>()? })
    }

    fn plain(&self, path: &'static str) -> Result<Row> {
        let bridge = BridgeProcess::demo(&self.binary, &["--speed", "0.01"])?;
        wait_until_ready(&bridge.address, None)?;
        let options = ClientOptions::new(&format!("ws://{}{path}", bridge.address))?;
        self.measure_bridge(path, &bridge, &options)
    }

    fn with_tls(&self, path: &'static str) -> Result<Row> {
        let (cluster, certificate) = (SimulatedCluster::start(&[NAMESPACE])?, CertificateFiles::new()?);
        let max_connections = (self.connections + OTHER_STREAMS).to_string();
        let mut args = ["--namespace", NAMESPACE, "--max-connections", &max_connections].map(str::to_owned).to_vec();
        args.extend(certificate.flags());
        let bridge = BridgeProcess::serve(&self.binary, &args, &cluster.kubeconfig())?;
        let ca_file = certificate.certificate();
        wait_until_ready(&bridge.address, Some(&tls::client(&ca_file)?))?;
        let scheme = if path == "/ws" { "wss" } else { "https" };
        let mut options = ClientOptions::new(&format!("{scheme}://{}{path}", bridge.address))?;
        options.ca_file = Some(ca_file);
        self.measure_bridge(path, &bridge, &options)
    }

    fn measure_bridge(&self, path: &'static str, bridge: &BridgeProcess, options: &ClientOptions) -> Result<Row> {
        let memory = || stable(STABLE_FOR, STABLE_TIMEOUT, || Memory::now(bridge.pid()));
        let mut first = options.start()?;
        first.connect(FIRST_CONNECTIONS)?;
        let before = memory()?;
        let mut clients = options.start()?;
        clients.connect(usize::try_from(self.connections)?)?;
        let open = memory()?;
        drop(clients);
        let closed = memory()?;
        let per_connection = |open: u64, before: u64| (open as f64 - before as f64) / self.connections as f64;
        Ok(Row {
            path,
            before,
            open,
            closed,
            resident_per_connection: per_connection(open.resident, before.resident),
            private_dirty_per_connection: per_connection(open.private_dirty, before.private_dirty),
        })
    }
}

impl IdleMemoryReport {
    pub(crate) fn table(&self) -> String {
        let IdleMemoryReport { connections, tls, rows } = self;
        let with = if *tls { " over TLS" } else { "" };
        let mut out = format!("{connections} idle connections{with}: MiB of the bridge, bytes per connection\n\n");
        out +=
            &format!("{:<20}{:<16}{:>9}{:>9}{:>9}{:>18}\n", "path", "", "before", "open", "closed", "per connection");
        for row in rows {
            let Row { path, before, open, closed, .. } = row;
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            for (path, name, values, cost) in [
                (*path, "resident", [before, open, closed].map(|memory| memory.resident), row.resident_per_connection),
                (
                    "",
                    "private dirty",
                    [before, open, closed].map(|memory| memory.private_dirty),
                    row.private_dirty_per_connection,
                ),
            ] {
                let [before, open, closed] = values.map(mib);
                out += &format!("{path:<20}{name:<16}{before:>9.2}{open:>9.2}{closed:>9.2}{cost:>18.0}\n");
            }
        }
        out
    }
}
