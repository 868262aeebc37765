//! Messages of an MQTT broker, on their way to the streams (docs/protocol.md#mqtt).
//!
//! Owns: the connection to the broker, and the queue between its reader and the publication.
//!
//! Guarantees:
//! - The reader never waits for a publication. A message for which the queue has no room is dropped and counted.
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
    connection::{Config, run},
    intake::PublishMessage,
    status::{Metrics, Status},
};
