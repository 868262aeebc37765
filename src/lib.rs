//! boilerhouse-bridge: what happens to a Boilerhouse platform's Kubernetes objects, as a live stream of JSON events.
pub mod event;
pub mod feed;
pub mod sim;
pub mod source;
