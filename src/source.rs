//! The Kubernetes side of the bridge: it decodes objects into views and writes lists and watches to a feed.
//!
//! Must not import: `http`, `sim`, and readers of the feed (docs/architecture.md#source).

mod answer;
pub mod connect;
pub mod decode;
pub mod dedicated;
pub mod diagnose;
pub mod error;
pub mod hub;
mod line_splitter;
pub mod list_limits;
#[cfg(feature = "mqtt")]
pub mod mqtt;
pub mod port_forward;
mod resource_family;
pub mod retry;
pub mod review;
