//! `bench`: what a stream costs its server and how late it is, beside the bare system call in the same run.
//!
//! Servers, clients and the floor are processes of their own. All stay connected from the beginning; then each is
//! measured in turn, round after round, so that what changes on the machine meanwhile meets all of them. Only the ratios
//! of one run mean much (quality.md, Performance).

mod clients;
mod first;
mod floor;
mod histogram;
mod load;
mod process;
mod report;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use clap::Args;
use http::Uri;
use serde_json::json;

use self::{
    clients::{Order, Report, Storm},
    load::{Load, Pace},
    process::{Role, Server},
    report::{Row, Sample},
};
use super::{Failure, runtime};
use crate::{
    sim::{Sim, SimConfig, Verb},
    source::connect,
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
    /// Stream to listen to: `ws://…` (WebSocket) or `http://…` (SSE)
    url: Option<Uri>,

    /// Process of that URL's server, for its processor time and memory
    #[arg(long, requires = "url")]
    pid: Option<u32>,

    /// Clients of each server
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    connections: u64,

    /// Changes a second
    #[arg(long, default_value_t = 10.0, value_name = "N", value_parser = rate)]
    rate: f64,

    /// How many of them at once
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

/// A server, its clients, and what is known of it.
struct Subject {
    name: String,
    clients: Role,
    pid: Option<u32>,
    source: Source,
    /// Lives as long as it is measured.
    server: Option<Server>,
    /// Bytes of an event on the wire.
    bytes: usize,
    samples: Vec<Sample>,
    /// Bytes of memory that a connection costs the server.
    memory: Option<f64>,
    storm: Option<Storm>,
}

/// Where its events come from.
enum Source {
    Load(Load),
    Floor(Box<Role>),
}

impl Subject {
    /// Whether its clients can be told of filters and cursors.
    fn is_bridge(&self) -> bool {
        self.pid.is_some() && !matches!(self.source, Source::Floor(_))
    }
}

impl Bench {
    pub(super) fn run(self) -> Result<u8, Failure> {
        match self.role {
            Some(Part::Clients) => {
                let uri = self.url.context("--role clients needs a URL")?;
                clients::run(uri, self.filters, self.storm)?;
            }
            Some(Part::Floor) => floor::run(self.style)?,
            None => {
                super::site::raise_file_limit(usize::try_from(self.connections).unwrap_or(usize::MAX));
                self.measure()?;
            }
        }
        Ok(0)
    }

    fn measure(&self) -> Result<()> {
        let runtime = runtime()?;
        let _inside = runtime.enter();
        let namespaces = ["ws", "sse", "watch"].map(str::to_owned);
        let sim = Sim::new(SimConfig { namespaces: namespaces.clone().into(), ..SimConfig::default() });
        for namespace in &namespaces {
            load::crowd(&sim, namespace, self.pods)?;
        }
        let mut first = None;
        let mut subjects = match &self.url {
            Some(url) => vec![self.listened(url, &runtime)?],
            None => {
                let address = self.serve_sim(&runtime, &sim)?;
                let mut own = vec![self.started("ws", address, &sim)?, self.started("sse", address, &sim)?];
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
        subjects.push(self.floor(floor::Style::Loop)?);
        subjects.push(self.floor(floor::Style::Tasks)?);
        for subject in &mut subjects {
            self.connect(subject)?;
        }
        // The floor's frames are as long as the first server's events.
        let mut bytes = self.bytes;
        for subject in &mut subjects {
            subject.bytes = bytes;
            let warm = self.round(subject, WARM_UP)?;
            if warm.deliveries > 0 && self.filters == 0 {
                subject.bytes = (warm.bytes / warm.deliveries) as usize;
                bytes = subject.bytes;
            }
        }
        for _ in 0..self.rounds {
            for subject in &mut subjects {
                let sample = self.round(subject, Duration::from_secs(self.seconds))?;
                subject.samples.push(sample);
            }
        }
        let asked = self.url.is_none().then(|| (sim.metrics().open(), sim.metrics().count(Verb::List)));
        for subject in subjects.iter_mut().filter(|subject| self.storm && subject.is_bridge()) {
            subject.storm = Some(subject.clients.ask(&Order::Storm)?);
        }
        let during = sim.metrics().count(Verb::List);
        let rows: Vec<Row> = subjects.iter().map(|subject| Row::of(subject, self)).collect();
        let api = asked.map(|(watches, lists)| report::Api { watches, lists_during_storm: during - lists });
        super::print(&report::text(&rows, api, first, self)?)?;
        Ok(())
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

    /// A bridge of its own, on a namespace of its own.
    fn started(&self, transport: &str, cluster: SocketAddr, sim: &Sim) -> Result<Subject> {
        let binary = match &self.binary {
            Some(binary) => binary.clone(),
            None => std::env::current_exe().context("this program does not know its own file")?,
        };
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "clusters": [{"name": "bench", "cluster": {"server": format!("http://{cluster}")}}],
            "users": [{"name": "bench", "user": {}}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
        });
        let connections = (self.connections + 1000).to_string();
        let args = ["--namespace", transport, "--own-watchers", "0", "--max-connections", &connections];
        let server = Server::start(&binary, &args.map(str::to_owned), &kubeconfig.to_string())?;
        let (scheme, path) = if transport == "ws" { ("ws", "/api/websocket") } else { ("http", "/api/sse") };
        let uri: Uri = format!("{scheme}://{}{path}?{}", server.address, self.query).parse()?;
        ready(&server.address)?;
        let mut load = Load::Sim(sim.clone(), transport.to_owned());
        load.prepare()?;
        let name = if transport == "ws" { "WebSocket" } else { "SSE" };
        let pid = server.pid();
        Ok(Subject { server: Some(server), ..self.subject(name, &uri, Some(pid), Source::Load(load))? })
    }

    /// Clients of the simulated cluster itself.
    fn watched(&self, cluster: SocketAddr, sim: &Sim) -> Result<Subject> {
        let mut load = Load::Sim(sim.clone(), "watch".to_owned());
        load.prepare()?;
        let from = sim.store(|store| store.revision());
        let uri = format!("http://{cluster}/api/v1/namespaces/watch/pods?watch=true&resourceVersion={from}");
        self.subject("a watch for each client", &uri.parse()?, None, Source::Load(load))
    }

    /// Somebody's server.
    fn listened(&self, url: &Uri, runtime: &tokio::runtime::Runtime) -> Result<Subject> {
        let mut load = match (&self.post, &self.kubeconfig) {
            (Some(url), _) => Load::Post(url.clone(), self.bytes, None),
            (None, Some(file)) => {
                let config = connect::Config {
                    kubeconfig: Some(file.clone()),
                    namespace: self.namespace.clone(),
                    ..connect::Config::default()
                };
                Load::Kube(Box::new(runtime.block_on(connect::connect(&config))?), runtime.handle().clone())
            }
            (None, None) => Load::Nothing,
        };
        load.prepare()?;
        self.subject(&url.to_string(), url, self.pid, Source::Load(load))
    }

    fn floor(&self, style: floor::Style) -> Result<Subject> {
        let (name, argument) = match style {
            floor::Style::Loop => ("floor: one loop", "loop"),
            floor::Style::Tasks => ("floor: a task a connection", "tasks"),
        };
        let mut role = Role::start(&["--role", "floor", "--style", argument].map(str::to_owned))?;
        let address: SocketAddr = role.hear()?;
        let uri: Uri = format!("http://{address}/").parse()?;
        let pid = role.pid();
        self.subject(name, &uri, Some(pid), Source::Floor(Box::new(role)))
    }

    fn subject(&self, name: &str, uri: &Uri, pid: Option<u32>, source: Source) -> Result<Subject> {
        let mut args = vec!["--role".to_owned(), "clients".to_owned(), uri.to_string()];
        if pid.is_some() && !matches!(source, Source::Floor(_)) {
            args.push(format!("--filters={}", self.filters));
            args.extend(self.storm.then(|| "--storm".to_owned()));
        }
        let clients = Role::start(&args)?;
        let (name, bytes, samples) = (name.to_owned(), self.bytes, Vec::new());
        Ok(Subject { name, clients, pid, source, server: None, bytes, samples, memory: None, storm: None })
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
            }
        }
        Ok(())
    }

    fn round(&self, subject: &mut Subject, long: Duration) -> Result<Sample> {
        let pace = Pace { rate: self.rate, burst: self.burst };
        let _: bool = subject.clients.ask(&Order::Begin)?;
        let cpu = || subject.pid.map(process::cpu).transpose();
        let before = cpu()?;
        let changes = match &mut subject.source {
            Source::Load(load) => load.drive(pace, long)?,
            Source::Floor(floor) => load::drive_floor(floor, subject.bytes, pace, long)?,
        };
        let is_floor = matches!(subject.source, Source::Floor(_));
        // With filters nobody is told of everything.
        let deliveries = if self.filters > 0 && !is_floor { u64::MAX } else { changes * self.connections };
        let patience = if deliveries == u64::MAX { 300 } else { PATIENCE_MS };
        let report: Report = subject.clients.ask(&Order::End { deliveries, patience })?;
        let cpu = before.zip(cpu()?).map(|(before, after)| after.saturating_sub(before));
        Ok(Sample { changes, deliveries: report.latency.count(), bytes: report.bytes, cpu, report })
    }
}

/// Waits until `/readyz` says so.
fn ready(address: &str) -> Result<()> {
    use std::io::{Read, Write};
    for _ in 0..500 {
        let mut stream = std::net::TcpStream::connect(address)?;
        write!(stream, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if answer.starts_with("HTTP/1.1 200") {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    anyhow::bail!("the bridge was not ready within 10 s")
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
