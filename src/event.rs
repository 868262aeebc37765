//! The vocabulary: what the bridge knows about an object, how far a reader has come, and what is said about a change.
//!
//! Values and pure functions only. Nothing here knows Kubernetes, HTTP, clocks or tasks; `protocol.md` sections 1 to 3
//! are the law of this module.

pub mod cursor;
pub mod lens;
pub mod render;
pub mod step;
pub mod view;

pub use cursor::{Cursor, Home};
pub use step::{Change, Notice, Pool, Step, Version, What};
pub use view::{Claim, Instance, View};

/// A Kubernetes resourceVersion: comparable within one resource, never across (KEP-5504).
pub type Rv = u64;

/// The two watched resources, in the order in which every `[Rv; 2]` holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Pods with the label `boilerhouse.dev/managed=true`.
    Instance = 0,
    /// BoilerhouseClaims.
    Claim = 1,
}

impl Kind {
    /// Both, in order.
    pub const ALL: [Kind; 2] = [Kind::Instance, Kind::Claim];

    /// The plural of the resource as Kubernetes spells it, which is how logs, metrics and `upstream.*` name it.
    #[must_use]
    pub fn resource(self) -> &'static str {
        match self {
            Kind::Instance => "pods",
            Kind::Claim => "boilerhouseclaims",
        }
    }
}
