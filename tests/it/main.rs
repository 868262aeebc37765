//! The integration tests, in one binary.

mod two_replicas;
