//! What the integration tests speak the protocol with (style.md, 14): everything here waits for a state with a bound.

pub(crate) mod bridge;
pub(crate) mod clock;
pub(crate) mod cluster;
pub(crate) mod dice;
pub(crate) mod door;
pub(crate) mod full;
pub(crate) mod golden;
pub(crate) mod house;
pub(crate) mod node;
pub(crate) mod people;
pub(crate) mod plane;
pub(crate) mod simulated;
pub(crate) mod sockets;
pub(crate) mod sse;
pub(crate) mod stage;
pub(crate) mod web;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Whether the long form of a test is asked for: larger counts, the protocol's real times.
#[allow(clippy::print_stdout, reason = "it is shown with the test's other output")]
pub(crate) fn full() -> bool {
    let full = std::env::var("BRIDGE_TESTS").is_ok_and(|tests| tests == "full");
    if !full {
        println!("the short form: BRIDGE_TESTS=full, or tests/run full, runs the long one");
    }
    full
}

/// Lets this process open so many files, and the processes that it starts.
///
/// # Panics
/// Where that is not allowed, with what to do.
pub(crate) fn may_open(files: u64) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < files) {
        let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum: limit.maximum });
        assert!(raised.is_ok(), "this test opens {files} files: raise the hard limit (ulimit -Hn) to as many");
    }
}
