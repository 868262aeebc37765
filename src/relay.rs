//! The relay: one event stream of any server, read once and served to many clients (docs/protocol.md#relay).
//!
//! `upstream` reads the stream and reconnects, `history` holds the last events, `outbound` is one client's position
//! in them. `http` sends what an [`Outbound`] reads, with the transport and the fan-out of the bridge's own streams.
//!
//! Guarantees:
//! - Ids, event names, data and the order of the events are those of the upstream.
//! - Every buffer is bounded: the history by events and bytes, one event by [`crate::client::MAX_EVENT_BYTES`].
//! - What may be missing is reported as `relay.gap`, an upstream that does not answer as `matrix-down`.
//!
//! Must not import: `http`, events of a bridge other than `mqtt.message`, which a relay can add. Of `feed` it imports only what a transport reads.

mod continuity;
mod entry;
mod history;
mod metrics;
mod outbound;
mod upstream;

pub use self::{
    entry::{Entry, GapReason},
    history::{Group, History, Limits, Writer},
    metrics::Metrics,
    outbound::Outbound,
    upstream::{Config, run},
};
