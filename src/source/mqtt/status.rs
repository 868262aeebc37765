//! The state of the connection to the broker, and the counts of its messages.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tracing::warn;

use crate::broker::{self, Connection};

/// What happened to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is an event.
    Published,
    /// The queue was full.
    Dropped,
    /// Its payload has more bytes than the bound.
    TooLarge,
    /// Its payload is no JSON, or it is empty.
    NotJson,
    /// The schema pack or the module does not accept it.
    Refused,
}

impl Outcome {
    const ALL: [Outcome; 5] =
        [Outcome::Published, Outcome::Dropped, Outcome::TooLarge, Outcome::NotJson, Outcome::Refused];

    fn name(self) -> &'static str {
        match self {
            Outcome::Published => "published",
            Outcome::Dropped => "dropped",
            Outcome::TooLarge => "too_large",
            Outcome::NotJson => "not_json",
            Outcome::Refused => "refused",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// Metrics of the MQTT input.
#[derive(Clone, Debug)]
pub struct Metrics {
    connection: broker::Metrics,
    message_family: Family<OutcomeLabels, Counter>,
    messages: [Counter; Outcome::ALL.len()],
}

impl Default for Metrics {
    fn default() -> Metrics {
        let message_family = Family::<OutcomeLabels, Counter>::default();
        let counter = |outcome: Outcome| message_family.get_or_create_owned(&OutcomeLabels { outcome: outcome.name() });
        let messages = Outcome::ALL.map(counter);
        Metrics { connection: broker::Metrics::default(), messages, message_family }
    }
}

impl Metrics {
    /// Registers the metrics. The caller sets the prefix of the registry.
    pub fn register(&self, registry: &mut Registry) {
        let helps = [
            "1 while the bridge has its subscriptions at the broker",
            "Connections whose subscriptions the broker accepted",
            "Tries without subscriptions, and connections that ended",
        ];
        self.connection.register(registry, "mqtt", helps);
        registry.register(
            "mqtt_messages",
            "Messages of the broker, by what happened to them",
            self.message_family.clone(),
        );
    }

    fn count(&self, outcome: Outcome) -> u64 {
        self.messages[outcome as usize].get()
    }
}

/// The state of the input, which its tasks change and `/readyz?verbose` shows.
#[derive(Debug)]
pub struct Status {
    pub(super) connection: Connection,
    metrics: Metrics,
}

impl Status {
    /// Creates the state before the first try.
    #[must_use]
    pub fn new(metrics: Metrics) -> Status {
        Status { connection: Connection::new("MQTT broker", metrics.connection.clone()), metrics }
    }

    /// Returns the line for `/readyz?verbose`.
    #[must_use]
    pub fn line(&self) -> String {
        let state = self.connection.text();
        let counts = self.counts();
        let refused: u64 =
            counts.iter().filter(|(outcome, _)| *outcome != Outcome::Dropped).map(|(_, count)| count).sum();
        let dropped = self.metrics.count(Outcome::Dropped);
        format!("mqtt: {state}; {dropped} messages dropped, {refused} not accepted")
    }

    pub(super) fn count(&self, outcome: Outcome) {
        self.metrics.messages[outcome as usize].inc();
    }

    /// Returns how many messages were not published, by the reason.
    pub(super) fn counts(&self) -> [(Outcome, u64); Outcome::ALL.len() - 1] {
        let [_, refused @ ..] = Outcome::ALL;
        refused.map(|outcome| (outcome, self.metrics.count(outcome)))
    }

    /// Logs how many messages were not published since `before`, if there are any. Returns the counts of now.
    pub(super) fn report(
        &self,
        before: [(Outcome, u64); Outcome::ALL.len() - 1],
    ) -> [(Outcome, u64); Outcome::ALL.len() - 1] {
        let now = self.counts();
        let [dropped, too_large, not_json, refused] = std::array::from_fn(|index| now[index].1 - before[index].1);
        if now != before {
            warn!(dropped, too_large, not_json, refused, "MQTT messages not published in the last minute");
        }
        now
    }
}
