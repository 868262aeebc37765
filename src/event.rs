//! The vocabulary: what the bridge knows about an object, how far a reader has come, and what is said about a change.
//!
//! Values and pure functions only. Nothing here knows Kubernetes, HTTP, clocks or tasks; `protocol.md` sections 1 to 3
//! are the law of this module.

pub mod cursor;
pub mod log_entry;
pub mod projection;
pub mod render;
pub mod view;

pub use cursor::{Cursor, Home};
pub use log_entry::{Change, Notice, Pool, Step, Version, What};
pub use view::{Claim, Instance, View};

/// A Kubernetes resourceVersion: comparable within one resource, never across (KEP-5504).
pub type ResourceVersion = u64;

/// The two watched resources, in the order in which every `[Rv; 2]` holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// Pods with the label `boilerhouse.dev/managed=true`.
    Instance = 0,
    /// BoilerhouseClaims.
    Claim = 1,
}

impl Resource {
    /// Both, in order.
    pub const ALL: [Resource; 2] = [Resource::Instance, Resource::Claim];

    /// The plural of the resource as Kubernetes spells it, which is how logs, metrics and `upstream.*` name it.
    #[must_use]
    pub fn resource(self) -> &'static str {
        match self {
            Resource::Instance => "pods",
            Resource::Claim => "boilerhouseclaims",
        }
    }
}
