//! The integration tests, one binary (style.md, 14).
// Helpers outside `#[test]` functions are test code too: a failed step there is a failed test, with its place; what they
// spawn ends with the test's runtime; what they print is kept for failing tests.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout)]

mod boilerhouse;
mod browser;
mod command_line;
mod gets;
mod guard;
mod layering;
mod plane;
mod sim;
mod support;
mod truth;
mod two_replicas;
