//! Validation of payloads from outside the cluster, before they become events: telemetry and MQTT messages.
//!
//! Owns: the schema pack and the module that operators can configure.
//!
//! Guarantees: the result is a function of the payload and the configuration. The memory and the time of a validation are
//! bounded.
//!
//! Must not import: any other module of this crate but `event`.
//!
//! Implements `docs/protocol.md#schema-pack` and `docs/protocol.md#wasm`.

mod booster;
mod json_schema;
pub mod schema_pack;
pub mod telemetry;
mod unique_json;
mod validator;
mod violation;

pub use self::{
    booster::{Booster, BoosterError, MAX_MODULE_BYTES},
    unique_json::{Repeated, parse as parse_json},
    validator::{Metrics, Validator},
    violation::{Violation, Violations},
};
