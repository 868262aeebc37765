//! Messages of an MQTT broker, on their way to the feed (docs/protocol.md#mqtt).
//!
//! Owns: the connection to the broker, and the queue between its reader and the sink of messages.
//!
//! Guarantees:
//! - The reader never waits for the sink. A message for which the queue has no room is dropped and counted.
//! - At most [`Config::rate`] messages a second are parsed and published, beside a burst of one second.
//! - A broker that cannot be reached, or sends what it should not, changes nothing but the state and the counts.
//!
//! Must not import: subscriptions, HTTP.

mod check;
mod connection;
mod intake;
mod status;

pub use self::{
    check::check,
    connection::{Config, TlsConfig, run},
    intake::Sink,
    status::{Metrics, Status},
};
