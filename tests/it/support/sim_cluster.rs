//! A simulated cluster that serves its API over TCP, for the bridge's binary. Nothing changes in it unless a test
//! changes it.
//!
//! Owns the simulator, its server task and a kubeconfig file. All end when the value is dropped.

use std::net::Ipv4Addr;

use boilerhouse_bridge::{
    sim::{ApiResource, Sim, SimConfig},
    test_support::{ClaimBuilder, PodBuilder},
};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinHandle};

use super::bridge_process::BridgeProcess;

/// The namespace of a [`Sim`] with the default configuration.
pub(crate) const NAMESPACE: &str = "boilerhouse";

/// The API key of [`SimCluster::bridge_with_key`].
pub(crate) const KEY: &str = "a-key-for-tests";

/// A simulated cluster.
#[derive(Debug)]
pub(crate) struct SimCluster {
    pub(crate) sim: Sim,
    serving: JoinHandle<()>,
    kubeconfig: tempfile::NamedTempFile,
}

impl SimCluster {
    /// Starts a cluster that contains only its namespaces.
    pub(crate) async fn new() -> SimCluster {
        SimCluster::with(SimConfig::default()).await
    }

    /// Starts a cluster with this configuration.
    pub(crate) async fn with(config: SimConfig) -> SimCluster {
        let sim = Sim::new(config);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let kubeconfig = kubeconfig(&format!("http://{}", listener.local_addr().unwrap()));
        let served = sim.clone();
        let serving = tokio::spawn(async move { served.serve(listener, std::future::pending()).await });
        SimCluster { sim, serving, kubeconfig }
    }

    /// Returns the path of a kubeconfig file for this cluster.
    pub(crate) fn kubeconfig(&self) -> String {
        self.kubeconfig.path().to_string_lossy().into_owned()
    }

    /// Starts a bridge on this cluster and waits until it is ready.
    pub(crate) async fn bridge(&self, args: &[&str]) -> BridgeProcess {
        let bridge = BridgeProcess::start(&self.kubeconfig(), NAMESPACE, args).await;
        bridge.wait_ready().await;
        bridge
    }

    /// Starts a bridge on this cluster that requires [`KEY`], and waits until it is ready.
    pub(crate) async fn bridge_with_key(&self) -> BridgeProcess {
        let kubeconfig = self.kubeconfig();
        let args = ["serve", "--port", "0", "--kubeconfig", &kubeconfig, "--namespace", NAMESPACE];
        let bridge = BridgeProcess::run_with(&args, &[("BOILERHOUSE_API_KEY", KEY)]).await;
        bridge.wait_ready().await;
        bridge
    }

    /// Returns the simulator.
    pub(crate) fn sim(&self) -> &Sim {
        &self.sim
    }

    /// Creates a managed Pod without a status. The bridge sends one `instance.state` with phase `Unknown`.
    pub(crate) fn create_pod(&self, name: &str) {
        let mut pod = PodBuilder::new(name).namespace(NAMESPACE).workload("web").json();
        pod.as_object_mut().unwrap().remove("status");
        self.sim.store(|store| store.create(ApiResource::Pods, pod)).unwrap();
    }

    /// Changes the phase of a Pod. The bridge sends one `instance.state` with this phase.
    pub(crate) fn pod_phase(&self, name: &str, phase: &str) {
        let status = json!({"status": {"phase": phase}});
        self.sim.store(|store| store.patch(ApiResource::Pods, NAMESPACE, name, &status)).unwrap();
    }

    /// Creates an active claim of this tenant, with the name of the tenant. The bridge sends `tenant.claimed`.
    pub(crate) fn claim(&self, tenant: &str) {
        let claim = ClaimBuilder::new(tenant).namespace(NAMESPACE).tenant(tenant).json();
        self.sim.store(|store| store.create(ApiResource::Claims, claim)).unwrap();
        self.claim_phase(tenant, "Active");
    }

    /// Changes the phase of a claim.
    pub(crate) fn claim_phase(&self, name: &str, phase: &str) {
        let status = json!({"status": {"phase": phase}});
        self.sim.store(|store| store.patch(ApiResource::Claims, NAMESPACE, name, &status)).unwrap();
    }
}

impl Drop for SimCluster {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Creates a kubeconfig file for an API server that requires no credential.
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
