//! The validator: the schema pack and the Wasm module, in this order.

use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use serde_json::Value;

use super::{booster::Booster, schema_pack::SchemaPack, violation::Violations};

/// Validates payloads of telemetry and of MQTT messages.
#[derive(Debug, Default)]
pub struct Validator {
    pack: SchemaPack,
    booster: Booster,
    metrics: Metrics,
}

/// Payloads by what examined them and the outcome.
#[derive(Clone, Debug)]
pub struct Metrics {
    family: Family<[(&'static str, &'static str); 2], Counter>,
    pack: [Counter; 2],
    booster: [Counter; 2],
}

impl Default for Metrics {
    fn default() -> Self {
        let family = Family::<[(&'static str, &'static str); 2], Counter>::default();
        let counters = |validator| {
            ["passed", "refused"]
                .map(|outcome| family.get_or_create(&[("validator", validator), ("outcome", outcome)]).clone())
        };
        let pack = counters("schema_pack");
        let booster = counters("wasm");
        Metrics { pack, booster, family }
    }
}

impl Metrics {
    /// Registers the metrics. The caller sets the prefix of the registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("validations", "Payloads from outside by what validated them", self.family.clone());
    }
}

fn count([passed, refused]: &[Counter; 2], violations: &Violations) {
    if violations.is_empty() { passed } else { refused }.inc();
}

impl Validator {
    /// Creates a validator with this pack and this module.
    #[must_use]
    pub fn new(pack: SchemaPack, booster: Booster) -> Validator {
        Validator { pack, booster, ..Validator::default() }
    }

    /// Returns the metrics.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Validates a payload with the schema pack. `entity` names the entity of a payload that does not name it itself; the
    /// entity of an MQTT message is in the message (`None`).
    #[must_use]
    pub fn check_fields(&self, entity: Option<&str>, payload: &Value) -> Violations {
        let violations = self.pack.validate(entity, payload);
        count(&self.metrics.pack, &violations);
        violations
    }

    /// Validates the JSON text of a payload that the schema pack has passed with the module. The parsed payload is not needed,
    /// so that it does not take memory while the text waits for its turn.
    ///
    /// It can take some 100 ms with a slow module: call it on a blocking thread if [`Validator::may_block`].
    #[must_use]
    pub fn examine(&self, json: &[u8]) -> Violations {
        let mut violations = Violations::default();
        if let Err(reason) = self.booster.examine(json) {
            violations.add("", reason);
        }
        count(&self.metrics.booster, &violations);
        violations
    }

    /// Returns whether [`Validator::examine`] can take longer than a few microseconds for each KiB.
    #[must_use]
    pub fn may_block(&self) -> bool {
        self.booster.may_block()
    }
}
