//! What the servers share: `serve`, `demo` and `relay` serve on a listener until a signal, then drain.

use std::{
    convert::Infallible,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use futures::FutureExt;
use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};
use tracing::info;

use super::{
    access::{ResolvedAccess, bridge::ResolvedBridgeAccess},
    exit::{CliError, FAILED, INTERRUPTED},
    file_limit::connection_limits,
    otlp::Traces,
    process_metrics,
};
use crate::{
    backbone::Backbone,
    feed::Feed,
    http::{
        self, App, ConnectionInfo, Content, DedicatedFeedFactory, Ingest, Listener, ServedFeed,
        browser_guard::RefusedOrigins, caller::Caller, conn, filter_limit::FilterLimit, forwarded::TrustedProxies,
        rate_limit::RateLimits, response_budget::ResponseBudget, stream, stream_rate,
    },
    source::{dedicated::DedicatedWatchers, hub},
    tasks::{self, Stopped, Tasks},
    validate::Validator,
};

/// Everything that a server needs beside its listener.
pub(super) struct ServerSetup<C> {
    pub(super) content: C,
    /// The log that the streams read.
    pub(super) log: stream::Log,
    pub(super) access: ResolvedAccess,
    pub(super) registry: Registry,
    /// Maximum number of open streams.
    pub(super) max_connections: usize,
    /// Maximum number of `/ws` streams with dedicated watchers.
    pub(super) dedicated_watchers: usize,
    /// The listener for probes.
    pub(super) probes: Option<TcpListener>,
    /// Interval of heartbeats, comment lines and pings.
    pub(super) heartbeat: Duration,
    pub(super) tasks: Tasks,
    pub(super) drain: Duration,
    pub(super) traces: Traces,
    /// Received since before the first line that names the address.
    pub(super) signals: Signals,
}

/// Everything that a bridge needs beside its listener.
pub(super) struct BridgeSetup {
    pub(super) feed: Feed,
    pub(super) dedicated_feeds: DedicatedFeedFactory,
    /// Where accepted telemetry goes.
    pub(super) backbone: Arc<dyn Backbone>,
    pub(super) validator: Arc<Validator>,
    pub(super) access: ResolvedBridgeAccess,
    pub(super) registry: Registry,
    pub(super) readiness_details: ReadinessDetails,
    pub(super) connection: ConnectionInfo,
    pub(super) max_connections: usize,
    pub(super) dedicated_watchers: usize,
    pub(super) probes: Option<TcpListener>,
    pub(super) rate: stream_rate::Config,
    pub(super) heartbeat: Duration,
    pub(super) tasks: Tasks,
    pub(super) drain: Duration,
    pub(super) traces: Traces,
    /// Received since before the first line that names the address.
    pub(super) signals: Signals,
}

/// Returns a line that `/readyz?verbose` adds.
pub(super) type ReadinessLine = Box<dyn Fn() -> String + Send + Sync>;

/// Returns the lines that `/readyz?verbose` adds.
pub(super) type ReadinessDetails = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// Minimum drain time: 1 s, a few round trips, as [`stream::Config::close_timeout`]. Each stream has this long to send its
/// closing event. The drain ends earlier when all streams have closed.
const MIN_DRAIN: Duration = Duration::from_secs(1);

/// Returns the registry of all metrics, with those of the process and the build.
pub(super) fn registry() -> Registry {
    let mut registry = Registry::default();
    process_metrics::register_process(&mut registry);
    process_metrics::register_build_info(bridge_metrics(&mut registry));
    registry
}

/// Returns the part of the registry whose names start with `bridge_`.
pub(super) fn bridge_metrics(registry: &mut Registry) -> &mut Registry {
    registry.sub_registry_with_prefix("bridge")
}

/// Returns the task set of a process that drains for `drain`, at least [`MIN_DRAIN`].
pub(super) fn tasks(drain: Duration) -> Tasks {
    Tasks::new(tasks::Config { drain: drain.max(MIN_DRAIN), ..tasks::Config::default() })
}

/// Returns the function that gives a `/ws` connection its dedicated watchers.
pub(super) fn dedicated_feed_factory(watchers: DedicatedWatchers) -> DedicatedFeedFactory {
    Box::new(move || watchers.try_open().map(|(feed, run)| (feed, run.boxed())))
}

/// Returns the lines for `/readyz?verbose`: those of the hub, a line that is always there, those of the inputs, and what
/// `awaited` returns.
pub(super) fn readiness_details(
    hub: Arc<hub::Metrics>,
    line: Option<String>,
    inputs: Vec<ReadinessLine>,
    awaited: impl Fn() -> Option<&'static str> + Send + Sync + 'static,
) -> ReadinessDetails {
    Box::new(move || {
        let awaited = awaited().map(|awaited| format!("waiting for {awaited}"));
        let inputs = inputs.iter().map(|line| line());
        hub.malformed_fields().into_iter().chain(line.clone()).chain(inputs).chain(awaited).collect()
    })
}

/// Binds a listener. `flag` is the flag that sets its port.
///
/// # Errors
/// An error that says what to do.
pub(super) async fn bind(host: &str, port: u16, flag: &str) -> Result<(TcpListener, SocketAddr), CliError> {
    let listener = TcpListener::bind((host, port)).await.map_err(|error| {
        let reason = match error.kind() {
            ErrorKind::AddrInUse => {
                format!("another program uses it; choose another port with {flag} (0 takes a free port)")
            }
            ErrorKind::PermissionDenied => format!("the system reserves it; choose a port above 1023 with {flag}"),
            _ => format!("{error}; it must be an address of this machine, or a name of one"),
        };
        anyhow::anyhow!("cannot listen on {host} port {port}: {reason}")
    })?;
    let address = listener.local_addr().context("cannot read the address of the listener")?;
    Ok((listener, address))
}

/// Serves a feed until a signal, then drains. Returns the exit code.
pub(super) async fn serve_bridge(setup: BridgeSetup, listener: TcpListener) -> Result<u8, CliError> {
    let BridgeSetup { feed, dedicated_feeds, backbone, validator, access, mut registry, readiness_details, .. } = setup;
    let BridgeSetup { connection, rate, .. } = setup;
    let BridgeSetup { max_connections, dedicated_watchers, probes, heartbeat, tasks, drain, traces, signals, .. } =
        setup;
    let bridge = bridge_metrics(&mut registry);
    feed.register_metrics(bridge);
    let responses = ResponseBudget::new(access.responses);
    responses.register(bridge);
    let ingest = Ingest::new(backbone, validator);
    ingest.register(bridge);
    let pools = feed.clone().publish_pool_depths();
    tasks.spawn("pools", async move { Ok::<_, Infallible>(pools.await) });
    let log = stream::Log::Feed(feed.clone());
    let content = ServedFeed {
        feed,
        dedicated_feeds,
        connection,
        filters: FilterLimit::new(access.max_filters),
        responses,
        ingest,
        readiness_details,
        config: http::Config { stream_rate: rate, ..http::Config::default() },
    };
    let access = access.common;
    let setup = ServerSetup {
        content,
        log,
        access,
        registry,
        max_connections,
        dedicated_watchers,
        probes,
        heartbeat,
        tasks,
        drain,
        traces,
        signals,
    };
    serve(setup, listener).await
}

/// Serves until a signal, then drains. Returns the exit code.
pub(super) async fn serve<C: Content>(setup: ServerSetup<C>, listener: TcpListener) -> Result<u8, CliError> {
    let ServerSetup { content, log, access, mut registry, max_connections, dedicated_watchers, .. } = setup;
    let ResolvedAccess { allowed, limits, proxies, tls, auth, auth_metrics, .. } = access;
    let ServerSetup { probes, heartbeat, tasks, drain, traces, mut signals, .. } = setup;
    let limits_of_files = connection_limits(max_connections, dedicated_watchers);
    let stream_metrics = stream::Metrics::default();
    let conn_metrics = conn::Metrics::default();
    let bridge = bridge_metrics(&mut registry);
    stream_metrics.register(bridge);
    conn_metrics.register(bridge);
    tasks.metrics().register(bridge);
    auth_metrics.register(bridge);
    // The streams are asked to close over the first four fifths of the drain time, so that the last ones can finish.
    let stream_config = stream::Config {
        drain_spread: drain * 4 / 5,
        max_streams: limits_of_files.streams,
        ..stream::Config::default()
    }
    .with_ping_interval(heartbeat);
    let streams = stream::StreamContext::new(stream_config, stream_metrics, tasks.stop().clone());
    let (auth, limits) = (Arc::new(auth), RateLimits::new(&limits));
    limits.register(bridge_metrics(&mut registry));
    let metrics = http::Metrics::default();
    metrics.register(bridge_metrics(&mut registry));
    let watched_auth = auth.clone();
    tasks.spawn("credentials", async move { Ok::<_, Infallible>(watched_auth.run_watchdog().await) });
    for writer in 0..streams.fan_out.writer_count() {
        let (streams, log) = (streams.clone(), log.clone());
        tasks.spawn("writer", async move { Ok::<Infallible, Infallible>(streams.fan_out.run(writer, log).await) });
    }
    let app = App {
        content,
        streams,
        registry,
        metrics,
        guard: allowed,
        refused_origins: RefusedOrigins::default(),
        auth,
        rate_limits: limits,
        trusted_proxies: proxies,
        tracer: traces.tracer.clone(),
    };
    let app = Arc::new(app);
    if let Some(listener) = probes {
        // Connections of this listener do not delay the drain, and are answered until the process ends.
        let (service, connections) =
            (http::service(app.clone(), Listener::Probes), Tasks::new(tasks::Config::default()));
        let accept = conn::serve(listener, service, conn::Config::probes(), conn_metrics.clone(), connections);
        tasks.spawn("probe listener", async move { Ok::<_, Infallible>(accept.await) });
    }
    let proxies = app.trusted_proxies.clone();
    let config = conn::Config {
        max_connections: limits_of_files.connections,
        counted_address: conn::CountedAddress::new(move |peer| counted_address(&proxies, peer)),
        tls,
        ..conn::Config::default()
    };
    let service = http::service(app, Listener::Main);
    if let Some(tls) = config.tls.clone() {
        let watch = tls.watch_files(config.tls_reload_interval, conn_metrics.clone());
        tasks.spawn("certificate", async move { Ok::<_, Infallible>(watch.await) });
    }
    let accept = conn::serve(listener, service, config, conn_metrics, tasks.clone());
    tasks.spawn("listener", async move { Ok::<_, Infallible>(accept.await) });

    let mut stopped = tasks.run_until(async || signals.next().await).await;
    if !matches!(stopped, Ok(Stopped::Immediately)) {
        tokio::select! {
            () = traces.flush() => {}
            () = signals.next() => stopped = stopped.map(|_| Stopped::Immediately),
        }
    }
    let stopped = stopped?;
    let code = if signals.interrupted { INTERRUPTED } else { 0 };
    match stopped {
        Stopped::Drained { cut: 0 } => info!("all streams closed"),
        Stopped::Drained { cut } => info!(cut, "drain time ended; remaining connections cut"),
        Stopped::Immediately => {
            info!("second signal received; exiting immediately");
            return Ok(if signals.interrupted { INTERRUPTED } else { FAILED });
        }
    }
    Ok(code)
}

/// Returns the address that waiting connections of a peer count for: all of an IPv6 /64 count together. Those of a trusted
/// proxy, which come from many clients, count in total only.
fn counted_address(proxies: &TrustedProxies, peer: IpAddr) -> Option<IpAddr> {
    let peer = peer.to_canonical();
    match Caller::address(peer) {
        Caller::Address(address) if !proxies.trusts(peer) => Some(address),
        _ => None,
    }
}

/// SIGTERM and SIGINT, from [`Signals::new`] on. Before, each ends the process at once.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    interrupted: bool,
}

impl Signals {
    /// Starts to receive them. A server does so when it can act on them, and before it prints its address or answers a probe: then
    /// others may send a signal.
    ///
    /// # Errors
    /// The system does not let the process receive them.
    pub(super) fn new() -> anyhow::Result<Signals> {
        let listen = |kind| signal(kind).context("cannot receive signals");
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            interrupted: false,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => info!("SIGTERM received; draining until all streams have ended, for at most --drain"),
            _ = self.interrupt.recv() => {
                self.interrupted = true;
                info!("SIGINT received; draining until all streams have ended, for at most --drain");
            }
        }
    }
}
