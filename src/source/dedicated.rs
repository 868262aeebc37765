//! Dedicated watchers: a pair of kube-runtime watchers for one `/ws` connection, with a feed of its own
//! (docs/protocol.md#boilerhouse-stream).
//!
//! Owns: the slots of connections and the limits of requests. The watchers of one connection share with those of others
//! only the limit of concurrent lists.
//!
//! Guarantees, beyond kube-runtime (docs/kubernetes-behavior.md#kube-and-kube-runtime):
//! - A list is collected completely before it replaces the state.
//! - A watcher is created again after an HTTP-level 410, and after a line that did not parse. It would continue without
//!   that change.
//! - A watcher is created again when the hub finds a history reset. It would wait for a version that never comes.
//! - Each request has a time limit, and each list a size limit (docs/limits.md).
//! - The watchers retry until the connection ends. The hub evaluates the health of the upstream, because only the hub
//!   receives bookmarks and probes.

mod limits;
mod watcher;

use std::convert::Infallible;

use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use kube::{Client, client::Body};
use tokio::{sync::Mutex, time::timeout};
use tower::BoxError;

pub use self::limits::{Config, Metrics};
use self::{
    limits::{DedicatedLimits, SlotGuard},
    watcher::{WatchTarget, run_resource},
};
use super::decode::{DecodedClaim, DecodedPod};
use crate::feed::{Feed, Writer};

/// Creates dedicated watchers, for at most `max_connections` connections at once.
#[derive(Clone)]
pub struct DedicatedWatchers {
    target: WatchTarget,
}

impl DedicatedWatchers {
    /// Creates watchers of one namespace. `hub` is the feed of the hub that watches the same namespace.
    #[must_use]
    pub fn new(client: &Client, namespace: &str, hub: Feed, config: Config, metrics: Metrics) -> DedicatedWatchers {
        let inner = client.clone();
        let limited = tower::service_fn(move |request| send_with_limits(inner.clone(), request, config));
        let client = Client::new(limited, client.default_namespace());
        let limits = DedicatedLimits::new(config, metrics);
        DedicatedWatchers { target: WatchTarget { client, namespace: namespace.into(), hub, limits } }
    }

    /// Returns a feed for one connection and the future that fills it, or `None` if all slots are in use.
    ///
    /// The future never ends. It must be polled while the connection uses the feed; dropping it frees the slot.
    #[must_use]
    pub fn try_open(&self) -> Option<(Feed, impl Future<Output = Infallible> + Send + 'static)> {
        let slot = self.target.limits.try_acquire_slot()?;
        let (writer, feed) = self.target.hub.dedicated();
        Some((feed, run(self.target.clone(), writer, slot)))
    }
}

impl std::fmt::Debug for DedicatedWatchers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DedicatedWatchers").field("config", &self.target.limits.config).finish_non_exhaustive()
    }
}

async fn run(target: WatchTarget, writer: Writer, _slot: SlotGuard) -> Infallible {
    let writer = Mutex::new(writer);
    let health = async {
        let mut health = target.hub.health();
        loop {
            // It cannot fail: the hub runs until the process ends.
            let _ = health.changed().await;
            writer.lock().await.notify_hub_health();
        }
    };
    let (never, _, ()) = tokio::join!(
        run_resource::<DecodedPod>(&target, &writer),
        run_resource::<DecodedClaim>(&target, &writer),
        health
    );
    never
}

/// Sends a request. It limits the time until the head of the response, and the time and size of the body of a list.
/// kube-runtime limits the idle time of the body of a watch.
async fn send_with_limits(client: Client, request: Request<Body>, config: Config) -> Result<Response<Body>, BoxError> {
    let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
    let response = timeout(config.start_timeout, client.send(request)).await??;
    if is_watch && response.status().is_success() {
        return Ok(response);
    }
    let (head, body) = response.into_parts();
    let body = timeout(config.page_timeout, Limited::new(body, config.page_bytes).collect()).await??;
    Ok(Response::from_parts(head, body.to_bytes().into()))
}
