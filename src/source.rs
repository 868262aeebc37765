//! Kubernetes, read: objects become views, watches become a feed's Writer calls. Nothing here knows who listens.

pub mod crd;
pub mod project;
