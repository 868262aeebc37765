//! What is measured: a server and its clients, and how each kind of them is started.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use http::Uri;
use rustls::ClientConfig;
use serde_json::json;

use super::{
    Bench,
    clients::Storm,
    connect::is_encrypted,
    load::{self, Load},
    process::{Role, Server},
    report::Sample,
    tls,
};
use crate::{sim::Sim, source::connect};

/// GETs a minute that a started bridge allows: whoever measures is not to be held up.
const REQUEST_RATE: &str = "1000000";

/// A server, its clients, and what is known of it.
pub(super) struct Subject {
    pub(super) name: String,
    pub(super) clients: Role,
    pub(super) pid: Option<u32>,
    pub(super) source: Source,
    pub(super) is_encrypted: bool,
    /// Lives as long as it is measured.
    pub(super) server: Option<Server>,
    /// Bytes of an event on the wire.
    pub(super) bytes: usize,
    pub(super) samples: Vec<(Mode, Sample)>,
    /// Bytes of memory: of the server without clients, of what all add to that, and of what a connection does.
    pub(super) empty: Option<u64>,
    pub(super) beyond_empty: Option<u64>,
    pub(super) memory: Option<f64>,
    pub(super) storm: Option<Storm>,
}

/// Where its events come from.
pub(super) enum Source {
    Load(Load),
    Floor(Box<Role>),
}

/// What else there is about a round; each round is measured in all modes in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    AsAsked,
    /// As many bursts, of one event each.
    OneAtATime,
    /// While somebody asks the other bridge for all its instances: what two busy processors cost.
    GetsElsewhere,
    /// While somebody asks this one.
    Gets,
}

/// One of the bridges that are started.
struct Kind {
    name: &'static str,
    namespace: &'static str,
    scheme: &'static str,
    path: &'static str,
}

const PLAIN: [Kind; 2] = [
    Kind { name: "WebSocket", namespace: "ws", scheme: "ws", path: "/api/websocket" },
    Kind { name: "SSE", namespace: "sse", scheme: "http", path: "/api/sse" },
];
const ENCRYPTED: [Kind; 2] = [
    Kind { name: "WebSocket over TLS", namespace: "wss", scheme: "wss", path: "/api/websocket" },
    Kind { name: "SSE over TLS", namespace: "sse-tls", scheme: "https", path: "/api/sse" },
];
/// Where the clients that watch the simulated cluster themselves look.
const WATCHED: &str = "watch";

/// The simulated cluster's namespaces.
pub(super) fn namespaces() -> Vec<String> {
    let started = PLAIN.iter().chain(&ENCRYPTED).map(|kind| kind.namespace);
    started.chain([WATCHED]).map(str::to_owned).collect()
}

impl Mode {
    /// What follows the subject's name.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Mode::AsAsked => "",
            Mode::OneAtATime => ", one at a time",
            Mode::GetsElsewhere => ", GETs elsewhere",
            Mode::Gets => ", GETs",
        }
    }
}

impl Subject {
    pub(super) fn is_floor(&self) -> bool {
        matches!(self.source, Source::Floor(_))
    }

    /// Whether its clients can be told of filters and cursors.
    pub(super) fn is_bridge(&self) -> bool {
        self.pid.is_some() && !self.is_floor()
    }
}

impl Bench {
    /// The bridges, each on a namespace of its own.
    pub(super) fn bridges(&self, cluster: SocketAddr, sim: &Sim) -> Result<Vec<Subject>> {
        let encrypted = self.tls_cert.iter().flat_map(|_| &ENCRYPTED);
        PLAIN.iter().chain(encrypted).map(|kind| self.started(kind, cluster, sim)).collect()
    }

    fn started(&self, kind: &Kind, cluster: SocketAddr, sim: &Sim) -> Result<Subject> {
        load::crowd(sim, kind.namespace, self.pods)?;
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
        let args = ["--namespace", kind.namespace, "--own-watchers", "0", "--max-connections", &connections];
        let mut args = [&args[..], &["--request-rate", REQUEST_RATE]].concat().into_iter().map(str::to_owned).collect();
        let is_encrypted = matches!(kind.scheme, "wss" | "https");
        if is_encrypted {
            self.add_certificate(&mut args);
        }
        let server = Server::start(&binary, &args, &kubeconfig.to_string())?;
        let uri = format!("{}://{}{}?{}", kind.scheme, server.address, kind.path, self.query).parse()?;
        let trust = if is_encrypted { self.ca_file.as_ref().or(self.tls_cert.as_ref()) } else { None };
        ready(&server.address, trust.map(|file| tls::client(file)).transpose()?.as_ref())?;
        let mut load = Load::Sim(sim.clone(), kind.namespace.to_owned());
        load.prepare()?;
        let pid = server.pid();
        Ok(Subject { server: Some(server), ..self.subject(kind.name, &uri, Some(pid), Source::Load(load))? })
    }

    /// Clients of the simulated cluster itself.
    pub(super) fn watched(&self, cluster: SocketAddr, sim: &Sim) -> Result<Subject> {
        let mut load = Load::Sim(sim.clone(), WATCHED.to_owned());
        load.prepare()?;
        let from = sim.store(|store| store.revision());
        let uri = format!("http://{cluster}/api/v1/namespaces/{WATCHED}/pods?watch=true&resourceVersion={from}");
        self.subject("a watch for each client", &uri.parse()?, None, Source::Load(load))
    }

    /// Somebody's server.
    pub(super) fn listened(&self, url: &Uri, runtime: &tokio::runtime::Runtime) -> Result<Subject> {
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

    /// The floors; over TLS, too, where there is a certificate.
    pub(super) fn floors(&self) -> Result<Vec<Subject>> {
        let plain = [("floor: one loop", "loop", "http"), ("floor: a task a connection", "tasks", "http")];
        let encrypted = self.tls_cert.as_ref().map(|_| ("floor: one loop, TLS", "loop", "https"));
        plain.into_iter().chain(encrypted).map(|(name, style, scheme)| self.floor(name, style, scheme)).collect()
    }

    fn floor(&self, name: &str, style: &str, scheme: &str) -> Result<Subject> {
        let mut args = ["--role", "floor", "--style", style].map(str::to_owned).into();
        if scheme == "https" {
            self.add_certificate(&mut args);
        }
        let mut role = Role::start(&args)?;
        let address: SocketAddr = role.hear()?;
        let pid = role.pid();
        self.subject(name, &format!("{scheme}://{address}/").parse()?, Some(pid), Source::Floor(Box::new(role)))
    }

    fn add_certificate(&self, args: &mut Vec<String>) {
        for (flag, file) in [("--tls-cert", &self.tls_cert), ("--tls-key", &self.tls_key)] {
            args.extend(file.iter().map(|file| format!("{flag}={}", file.display())));
        }
    }

    fn subject(&self, name: &str, uri: &Uri, pid: Option<u32>, source: Source) -> Result<Subject> {
        let mut args = vec!["--role".to_owned(), "clients".to_owned(), uri.to_string()];
        // Who serves with a certificate of their own making is trusted with it.
        if is_encrypted(uri)
            && let Some(file) = self.ca_file.as_ref().or(self.tls_cert.as_ref())
        {
            args.push(format!("--ca-file={}", file.display()));
        }
        if pid.is_some() && !matches!(source, Source::Floor(_)) {
            args.push(format!("--filters={}", self.filters));
            args.extend(self.storm.then(|| "--storm".to_owned()));
        }
        Ok(Subject {
            name: name.to_owned(),
            clients: Role::start(&args)?,
            pid,
            source,
            is_encrypted: is_encrypted(uri),
            server: None,
            bytes: self.bytes,
            samples: Vec::new(),
            empty: None,
            beyond_empty: None,
            memory: None,
            storm: None,
        })
    }
}

/// Waits until `/readyz` says so.
fn ready(address: &str, trust: Option<&Arc<ClientConfig>>) -> Result<()> {
    for _ in 0..500 {
        let stream = std::net::TcpStream::connect(address)?;
        let answer = match trust {
            Some(trust) => ask(tls::blocking(stream, trust)?, address)?,
            None => ask(stream, address)?,
        };
        if answer.starts_with("HTTP/1.1 200") {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    anyhow::bail!("the bridge was not ready within 10 s")
}

fn ask(mut stream: impl std::io::Read + std::io::Write, address: &str) -> Result<String> {
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("{address} does not answer"))?;
    Ok(answer)
}
