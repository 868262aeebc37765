//! Clients, servers and clusters for the integration tests (docs/development.md#test-layers).
//!
//! Guarantees: every wait is for a state and has a bound. Nothing here sleeps for a fixed time to let something happen.

pub(crate) mod accounts;
pub(crate) mod bridge_process;
#[cfg(any(feature = "mqtt", feature = "nats"))]
pub(crate) mod broker;
pub(crate) mod cluster;
pub(crate) mod control_plane;
pub(crate) mod full_stream_client;
pub(crate) mod golden;
pub(crate) mod http_client;
pub(crate) mod in_process;
pub(crate) mod npm_client;
pub(crate) mod paused_clock;
pub(crate) mod proc_net_tcp;
#[cfg(feature = "top")]
pub(crate) mod pty;
pub(crate) mod schemas;
pub(crate) mod scripted_api;
pub(crate) mod sim_cluster;
pub(crate) mod sse_client;
pub(crate) mod sse_upstream;
pub(crate) mod stream_latency;
pub(crate) mod tcp_proxy;
pub(crate) mod ws_matrix;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Returns whether `BRIDGE_TESTS=full` selects the long form of a test: larger counts and the real durations of the
/// protocol.
#[allow(clippy::print_stdout, reason = "libtest prints it with the other output of the test")]
pub(crate) fn long_form() -> bool {
    let full = std::env::var("BRIDGE_TESTS").is_ok_and(|tests| tests == "full");
    if !full {
        println!("short form; BRIDGE_TESTS=full or `tests/run full` runs the long form");
    }
    full
}

/// Raises the limit of open files to at least `files`, for this process and the processes that it starts.
///
/// # Panics
/// When the hard limit is lower. The message says what to do.
pub(crate) fn ensure_file_limit(files: u64) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < files) {
        let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum: limit.maximum });
        assert!(raised.is_ok(), "this test opens {files} files; raise the hard limit (ulimit -Hn) to at least {files}");
    }
}
