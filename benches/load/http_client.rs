//! Blocking HTTP requests to the bridge and to the simulated API server.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use memchr::memmem;
use rustls::ClientConfig;

use crate::tls;

/// No response takes longer, or the run fails: 60 s.
const TIMEOUT: Duration = Duration::from_secs(60);
/// A bridge is ready within 10 s, or the run fails.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Returns the complete response, head included.
pub(crate) fn get(address: &str, path: &str, trust: Option<&Arc<ClientConfig>>) -> Result<String> {
    let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    match trust {
        Some(trust) => exchange(tls::blocking(stream, trust)?, address, path),
        None => exchange(stream, address, path),
    }
}

fn exchange(mut stream: impl Read + Write, address: &str, path: &str) -> Result<String> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut response = String::new();
    stream.read_to_string(&mut response).with_context(|| format!("{address} did not answer"))?;
    Ok(response)
}

/// Waits until `/readyz` answers 200.
pub(crate) fn wait_until_ready(address: &str, trust: Option<&Arc<ClientConfig>>) -> Result<()> {
    let limit = Instant::now() + READY_TIMEOUT;
    while Instant::now() < limit {
        if get(address, "/readyz", trust)?.starts_with("HTTP/1.1 200") {
            return Ok(());
        }
        sleep(POLL_INTERVAL);
    }
    bail!("the bridge was not ready within {READY_TIMEOUT:?}")
}

/// Returns the sum of the samples of a metric that have all `labels`, each written as `name="value"`; `None` without one.
pub(crate) fn metric(address: &str, name: &str, labels: &[&str]) -> Result<Option<u64>> {
    let response = get(address, "/metrics", None)?;
    let mut sum = None;
    for line in response.lines() {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let (series_name, series_labels) = series.split_once('{').unwrap_or((series, "}"));
        let has = |label: &&str| series_labels.trim_end_matches('}').split(',').any(|part| part == *label);
        if series_name == name && labels.iter().all(has) {
            let value: u64 = value.parse().with_context(|| format!("the metric {name} is not an integer"))?;
            sum = Some(sum.unwrap_or(0) + value);
        }
    }
    Ok(sum)
}

/// Returns the milliseconds from the request until `end_marker` or the end of the response, and the number of bytes.
pub(crate) fn time_response(address: &str, path: &str, end_marker: Option<&[u8]>) -> Result<(f64, usize)> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let start = Instant::now();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let (mut text, mut chunk) = (Vec::new(), vec![0; 256 << 10]);
    loop {
        let length = stream.read(&mut chunk)?;
        text.extend_from_slice(&chunk[..length]);
        // Two reads may have split the marker.
        let unsearched = text.len().saturating_sub(length + end_marker.map_or(0, <[u8]>::len));
        let is_found = end_marker.is_some_and(|marker| memmem::find(&text[unsearched..], marker).is_some());
        if is_found || length == 0 {
            ensure!(is_found || end_marker.is_none(), "{address}{path} ended before its end marker");
            ensure!(text.starts_with(b"HTTP/1.1 200"), "{address}{path} did not answer 200");
            return Ok((start.elapsed().as_secs_f64() * 1000.0, text.len()));
        }
    }
}
