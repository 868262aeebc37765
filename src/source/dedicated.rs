//! One `/ws` connection's own kube-runtime watchers, into a feed of its own (docs/protocol.md#boilerhouse-stream).
//!
//! What kube-runtime leaves to its user is done here (docs/kubernetes-behavior.md): a list is collected before it replaces anything, a
//! watcher is built anew after an HTTP-level 410 and after a line that did not parse (it would go on without that
//! change), and when the hub finds another history (it would wait for a version that never comes). It retries for
//! ever; the hub, which hears bookmarks and probes, is the judge of the upstream's health. It must not know other
//! connections: all they share is the number of lists that may run at once.

mod watcher;

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use kube::{Client, client::Body};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tower::BoxError;

use super::decode::{DecodedClaim, DecodedPod};
use crate::feed::{Feed, Writer};
use watcher::run_resource;

/// Bounds of own watchers.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Connections that have watchers of their own at a time; 0: none.
    pub max_connections: usize,
    /// Initial lists that run at once, over all connections: re-lists after an outage included.
    pub max_concurrent_lists: usize,
    /// What watches ask for as `timeoutSeconds`. kube-runtime gives them 5 s more, then starts them again.
    pub watch_timeout: Duration,
    /// How long the API server may take to begin an answer.
    pub start_timeout: Duration,
    /// How long one page of a list may take after that. kube's client would wait for its end for ever.
    pub page_timeout: Duration,
    /// Bytes of one page. Nine times what 500 Pods of 14 KB take.
    pub page_bytes: usize,
    /// Objects in one list, so that a server whose pages never end cannot fill the memory.
    pub list_objects: usize,
    /// The pause after an error: kube-runtime has none of its own.
    pub error_delay: Duration,
    /// The pauses before what was lost is listed again: the first, and the longest to which they double while that keeps
    /// happening, each within `settle` of the one before. No more than 5 s, as what happens meanwhile is late by that.
    pub relist_backoff: [Duration; 2],
    /// Silence of a watch after an error that means that it works again: longer than it may take to fail to start.
    pub healthy_after_quiet: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            max_connections: 50,
            max_concurrent_lists: 4,
            watch_timeout: Duration::from_secs(30),
            start_timeout: Duration::from_secs(15),
            page_timeout: Duration::from_secs(30),
            page_bytes: 64 << 20,
            list_objects: 500_000,
            error_delay: Duration::from_secs(1),
            relist_backoff: [Duration::from_millis(100), Duration::from_secs(5)],
            healthy_after_quiet: Duration::from_secs(20),
        }
    }
}

/// What own watchers count.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    connections: Gauge,
    lists: Counter,
    errors: Counter,
}

impl Metrics {
    /// Names them in a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("own_watchers", "Connections with watchers of their own", self.connections.clone());
        registry.register("own_watcher_lists", "Lists begun by own watchers", self.lists.clone());
        registry.register("own_watcher_errors", "Errors of own watchers", self.errors.clone());
    }
}

/// Gives connections watchers of their own, as many as there may be.
#[derive(Clone)]
pub struct DedicatedWatchers {
    client: Client,
    namespace: Arc<str>,
    hub: Feed,
    slots: Arc<Semaphore>,
    lists: Arc<Semaphore>,
    config: Config,
    metrics: Metrics,
}

impl DedicatedWatchers {
    /// Watchers of this namespace, beside this hub.
    #[must_use]
    pub fn new(client: &Client, namespace: &str, hub: Feed, config: Config, metrics: Metrics) -> DedicatedWatchers {
        let inner = client.clone();
        let bounded = tower::service_fn(move |request| send_with_limits(inner.clone(), request, config));
        let client = Client::new(bounded, client.default_namespace());
        DedicatedWatchers {
            client,
            namespace: namespace.into(),
            hub,
            slots: Arc::new(Semaphore::new(config.max_connections)),
            lists: Arc::new(Semaphore::new(config.max_concurrent_lists)),
            config,
            metrics,
        }
    }

    /// A feed of its own for one connection and what fills it, for as long as that is polled; `None` when as many as
    /// there may be are in use.
    #[must_use]
    pub fn try_open(&self) -> Option<(Feed, impl Future<Output = Infallible> + Send + 'static)> {
        let slot = self.slots.clone().try_acquire_owned().ok()?;
        let (writer, feed) = self.hub.dedicated();
        Some((feed, self.clone().run(writer, slot)))
    }

    async fn run(self, writer: Writer, slot: OwnedSemaphorePermit) -> Infallible {
        let _in_use = SlotGuard::new(&self.metrics.connections, slot);
        let writer = Mutex::new(writer);
        let health = async {
            let mut health = self.hub.health();
            loop {
                // The hub lives as long as the process does.
                let _ = health.changed().await;
                writer.lock().await.notify_hub_health();
            }
        };
        let (never, _, ()) = tokio::join!(
            run_resource::<DecodedPod>(&self, &writer),
            run_resource::<DecodedClaim>(&self, &writer),
            health
        );
        never
    }
}

impl std::fmt::Debug for DedicatedWatchers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DedicatedWatchers").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Sends a request with bounds on its answer: on its head, and on the whole of a list. What follows the head of a watch is
/// bounded by kube-runtime's idle timeout.
async fn send_with_limits(client: Client, request: Request<Body>, config: Config) -> Result<Response<Body>, BoxError> {
    let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
    let response = timeout(config.start_timeout, client.send(request)).await??;
    if is_watch && response.status().is_success() {
        return Ok(response);
    }
    let (head, body) = response.into_parts();
    let whole = timeout(config.page_timeout, Limited::new(body, config.page_bytes).collect()).await??;
    Ok(Response::from_parts(head, whole.to_bytes().into()))
}

/// Counts a connection for as long as it has its slot.
struct SlotGuard {
    connections: Gauge,
    _slot: OwnedSemaphorePermit,
}

impl SlotGuard {
    fn new(connections: &Gauge, slot: OwnedSemaphorePermit) -> SlotGuard {
        connections.inc();
        SlotGuard { connections: connections.clone(), _slot: slot }
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        self.connections.dec();
    }
}
