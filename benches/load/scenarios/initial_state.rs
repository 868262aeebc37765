//! The time until a client has a large initial state, beside the time of the plain LIST of the same Pods.

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{http_client::time_response, latency::median, target::SSE_NAMESPACE};

/// Number of requests of each kind. The result is the median.
const REPETITIONS: usize = 5;
/// Only the last part of an initial state has an id. In an event stream, the id is a line of its own.
const END_MARKER: &[u8] = b"\nid: ";

/// Milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InitialStateTiming {
    pub(crate) pods: u64,
    /// One LIST of all Pods from the API server.
    pub(crate) list: f64,
    /// The first `state.initial` after a change: the bridge renders it.
    pub(crate) rendered: f64,
    /// The second `state.initial` after a change: the bridge sends the cached bytes.
    pub(crate) cached: f64,
    pub(crate) bytes: usize,
}

/// Requests each of them in turn. `change` makes the next initial state differ from the last one.
pub(crate) fn measure(
    cluster: &str,
    bridge: &str,
    pods: u64,
    mut change: impl FnMut() -> Result<()>,
) -> Result<InitialStateTiming> {
    let (mut lists, mut rendered, mut cached, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for _ in 0..REPETITIONS {
        lists.push(time_response(cluster, &format!("/api/v1/namespaces/{SSE_NAMESPACE}/pods"), None)?.0);
        change()?;
        let first;
        (first, bytes) = time_response(bridge, "/api/sse", Some(END_MARKER))?;
        rendered.push(first);
        cached.push(time_response(bridge, "/api/sse", Some(END_MARKER))?.0);
    }
    let middle = |all| median(all).context("there is no measured time");
    Ok(InitialStateTiming { pods, list: middle(lists)?, rendered: middle(rendered)?, cached: middle(cached)?, bytes })
}

impl std::fmt::Display for InitialStateTiming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let InitialStateTiming { pods, list, rendered, cached, bytes } = self;
        write!(
            f,
            "initial state of {pods} Pods ({} KiB): {rendered:.1} ms, {:.2} x the plain LIST ",
            bytes >> 10,
            rendered / list
        )?;
        write!(f, "({list:.1} ms); {cached:.1} ms for the next client")
    }
}
