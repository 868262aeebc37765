//! What makes things happen: changes of pods in a simulated or a real cluster, messages to a publisher's URL, or frames
//! of the floor. Each change says in its phase when it was made.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use http::{Request, Uri};
use serde_json::json;
use tokio::runtime::Handle;

use super::{MARK, floor::Tick, now_micros, process::Role};
use crate::{
    api::{LABEL_MANAGED, LABEL_POOL_STATUS, LABEL_WORKLOAD},
    sim::{ApiResource, Sim},
    source::connect::ClusterConnection,
};

/// Pods that change in turn.
const PODS: u64 = 20;
/// Revisions that a simulated cluster remembers: more than a watch that keeps up has not yet read.
const REMEMBERED: u64 = 20_000;
/// Revisions between two times that it forgets older ones, for which it looks at every object: with 10,000 of them that
/// takes longer than a change takes to be delivered.
const FORGETS_EVERY: u64 = 1000;

/// Where changes are made.
pub(super) enum Load {
    /// Pods of this namespace of a simulated cluster, in this process.
    Sim(Sim, String),
    /// Pods of a cluster.
    Kube(Box<ClusterConnection>, Handle),
    /// POST requests with a message of this many bytes.
    Post(Uri, usize, Option<TcpStream>),
    /// Nothing: whatever happens by itself.
    Nothing,
}

/// How much: `rate` changes a second, `burst` of them at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) rate: f64,
    pub(super) burst: u64,
}

impl Pace {
    /// Calls `tick` at this pace for so long; returns how often.
    fn keep(self, long: Duration, mut tick: impl FnMut(u64) -> Result<()>) -> Result<u64> {
        let began = Instant::now();
        let pause = Duration::from_secs_f64(self.burst as f64 / self.rate);
        let mut count = 0;
        loop {
            let due = pause * u32::try_from(count)?;
            if due >= long {
                sleep(long.saturating_sub(began.elapsed()));
                return Ok(count);
            }
            sleep(due.saturating_sub(began.elapsed()));
            tick(count)?;
            count += 1;
        }
    }
}

/// Makes the floor write for so long. Returns how many frames each of its connections was sent.
pub(super) fn drive_floor(floor: &mut Role, bytes: usize, pace: Pace, long: Duration) -> Result<u64> {
    let tick = Tick { frames: pace.burst, bytes };
    Ok(pace.keep(long, |_| floor.tell(&tick))? * pace.burst)
}

impl Load {
    /// Makes the pods that will change.
    pub(super) fn prepare(&mut self) -> Result<()> {
        for number in 0..PODS {
            let pod = pod(number);
            match self {
                Load::Sim(sim, namespace) => {
                    let mut pod = pod;
                    pod["metadata"]["namespace"] = json!(namespace);
                    sim.store(|store| store.create(ApiResource::Pods, pod).map(drop)).map_err(refused)?;
                }
                Load::Kube(connection, handle) => {
                    let path = format!("/api/v1/namespaces/{}/pods", connection.namespace);
                    let request = Request::post(path).header("content-type", "application/json");
                    let request = request.body(serde_json::to_vec(&pod)?)?;
                    let made = handle.block_on(connection.client.request_text(request));
                    // It may be there from an earlier run.
                    if let Err(error) = made
                        && !error.to_string().contains("AlreadyExists")
                    {
                        return Err(error).context("a pod could not be created");
                    }
                }
                Load::Post(..) | Load::Nothing => return Ok(()),
            }
        }
        Ok(())
    }

    /// Makes changes for so long. Returns how many.
    pub(super) fn drive(&mut self, pace: Pace, long: Duration) -> Result<u64> {
        if matches!(self, Load::Nothing) {
            sleep(long);
            return Ok(0);
        }
        let count = pace.keep(long, |tick| {
            if let Load::Sim(sim, namespace) = self {
                // All at once: a burst is what has piled up.
                return sim.store(|store| {
                    for number in 0..pace.burst {
                        let (name, change) = (name(tick * pace.burst + number), change());
                        store.patch(ApiResource::Pods, namespace, &name, &change).map_err(refused)?;
                    }
                    if store.revision() % FORGETS_EVERY < pace.burst {
                        store.discard_before(store.revision().saturating_sub(REMEMBERED));
                    }
                    Ok(())
                });
            }
            (0..pace.burst).try_for_each(|number| self.one(tick * pace.burst + number))
        })?;
        Ok(count * pace.burst)
    }

    fn one(&mut self, number: u64) -> Result<()> {
        match self {
            Load::Kube(connection, handle) => {
                let path = format!("/api/v1/namespaces/{}/pods/{}", connection.namespace, name(number));
                let request = Request::patch(path).header("content-type", "application/merge-patch+json");
                // The real API server knows five phases; the moment goes where any text may stand.
                let request = request.body(serde_json::to_vec(&json!({"metadata": {"labels": label()}}))?)?;
                handle.block_on(connection.client.request_text(request)).context("a pod could not be changed")?;
                Ok(())
            }
            Load::Post(uri, bytes, kept) => {
                let start = format!("{{{MARK}{}\",\"rest\":\"", now_micros());
                let rest = bytes.saturating_sub(start.len() + 2);
                post(uri, kept, &format!("{start}{}\"}}", "x".repeat(rest)))
            }
            Load::Sim(..) | Load::Nothing => Ok(()),
        }
    }
}

/// Makes so many pods that never change.
pub(super) fn crowd(sim: &Sim, namespace: &str, count: u64) -> Result<()> {
    for _ in 0..count {
        sim.store(|store| {
            let mut pod = pod(0);
            pod["metadata"]["name"] = json!(format!("crowd-{}", store.revision()));
            pod["metadata"]["namespace"] = json!(namespace);
            store.create(ApiResource::Pods, pod).map(drop)
        })
        .map_err(refused)?;
    }
    Ok(())
}

fn name(number: u64) -> String {
    format!("bench-{}", number % PODS)
}

/// A pod as a workload makes it, so that events are as long as they usually are.
fn pod(number: u64) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name(number), "labels": {
            LABEL_MANAGED: "true", LABEL_WORKLOAD: "bench",
            LABEL_POOL_STATUS: "ready", "bench": format!("{}", number % PODS),
        }},
        "spec": {"containers": [{"name": "main", "image": "example.org/bench:1"}]},
    })
}

fn change() -> serde_json::Value {
    json!({"status": {"phase": format!("t{}", now_micros())}})
}

fn label() -> serde_json::Value {
    json!({"phase": format!("t{}", now_micros())})
}

fn refused(refused: impl std::fmt::Debug) -> anyhow::Error {
    anyhow::anyhow!("the simulated cluster refused: {refused:?}")
}

/// One request on a connection that is kept.
fn post(uri: &Uri, kept: &mut Option<TcpStream>, body: &str) -> Result<()> {
    let authority = uri.authority().context("a URL with a host")?.as_str();
    if kept.is_none() {
        let stream = TcpStream::connect(authority).with_context(|| format!("no connection to {authority}"))?;
        stream.set_nodelay(true)?;
        *kept = Some(stream);
    }
    let stream = kept.as_mut().context("connected")?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let head = format!("POST {path} HTTP/1.1\r\nHost: {authority}\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + body).as_bytes())?;
    let mut answer = [0; 4096];
    let length = stream.read(&mut answer)?;
    let line = String::from_utf8_lossy(&answer[..length]);
    ensure!(line.starts_with("HTTP/1.1 2"), "{uri} answered {}", line.lines().next().unwrap_or("nothing"));
    Ok(())
}
