//! The endpoints, one file for each group. No endpoint imports another.

pub(super) mod assets;
pub(super) mod boilerhouse_ws;
pub(super) mod documents;
pub(super) mod event_streams;
pub(super) mod index;
pub(super) mod metrics;
pub(super) mod probes;
pub(super) mod relay;
pub(super) mod sessions;
pub(super) mod state;
pub(super) mod telemetry;
