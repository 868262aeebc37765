//! The integration tests, one binary (style.md, 14).
// Helpers outside `#[test]` functions are test code too: a failed step there is a failed test, with its place.
// What they print is shown with it.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod boilerhouse;
mod layering;
mod outage;
mod plane;
mod promises;
mod sim;
mod support;
mod truth;
mod two_replicas;
