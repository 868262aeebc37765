//! The integration tests, one binary (style.md, 14).
// Helpers outside `#[test]` functions are test code too: a failed step there is a failed test, with its place; and what
// they print is shown with it.
#![allow(clippy::unwrap_used, clippy::print_stdout)]
#![allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]

mod auth;
mod boilerhouse;
mod browser;
mod clients;
mod command_line;
mod crowds;
mod demo;
mod drain;
mod echo;
mod filtered;
mod gets;
mod guard;
mod histories;
mod hostile;
mod lagged;
mod layering;
mod outage;
mod own;
mod plane;
mod promises;
mod rate;
mod rbac;
mod refetch;
mod resume;
mod review;
mod sim;
mod streams;
mod support;
mod tls;
mod truth;
mod two_replicas;
mod unbroken;
