//! `dedicated-memory`: the memory of a `/ws` connection with dedicated watchers, beside a bare pair of kube-runtime
//! watchers in the same run.
//!
//! The scenario starts a real control plane (`tests/control-plane/build`), the bridge, and a process with the bare
//! pairs. Both grow in turns. It measures the memory per connection and per pair, with and without objects: when they
//! are open, and after each watch has been renewed. It fails above the gate: 1.25 times a bare pair and 1 KiB per
//! object (`docs/performance.md#goals`).
//!
//! JSON: `connections` and `rows` with the keys of [`Row`]. Memory is in bytes.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use http::Method;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::{
    clients::{ClientOptions, Clients},
    http_client::wait_until_ready,
    multi_thread_runtime, print,
    proc_stats::{Memory, raise_file_limit},
    processes::{BRIDGE, BridgeProcess, ChildProcess},
    test_support::control_plane::ControlPlane,
};

/// Open before the first measurement. They also pay for what all share: threads, pools, the TLS configuration.
const FIRST_CONNECTIONS: usize = 20;
/// Longer than a watch (30 s), so that each has been renewed.
const RENEWAL: Duration = Duration::from_secs(40);
const TIMEOUT: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The gate: this many times a bare pair, and this many bytes per object.
const GATE_RATIO: f64 = 1.25;
const GATE_BYTES_PER_OBJECT: f64 = 1024.0;

/// Flags of `dedicated-memory`.
#[derive(Debug, Args)]
pub(crate) struct DedicatedMemory {
    /// Connections, and bare pairs
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u64).range(21..=10_000))]
    pub(crate) connections: u64,

    /// Objects in the namespace of the second half of the run: half Pods, half claims
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=10_000))]
    pub(crate) objects: u64,

    /// Path of another build of the bridge
    #[arg(long, value_name = "FILE", default_value = BRIDGE, hide_default_value = true)]
    pub(crate) binary: PathBuf,

    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// Memory at one moment.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    pub(crate) objects: u64,
    /// `open` or `renewed`.
    pub(crate) moment: &'static str,
    pub(crate) per_connection: f64,
    per_bare_pair: f64,
    /// Largest permitted value of `per_connection`.
    pub(crate) gate: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct DedicatedMemoryReport {
    connections: u64,
    pub(crate) rows: Vec<Row>,
}

impl DedicatedMemory {
    /// Measures and prints. Fails above the gate.
    pub(crate) fn run(&self) -> Result<()> {
        let report = self.measure()?;
        let text = if self.json { serde_json::to_string_pretty(&report)? + "\n" } else { report.table() };
        print(&text)?;
        let is_met = report.rows.iter().all(|row| row.per_connection <= row.gate);
        ensure!(is_met, "a connection takes more memory than the gate permits");
        Ok(())
    }

    pub(crate) fn measure(&self) -> Result<DedicatedMemoryReport> {
        raise_file_limit(usize::try_from(self.connections)?)?;
        let runtime = multi_thread_runtime()?;
        // It panics when the control plane cannot be built or started.
        let plane = runtime.block_on(runtime.spawn(ControlPlane::start()));
        let plane = plane.context("cannot start a control plane; see its error above")?;
        let mut rows = Vec::new();
        for objects in [0, self.objects] {
            rows.extend(Run::start(self, &runtime, &plane, objects)?.measure()?);
        }
        Ok(DedicatedMemoryReport { connections: self.connections, rows })
    }
}

/// The bridge, its clients, and the bare pairs on one namespace. The order of the fields is the order in which the
/// processes end.
struct Run<'a> {
    runtime: &'a Runtime,
    plane: &'a ControlPlane,
    objects: u64,
    connections: usize,
    clients: Clients,
    bridge: BridgeProcess,
    bare: ChildProcess,
    watches_before: u64,
}

impl<'a> Run<'a> {
    fn start(flags: &DedicatedMemory, runtime: &'a Runtime, plane: &'a ControlPlane, objects: u64) -> Result<Run<'a>> {
        let namespace = runtime.block_on(async {
            let namespace = plane.namespace().await;
            create_objects(plane, &namespace, objects).await;
            namespace
        });
        let kubeconfig = plane.kubeconfig();
        let dedicated = flags.connections.to_string();
        let args = ["--namespace", &namespace, "--dedicated-watchers", &dedicated].map(str::to_owned);
        let bridge = BridgeProcess::serve(&flags.binary, &args, &std::fs::read_to_string(&kubeconfig)?)?;
        wait_until_ready(&bridge.address, None)?;
        let mut options = ClientOptions::new(&format!("ws://{}/ws", bridge.address))?;
        // One after the other, as the bare pairs.
        options.concurrent_connects = 1;
        let kubeconfig = kubeconfig.to_string_lossy().into_owned();
        let bare = ChildProcess::start("bare-watchers", &[kubeconfig, namespace])?;
        let watches_before = runtime.block_on(open_watches(plane));
        let connections = usize::try_from(flags.connections)?;
        let clients = options.start()?;
        Ok(Run { runtime, plane, objects, connections, bridge, clients, bare, watches_before })
    }

    fn measure(mut self) -> Result<Vec<Row>> {
        self.grow(FIRST_CONNECTIONS)?;
        let before = self.memory()?;
        let more = self.connections - FIRST_CONNECTIONS;
        for quarter in 1..=4 {
            self.grow(FIRST_CONNECTIONS + more * quarter / 4)?;
        }
        let open = self.row("open", before)?;
        std::thread::sleep(RENEWAL);
        self.wait_for_watches(self.connections)?;
        let renewed = self.row("renewed", before)?;
        Ok(vec![open, renewed])
    }

    /// Opens connections and bare pairs until there are this many of each.
    fn grow(&mut self, count: usize) -> Result<()> {
        self.clients.connect(count)?;
        let pairs: usize = self.bare.request(&count)?;
        ensure!(pairs == count, "{pairs} bare pairs are open instead of {count}");
        self.wait_for_watches(count)
    }

    /// Waits until each connection and each pair has two watches.
    fn wait_for_watches(&self, count: usize) -> Result<()> {
        let limit = Instant::now() + TIMEOUT;
        while self.runtime.block_on(open_watches(self.plane)) < self.watches_before + 4 * count as u64 {
            ensure!(Instant::now() < limit, "not two watches for each of {count} within {TIMEOUT:?}");
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    fn memory(&self) -> Result<[u64; 2]> {
        Ok([Memory::now(self.bridge.pid())?.anonymous, Memory::now(self.bare.pid())?.anonymous])
    }

    fn row(&self, moment: &'static str, before: [u64; 2]) -> Result<Row> {
        let [connections, pairs] = self.memory()?;
        let count = (self.connections - FIRST_CONNECTIONS) as f64;
        let per_connection = (connections as f64 - before[0] as f64) / count;
        let per_bare_pair = (pairs as f64 - before[1] as f64) / count;
        let gate = GATE_RATIO * per_bare_pair + GATE_BYTES_PER_OBJECT * self.objects as f64;
        Ok(Row { objects: self.objects, moment, per_connection, per_bare_pair, gate })
    }
}

async fn open_watches(plane: &ControlPlane) -> u64 {
    plane.watches("pods").await + plane.watches("boilerhouseclaims").await
}

/// Creates Pods and claims of the usual size, half of each.
async fn create_objects(plane: &ControlPlane, namespace: &str, count: u64) {
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    let claims = format!("/apis/boilerhouse.dev/v1alpha1/namespaces/{namespace}/boilerhouseclaims");
    for number in 0..count / 2 {
        plane.call(Method::POST, &pods, &pod(number)).await;
        plane.call(Method::POST, &claims, &claim(number)).await;
    }
}

fn pod(number: u64) -> Value {
    let labels = json!({
        "boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": format!("workload-{}", number % 7),
        "boilerhouse.dev/tenant": format!("tenant-{number}"), "boilerhouse.dev/pool-status": "acquired",
    });
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("instance-{number:05}"), "labels": labels},
        "spec": {"containers": [{"name": "main", "image": "none"}]},
    })
}

fn claim(number: u64) -> Value {
    json!({
        "apiVersion": "boilerhouse.dev/v1alpha1", "kind": "BoilerhouseClaim",
        "metadata": {"name": format!("claim-{number:05}")},
        "spec": {"tenantId": format!("tenant-{number}"), "workloadRef": format!("workload-{}", number % 7)},
    })
}

impl DedicatedMemoryReport {
    pub(crate) fn table(&self) -> String {
        let mut out = format!("{} connections, KiB of private memory each\n", self.connections);
        out += &format!(
            "{:>8} {:>8} {:>11} {:>10} {:>6} {:>8}\n",
            "objects", "moment", "connection", "bare pair", "ratio", "gate"
        );
        for Row { objects, moment, per_connection, per_bare_pair, gate } in &self.rows {
            let [connection, pair, permitted] = [per_connection, per_bare_pair, gate].map(|bytes| bytes / 1024.0);
            let ratio = per_connection / per_bare_pair;
            let above = if per_connection > gate { "  ABOVE" } else { "" };
            out += &format!(
                "{objects:>8} {moment:>8} {connection:>11.1} {pair:>10.1} {ratio:>6.2} {permitted:>8.1}{above}\n"
            );
        }
        out
    }
}
