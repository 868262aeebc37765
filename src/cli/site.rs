//! What `serve` and `demo` have in common: a feed on a listener, until a signal.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use futures::FutureExt;
use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};
use tracing::info;

use super::{Failure, exit};
use crate::{
    feed::Feed,
    http::{self, OpenOwn, Site, conn, guard::Allowed, stream},
    source::{hub, own::Watchers},
    tasks::{self, Stopped, Tasks},
};

/// What a bridge serves and how long it takes its leave.
pub(super) struct Bridge {
    pub(super) feed: Feed,
    pub(super) own: OpenOwn,
    pub(super) allowed: Allowed,
    pub(super) registry: Registry,
    pub(super) verbose: Verbose,
    pub(super) max_connections: usize,
    pub(super) tasks: Tasks,
    pub(super) drain: Duration,
}

/// Lines for `/readyz?verbose`.
pub(super) type Verbose = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// A name for every metric, as Prometheus asks for.
pub(super) fn registry() -> Registry {
    Registry::with_prefix("bridge")
}

/// The task set of a process that takes `drain` to end.
pub(super) fn tasks(drain: Duration) -> Tasks {
    Tasks::new(tasks::Config { drain, ..tasks::Config::default() })
}

/// What gives `/ws` connections watchers of their own.
pub(super) fn open_own(watchers: Watchers) -> OpenOwn {
    Box::new(move || watchers.open().map(|(feed, run)| (feed, run.boxed())))
}

/// What only the hub can tell of the state of things.
pub(super) fn verbose(hub: Arc<hub::Metrics>) -> Verbose {
    Box::new(move || hub.odd_fields())
}

/// Binds, with a word on what to do when that fails.
pub(super) async fn bind(host: &str, port: u16) -> Result<(TcpListener, SocketAddr), Failure> {
    let what_now = || format!("cannot listen on {host} port {port}: choose another with --port or --listen-host");
    let listener = TcpListener::bind((host, port)).await.with_context(what_now)?;
    let address = listener.local_addr().context("the listener has no address")?;
    Ok((listener, address))
}

/// Serves until a signal, then drains. Returns the exit code.
pub(super) async fn serve(bridge: Bridge, listener: TcpListener) -> Result<u8, Failure> {
    let Bridge { feed, own, allowed, mut registry, verbose, max_connections, tasks, drain } = bridge;
    let stream_metrics = stream::Metrics::default();
    let conn_metrics = conn::Metrics::default();
    feed.metrics().register(&mut registry);
    stream_metrics.register(&mut registry);
    conn_metrics.register(&mut registry);
    tasks.metrics().register(&mut registry);
    // The last fifth of the drain time is for closing what was told to leave.
    let stream_config = stream::Config { drain_spread: drain * 4 / 5, ..stream::Config::default() };
    let streams = stream::Streams { config: stream_config, metrics: stream_metrics, stop: tasks.stop().clone() };
    let config = http::Config::default();
    let site = Site { feed, own, streams: Arc::new(streams), registry, allowed, verbose, config };
    let service = warp::service(http::routes(Arc::new(site)));
    let config = conn::Config { max_connections, ..conn::Config::default() };
    let accept = conn::serve(listener, service, config, conn_metrics, tasks.clone());
    tasks.spawn("listener", async move { Ok::<_, std::convert::Infallible>(accept.await) });

    let mut signals = Signals::new()?;
    let stopped = tasks.run_until(async || signals.next().await).await?;
    let code = if signals.interrupted { exit::INTERRUPTED } else { 0 };
    match stopped {
        Stopped::Drained { cut: 0 } => info!("all streams have been closed"),
        Stopped::Drained { cut } => info!(cut, "the drain time is over; the remaining connections are cut"),
        Stopped::AtOnce => {
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
