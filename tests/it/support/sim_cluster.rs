//! A simulated cluster behind a listener, for the binary to watch: tests say themselves what happens, and when.

use std::net::Ipv4Addr;

use boilerhouse_bridge::sim::{ApiResource, Sim, SimConfig};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinHandle};

use super::bridge_process::BridgeProcess;

/// The namespace that a [`Sim`] begins with.
pub(crate) const NAMESPACE: &str = "boilerhouse";

/// A cluster that ends when it is dropped.
#[derive(Debug)]
pub(crate) struct SimCluster {
    pub(crate) sim: Sim,
    serving: JoinHandle<()>,
    kubeconfig: tempfile::NamedTempFile,
}

impl SimCluster {
    /// A cluster with nothing in it but its namespaces.
    pub(crate) async fn new() -> SimCluster {
        SimCluster::with(SimConfig::default()).await
    }

    /// The same, with this configuration.
    pub(crate) async fn with(config: SimConfig) -> SimCluster {
        let sim = Sim::new(config);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let kubeconfig = kubeconfig(&format!("http://{}", listener.local_addr().unwrap()));
        let served = sim.clone();
        let serving = tokio::spawn(async move { served.serve(listener, std::future::pending()).await });
        SimCluster { sim, serving, kubeconfig }
    }

    /// The file that leads here.
    pub(crate) fn kubeconfig(&self) -> String {
        self.kubeconfig.path().to_string_lossy().into_owned()
    }

    /// A bridge that watches it, ready.
    pub(crate) async fn bridge(&self, args: &[&str]) -> BridgeProcess {
        let bridge = BridgeProcess::start(&self.kubeconfig(), NAMESPACE, args).await;
        bridge.wait_ready().await;
        bridge
    }

    /// The cluster itself.
    pub(crate) fn sim(&self) -> &Sim {
        &self.sim
    }

    /// Creates a managed Pod: one `instance.state` in phase `Unknown`.
    pub(crate) fn create_pod(&self, name: &str) {
        let labels = json!({"boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": "web"});
        let pod = json!({"metadata": {"name": name, "namespace": NAMESPACE, "labels": labels}});
        self.sim.store(|store| store.create(ApiResource::Pods, pod)).unwrap();
    }

    /// Changes a Pod: one `instance.state` in this phase.
    pub(crate) fn pod_phase(&self, name: &str, phase: &str) {
        let status = json!({"status": {"phase": phase}});
        self.sim.store(|store| store.patch(ApiResource::Pods, NAMESPACE, name, &status)).unwrap();
    }
}

impl Drop for SimCluster {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A kubeconfig file for an API server that asks for no credential.
pub(crate) fn kubeconfig(server: &str) -> tempfile::NamedTempFile {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "simulated",
        "clusters": [{"name": "simulated", "cluster": {"server": server}}],
        "users": [{"name": "simulated", "user": {}}],
        "contexts": [{"name": "simulated", "context": {"cluster": "simulated", "user": "simulated"}}],
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), config.to_string()).unwrap();
    file
}
