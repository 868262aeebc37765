//! What the endpoint of telemetry posts needs beside the feed: the validator, the backbone, the bounds of bodies, and the
//! outcomes as metrics.
//!
//! Must not import: endpoints.

use std::{num::NonZeroUsize, sync::Arc};

use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use serde_json::Value;
use tokio::sync::Semaphore;

use super::{
    response_budget::{self, ResponseBudget},
    sync::run_blocking,
};
use crate::{
    backbone::Backbone,
    validate::{Validator, Violations},
};

/// Maximum bytes of the bodies that are read or validated at once: 16 MiB, of one caller a quarter.
const MAX_BODY_BYTES: usize = 16 << 20;
/// Validations that may run on blocking threads at once.
const MAX_VALIDATIONS: usize = 2;

/// The outcome of a telemetry post, by the label of its metric.
pub(super) type Outcome = &'static str;
/// Every outcome: it was accepted, or why not.
const OUTCOMES: [Outcome; 8] =
    ["accepted", "malformed", "too_large", "invalid", "refused", "unknown_tunnel", "rate", "unavailable"];

/// What telemetry posts share.
#[derive(Debug)]
pub struct Ingest {
    /// Where accepted telemetry goes.
    pub(super) backbone: Arc<dyn Backbone>,
    validator: Arc<Validator>,
    /// The bytes of the bodies that are being read or validated.
    pub(super) bodies: ResponseBudget,
    validations: Arc<Semaphore>,
    outcomes: Family<[(&'static str, Outcome); 1], Counter>,
}

impl Ingest {
    /// Creates it without counts.
    #[must_use]
    pub fn new(backbone: Arc<dyn Backbone>, validator: Arc<Validator>) -> Ingest {
        let outcomes = Family::default();
        OUTCOMES.iter().for_each(|outcome| drop(Family::get_or_create(&outcomes, &[("outcome", *outcome)])));
        let bodies = ResponseBudget::new(response_budget::Config { max_bytes: MAX_BODY_BYTES, ..Default::default() });
        let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let validations = Arc::new(Semaphore::new(threads.min(MAX_VALIDATIONS)));
        Ingest { backbone, validator, bodies, validations, outcomes }
    }

    /// Registers the metrics, those of the validator too. The caller sets the prefix of the registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("telemetry_posts", "Posts of telemetry with a valid credential", self.outcomes.clone());
        self.validator.metrics().register(registry);
    }

    /// Counts a post.
    pub(super) fn count(&self, outcome: Outcome) {
        self.outcomes.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// Validates the body of a post with the schema pack and the module. Only its bytes wait for the module, for which the
    /// caller has a reservation: the value can take many times their memory.
    pub(super) async fn validate(&self, value: Value, body: Vec<u8>) -> Violations {
        let validator = self.validator.clone();
        let violations = validator.check_fields(Some("telemetry"), &value);
        drop(value);
        if !violations.is_empty() {
            return violations;
        }
        if !validator.may_block() {
            return validator.examine(&body);
        }
        run_blocking(&self.validations, move || validator.examine(&body)).await
    }
}
