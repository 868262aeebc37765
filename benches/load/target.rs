//! What the scenario `fan-out` measures: a server with its clients, and how each kind of server is started.

use std::{net::SocketAddr, path::Path};

use anyhow::Result;
use boilerhouse_bridge::source::connect;
use http::Uri;

use crate::{
    clients::{ClientOptions, Clients, ReconnectStorm},
    connect::is_encrypted,
    http_client,
    processes::{BridgeProcess, ChildProcess},
    report::Sample,
    scenarios::fan_out::FanOut,
    simulated_cluster::SimulatedCluster,
    tls,
    workload::{Publisher, Workload},
};

/// GETs per minute that a started bridge allows: no limit for a measurement.
const REQUEST_RATE: &str = "1000000";
/// Streams that a started bridge allows besides the measured ones.
const OTHER_STREAMS: u64 = 1000;

/// A server, its clients, and the results so far.
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) clients: Clients,
    pub(crate) pid: Option<u32>,
    pub(crate) source: Source,
    pub(crate) is_encrypted: bool,
    /// The started bridge.
    pub(crate) bridge: Option<BridgeProcess>,
    /// The measured relay, and the bridge that it reads. They end with the target.
    pub(crate) _relay: Option<[BridgeProcess; 2]>,
    /// Bytes of an event on the wire.
    pub(crate) event_bytes: usize,
    pub(crate) samples: Vec<(Mode, Sample)>,
    /// Bytes of memory of the server without clients.
    pub(crate) empty_memory: Option<u64>,
    /// Bytes of memory that all clients together add.
    pub(crate) memory_above_empty: Option<u64>,
    /// Bytes of memory per connection.
    pub(crate) memory_per_connection: Option<f64>,
    pub(crate) storm: Option<ReconnectStorm>,
}

/// The source of a server's events.
pub(crate) enum Source {
    Workload(Workload),
    Baseline(Box<ChildProcess>),
}

/// A variant of the load. Each round measures all modes in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Default,
    /// As many bursts, of one event each.
    Unbatched,
    /// While the other bridge answers GETs of all instances: the effect of two busy processors.
    GetsOnOther,
    /// While this bridge answers them.
    GetsOnSame,
}

/// One of the bridges that are started.
struct BridgeVariant {
    name: &'static str,
    namespace: &'static str,
    scheme: &'static str,
    path: &'static str,
}

const PLAIN: [BridgeVariant; 2] = [
    BridgeVariant { name: "WebSocket", namespace: "ws", scheme: "ws", path: "/api/websocket" },
    BridgeVariant { name: "SSE", namespace: SSE_NAMESPACE, scheme: "http", path: "/api/sse" },
];
const ENCRYPTED: [BridgeVariant; 2] = [
    BridgeVariant { name: "WebSocket over TLS", namespace: "wss", scheme: "wss", path: "/api/websocket" },
    BridgeVariant { name: "SSE over TLS", namespace: "sse-tls", scheme: "https", path: "/api/sse" },
];
/// Index of the SSE bridge without TLS among the started bridges.
pub(crate) const SSE: usize = 1;
pub(crate) const SSE_NAMESPACE: &str = "sse";
/// Relays: the name, the namespace of the bridge that they read, the scheme and the path of their streams.
const RELAYS: [(&str, &str, &str, &str); 2] =
    [("relay: WebSocket", "relay-ws", "ws", "/events/ws"), ("relay: SSE", "relay-sse", "http", "/events")];
/// Namespace for the clients that watch the simulated cluster.
const RAW_WATCH_NAMESPACE: &str = "watch";

/// Returns the namespaces of the simulated cluster.
pub(crate) fn namespaces() -> Vec<&'static str> {
    let of_bridges = PLAIN.iter().chain(&ENCRYPTED).map(|variant| variant.namespace);
    let of_relays = RELAYS.iter().map(|(_, namespace, ..)| *namespace);
    of_bridges.chain(of_relays).chain([RAW_WATCH_NAMESPACE]).collect()
}

impl Mode {
    /// Returns the text after the name of the target.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Mode::Default => "",
            Mode::Unbatched => ", unbatched",
            Mode::GetsOnOther => ", GETs on other",
            Mode::GetsOnSame => ", GETs on same",
        }
    }
}

impl Target {
    pub(crate) fn is_baseline(&self) -> bool {
        matches!(self.source, Source::Baseline(_))
    }

    /// Returns whether its server has filters and cursors.
    pub(crate) fn is_bridge(&self) -> bool {
        self.pid.is_some() && !self.is_baseline()
    }

    /// Returns the modes in which it is measured.
    pub(crate) fn modes(&self, scenario: &FanOut) -> Vec<Mode> {
        let mut modes = vec![Mode::Default];
        if scenario.burst > 1 {
            modes.push(Mode::Unbatched);
        }
        if scenario.with_gets && self.bridge.is_some() {
            modes.extend([Mode::GetsOnOther, Mode::GetsOnSame]);
        }
        modes
    }
}

impl FanOut {
    /// Starts the bridges. Each watches a namespace of its own.
    pub(crate) fn bridges(&self, cluster: &SimulatedCluster) -> Result<Vec<Target>> {
        let encrypted = self.tls_cert.iter().flat_map(|_| &ENCRYPTED);
        PLAIN.iter().chain(encrypted).map(|variant| self.bridge(variant, cluster)).collect()
    }

    fn bridge(&self, variant: &BridgeVariant, cluster: &SimulatedCluster) -> Result<Target> {
        let pods = cluster.pods(variant.namespace);
        pods.create_static(self.static_pods)?;
        let max_connections = (self.connections + OTHER_STREAMS).to_string();
        let args =
            ["--namespace", variant.namespace, "--dedicated-watchers", "0", "--max-connections", &max_connections];
        let args = [&args[..], &["--request-rate", REQUEST_RATE]].concat();
        let mut args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        let is_encrypted = matches!(variant.scheme, "wss" | "https");
        if is_encrypted {
            self.add_certificate(&mut args);
        }
        let bridge = BridgeProcess::serve(&self.binary, &args, &cluster.kubeconfig())?;
        let url = format!("{}://{}{}?{}", variant.scheme, bridge.address, variant.path, self.query).parse()?;
        let trust = self.trusted().filter(|_| is_encrypted).map(tls::client).transpose()?;
        http_client::wait_until_ready(&bridge.address, trust.as_ref())?;
        let workload = Workload::Simulated(pods);
        workload.prepare()?;
        let pid = bridge.pid();
        let target = self.target(variant.name, &url, Some(pid), Source::Workload(workload))?;
        Ok(Target { bridge: Some(bridge), ..target })
    }

    /// Starts the relays. Each reads a bridge of its own, which has no other client: the relay is measured.
    pub(crate) fn relays(&self, cluster: &SimulatedCluster) -> Result<Vec<Target>> {
        RELAYS
            .iter()
            .map(|(name, namespace, scheme, path)| {
                let args = ["--namespace", namespace, "--dedicated-watchers", "0"].map(str::to_owned);
                let bridge = BridgeProcess::serve(&self.binary, &args, &cluster.kubeconfig())?;
                http_client::wait_until_ready(&bridge.address, None)?;
                let upstream = format!("http://{}/api/sse?{}", bridge.address, self.query);
                let max_connections = (self.connections + OTHER_STREAMS).to_string();
                let args = ["--max-connections", &max_connections];
                let relay = BridgeProcess::relay(&self.binary, &upstream, &args)?;
                http_client::wait_until_ready(&relay.address, None)?;
                let workload = Workload::Simulated(cluster.pods(namespace));
                workload.prepare()?;
                let url = format!("{scheme}://{}{path}", relay.address).parse()?;
                let target = self.target(name, &url, Some(relay.pid()), Source::Workload(workload))?;
                Ok(Target { _relay: Some([relay, bridge]), ..target })
            })
            .collect()
    }

    /// Returns clients that watch the simulated cluster, without a bridge.
    pub(crate) fn raw_watches(&self, cluster: &SimulatedCluster) -> Result<Target> {
        let workload = Workload::Simulated(cluster.pods(RAW_WATCH_NAMESPACE));
        workload.prepare()?;
        let path = format!("/api/v1/namespaces/{RAW_WATCH_NAMESPACE}/pods?watch=true");
        let url = format!("http://{}{path}&resourceVersion={}", cluster.address(), cluster.revision());
        self.target("raw watch per client", &url.parse()?, None, Source::Workload(workload))
    }

    /// Returns clients of a server that runs already.
    pub(crate) fn existing(&self, url: &Uri, runtime: &tokio::runtime::Runtime) -> Result<Target> {
        let workload = match (&self.publish_url, &self.kubeconfig) {
            (Some(url), _) => Workload::Publish(Publisher::new(url.clone(), self.message_bytes)),
            (None, Some(file)) => {
                let config = connect::Config {
                    kubeconfig: Some(file.clone()),
                    namespace: self.namespace.clone(),
                    ..connect::Config::default()
                };
                let connection = runtime.block_on(connect::connect(&config))?;
                Workload::Kubernetes(Box::new(connection), runtime.handle().clone())
            }
            (None, None) => Workload::Nothing,
        };
        workload.prepare()?;
        self.target(&url.to_string(), url, self.pid, Source::Workload(workload))
    }

    /// Starts the baselines, and with a certificate one that encrypts.
    pub(crate) fn baselines(&self) -> Result<Vec<Target>> {
        let plain = [("baseline: one loop", "loop", "http"), ("baseline: one task per connection", "tasks", "http")];
        let encrypted = self.tls_cert.as_ref().map(|_| ("baseline: one loop, TLS", "loop", "https"));
        plain.into_iter().chain(encrypted).map(|(name, mode, scheme)| self.baseline(name, mode, scheme)).collect()
    }

    fn baseline(&self, name: &str, mode: &str, scheme: &str) -> Result<Target> {
        let mut args = vec![format!("--baseline-mode={mode}")];
        if scheme == "https" {
            self.add_certificate(&mut args);
        }
        let mut process = ChildProcess::start("baseline", &args)?;
        let address: SocketAddr = process.receive()?;
        let pid = process.pid();
        self.target(name, &format!("{scheme}://{address}/").parse()?, Some(pid), Source::Baseline(Box::new(process)))
    }

    fn add_certificate(&self, args: &mut Vec<String>) {
        for (flag, file) in [("--tls-cert", &self.tls_cert), ("--tls-key", &self.tls_key)] {
            args.extend(file.iter().map(|file| format!("{flag}={}", file.display())));
        }
    }

    /// Returns the certificates that clients trust. Without `--ca-file`, they trust the server's own certificate.
    fn trusted(&self) -> Option<&Path> {
        self.ca_file.as_deref().or(self.tls_cert.as_deref())
    }

    fn target(&self, name: &str, url: &Uri, pid: Option<u32>, source: Source) -> Result<Target> {
        let mut options = ClientOptions::new(&url.to_string())?;
        let is_encrypted = is_encrypted(url);
        if is_encrypted {
            options.ca_file = self.trusted().map(Path::to_owned);
        }
        if pid.is_some() && !matches!(source, Source::Baseline(_)) {
            options.filters = self.filters;
            options.track_cursors = self.reconnect_storm;
        }
        Ok(Target {
            name: name.to_owned(),
            clients: options.start()?,
            pid,
            source,
            is_encrypted,
            bridge: None,
            _relay: None,
            event_bytes: self.message_bytes,
            samples: Vec::new(),
            empty_memory: None,
            memory_above_empty: None,
            memory_per_connection: None,
            storm: None,
        })
    }
}
