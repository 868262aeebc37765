//! A simulated Kubernetes API in one process, for `demo` and for tests: lists, watches, writes, and reviews of tokens
//! and of users, as kube-apiserver 1.36 answers them.
//!
//! Owns: the objects and their history ([`store`]), the injected faults ([`fault`]), the tokens and grants
//! ([`review`]), and the request counters. [`Sim`] is the handle.
//!
//! Guarantees:
//! - `tests/it/sim_conformance` runs the same checks against the simulator and against a real API server.
//! - Time is tokio's clock, so that a test can pause it.
//! - A watch is a stream that its client polls. The simulator spawns a task for each connection of [`Sim::serve`], and
//!   no other task.
//!
//! Must not import: other modules of this crate, except `api`. In particular, `source::decode` would hide errors of the
//! decoder.
//!
//! Documentation: `docs/architecture.md#simulated-kubernetes-api`, `docs/kubernetes-behavior.md`.

mod api;
mod discovery;
pub mod fault;
mod handle;
mod list_options;
mod path;
mod resource;
pub mod review;
pub mod scenario;
mod serve;
mod status;
pub mod store;
mod watch;
mod write;

pub use self::{
    api::Service,
    handle::{Metrics, Sim, SimConfig},
    resource::{ApiResource, Verb},
};
