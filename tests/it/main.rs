//! All integration tests, in one binary.
#![allow(clippy::unwrap_used, reason = "in a test a panic is the message")]

mod sim;
mod truth;
