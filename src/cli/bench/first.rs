//! How long a large first state takes, beside the bare LIST of the same pods.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use memchr::memmem;
use serde::Serialize;

/// How often each is asked for; the median counts.
const TIMES: usize = 5;
/// No answer takes longer, or the run fails.
const BOUND: Duration = Duration::from_secs(60);
/// Only the last part of a state has an id, and in an event stream it stands on a line of its own.
const LAST_PART: &[u8] = b"\nid: ";

/// Milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct First {
    pub(super) pods: u64,
    /// One LIST of all of them, asked of the API server and read to its end.
    list: f64,
    /// The first `state.initial` after a change, which is made for it, and one more, which is not.
    made: f64,
    shared: f64,
    bytes: usize,
}

/// Asks both in turn. `change` makes the next state another one.
pub(super) fn measure(cluster: &str, bridge: &str, pods: u64, mut change: impl FnMut() -> Result<()>) -> Result<First> {
    let (mut lists, mut made, mut shared, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for _ in 0..TIMES {
        lists.push(answer(cluster, "/api/v1/namespaces/sse/pods", None)?.0);
        change()?;
        let first;
        (first, bytes) = answer(bridge, "/api/sse", Some(LAST_PART))?;
        made.push(first);
        shared.push(answer(bridge, "/api/sse", Some(LAST_PART))?.0);
    }
    let [list, made, shared] = [lists, made, shared].map(|mut all| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    });
    Ok(First { pods, list, made, shared, bytes })
}

impl std::fmt::Display for First {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let First { pods, list, made, shared, bytes } = self;
        write!(
            f,
            "first state of {pods} pods ({} KiB): {made:.1} ms, {:.2} x the bare LIST ",
            bytes >> 10,
            made / list
        )?;
        write!(f, "({list:.1} ms); {shared:.1} ms for whoever comes next")
    }
}

/// Milliseconds from the request until `mark` or the end has come, and how many bytes there were.
pub(super) fn answer(address: &str, path: &str, mark: Option<&[u8]>) -> Result<(f64, usize)> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("no connection to {address}"))?;
    stream.set_read_timeout(Some(BOUND))?;
    let began = Instant::now();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let (mut text, mut piece) = (Vec::new(), vec![0; 256 << 10]);
    loop {
        let length = stream.read(&mut piece)?;
        text.extend_from_slice(&piece[..length]);
        // The mark may have come in two pieces.
        let fresh = text.len().saturating_sub(length + mark.map_or(0, <[u8]>::len));
        let is_there = mark.is_some_and(|mark| memmem::find(&text[fresh..], mark).is_some());
        if is_there || length == 0 {
            ensure!(is_there || mark.is_none(), "{address}{path} ended too soon");
            ensure!(text.starts_with(b"HTTP/1.1 200"), "{address}{path} answered something else");
            return Ok((began.elapsed().as_secs_f64() * 1000.0, text.len()));
        }
    }
}
