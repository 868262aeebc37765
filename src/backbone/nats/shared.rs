//! What the connection and the publishers share: the current connection, how far the bucket was read, state and counts.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use async_nats::{
    Client,
    jetstream::kv::{Store, UpdateErrorKind},
};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::{sync::watch, task::unconstrained, time::timeout};

use crate::{
    backbone::{Backbone, PublishError},
    broker::{self, Connection},
    event::{MqttMessage, Telemetry},
    feed::{Feed, UnknownTunnel},
};

/// Maximum wait of a post for the acknowledgement of the bucket.
const ACK_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum wait of an acknowledged post until this replica has read it from the bucket.
const VISIBLE_TIMEOUT: Duration = Duration::from_secs(1);

/// Tries to replace a value while other replicas replace it at the same time.
const MAX_UPDATES: usize = 5;

/// A connection and what is reached through it.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) store: Store,
    /// The subject of MQTT messages.
    pub(super) subject: String,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("subject", &self.subject).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// Metrics of NATS.
#[derive(Debug)]
pub struct Metrics {
    connection: broker::Metrics,
    telemetry: Family<OutcomeLabels, Counter>,
    messages: Family<OutcomeLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let with = |outcomes: &[&'static str]| {
            let family = Family::default();
            outcomes
                .iter()
                .for_each(|outcome| drop(Family::<_, Counter>::get_or_create(&family, &OutcomeLabels { outcome })));
            family
        };
        Metrics {
            connection: broker::Metrics::default(),
            telemetry: with(&["acknowledged", "not_acknowledged", "received", "malformed", "too_many"]),
            messages: with(&["sent", "not_sent", "received", "malformed", "lost"]),
        }
    }
}

impl Metrics {
    /// Registers the metrics. The caller sets the prefix of the registry.
    pub fn register(&self, registry: &mut Registry) {
        let helps = [
            "1 while this replica reads the bucket",
            "Connections that have read the bucket",
            "Tries that failed, and connections that ended",
        ];
        self.connection.register(registry, "nats", helps);
        registry.register("nats_telemetry", "Telemetry to and from the bucket, by outcome", self.telemetry.clone());
        registry.register(
            "nats_messages",
            "MQTT messages to and from other replicas, by outcome",
            self.messages.clone(),
        );
    }
}

/// The backbone of several replicas.
#[derive(Debug)]
pub struct Nats {
    pub(super) feed: Feed,
    /// The connection, while there is one that has read the bucket.
    link: watch::Sender<Option<Link>>,
    /// The revision of the bucket up to which the feed has its telemetry. It stays while there is no connection.
    pub(super) revision: watch::Sender<u64>,
    connection: Connection,
    /// When the outage began that lasts, or the last one, in milliseconds since the Unix epoch.
    down_since_ms: AtomicU64,
    metrics: Metrics,
}

impl Nats {
    pub(super) fn new(feed: Feed) -> Nats {
        let metrics = Metrics::default();
        Nats {
            feed,
            link: watch::Sender::new(None),
            revision: watch::Sender::new(0),
            connection: Connection::new("NATS", metrics.connection.clone()),
            down_since_ms: AtomicU64::new(0),
            metrics,
        }
    }

    /// Returns the metrics.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Returns the line for `/readyz?verbose`.
    #[must_use]
    pub fn line(&self) -> String {
        format!("nats: {}", self.connection.text())
    }

    /// Records that the feed has what the bucket had when this connection started: posts and messages use it from now on. The
    /// task of the connections calls this and [`Nats::down`].
    pub(super) fn up(&self, link: Link) {
        self.link.send_replace(Some(link));
        if self.connection.up() {
            self.feed.publish_upstream("nats", None, self.down_since_ms.load(Ordering::Relaxed));
        }
    }

    /// Records a failed try or the end of a connection. The first one of an outage is an event.
    pub(super) fn down(&self, reason: &str) {
        self.link.send_replace(None);
        if let Some(reason) = self.connection.down(reason) {
            let now_ms = self.feed.wall_clock_ms();
            self.down_since_ms.store(now_ms, Ordering::Relaxed);
            self.feed.publish_upstream("nats", Some(reason.into()), now_ms);
        }
    }

    pub(super) fn count_telemetry(&self, outcome: &'static str) {
        self.metrics.telemetry.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    pub(super) fn count_message(&self, outcome: &'static str) {
        self.metrics.messages.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// Returns the counter of received messages for which there was no room.
    pub(super) fn lost_messages(&self) -> Counter {
        self.metrics.messages.get_or_create_owned(&OutcomeLabels { outcome: "lost" })
    }

    /// Puts telemetry into the bucket, and waits until the feed has it.
    async fn put(&self, telemetry: Telemetry) -> Result<(), PublishError> {
        if self.feed.find_instance(&telemetry.tunnel_id).is_none() {
            return Err(UnknownTunnel.into());
        }
        let unavailable = |reason: String| {
            self.count_telemetry("not_acknowledged");
            PublishError::Unavailable(reason)
        };
        let mut links = self.link.subscribe();
        let link = links.borrow_and_update().clone();
        let link = link.ok_or_else(|| unavailable("NATS is not connected".to_owned()))?;
        let value = serde_json::to_vec(&telemetry).map_err(|error| unavailable(error.to_string()))?;
        let revision = tokio::select! {
            biased;
            revision = timeout(ACK_TIMEOUT, update(&link.store, &telemetry.tunnel_id, value.into())) => match revision {
                Ok(revision) => revision.map_err(unavailable)?,
                Err(_) => return Err(unavailable(format!("no answer of NATS within {} s", ACK_TIMEOUT.as_secs()))),
            },
            _ = links.wait_for(Option::is_none) => return Err(unavailable("the connection to NATS was lost".to_owned())),
        };
        self.count_telemetry("acknowledged");
        // An acknowledged post is not an error, even if this replica reads it later.
        let mut read = self.revision.subscribe();
        drop(timeout(VISIBLE_TIMEOUT, read.wait_for(|read| *read >= revision)).await);
        Ok(())
    }

    /// Sends the JSON of a message to the other replicas, if NATS is up and the queue of the client has room. It does not wait.
    fn send(&self, json: serde_json::Result<Vec<u8>>) {
        let link = self.link.borrow().clone();
        let is_sent = link.zip(json.ok()).is_some_and(|(link, json)| {
            // The client waits for room in its queue only. `unconstrained`: a task that has done much would wait too.
            let queued = unconstrained(link.client.publish(link.subject, json.into())).now_or_never();
            matches!(queued, Some(Ok(())))
        });
        self.count_message(if is_sent { "sent" } else { "not_sent" });
    }
}

/// Replaces the value of a key, and returns the new revision.
///
/// The bucket takes it only if nothing was put since this call began. Otherwise a value that waited in a connection, and that
/// was not acknowledged, could replace a newer one that was.
async fn update(store: &Store, key: &str, value: Bytes) -> Result<u64, String> {
    let mut conflict = String::new();
    for _ in 0..MAX_UPDATES {
        let stored = store.entry(key).await.map_err(|error| error.to_string())?;
        match store.update(key, value.clone(), stored.map_or(0, |entry| entry.revision)).await {
            Ok(revision) => return Ok(revision),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => conflict = error.to_string(),
            Err(error) => return Err(error.to_string()),
        }
    }
    Err(conflict)
}

impl Backbone for Nats {
    fn publish_telemetry(&self, telemetry: Telemetry) -> BoxFuture<'_, Result<(), PublishError>> {
        self.put(telemetry).boxed()
    }

    fn publish_mqtt_message(&self, message: MqttMessage) {
        let json = serde_json::to_vec(&message);
        // NATS does not send it back (`no_echo`): the own clients have it whatever NATS does.
        self.feed.publish_mqtt_message(message);
        self.send(json);
    }
}
