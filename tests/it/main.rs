//! The integration tests, one binary (style.md, 14).
// Helpers outside `#[test]` functions are test code too: a failed step there is a failed test, with its place.
#![allow(clippy::unwrap_used)]
#![allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]

mod boilerhouse;
mod command_line;
mod drain;
mod echo;
mod gets;
mod guard;
mod hostile;
mod layering;
mod own;
mod plane;
mod refetch;
mod sim;
mod support;
mod truth;
mod two_replicas;
