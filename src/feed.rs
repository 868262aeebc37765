//! The feed: the ordered log of changes, the current state and the subscriptions of one watched namespace.
//!
//! A source writes through the only [`Writer`]. Clients read through [`Subscription`]s: each has a position in the log
//! and a projection.
//!
//! *Owns* the state and its lock, the ring log, the inventory, and the rendered bytes that subscriptions share.
//!
//! *Guarantees:*
//! - The inventory is the state at the end of the log.
//! - The latest versions never go back, except by a history reset.
//! - What a client receives is a function of the log, its projection and its cursor.
//! - Under the lock the code appends entries and clones `Arc`s. It does not render or encode there.
//!
//! *Must not import* sources, sockets or principals: a subscription receives a projection, not a client.
//!
//! The contract is docs/architecture.md#feed-contract. The files import each other in the order of
//! docs/architecture.md#module-layers.

mod backfill;
mod backfill_requests;
mod collector;
mod ephemeral;
mod filter_index;
mod framing;
mod group;
mod handle;
mod inner;
pub mod inventory;
mod latest_telemetry;
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
mod unproven_rest;
mod writer;

pub use self::{
    backfill::{BackfillFailure, BackfillHandle, BackfillRound, Gap},
    ephemeral::UnknownTunnel,
    framing::{FrameFormat, Framing},
    group::Group,
    handle::Feed,
    projection_cache::{ProjectionCache, SharedBatch},
    snapshot::Snapshot,
    subscription::Subscription,
    types::{Config, Health, NotSynced, ReadResult, SnapshotReason, SourceState, StartAt},
    writer::Writer,
};
