//! boilerhouse-bridge: what happens to a Boilerhouse platform's Kubernetes objects, as a live stream of JSON events.
pub mod event;
pub mod feed;
pub mod http;
pub mod source;
pub mod tasks;
pub mod wire;
