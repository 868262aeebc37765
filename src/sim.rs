//! A simulated Kubernetes API.

mod api;
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
