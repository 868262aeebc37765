//! What the integration tests speak the protocol with (style.md, 14): everything here waits for a state with a bound.

pub(crate) mod bridge;
pub(crate) mod cluster;
pub(crate) mod golden;
pub(crate) mod plane;
pub(crate) mod stage;
pub(crate) mod web;

/// Whether the long form of a test is asked for: larger counts, the protocol's real times.
pub(crate) fn full() -> bool {
    let full = std::env::var("BRIDGE_TESTS").is_ok_and(|tests| tests == "full");
    if !full {
        println!("the short form: BRIDGE_TESTS=full, or tests/run full, runs the long one");
    }
    full
}
