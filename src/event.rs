//! Vocabulary of the bridge: resources, views of objects, cursors, projections, log entries, and their JSON events.
//!
//! Owns: no state. It contains values and pure functions only.
//!
//! Guarantees: the events of a client are a function of a log entry and a projection ([`render`]).
//!
//! Must not import: Kubernetes clients, HTTP, clocks, tasks, and other modules of this crate.
//!
//! Implements `docs/protocol.md#objects`, `docs/protocol.md#boilerhouse-stream`, `docs/protocol.md#full-stream` and the values
//! of `docs/protocol.md#telemetry`.

pub mod cursor;
pub mod hash;
pub mod log_entry;
pub mod projection;
pub mod render;
pub mod resource;
pub mod telemetry;
mod timestamp;
pub mod view;

pub use cursor::{Cursor, NamespaceId};
pub use log_entry::{Change, ChangeSet, EntryKind, EphemeralEvent, LogEntry, PoolDepth};
pub use resource::{PerResource, Resource, ResourceVersion};
pub use telemetry::{MqttMessage, Telemetry, TelemetryMetrics};
pub use view::{Claim, Instance, View};
