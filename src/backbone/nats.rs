//! NATS between the replicas of a bridge: telemetry in a JetStream key-value bucket, MQTT messages through a subject
//! (docs/protocol.md#replicas).
//!
//! Owns: the connection, and telemetry of instances that this replica does not know yet.
//!
//! Guarantees:
//! - Telemetry is published only after the bucket has it. It reaches the feed in the order of its revisions in the bucket,
//!   and in no other way: a revision that the bucket repeats after a reconnect is not published again.
//! - While NATS is down, the feed keeps what it has, MQTT messages of this replica reach its own feed, and telemetry is not
//!   accepted.
//!
//! Must not import: sources, HTTP.

mod check;
mod connection;
mod pending;
mod shared;

pub use self::{
    check::check,
    connection::{Config, start},
    shared::{Metrics, Nats},
};
