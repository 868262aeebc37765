//! `bench`: what a stream costs its server and how late it is, beside the bare system call in the same run.
//!
//! Servers, clients and the floor are processes of their own. All stay connected from the beginning; then each is
//! measured in turn, round after round, so that what changes on the machine meanwhile meets all of them. Only the ratios
//! of one run mean much (quality.md, Performance).

mod clients;
mod connect;
mod first;
mod floor;
mod gets;
mod histogram;
mod load;
mod process;
mod report;
mod subject;
mod tls;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use clap::Args;
use http::Uri;

use self::{
    clients::{Order, Report},
    gets::Gets,
    load::Pace,
    report::{Row, Sample},
    subject::{Mode, Source, Subject},
};
use super::{CliError, exit, runtime};
use crate::{
    sim::{Sim, SimConfig},
    tasks::{self, Tasks},
};

/// What stands before the microsecond at which a change was made.
const MARK: &str = "\"phase\":\"t";
/// Connected before memory is looked at: what a server allocates once is nobody's share.
const FIRST: usize = 10;
/// Clients have this long for what is still on its way when a round ends: 5 s.
const PATIENCE_MS: u64 = 5000;
/// Before the first round everything runs for this long: 1 s.
const WARM_UP: Duration = Duration::from_secs(1);

/// Arguments of `bench`.
#[derive(Debug, Args)]
#[command(after_help = "Without a URL it starts a simulated cluster and two bridges, one for each transport. \
    With one it listens there; something has to happen meanwhile: --post, or --kubeconfig with the namespace that the \
    server watches.")]
pub(super) struct Bench {
    /// Stream to listen to: `ws://…`, `wss://…` (WebSocket) or `http://…`, `https://…` (SSE)
    #[arg(value_parser = connect::url)]
    url: Option<Uri>,

    /// Process of that URL's server, for its processor time and memory
    #[arg(long, requires = "url")]
    pid: Option<u32>,

    /// Certificates in PEM that clients trust, for `wss://…` and `https://…`
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// Certificate in PEM for 127.0.0.1, to measure bridges and a floor that serve with it, too
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// Its private key in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// Clients of each server
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    connections: u64,

    /// Changes a second
    #[arg(long, default_value_t = 10.0, value_name = "N", value_parser = rate)]
    rate: f64,

    /// How many of them at once; with more than one, one at a time is measured, too
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    burst: u64,

    /// Seconds of a round, for each server
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,

    /// Rounds
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,

    /// Path and query of the started bridges' streams, but for their transport's part
    #[arg(long, default_value = "snapshot=none&types=instance.state", value_name = "QUERY", conflicts_with = "url")]
    query: String,

    /// Give the clients this many different filters
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
    filters: usize,

    /// Measure clients, too, that watch the simulated cluster themselves
    #[arg(long, conflicts_with = "url")]
    watch: bool,

    /// Let there be so many more pods in each namespace, and time a first state of all of them beside the bare LIST
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N", conflicts_with = "url")]
    #[arg(value_parser = clap::value_parser!(u64).range(..=100_000))]
    pods: u64,

    /// Measure each bridge also while somebody asks it for all its instances over and over, and while the other is asked
    #[arg(long, conflicts_with_all = ["url", "tls_cert"])]
    gets: bool,

    /// In the end cut all clients at once and see how soon they are back
    #[arg(long)]
    storm: bool,

    /// Another build of the bridge to start
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    binary: Option<PathBuf>,

    /// Publish by POST requests to this URL, as many bytes at a time as --bytes says
    #[arg(long, value_name = "URL", requires = "url", conflicts_with = "kubeconfig")]
    post: Option<Uri>,

    /// Bytes of a message that is posted, and of the floor's frames where no server is started
    #[arg(long, default_value_t = 600, value_name = "N")]
    bytes: usize,

    /// Change pods of this kubeconfig's cluster. They are made, and left behind as `bench-0` to `bench-19`
    #[arg(long, value_name = "FILE", requires = "url")]
    kubeconfig: Option<PathBuf>,

    /// Namespace of these pods
    #[arg(short, long, default_value = "boilerhouse", requires = "kubeconfig")]
    namespace: String,

    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,

    /// Be a part of a measurement
    #[arg(long, hide = true)]
    role: Option<Part>,

    /// How the floor writes
    #[arg(long, hide = true, default_value = "loop")]
    style: floor::Style,
}

/// Which part of a measurement a process plays.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Part {
    Clients,
    Floor,
}

impl Bench {
    pub(super) fn run(self) -> Result<u8, CliError> {
        let url = self.url.as_ref();
        if url.is_some_and(connect::is_encrypted) && self.ca_file.is_none() {
            return Err(CliError::usage("wss and https need --ca-file: what the server's certificate is signed with"));
        }
        match self.role {
            Some(Part::Clients) => {
                let uri = url.context("--role clients needs a URL")?.clone();
                clients::run(uri, self.ca_file.as_deref(), self.filters, self.storm)?;
            }
            Some(Part::Floor) => {
                let certificate = self.tls_cert.as_ref().zip(self.tls_key.as_ref());
                floor::run(self.style, certificate.map(|(file, key)| tls::server(file, key)).transpose()?)?;
            }
            None => {
                if let Some(url) = url {
                    let cannot = |error: anyhow::Error| CliError {
                        code: exit::CANNOT_CONNECT,
                        error: error.context(format!("cannot connect to {url}")),
                    };
                    runtime()?.block_on(connect::reach(url)).map_err(cannot)?;
                }
                super::server::raise_file_limit(usize::try_from(self.connections).unwrap_or(usize::MAX));
                self.measure()?;
            }
        }
        Ok(0)
    }

    fn measure(&self) -> Result<()> {
        let runtime = runtime()?;
        let _inside = runtime.enter();
        let sim = Sim::new(SimConfig { namespaces: subject::namespaces(), ..SimConfig::default() });
        let mut first = None;
        let mut subjects = match &self.url {
            Some(url) => vec![self.listened(url, &runtime)?],
            None => {
                let address = self.serve_sim(&runtime, &sim)?;
                let mut own = self.bridges(address, &sim)?;
                if let (1.., Some(server)) = (self.pods, &own[1].server) {
                    let change = || load::crowd(&sim, "sse", 1);
                    first = Some(first::measure(&address.to_string(), &server.address, self.pods, change)?);
                }
                if self.watch {
                    own.push(self.watched(address, &sim)?);
                }
                own
            }
        };
        subjects.extend(self.floors()?);
        for subject in subjects.iter_mut().filter(|subject| subject.is_bridge()) {
            subject.empty = subject.pid.map(process::settled_memory).transpose()?;
        }
        let watches_before = sim.metrics().open();
        for subject in &mut subjects {
            self.connect(subject)?;
        }
        self.rounds(&mut subjects)?;
        let watches = sim.metrics().open();
        let requests = || sim.metrics().requests.values().sum::<u64>();
        let before = requests();
        for subject in subjects.iter_mut().filter(|subject| self.storm && subject.is_bridge()) {
            subject.storm = Some(subject.clients.ask(&Order::Storm)?);
        }
        let api = self.url.is_none().then(|| report::Api {
            bridges: subjects.iter().filter(|subject| subject.is_bridge()).count(),
            watches_before,
            watches,
            requests_in_storms: requests() - before,
        });
        super::print(&report::text(&Row::all(&subjects, self), api, first, self)?)?;
        Ok(())
    }

    /// Measures each in each of its modes, round after round.
    fn rounds(&self, subjects: &mut [Subject]) -> Result<()> {
        // The floor's frames are as long as the first server's events.
        let mut bytes = self.bytes;
        for subject in &mut *subjects {
            subject.bytes = bytes;
            let warm = self.round(subject, Mode::AsAsked, WARM_UP)?;
            if warm.deliveries > 0 && self.filters == 0 {
                subject.bytes = (warm.bytes / warm.deliveries) as usize;
                bytes = subject.bytes;
            }
        }
        let addresses: Vec<_> =
            subjects.iter().filter_map(|subject| Some(subject.server.as_ref()?.address.clone())).collect();
        for _ in 0..self.rounds {
            for (index, subject) in subjects.iter_mut().enumerate() {
                for mode in self.modes(subject) {
                    let asked = match mode {
                        Mode::AsAsked | Mode::OneAtATime => None,
                        // There are two of them, and they come first.
                        Mode::GetsElsewhere => addresses.get(1 - index),
                        Mode::Gets => addresses.get(index),
                    };
                    let gets = asked.cloned().map(Gets::start);
                    let mut sample = self.round(subject, mode, Duration::from_secs(self.seconds))?;
                    sample.gets = gets.map(Gets::stop).transpose()?;
                    subject.samples.push((mode, sample));
                }
            }
        }
        Ok(())
    }

    fn modes(&self, subject: &Subject) -> Vec<Mode> {
        let alone = (self.burst > 1).then_some(Mode::OneAtATime);
        let gets = [Mode::GetsElsewhere, Mode::Gets].into_iter().filter(|_| self.gets && subject.server.is_some());
        [Mode::AsAsked].into_iter().chain(alone).chain(gets).collect()
    }

    /// The simulated cluster, for other processes.
    fn serve_sim(&self, runtime: &tokio::runtime::Runtime, sim: &Sim) -> Result<SocketAddr> {
        let listener = runtime.block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        let (tasks, sim) = (Tasks::new(tasks::Config::default()), sim.clone());
        tasks.spawn("simulated cluster", async move {
            sim.serve(listener, std::future::pending()).await;
            Ok::<_, std::convert::Infallible>(())
        });
        Ok(address)
    }

    fn connect(&self, subject: &mut Subject) -> Result<()> {
        let all = usize::try_from(self.connections)?;
        let first = FIRST.min(all);
        let _: bool = subject.clients.ask(&Order::Connect(first))?;
        let before = subject.pid.map(process::settled_memory).transpose()?;
        if all > first {
            let _: bool = subject.clients.ask(&Order::Connect(all - first))?;
            if let (Some(pid), Some(before)) = (subject.pid, before) {
                let with = process::settled_memory(pid)?;
                subject.memory = Some(with.saturating_sub(before) as f64 / (all - first) as f64);
                subject.beyond_empty = subject.empty.map(|empty| with.saturating_sub(empty));
            }
        }
        Ok(())
    }

    fn round(&self, subject: &mut Subject, mode: Mode, long: Duration) -> Result<Sample> {
        let pace = match mode {
            Mode::OneAtATime => Pace { rate: self.rate / self.burst as f64, burst: 1 },
            Mode::AsAsked | Mode::GetsElsewhere | Mode::Gets => Pace { rate: self.rate, burst: self.burst },
        };
        let _: bool = subject.clients.ask(&Order::Begin)?;
        let cpu = || subject.pid.map(process::Cpu::now).transpose();
        let before = cpu()?;
        let changes = match &mut subject.source {
            Source::Load(load) => load.drive(pace, long)?,
            Source::Floor(floor) => load::drive_floor(floor, subject.bytes, pace, long)?,
        };
        // With filters nobody is told of everything.
        let deliveries = if self.filters > 0 && !subject.is_floor() { u64::MAX } else { changes * self.connections };
        let patience = if deliveries == u64::MAX { 300 } else { PATIENCE_MS };
        let report: Report = subject.clients.ask(&Order::End { deliveries, patience })?;
        let cpu = before.zip(cpu()?).map(|(before, after)| after.since(&before));
        Ok(Sample { changes, deliveries: report.latency.count(), bytes: report.bytes, cpu, report, gets: None })
    }
}

/// Microseconds since the Unix epoch, the same in all processes of this machine; never the same twice in one.
fn now_micros() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    let last = LAST.fetch_update(Relaxed, Relaxed, |last| Some(now.max(last + 1))).unwrap_or(now);
    now.max(last + 1)
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if rate > 0.0 && rate <= 10_000.0 { Ok(rate) } else { Err("accepted is more than 0, up to 10000".to_owned()) }
}
