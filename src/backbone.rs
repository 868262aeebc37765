//! Where accepted telemetry and MQTT messages go: to the feed of this process, or through a broker to the feeds of all
//! replicas.
//!
//! Owns: no state.
//!
//! Guarantees: when a publication of telemetry succeeds, what was published is not lost as long as the backbone keeps what it promises.
//! An endpoint acknowledges a request only after that.
//!
//! Must not import: sources, HTTP. Kubernetes objects never go through a backbone: every replica watches for itself, which
//! keeps cursors exact.

#[cfg(feature = "nats")]
pub mod nats;

use std::fmt;

use futures::future::{BoxFuture, FutureExt, ready};
use thiserror::Error;

use crate::{
    event::{MqttMessage, Telemetry},
    feed::{Feed, UnknownTunnel},
};

/// Publishes what was accepted from outside. [`Feed`] implements it for one process.
pub trait Backbone: fmt::Debug + Send + Sync {
    /// Publishes the telemetry of a tunnel. The future resolves when the backbone has taken it. Dropping the future may or may
    /// not publish it.
    fn publish_telemetry(&self, telemetry: Telemetry) -> BoxFuture<'_, Result<(), PublishError>>;

    /// Publishes an MQTT message. It reaches the feed of this process at once, and other replicas if they can be reached.
    fn publish_mqtt_message(&self, message: MqttMessage);
}

/// Why something was not published.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PublishError {
    /// The instance of the tunnel has ended.
    #[error(transparent)]
    UnknownTunnel(#[from] UnknownTunnel),
    /// The broker did not acknowledge it. The text names the reason, without addresses or credentials.
    #[error("the broker did not acknowledge it: {0}")]
    Unavailable(String),
}

impl Backbone for Feed {
    fn publish_telemetry(&self, telemetry: Telemetry) -> BoxFuture<'_, Result<(), PublishError>> {
        ready(Feed::publish_telemetry(self, telemetry).map_err(PublishError::from)).boxed()
    }

    fn publish_mqtt_message(&self, message: MqttMessage) {
        Feed::publish_mqtt_message(self, message);
    }
}
