//! What `serve` and `demo` have in common: a feed on a listener, until a signal.

use std::{convert::Infallible, io::ErrorKind, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use futures::FutureExt;
use prometheus_client::registry::Registry;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};
use tracing::{info, warn};

use super::{CliError, access::ResolvedAccess, exit};
use crate::{
    feed::Feed,
    http::{self, App, ConnectionInfo, DedicatedFeedFactory, conn, rate_limit::RateLimits, stream, stream_rate},
    source::{dedicated::DedicatedWatchers, hub},
    tasks::{self, Stopped, Tasks},
};

/// What a bridge serves and how long it takes its leave.
pub(super) struct ServerSetup {
    pub(super) feed: Feed,
    pub(super) dedicated_feeds: DedicatedFeedFactory,
    pub(super) access: ResolvedAccess,
    pub(super) registry: Registry,
    pub(super) readiness_details: ReadinessDetails,
    pub(super) connection: ConnectionInfo,
    /// Streams at a time.
    pub(super) max_connections: usize,
    pub(super) rate: stream_rate::Config,
    pub(super) tasks: Tasks,
    pub(super) drain: Duration,
}

/// Lines for `/readyz?verbose`.
pub(super) type ReadinessDetails = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// However short the drain time, streams have this long to say their last word (1 s: a few round trips, as
/// [`stream::Config::close_timeout`]). Where nobody is slow it is over in milliseconds.
const MIN_DRAIN: Duration = Duration::from_secs(1);

/// Files beside one a connection: listeners, watches, the runtime's own, with room.
const RESERVED_FILES: u64 = 64;

/// A name for every metric, as Prometheus asks for.
pub(super) fn registry() -> Registry {
    Registry::with_prefix("bridge")
}

/// The task set of a process that takes `drain` to end, or [`MIN_DRAIN`] where that is longer.
pub(super) fn tasks(drain: Duration) -> Tasks {
    Tasks::new(tasks::Config { drain: drain.max(MIN_DRAIN), ..tasks::Config::default() })
}

/// What gives `/ws` connections watchers of their own.
pub(super) fn dedicated_feed_factory(watchers: DedicatedWatchers) -> DedicatedFeedFactory {
    Box::new(move || watchers.try_open().map(|(feed, run)| (feed, run.boxed())))
}

/// What only the hub can tell of the state of things.
pub(super) fn readiness_details(hub: Arc<hub::Metrics>) -> ReadinessDetails {
    Box::new(move || hub.malformed_fields())
}

/// Binds, with a word on what to do when that fails.
pub(super) async fn bind(host: &str, port: u16) -> Result<(TcpListener, SocketAddr), CliError> {
    let listener = TcpListener::bind((host, port)).await.map_err(|error| {
        let problem = match error.kind() {
            ErrorKind::AddrInUse => "another program has it; choose another with --port (0 takes a free one)".into(),
            ErrorKind::PermissionDenied => "the system reserves it; choose one above 1023 with --port".into(),
            _ => format!("{error}; it must be an address of this machine, or a name of one"),
        };
        anyhow::anyhow!("cannot listen on {host} port {port}: {problem}")
    })?;
    let address = listener.local_addr().context("the listener has no address")?;
    Ok((listener, address))
}

/// Lets the process open a file for each connection: what a shell grants is often a tenth of that, and the process may
/// raise it by itself up to the hard limit.
pub(super) fn raise_file_limit(max_connections: usize) {
    let needed = (max_connections as u64).saturating_add(RESERVED_FILES);
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return;
    }
    let allowed = limit.maximum.map_or(needed, |maximum| maximum.min(needed));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), maximum: limit.maximum });
    if raised.is_err() || allowed < needed {
        let files = getrlimit(Resource::Nofile).current;
        warn!(files, needed, "fewer files may be open than --max-connections needs: raise the hard limit (ulimit -Hn)");
    }
}

/// Serves until a signal, then drains. Returns the exit code.
pub(super) async fn serve(setup: ServerSetup, listener: TcpListener) -> Result<u8, CliError> {
    let ServerSetup { feed, dedicated_feeds, access, mut registry, readiness_details, .. } = setup;
    let ResolvedAccess { allowed, limits, proxies, tls, auth, auth_metrics, .. } = access;
    let ServerSetup { connection, max_connections, rate, tasks, drain, .. } = setup;
    let stream_metrics = stream::Metrics::default();
    let conn_metrics = conn::Metrics::default();
    feed.metrics().register(&mut registry);
    stream_metrics.register(&mut registry);
    conn_metrics.register(&mut registry);
    tasks.metrics().register(&mut registry);
    // The last fifth of the drain time is for closing what was told to leave.
    let stream_config =
        stream::Config { drain_spread: drain * 4 / 5, max_streams: max_connections, ..stream::Config::default() };
    let streams = stream::StreamContext::new(stream_config, stream_metrics, tasks.stop().clone());
    auth_metrics.register(&mut registry);
    let (auth, limits) = (Arc::new(auth), RateLimits::new(&limits));
    limits.register(&mut registry);
    let metrics = http::Metrics::default();
    metrics.register(&mut registry);
    let config = http::Config { stream_rate: rate, ..http::Config::default() };
    let watched_auth = auth.clone();
    tasks.spawn("credentials", async move { Ok::<_, Infallible>(watched_auth.run_watchdog().await) });
    let all_streams = streams.clone();
    let app = App {
        feed,
        dedicated_feeds,
        connection,
        streams,
        registry,
        metrics,
        guard: allowed,
        auth,
        rate_limits: limits,
        trusted_proxies: proxies,
        readiness_details,
        config,
    };
    let max_connections = max_connections.saturating_add(conn::NON_STREAM_CONNECTIONS);
    raise_file_limit(max_connections);
    let pools = app.feed.clone().publish_pool_depths();
    tasks.spawn("pools", async move { Ok::<_, Infallible>(pools.await) });
    for writer in 0..all_streams.fan_out.writer_count() {
        let (streams, feed) = (all_streams.clone(), app.feed.clone());
        tasks.spawn("writer", async move { Ok::<Infallible, Infallible>(streams.fan_out.run(writer, feed).await) });
    }
    let service = http::service(Arc::new(app));
    let config = conn::Config { max_connections, tls, ..conn::Config::default() };
    if let Some(tls) = config.tls.clone() {
        let follow = tls.watch_files(config.tls_reload_interval, conn_metrics.clone());
        tasks.spawn("certificate", async move { Ok::<_, Infallible>(follow.await) });
    }
    let accept = conn::serve(listener, service, config, conn_metrics, tasks.clone());
    tasks.spawn("listener", async move { Ok::<_, Infallible>(accept.await) });

    let mut signals = Signals::new()?;
    let stopped = tasks.run_until(async || signals.next().await).await?;
    let code = if signals.interrupted { exit::INTERRUPTED } else { 0 };
    match stopped {
        Stopped::Drained { cut: 0 } => info!("all streams have been closed"),
        Stopped::Drained { cut } => info!(cut, "the drain time is over; the remaining connections are cut"),
        Stopped::Immediately => {
            info!("a second signal: ending at once");
            return Ok(if signals.interrupted { exit::INTERRUPTED } else { exit::FAILED });
        }
    }
    Ok(code)
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    interrupted: bool,
}

impl Signals {
    fn new() -> anyhow::Result<Signals> {
        let listen = |kind| signal(kind).context("signals cannot be received");
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            interrupted: false,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => info!("SIGTERM: draining"),
            _ = self.interrupt.recv() => {
                self.interrupted = true;
                info!("SIGINT: draining");
            }
        }
    }
}
