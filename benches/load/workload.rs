//! The changes that a measurement makes: of Pods in a simulated or a real cluster, messages to a publisher's URL, or
//! frames of the baseline. Each change carries the time at which it was made.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use boilerhouse_bridge::source::connect::ClusterConnection;
use http::{Request, Uri};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::{
    baseline::WriteCommand,
    clock::{TIMESTAMP_MARKER, now_micros},
    processes::ChildProcess,
    simulated_cluster::{CHANGING_PODS, SimulatedPods, pod, pod_name},
};

/// Where changes are made.
pub(crate) enum Workload {
    /// Pods of a simulated cluster in this process.
    Simulated(SimulatedPods),
    /// Pods of a real cluster.
    Kubernetes(Box<ClusterConnection>, Handle),
    /// POST requests.
    Publish(Publisher),
    /// No changes: the server's own events are measured.
    Nothing,
}

/// `rate` changes a second, `burst` of them at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadRate {
    pub(crate) rate: f64,
    pub(crate) burst: u64,
}

impl LoadRate {
    /// Calls `step` at this rate for this time. Returns the number of calls.
    pub(crate) fn run_at_rate(self, duration: Duration, mut step: impl FnMut(u64) -> Result<()>) -> Result<u64> {
        let start = Instant::now();
        let interval = Duration::from_secs_f64(self.burst as f64 / self.rate);
        let mut count = 0;
        loop {
            let due = interval * u32::try_from(count)?;
            if due >= duration {
                sleep(duration.saturating_sub(start.elapsed()));
                return Ok(count);
            }
            sleep(due.saturating_sub(start.elapsed()));
            step(count)?;
            count += 1;
        }
    }
}

/// Makes the baseline write for this time. Returns the number of frames that each connection was sent.
pub(crate) fn run_baseline(
    baseline: &mut ChildProcess,
    bytes: usize,
    rate: LoadRate,
    duration: Duration,
) -> Result<u64> {
    let command = WriteCommand { frames: rate.burst, bytes };
    Ok(rate.run_at_rate(duration, |_| baseline.send(&command))? * rate.burst)
}

impl Workload {
    /// Creates the Pods that will change.
    pub(crate) fn prepare(&self) -> Result<()> {
        match self {
            Workload::Simulated(pods) => pods.create_changing(),
            Workload::Kubernetes(connection, handle) => {
                (0..CHANGING_PODS).try_for_each(|number| create_pod(connection, handle, number))
            }
            Workload::Publish(_) | Workload::Nothing => Ok(()),
        }
    }

    /// Makes changes for this time. Returns their number.
    pub(crate) fn run(&mut self, rate: LoadRate, duration: Duration) -> Result<u64> {
        if matches!(self, Workload::Nothing) {
            sleep(duration);
            return Ok(0);
        }
        let steps = rate.run_at_rate(duration, |step| {
            let first = step * rate.burst;
            match self {
                Workload::Simulated(pods) => pods.change(first, rate.burst, ""),
                Workload::Kubernetes(connection, handle) => {
                    (first..first + rate.burst).try_for_each(|number| change_pod(connection, handle, number))
                }
                Workload::Publish(publisher) => (0..rate.burst).try_for_each(|_| publisher.publish()),
                Workload::Nothing => Ok(()),
            }
        })?;
        Ok(steps * rate.burst)
    }
}

fn create_pod(connection: &ClusterConnection, handle: &Handle, number: u64) -> Result<()> {
    let path = format!("/api/v1/namespaces/{}/pods", connection.namespace);
    match send(connection, handle, Request::post(path).header("content-type", "application/json"), &pod(number)) {
        // An earlier run may have created it.
        Err(error) if !error.to_string().contains("AlreadyExists") => Err(error).context("cannot create a Pod"),
        _ => Ok(()),
    }
}

fn change_pod(connection: &ClusterConnection, handle: &Handle, number: u64) -> Result<()> {
    let path = format!("/api/v1/namespaces/{}/pods/{}", connection.namespace, pod_name(number));
    let request = Request::patch(path).header("content-type", "application/merge-patch+json");
    // A real API server accepts five phases only. A label may have any text.
    let change = json!({"metadata": {"labels": {"phase": format!("t{}", now_micros())}}});
    send(connection, handle, request, &change).context("cannot change a Pod")
}

fn send(connection: &ClusterConnection, handle: &Handle, request: http::request::Builder, body: &Value) -> Result<()> {
    let request = request.body(serde_json::to_vec(body)?)?;
    handle.block_on(connection.client.request_text(request))?;
    Ok(())
}

/// Sends messages of `bytes` bytes by POST requests, all on one connection.
pub(crate) struct Publisher {
    uri: Uri,
    bytes: usize,
    stream: Option<TcpStream>,
}

impl Publisher {
    pub(crate) fn new(uri: Uri, bytes: usize) -> Publisher {
        Publisher { uri, bytes, stream: None }
    }

    fn publish(&mut self) -> Result<()> {
        let start = format!("{{{TIMESTAMP_MARKER}{}\",\"rest\":\"", now_micros());
        let body = format!("{start}{}\"}}", "x".repeat(self.bytes.saturating_sub(start.len() + 2)));
        let uri = &self.uri;
        let authority = uri.authority().context("the URL has no host")?.as_str();
        if self.stream.is_none() {
            let stream = TcpStream::connect(authority).with_context(|| format!("cannot connect to {authority}"))?;
            stream.set_nodelay(true)?;
            self.stream = Some(stream);
        }
        let stream = self.stream.as_mut().context("the publisher is not connected")?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let head = format!("POST {path} HTTP/1.1\r\nHost: {authority}\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes())?;
        let mut response = [0; 4096];
        let length = stream.read(&mut response)?;
        let text = String::from_utf8_lossy(&response[..length]);
        ensure!(text.starts_with("HTTP/1.1 2"), "{uri} answered: {}", text.lines().next().unwrap_or("nothing"));
        Ok(())
    }
}
