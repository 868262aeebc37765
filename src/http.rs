//! The HTTP server: connections, routes, authentication, limits and streams.
//!
//! [`conn`] owns the sockets, [`stream`] sends what a subscription reads, `routes` maps each path to an endpoint.
//! [`browser_guard`] checks `Host` and `Origin`, [`auth`] authenticates, [`rate_limit`] counts requests and streams.
//!
//! Must not import: Kubernetes or a source. All data is read from a [`crate::feed::Feed`] or a
//! [`crate::relay::History`].

mod admit;
mod app;
mod assets;
pub mod auth;
mod body;
pub mod browser_guard;
pub mod caller;
pub mod conn;
mod cors;
mod endpoints;
pub mod error;
mod etag;
pub mod filter_limit;
pub mod forwarded;
mod guard_filter;
mod ingest;
mod metrics;
pub mod paced_body;
pub mod rate_limit;
mod relay_outbound;
mod request;
pub mod response_budget;
mod route;
mod routes;
mod snapshot_response;
pub mod stream;
mod stream_credential;
mod stream_endpoint;
pub mod stream_rate;
mod subscription_outbound;
mod sync;
mod unavailable;
mod upgrade;

pub use self::{
    app::{App, Config, ConnectionInfo, DedicatedFeedFactory, ServedFeed, ServedRelay},
    ingest::Ingest,
    metrics::Metrics,
    routes::{Content, Listener, service},
};
