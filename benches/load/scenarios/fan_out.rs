//! `fan-out`: what a stream costs its server, and how late events arrive, beside the bare system call in the same run.
//!
//! Servers, clients and the baseline are processes of their own. All stay connected from the start. Each is measured in
//! turn, round after round, so that other activity of the machine affects all of them alike. Only ratios within one run
//! are meaningful (`docs/performance.md#goals`).

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Args;
use http::Uri;

use super::{get_load::GetLoad, initial_state};
use crate::{
    connect, multi_thread_runtime, print,
    proc_stats::{Memory, ProcessCpu, raise_file_limit, stable},
    processes::BRIDGE,
    report::{ApiUsage, FanOutReport, Row, Sample},
    simulated_cluster::SimulatedCluster,
    target::{self, Mode, SSE, SSE_NAMESPACE, Source, Target},
    workload::{self, LoadRate},
};

/// Connections that are open before memory is measured. What a server allocates once is then not counted for a client.
const FIRST_CONNECTIONS: usize = 10;
/// After a round, clients have this long to receive the remaining events.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(5);
/// The same where filters decide, and the number of deliveries is therefore unknown.
const UNKNOWN_DELIVERIES_WAIT: Duration = Duration::from_millis(300);
/// Before the first round, each target runs for this long, or for one round if that is shorter.
const WARM_UP: Duration = Duration::from_secs(1);
/// Memory counts as stable after 1 s without a change, or after 20 s at the latest.
const MEMORY_STABLE_FOR: Duration = Duration::from_secs(1);
const MEMORY_TIMEOUT: Duration = Duration::from_secs(20);

/// Flags of `fan-out`.
#[derive(Debug, Args)]
#[command(
    after_help = "Without a URL, the scenario starts a simulated cluster and two bridges, one for each transport. \
    With a URL, its clients connect there; the server needs events: from --publish-url, or from --kubeconfig with the \
    namespace that the server watches."
)]
pub(crate) struct FanOut {
    /// Stream to connect to: `ws://…`, `wss://…` (WebSocket) or `http://…`, `https://…` (SSE)
    #[arg(value_parser = connect::url)]
    pub(crate) url: Option<Uri>,

    /// Process id of the server at the URL, to measure its processor time and memory
    #[arg(long, requires = "url")]
    pub(crate) pid: Option<u32>,

    /// Certificates in PEM that clients trust, for `wss://…` and `https://…`
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,

    /// Certificate in PEM for 127.0.0.1. Adds bridges and a baseline that serve over TLS
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// Private key of the certificate in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,

    /// Clients per server
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub(crate) connections: u64,

    /// Changes a second
    #[arg(long, default_value_t = 10.0, value_name = "N", value_parser = rate)]
    pub(crate) rate: f64,

    /// Changes that are made at once. With more than one, single changes are measured too ("unbatched")
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub(crate) burst: u64,

    /// Seconds of a round, for each target and mode
    #[arg(long, default_value_t = 5.0, value_name = "N", value_parser = seconds)]
    pub(crate) seconds: f64,

    /// Number of rounds
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100))]
    pub(crate) rounds: u64,

    /// Query of the streams of the started bridges
    #[arg(long, default_value = "snapshot=none&types=instance.state", value_name = "QUERY", conflicts_with = "url")]
    pub(crate) query: String,

    /// Number of different filters of the clients; 0: no filters
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
    pub(crate) filters: usize,

    /// Adds clients that watch the simulated cluster without a bridge
    #[arg(long, conflicts_with = "url")]
    pub(crate) raw_watch: bool,

    /// Adds relays, each in front of a bridge of its own
    #[arg(long, conflicts_with_all = ["url", "filters"])]
    pub(crate) relay: bool,

    /// Number of additional Pods in each namespace. Also measures the time of an initial state with all of them
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N", conflicts_with = "url")]
    #[arg(value_parser = clap::value_parser!(u64).range(..=100_000))]
    pub(crate) static_pods: u64,

    /// Adds modes in which a bridge answers GETs of all instances: the measured bridge, or the other one
    #[arg(long, conflicts_with_all = ["url", "tls_cert"])]
    pub(crate) with_gets: bool,

    /// At the end, closes all connections at once and measures how soon all clients have resumed
    #[arg(long)]
    pub(crate) reconnect_storm: bool,

    /// Does not measure memory, and so does not wait until it is stable
    #[arg(long)]
    pub(crate) skip_memory: bool,

    /// Path of another build of the bridge
    #[arg(long, value_name = "FILE", default_value = BRIDGE, hide_default_value = true, conflicts_with = "url")]
    pub(crate) binary: PathBuf,

    /// URL to which messages are published by POST requests
    #[arg(long, value_name = "URL", requires = "url", conflicts_with = "kubeconfig")]
    pub(crate) publish_url: Option<Uri>,

    /// Bytes of a published message, and of the baseline's frames where no bridge is started
    #[arg(long, default_value_t = 600, value_name = "N")]
    pub(crate) message_bytes: usize,

    /// Kubeconfig of the cluster whose Pods are changed. They are created, and remain as `bench-0` to `bench-19`
    #[arg(long, value_name = "FILE", requires = "url")]
    pub(crate) kubeconfig: Option<PathBuf>,

    /// Namespace of these Pods
    #[arg(short, long, default_value = "boilerhouse", requires = "kubeconfig")]
    pub(crate) namespace: String,

    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

impl FanOut {
    /// Measures and prints.
    pub(crate) fn run(&self) -> Result<()> {
        let report = self.measure()?;
        let text = if self.json { serde_json::to_string_pretty(&report)? + "\n" } else { report.table()? };
        print(&text)
    }

    pub(crate) fn measure(&self) -> Result<FanOutReport> {
        let url = self.url.as_ref();
        let needs_ca = url.is_some_and(connect::is_encrypted) && self.ca_file.is_none();
        ensure!(!needs_ca, "wss and https need --ca-file: the certificates that sign the server's certificate");
        let runtime = multi_thread_runtime()?;
        if let Some(url) = url {
            runtime.block_on(connect::reach(url)).with_context(|| format!("cannot connect to {url}"))?;
        }
        raise_file_limit(usize::try_from(self.connections)?)?;
        let cluster = SimulatedCluster::start(&target::namespaces())?;
        let mut initial_state = None;
        let mut targets = match url {
            Some(url) => vec![self.existing(url, &runtime)?],
            None => {
                let mut started = self.bridges(&cluster)?;
                if let (1.., Some(bridge)) = (self.static_pods, &started[SSE].bridge) {
                    let change = || cluster.pods(SSE_NAMESPACE).create_static(1);
                    let cluster = cluster.address().to_string();
                    let timing = initial_state::measure(&cluster, &bridge.address, self.static_pods, change)?;
                    initial_state = Some(timing);
                }
                if self.relay {
                    started.extend(self.relays(&cluster)?);
                }
                if self.raw_watch {
                    started.push(self.raw_watches(&cluster)?);
                }
                started
            }
        };
        targets.extend(self.baselines()?);
        for target in targets.iter_mut().filter(|target| target.is_bridge()) {
            target.empty_memory = self.stable_memory(target.pid)?;
        }
        let watches_without_clients = cluster.open_watches();
        for target in &mut targets {
            self.connect(target)?;
        }
        self.run_rounds(&mut targets)?;
        let watches = cluster.open_watches();
        let requests_before = cluster.requests();
        for target in targets.iter_mut().filter(|target| self.reconnect_storm && target.is_bridge()) {
            target.storm = Some(target.clients.reconnect_all()?);
        }
        let api = url.is_none().then(|| ApiUsage {
            bridges: targets.iter().filter(|target| target.is_bridge()).count(),
            watches_without_clients,
            watches,
            requests_in_reconnect_storms: cluster.requests() - requests_before,
        });
        let FanOut { connections, rate, burst, seconds, rounds, filters, .. } = *self;
        let rows = Row::all(&targets, self);
        Ok(FanOutReport { connections, rate, burst, seconds, rounds, filters, rows, api, initial_state })
    }

    /// Measures each target in each of its modes, round after round.
    fn run_rounds(&self, targets: &mut [Target]) -> Result<()> {
        let duration = Duration::from_secs_f64(self.seconds);
        // The frames of the baseline are as long as the events of the first server.
        let mut bytes = self.message_bytes;
        for target in &mut *targets {
            target.event_bytes = bytes;
            let sample = self.run_round(target, Mode::Default, WARM_UP.min(duration))?;
            if sample.deliveries > 0 && self.filters == 0 {
                target.event_bytes = usize::try_from(sample.bytes / sample.deliveries)?;
                bytes = target.event_bytes;
            }
        }
        let addresses: Vec<_> =
            targets.iter().filter_map(|target| Some(target.bridge.as_ref()?.address.clone())).collect();
        for _ in 0..self.rounds {
            for (index, target) in targets.iter_mut().enumerate() {
                for mode in target.modes(self) {
                    let address = match mode {
                        Mode::Default | Mode::Unbatched => None,
                        // There are two bridges, and they are the first targets.
                        Mode::GetsOnOther => addresses.get(1 - index),
                        Mode::GetsOnSame => addresses.get(index),
                    };
                    let gets = address.cloned().map(GetLoad::start);
                    let mut sample = self.run_round(target, mode, duration)?;
                    sample.gets = gets.map(GetLoad::stop).transpose()?;
                    target.samples.push((mode, sample));
                }
            }
        }
        Ok(())
    }

    fn run_round(&self, target: &mut Target, mode: Mode, duration: Duration) -> Result<Sample> {
        let rate = match mode {
            Mode::Unbatched => LoadRate { rate: self.rate / self.burst as f64, burst: 1 },
            Mode::Default | Mode::GetsOnOther | Mode::GetsOnSame => LoadRate { rate: self.rate, burst: self.burst },
        };
        target.clients.start()?;
        let cpu = || target.pid.map(ProcessCpu::now).transpose();
        let before = cpu()?;
        let changes = match &mut target.source {
            Source::Workload(workload) => workload.run(rate, duration)?,
            Source::Baseline(process) => workload::run_baseline(process, target.event_bytes, rate, duration)?,
        };
        // With filters, no client receives all changes.
        let clients = if self.filters > 0 && !matches!(target.source, Source::Baseline(_)) {
            target.clients.finish(u64::MAX, UNKNOWN_DELIVERIES_WAIT)?
        } else {
            target.clients.finish(changes * self.connections, DELIVERY_TIMEOUT)?
        };
        let cpu = before.zip(cpu()?).map(|(before, after)| after.since(&before));
        Ok(Sample { changes, deliveries: clients.latency.count(), bytes: clients.bytes, cpu, clients, gets: None })
    }

    /// Connects all clients, and measures the memory of all but the first ones.
    fn connect(&self, target: &mut Target) -> Result<()> {
        let all = usize::try_from(self.connections)?;
        let first = FIRST_CONNECTIONS.min(all);
        target.clients.connect(first)?;
        if all == first {
            return Ok(());
        }
        let before = self.stable_memory(target.pid)?;
        target.clients.connect(all)?;
        if let (Some(before), Some(after)) = (before, self.stable_memory(target.pid)?) {
            target.memory_per_connection = Some(after.saturating_sub(before) as f64 / (all - first) as f64);
            target.memory_above_empty = target.empty_memory.map(|empty| after.saturating_sub(empty));
        }
        Ok(())
    }

    fn stable_memory(&self, pid: Option<u32>) -> Result<Option<u64>> {
        let Some(pid) = pid.filter(|_| !self.skip_memory) else { return Ok(None) };
        let read = || Ok(Memory::now(pid)?.private_dirty);
        stable(MEMORY_STABLE_FOR, MEMORY_TIMEOUT, read).map(Some)
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| *rate > 0.0 && *rate <= 10_000.0);
    rate.ok_or_else(|| "expected a number above 0, up to 10000".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=600.0).contains(seconds));
    seconds.ok_or_else(|| "expected a number from 0.1 to 600".to_owned())
}
