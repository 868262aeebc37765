//! The client of a bridge: a stream of typed events over WebSocket or SSE, which reconnects and resumes by itself.
//!
//! It is written against `docs/protocol.md`, not against the types of the server, so that it also reads the streams of
//! other releases. The cargo feature `client` builds it without the dependencies of the server.
//!
//! ```no_run
//! # async fn example() -> Result<(), boilerhouse_bridge::client::Error> {
//! use boilerhouse_bridge::client::{Client, InstanceFilter, Payload, State};
//!
//! let filter = InstanceFilter::new().phase("Running").label("team", "a");
//! let mut events = Client::builder("http://127.0.0.1:3000").instances(filter).build()?.events();
//! let mut state = State::default();
//! while let Some(event) = events.next().await {
//!     match event {
//!         Ok(event) => {
//!             state.apply(&event);
//!             if let Payload::TenantClaimed(claimed) = &event.payload {
//!                 println!("{} holds {}", claimed.tenant_id.as_deref().unwrap_or_default(), claimed.name);
//!             }
//!         }
//!         // The stream reconnects.
//!         Err(error) if !error.is_final() => {
//!             state.connection_ended();
//!             eprintln!("{error}");
//!         }
//!         Err(error) => return Err(error),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Guarantees:
//! - A resumed connection continues after the last id, so that no event is lost or repeated. Events are returned when their
//!   id has arrived. Where the bridge cannot
//!   resume, it sends `state.initial` with a reason (docs/protocol.md#resume).
//! - A connection that is silent for two heartbeats counts as dead.
//! - A credential is never sent over plain HTTP to another host, unless [`Builder::allow_insecure`] is called, and never to
//!   the target of a redirect.
//! - Every buffer is bounded: one event has at most [`MAX_EVENT_BYTES`].
//!
//! Must not import: any other module of this crate.

mod backoff;
mod connect;
mod connection;
mod connector;
mod endpoint;
mod error;
mod event;
mod events;
mod filter;
mod rate_limit;
mod resume;
mod silence;
mod sse;
mod state;
mod tls;

pub use self::{
    backoff::{Backoff, random},
    connect::{Builder, Client},
    connection::{Connection, MAX_EVENT_BYTES},
    endpoint::{Credential, Transport},
    error::Error,
    event::{
        AuthExpiring, Claim, ClaimState, Endpoint, Event, Heartbeat, Instance, InstanceState, MqttMessage, Payload,
        Pool, PoolReady, RelayGap, StateInitial, StreamClosing, Telemetry, TelemetryMetrics, TenantEvent, Upstream,
    },
    events::Events,
    filter::{ClaimFilter, InstanceFilter},
    rate_limit::RateLimit,
    sse::{Block, Part},
    state::State,
};
#[cfg(feature = "server")]
pub(crate) use self::{
    connect::CONNECT_TIMEOUT,
    connection::innermost,
    endpoint::{has_wrong_port, without_credential},
    event::MAX_ID_BYTES,
    tls::config as tls_config,
};
