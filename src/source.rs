//! Kubernetes, read: objects become views, watches become a feed's Writer calls. Nothing here knows who listens.

pub mod connect;
pub mod crd;
pub mod hub;
pub mod own;
pub mod project;
pub mod review;
pub mod trouble;
