//! Dedicated watchers: a pair of kube-runtime watchers for one `/ws` connection, with a feed of its own
//! (docs/protocol.md#boilerhouse-stream).
//!
//! Owns: the slots of connections and the limits of requests. The watchers of one connection share with those of others
//! only the limit of concurrent lists and the limit of buffered bytes.
//!
//! Guarantees, beyond kube-runtime (docs/kubernetes-behavior.md#kube-and-kube-runtime):
//! - A list is collected completely before it replaces the state.
//! - Each answer of the API server is judged as the hub judges it (`source/answer.rs`, `source/retry.rs`).
//! - A watcher is created again after an error after which the hub lists. It would continue without a change, or would
//!   request the same version without end.
//! - A watcher is created again when the hub finds a history reset. It would wait for a version that never comes.
//! - Each request, line and list has the limits of the hub (docs/limits.md).
//! - The watchers retry until the connection ends. The hub evaluates the health of the upstream, because only the hub
//!   receives bookmarks and probes.

mod checked_client;
mod limits;
mod watcher;

use std::{convert::Infallible, future::pending, sync::Arc};

use kube::Client;
use tokio::sync::Mutex;

pub use self::limits::{Config, Metrics};
use self::{
    checked_client::checked_client,
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
        let limits = Arc::new(DedicatedLimits::new(config, metrics));
        let client = checked_client(client);
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
        // The hub runs until the process ends. If it did not, its last health would stay.
        while health.changed().await.is_ok() {
            writer.lock().await.notify_hub_health();
        }
        pending().await
    };
    let (never, _, ()) = tokio::join!(
        run_resource::<DecodedPod>(&target, &writer),
        run_resource::<DecodedClaim>(&target, &writer),
        health
    );
    never
}
