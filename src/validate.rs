//! Validation of payloads from outside the cluster, before they become events: telemetry and MQTT messages.
//!
//! Owns: the schema pack and the module that operators can configure.
//!
//! Guarantees: the result is a function of the payload and the configuration. The memory and the time of a validation are
//! bounded.
//!
//! Must not import: any other module of this crate.
//!
//! Implements `docs/protocol.md#schema-pack` and `docs/protocol.md#wasm`.

pub mod schema_pack;
mod validator;
mod violation;

pub use self::{
    validator::{Metrics, Validator},
    violation::{Violation, Violations},
};
