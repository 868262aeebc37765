//! Streams: WebSocket and SSE responses on hijacked sockets (docs/architecture.md#sockets).
//!
//! [`websocket`] and [`sse`] return the future that runs a stream to its end. What the stream sends comes from an
//! [`Outbound`].
//!
//! Owns: the sockets of all streams, the stream permits, and the shards that write to fan-out groups.
//!
//! Guarantees:
//! - One write for each batch: all frames that wait are written together.
//! - A stream that does not read costs its position and at most one batch of frames.
//! - The socket is read while a write is blocked, too. What a client may send in a second is bounded.
//! - Each end has a named reason ([`StreamEnd`]) and is counted.
//!
//! Must not import: event types, principals, endpoints. Of the feed and the relay it imports only what an
//! [`Outbound`] yields.
//!
//! Protocol: docs/protocol.md#stream-endpoints.

mod buffered_conn;
mod config;
pub(in crate::http) mod control;
mod end;
mod endpoint;
mod fan_out;
mod head;
mod input_debt;
mod jitter;
mod log;
mod metrics;
mod outbound;
mod permit;
mod protocol;
mod run;
mod task;

pub use self::{
    config::Config,
    end::StreamEnd,
    endpoint::{Endpoint, Transport},
    fan_out::FanOut,
    head::{sse_head, websocket_head},
    log::{Group, Log},
    metrics::Metrics,
    outbound::Outbound,
    permit::{StreamContext, StreamPermit},
    run::{sse, websocket},
};

#[cfg(test)]
mod tests;
