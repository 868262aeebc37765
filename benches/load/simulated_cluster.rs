//! A simulated cluster in this process that other processes reach over HTTP. The only module that uses `sim`.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Result, anyhow};
use boilerhouse_bridge::sim::{ApiResource, Sim, SimConfig};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    runtime::{Handle, Runtime},
};

use crate::{clock::now_micros, multi_thread_runtime};

/// Pods that change in turn.
pub(crate) const CHANGING_PODS: u64 = 20;
/// Revisions that the store keeps: more than a watch that keeps up has still to read.
const KEPT_REVISIONS: u64 = 20_000;
/// The store discards older revisions once in this many revisions. To do so, it visits every object: with 10,000 Pods
/// that takes longer than the delivery of a change.
const DISCARD_INTERVAL: u64 = 1000;

/// The cluster. It ends with this value.
pub(crate) struct SimulatedCluster {
    sim: Sim,
    address: SocketAddr,
    runtime: Runtime,
}

impl SimulatedCluster {
    pub(crate) fn start(namespaces: &[&str]) -> Result<SimulatedCluster> {
        let runtime = multi_thread_runtime()?;
        let namespaces = namespaces.iter().map(|name| (*name).to_owned()).collect();
        let sim = Sim::new(SimConfig { namespaces, ..SimConfig::default() });
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        let served = sim.clone();
        runtime.spawn(async move { served.serve(listener, std::future::pending()).await });
        Ok(SimulatedCluster { sim, address, runtime })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The runtime that serves the cluster.
    pub(crate) fn runtime(&self) -> &Handle {
        self.runtime.handle()
    }

    /// Returns a kubeconfig for this cluster.
    pub(crate) fn kubeconfig(&self) -> String {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "bench",
            "clusters": [{"name": "bench", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "bench", "user": {}}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
        });
        config.to_string()
    }

    /// Returns the number of open watches.
    pub(crate) fn open_watches(&self) -> u64 {
        self.sim.metrics().open()
    }

    /// Returns the number of requests for Pods so far, which change all the time. Each bridge also reads the Namespace every
    /// 30 s, and asks after claims when they have been silent for 15 s.
    pub(crate) fn requests(&self) -> u64 {
        let metrics = self.sim.metrics();
        let counted = metrics.requests.iter().filter(|((_, resource), _)| *resource == ApiResource::Pods);
        counted.map(|(_, requests)| requests).sum()
    }

    pub(crate) fn revision(&self) -> u64 {
        self.sim.store(|store| store.revision())
    }

    /// Returns the namespace's Pods, for changes and creations.
    pub(crate) fn pods(&self, namespace: &str) -> SimulatedPods {
        SimulatedPods { sim: self.sim.clone(), namespace: namespace.to_owned() }
    }
}

/// The Pods of one namespace.
#[derive(Clone, Debug)]
pub(crate) struct SimulatedPods {
    sim: Sim,
    namespace: String,
}

impl SimulatedPods {
    /// Creates the Pods that will change.
    pub(crate) fn create_changing(&self) -> Result<()> {
        (0..CHANGING_PODS).try_for_each(|number| self.create(&pod_name(number), number))
    }

    /// Creates this many Pods that never change.
    pub(crate) fn create_static(&self, count: u64) -> Result<()> {
        (0..count).try_for_each(|_| {
            let revision = self.sim.store(|store| store.revision());
            self.create(&format!("static-{revision}"), 0)
        })
    }

    fn create(&self, name: &str, number: u64) -> Result<()> {
        let mut pod = pod(number);
        pod["metadata"]["name"] = json!(name);
        pod["metadata"]["namespace"] = json!(self.namespace);
        self.sim.store(|store| store.create(ApiResource::Pods, pod).map(drop)).map_err(rejected)
    }

    /// Changes `count` Pods in one step, from Pod `first` on: a watch receives all of them at once. Each new phase
    /// contains the time of the change and this padding.
    pub(crate) fn change(&self, first: u64, count: u64, padding: &str) -> Result<()> {
        self.sim.store(|store| {
            for number in first..first + count {
                let change = json!({"status": {"phase": format!("t{}{padding}", now_micros())}});
                store.patch(ApiResource::Pods, &self.namespace, &pod_name(number), &change).map_err(rejected)?;
            }
            if store.revision() % DISCARD_INTERVAL < count {
                store.discard_before(store.revision().saturating_sub(KEPT_REVISIONS));
            }
            Ok(())
        })
    }
}

/// Returns the name of a changing Pod.
pub(crate) fn pod_name(number: u64) -> String {
    format!("bench-{}", number % CHANGING_PODS)
}

/// Returns a Pod with the usual labels of a workload, so that events have their usual length.
pub(crate) fn pod(number: u64) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod_name(number), "labels": {
            "boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": "bench",
            "boilerhouse.dev/pool-status": "ready", "bench": format!("{}", number % CHANGING_PODS),
        }},
        "spec": {"containers": [{"name": "main", "image": "example.org/bench:1"}]},
    })
}

fn rejected(error: impl std::fmt::Debug) -> anyhow::Error {
    anyhow!("the simulated cluster rejected a change: {error:?}")
}
