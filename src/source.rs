//! Kubernetes, read: objects become views, watches become a feed's Writer calls. Nothing here knows who listens.

pub mod connect;
pub mod decode;
pub mod dedicated;
pub mod error;
pub mod hub;
pub mod review;
