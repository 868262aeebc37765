//! The feed: one order of changes, the current state, and who has read how far.
//!
//! Facts come in through the one [`Writer`]; clients read through [`Subscription`]s, each a position in the log and a
//! lens. Always true: the inventory is what the log's end says; `latest_versions` never go back within a history; what a
//! client is served is a function of the log, its lens and its cursor. Under the lock there is pushing and cloning of
//! `Arc`s only. Nothing here knows where facts come from, what a socket is, or who a client is.

mod backfill;
mod backfill_requests;
mod framing;
mod group;
mod handle;
mod inner;
pub mod inventory;
mod metrics;
mod pool_depth;
mod projection_cache;
mod projection_registry;
mod read_your_writes;
mod resume;
pub mod snapshot;
mod state;
mod subscription;
mod types;
mod writer;

pub use self::{
    backfill::{BackfillHandle, BackfillRound, Gap},
    framing::{FrameFormat, Framing},
    group::Group,
    handle::Feed,
    metrics::Metrics,
    projection_cache::{ProjectionCache, SharedBatch},
    snapshot::Snapshot,
    subscription::Subscription,
    types::{Config, Health, NotSynced, ReadResult, SnapshotReason, SourceState, StartAt},
    writer::Writer,
};
