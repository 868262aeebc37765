//! What the integration tests speak the protocol with (docs/development.md#code-style): everything here waits for a state with a bound.

pub(crate) mod accounts;
pub(crate) mod bridge_process;
pub(crate) mod cluster;
pub(crate) mod control_plane;
pub(crate) mod full_stream_client;
pub(crate) mod golden;
pub(crate) mod http_client;
pub(crate) mod in_process;
pub(crate) mod npm_client;
pub(crate) mod paused_clock;
pub(crate) mod proc_net_tcp;
pub(crate) mod rng;
pub(crate) mod seeds;
pub(crate) mod sim_cluster;
pub(crate) mod sse_client;
pub(crate) mod tcp_proxy;
pub(crate) mod ws_matrix;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Whether the long form of a test is asked for: larger counts, the protocol's real times.
#[allow(clippy::print_stdout, reason = "it is shown with the test's other output")]
pub(crate) fn long_form() -> bool {
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
pub(crate) fn ensure_file_limit(files: u64) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < files) {
        let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum: limit.maximum });
        assert!(raised.is_ok(), "this test opens {files} files: raise the hard limit (ulimit -Hn) to as many");
    }
}
