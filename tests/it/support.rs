//! What the integration tests speak the protocol with (style.md, 14): everything here waits for a state with a bound.

pub(crate) mod bridge;
pub(crate) mod golden;
pub(crate) mod node;
pub(crate) mod plane;
pub(crate) mod simulated;
pub(crate) mod web;

/// Whether the long forms of tests were asked for, as `tests/run full` does: larger counts, the protocol's real times.
pub(crate) fn full() -> bool {
    let full = std::env::var("BRIDGE_TESTS").is_ok_and(|which| which == "full");
    if !full {
        println!("the short form; BRIDGE_TESTS=full runs the long one");
    }
    full
}
