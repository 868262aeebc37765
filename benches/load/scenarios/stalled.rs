//! `stalled`: the effect of clients that have stopped reading on the reading clients and on the memory of the bridge.
//!
//! Half of the reading clients use SSE and half WebSocket; they must miss nothing. Windows without and with stalled
//! clients alternate. A stalled client connects with a small kernel buffer, reads nothing for longer than the bridge
//! waits (10 s), and reconnects: their number stays the same. Nothing is asserted about time.
//!
//! JSON: the flags, `windows` with the keys of [`Window`], `p99WithoutMillis`, `p99WithMillis` (medians over the
//! rounds), `p99Ratio`, and `lagged` (subscriptions that lost unread entries).

mod stalled_clients;

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::Serialize;

use self::stalled_clients::{HOLD, StalledClients};
use crate::{
    clients::{ClientOptions, ClientReport, Clients},
    http_client::{metric, wait_until_ready},
    latency::median,
    print,
    proc_stats::{raise_file_limit, resident_memory},
    processes::{BRIDGE, BridgeProcess},
    simulated_cluster::{SimulatedCluster, SimulatedPods},
    workload::LoadRate,
};

const NAMESPACE: &str = "boilerhouse";
/// Characters after the time stamp of a phase. An event has some 1.5 KB, so that a client that does not read blocks
/// soon.
const PADDING: usize = 400;
/// Changes between two checks whether the log is full.
const FILL_STEP: u64 = 1000;
/// Readers have this long to receive all changes, and the bridge to close streams.
const TIMEOUT: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
const MEMORY_POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Metrics of the bridge that this scenario reads.
const OPEN_STREAMS: &str = "bridge_streams";
const CLOSED_STREAMS: &str = "bridge_streams_closed_total";
const LOG_BYTES: &str = "bridge_feed_log_bytes";
const LAGGED: &str = "bridge_feed_lagged_total";

/// Flags of `stalled`.
#[derive(Debug, Args, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Stalled {
    /// Path of another build of the bridge
    #[arg(long, value_name = "FILE", default_value = BRIDGE, hide_default_value = true)]
    #[serde(skip)]
    pub(crate) binary: PathBuf,

    /// Clients that read, half of them on SSE and half on WebSocket
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=10_000))]
    pub(crate) readers: u64,

    /// Clients that do not read
    #[arg(long, default_value_t = 500, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(crate) stalled: u64,

    /// Changes a second
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub(crate) rate: u64,

    /// Seconds of each of the two windows of a round
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) seconds: u64,

    /// Number of rounds
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100))]
    pub(crate) rounds: u64,

    /// Print JSON instead of a table
    #[arg(long)]
    #[serde(skip)]
    pub(crate) json: bool,
}

/// One half of a round: with or without stalled clients.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Window {
    round: u64,
    pub(crate) with_stalled: bool,
    /// Streams of stalled clients that were open at the end.
    open_stalled: u64,
    /// Streams of stalled clients that the bridge closed in this window.
    closed_stalled: u64,
    deliveries: u64,
    p50_millis: f64,
    p99_millis: f64,
    max_millis: f64,
    /// Largest resident memory of the bridge, in bytes.
    pub(crate) max_memory: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StalledReport<'a> {
    #[serde(flatten)]
    flags: &'a Stalled,
    pub(crate) windows: Vec<Window>,
    p99_without_millis: f64,
    p99_with_millis: f64,
    pub(crate) p99_ratio: f64,
    lagged: u64,
}

/// A running measurement. The order of the fields is the order in which the processes end.
struct Run<'a> {
    flags: &'a Stalled,
    /// SSE and WebSocket.
    readers: [Clients; 2],
    bridge: BridgeProcess,
    cluster: SimulatedCluster,
    pods: SimulatedPods,
    /// Changes so far.
    changes: u64,
    padding: String,
}

impl Stalled {
    /// Measures and prints.
    pub(crate) fn run(&self) -> Result<()> {
        let report = self.measure()?;
        let text = if self.json { serde_json::to_string_pretty(&report)? + "\n" } else { report.table() };
        print(&text)
    }

    pub(crate) fn measure(&self) -> Result<StalledReport<'_>> {
        raise_file_limit(usize::try_from(self.readers + self.stalled)?)?;
        let mut run = Run::start(self)?;
        run.fill_log()?;
        let half = usize::try_from(self.readers / 2)?;
        run.readers[0].connect(usize::try_from(self.readers)? - half)?;
        run.readers[1].connect(half)?;
        let mut windows = Vec::new();
        for round in 1..=self.rounds {
            // The order changes from round to round, so that neither kind of window is always the later one.
            let mut kinds = [false, true];
            kinds.rotate_left(usize::from(round % 2 == 1));
            for with_stalled in kinds {
                windows.push(run.window(round, with_stalled)?);
            }
        }
        let p99 = |with_stalled| {
            let of_kind = windows.iter().filter(|window| window.with_stalled == with_stalled);
            median(of_kind.map(|window| window.p99_millis).collect()).context("no latency was measured")
        };
        let (p99_without_millis, p99_with_millis) = (p99(false)?, p99(true)?);
        let lagged = metric(&run.bridge.address, LAGGED, &[])?.unwrap_or(0);
        let p99_ratio = p99_with_millis / p99_without_millis;
        Ok(StalledReport { flags: self, windows, p99_without_millis, p99_with_millis, p99_ratio, lagged })
    }
}

impl<'a> Run<'a> {
    fn start(flags: &'a Stalled) -> Result<Run<'a>> {
        let cluster = SimulatedCluster::start(&[NAMESPACE])?;
        let pods = cluster.pods(NAMESPACE);
        pods.create_changing()?;
        let args = ["--namespace", NAMESPACE].map(str::to_owned);
        let bridge = BridgeProcess::serve(&flags.binary, &args, &cluster.kubeconfig())?;
        wait_until_ready(&bridge.address, None)?;
        let readers = |scheme: &str, path: &str| {
            let url = format!("{scheme}://{}{path}?types=instance.state&snapshot=none", bridge.address);
            ClientOptions::new(&url)?.start()
        };
        let readers = [readers("http", "/api/sse")?, readers("ws", "/api/websocket")?];
        Ok(Run { flags, cluster, pods, bridge, readers, changes: 0, padding: format!("-{}", "x".repeat(PADDING)) })
    }

    /// Makes changes until the log is full. Its memory is not a cost of any client.
    fn fill_log(&mut self) -> Result<()> {
        self.readers[0].connect(1)?;
        let mut bytes = 0;
        loop {
            // As fast as possible. The next step starts after the reader has received this one.
            self.require_all(|run| (0..FILL_STEP).try_for_each(|_| run.change()).map(|()| FILL_STEP))?;
            let now =
                metric(&self.bridge.address, LOG_BYTES, &[])?.context("the bridge has no metric of the log's size")?;
            if now <= bytes {
                eprintln!("the log is full after {} changes: {} MiB as charged", self.changes, now >> 20);
                return Ok(());
            }
            bytes = now;
        }
    }

    fn change(&mut self) -> Result<()> {
        self.pods.change(self.changes, 1, &self.padding)?;
        self.changes += 1;
        Ok(())
    }

    /// Makes changes, and requires that each reader receives each of them. `make` returns their number.
    fn require_all(&mut self, make: impl FnOnce(&mut Self) -> Result<u64>) -> Result<ClientReport> {
        self.readers.iter_mut().try_for_each(Clients::start)?;
        let changes = make(self)?;
        let mut all = ClientReport::default();
        for readers in &mut self.readers {
            let expected = changes * readers.connections() as u64;
            let report = readers.finish(expected, TIMEOUT)?;
            let received = report.latency.count();
            ensure!(received == expected, "the readers have received {received} of {expected} events");
            all.merge(&report);
        }
        Ok(all)
    }

    fn change_for(&mut self, duration: Duration) -> Result<u64> {
        let rate = LoadRate { rate: self.flags.rate as f64, burst: 1 };
        rate.run_at_rate(duration, |_| self.change())
    }

    fn window(&mut self, round: u64, with_stalled: bool) -> Result<Window> {
        let address = self.bridge.address.clone();
        self.wait_for_readers_only()?;
        let stalled = StalledClients::start(
            self.cluster.runtime(),
            address.parse()?,
            if with_stalled { self.flags.stalled } else { 0 },
        );
        // Afterwards all are connected, evenly spread over the time that each stays.
        self.require_all(|run| run.change_for(HOLD))?;
        let closed_before = slow_consumers(&address)?;
        let (pid, seconds) = (self.bridge.pid(), Duration::from_secs(self.flags.seconds));
        let (report, max_memory) = with_max_memory(pid, || self.require_all(|run| run.change_for(seconds)))?;
        let open_stalled = open_streams(&address)?.saturating_sub(self.flags.readers);
        let closed_stalled = slow_consumers(&address)? - closed_before;
        stalled.stop()?;
        let latency = report.latency;
        let millis = |fraction| latency.quantile(fraction).map_or(f64::NAN, |micros| micros as f64 / 1000.0);
        let kind = if with_stalled { "with" } else { "without" };
        eprintln!("round {round} of {}, {kind} stalled clients: p99 {:.2} ms", self.flags.rounds, millis(0.99));
        Ok(Window {
            round,
            with_stalled,
            open_stalled,
            closed_stalled,
            deliveries: latency.count(),
            p50_millis: millis(0.5),
            p99_millis: millis(0.99),
            max_millis: latency.max() as f64 / 1000.0,
            max_memory,
        })
    }

    /// Waits until the bridge has closed the streams of all stalled clients.
    fn wait_for_readers_only(&self) -> Result<()> {
        let limit = Instant::now() + TIMEOUT;
        while open_streams(&self.bridge.address)? != self.flags.readers {
            ensure!(Instant::now() < limit, "not {} open streams within {TIMEOUT:?}", self.flags.readers);
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }
}

fn open_streams(address: &str) -> Result<u64> {
    metric(address, OPEN_STREAMS, &[])?.context("the bridge has no metric of its open streams")
}

/// Returns the number of streams that the bridge has closed because their clients did not read.
fn slow_consumers(address: &str) -> Result<u64> {
    Ok(metric(address, CLOSED_STREAMS, &[r#"reason="slow_consumer""#])?.unwrap_or(0))
}

/// Returns a result, and the largest resident memory of a process in the meantime.
fn with_max_memory<T>(pid: u32, work: impl FnOnce() -> Result<T>) -> Result<(T, u64)> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut max = 0;
            while !done.load(Relaxed) {
                max = resident_memory(pid)?.max(max);
                std::thread::sleep(MEMORY_POLL_INTERVAL);
            }
            Ok::<_, anyhow::Error>(max)
        });
        let result = work();
        done.store(true, Relaxed);
        let max = sampler.join();
        let Ok(max) = max else { bail!("the thread that reads the memory has panicked") };
        Ok((result?, max?))
    })
}

impl StalledReport<'_> {
    pub(crate) fn table(&self) -> String {
        let Stalled { readers, rate, seconds, .. } = self.flags;
        let mut out = format!("{readers} reading clients, {rate} changes a second, windows of {seconds} s\n\n");
        out += "round  stalled  deliveries   p50 ms   p99 ms   max ms  max memory MiB  closed by the bridge\n";
        for window in &self.windows {
            out += &format!(
                "{:>5} {:>8} {:>11} {:>8.2} {:>8.2} {:>8.2} {:>15.1} {:>21}\n",
                window.round,
                window.open_stalled,
                window.deliveries,
                window.p50_millis,
                window.p99_millis,
                window.max_millis,
                window.max_memory as f64 / f64::from(1 << 20),
                window.closed_stalled,
            );
        }
        let StalledReport { p99_without_millis, p99_with_millis, p99_ratio, lagged, .. } = self;
        out += &format!("\nmedian p99: {p99_without_millis:.2} ms without stalled clients, {p99_with_millis:.2} ms ");
        out + &format!("with them: {p99_ratio:.2} x\nlagged subscriptions: {lagged}\n")
    }
}
