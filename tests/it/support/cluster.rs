//! One way to act on a cluster, be it the real control plane or the simulator: the same requests through the same
//! client, so that a test says once what happens.
//!
//! Either can die and come back with the history of its watches lost. Of the real ones there is one for all who break
//! it, and who has it has it alone, one for all others, and those of a test's own; the simulator is served over TCP, for
//! the bridge's binary.

use std::ops::DerefMut;
use std::path::PathBuf;

use boilerhouse_bridge::sim::ApiResource;
use http::{Method, Request, header::CONTENT_TYPE};
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::{Mutex, OnceCell};

use super::control_plane::ControlPlane;
use super::sim_cluster::{NAMESPACE, SimCluster};

/// The prefix of Boilerhouse's labels.
const PREFIX: &str = "boilerhouse.dev/";
/// Who breaks it is alone with it.
const SHARED: &str = "others use this control plane";

/// A cluster, and the namespace of it that the test is in.
pub(crate) struct Cluster {
    server: Server,
    client: Client,
    pub(crate) namespace: String,
}

/// A control plane that nobody else has at the time.
type ExclusiveControlPlane = Box<dyn DerefMut<Target = ControlPlane> + Send + Sync>;

enum Server {
    Real(ExclusiveControlPlane),
    Shared(&'static ControlPlane),
    Simulated(SimCluster),
}

impl Cluster {
    /// The real control plane that tests may break. Waits until the other tests are through with it.
    pub(crate) async fn real() -> Self {
        static BREAKABLE: OnceCell<Mutex<ControlPlane>> = OnceCell::const_new();
        let plane = BREAKABLE.get_or_init(async || Mutex::new(ControlPlane::start().await)).await;
        let mut plane = plane.lock().await;
        if !plane.has_api_server() {
            // A test that failed has left it dead.
            plane.start_api_server().await;
        }
        let client = plane.client().await;
        Self::with_server(Server::Real(Box::new(plane)), client).await
    }

    /// A control plane of the test's own, for those who would wait for the others as long as it takes to start one.
    pub(crate) async fn of(plane: ControlPlane) -> Self {
        let client = plane.client().await;
        // The inner box is what leads to a plane, as a lock does.
        Self::with_server(Server::Real(Box::new(Box::new(plane))), client).await
    }

    /// The real control plane that all share who do not break it, and need not be alone.
    pub(crate) async fn shared() -> Self {
        let plane = ControlPlane::shared().await;
        Self::with_server(Server::Shared(plane), plane.client().await).await
    }

    /// A simulator of the test's own.
    pub(crate) async fn simulated() -> Self {
        let simulated = SimCluster::new().await;
        let client = simulated.sim.client(NAMESPACE);
        Self::with_server(Server::Simulated(simulated), client).await
    }

    async fn with_server(server: Server, client: Client) -> Self {
        let mut cluster = Self { server, client, namespace: String::new() };
        cluster.new_namespace().await;
        cluster
    }

    /// The control plane.
    ///
    /// # Panics
    /// On the simulator.
    pub(crate) fn plane(&self) -> &ControlPlane {
        match &self.server {
            Server::Real(plane) => plane,
            Server::Shared(plane) => plane,
            Server::Simulated(_) => panic!("the simulator is no control plane"),
        }
    }

    /// Keeps a copy of what etcd holds.
    pub(crate) async fn backup(&mut self) {
        self.exclusive().backup_etcd().await;
    }

    /// Puts etcd back to the copy, under a new API server.
    pub(crate) async fn restore_backup(&mut self) {
        self.exclusive().restore_etcd().await;
        self.client = self.plane().client().await;
    }

    fn exclusive(&mut self) -> &mut ControlPlane {
        match &mut self.server {
            Server::Real(plane) => plane,
            Server::Shared(_) => panic!("{SHARED}"),
            Server::Simulated(_) => panic!("the simulator is no control plane"),
        }
    }

    /// Moves to a new, empty namespace.
    pub(crate) async fn new_namespace(&mut self) {
        self.namespace = self.another_namespace().await;
    }

    /// Makes a namespace that the test is not in.
    pub(crate) async fn another_namespace(&self) -> String {
        let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"generateName": "test-"}});
        let made = self.call(Method::POST, "/api/v1/namespaces", &namespace).await;
        made["metadata"]["name"].as_str().unwrap().to_owned()
    }

    /// The uid of the namespace that the test is in.
    pub(crate) async fn namespace_uid(&self) -> String {
        let namespace = self.call(Method::GET, &format!("/api/v1/namespaces/{}", self.namespace), &Value::Null).await;
        namespace["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    /// A kubeconfig file for the bridge's binary.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        match &self.server {
            Server::Real(plane) => plane.kubeconfig(),
            Server::Shared(plane) => plane.kubeconfig(),
            Server::Simulated(simulated) => simulated.kubeconfig().into(),
        }
    }

    /// The API server dies (kill -9): every connection ends, and the history of its watches is lost.
    pub(crate) async fn down(&mut self) {
        match &mut self.server {
            Server::Real(plane) => plane.kill_api_server(),
            Server::Shared(_) => panic!("{SHARED}"),
            Server::Simulated(SimCluster { sim, .. }) => {
                sim.down();
                // The real one writes leases and the like when it starts; whoever was up to date is so no longer.
                let name = format!("written-at-{}", sim.store(|store| store.revision()));
                let namespace = json!({"metadata": {"name": name}});
                sim.store(|store| store.create(ApiResource::Namespaces, namespace)).unwrap();
                sim.restart();
            }
        }
    }

    /// The API server is back, where it was.
    pub(crate) async fn up(&mut self) {
        match &mut self.server {
            Server::Real(plane) => {
                plane.start_api_server().await;
                // The old one's connections are dead.
                self.client = plane.client().await;
            }
            Server::Shared(_) => panic!("{SHARED}"),
            Server::Simulated(SimCluster { sim, .. }) => sim.up(),
        }
    }

    /// Creates a managed Pod. `labels` as in [`Cluster::label_pod`].
    pub(crate) async fn create_pod(&self, name: &str, labels: &str) {
        self.create_pod_in(&self.namespace, name, labels).await;
    }

    /// Creates a managed Pod in any namespace.
    pub(crate) async fn create_pod_in(&self, namespace: &str, name: &str, labels: &str) {
        let mut all = json!({"boilerhouse.dev/managed": "true"});
        all.as_object_mut().unwrap().extend(labels_of(labels).as_object().unwrap().clone());
        all.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": all},
            "spec": {"containers": [{"name": "main", "image": "none"}]},
        });
        self.call(Method::POST, &format!("/api/v1/namespaces/{namespace}/pods"), &pod).await;
    }

    /// Changes labels of a Pod: `"pool-status=ready tenant-"` sets one and removes another.
    pub(crate) async fn label_pod(&self, name: &str, labels: &str) {
        self.call(Method::PATCH, &self.pod(name), &json!({"metadata": {"labels": labels_of(labels)}})).await;
    }

    /// Sets a Pod's phase.
    pub(crate) async fn pod_phase(&self, name: &str, phase: &str) {
        let status = json!({"status": {"phase": phase}});
        self.call(Method::PATCH, &format!("{}/status", self.pod(name)), &status).await;
    }

    /// Deletes a Pod at once.
    pub(crate) async fn delete_pod(&self, name: &str) {
        self.call(Method::DELETE, &self.pod(name), &json!({"gracePeriodSeconds": 0})).await;
    }

    /// Creates a claim, without a status.
    pub(crate) async fn create_claim(&self, name: &str, tenant: &str) {
        self.create_claim_in(&self.namespace, name, tenant).await;
    }

    /// Creates a claim in any namespace.
    pub(crate) async fn create_claim_in(&self, namespace: &str, name: &str, tenant: &str) {
        let claim = json!({
            "apiVersion": "boilerhouse.dev/v1alpha1", "kind": "BoilerhouseClaim", "metadata": {"name": name},
            "spec": {"tenantId": tenant, "workloadRef": "web"},
        });
        let path = format!("/apis/boilerhouse.dev/v1alpha1/namespaces/{namespace}/boilerhouseclaims");
        self.call(Method::POST, &path, &claim).await;
    }

    /// Sets a claim's phase.
    pub(crate) async fn claim_phase(&self, name: &str, phase: &str) {
        self.claim_status(name, json!({ "phase": phase })).await;
    }

    /// Sets what is named of a claim's status.
    pub(crate) async fn claim_status(&self, name: &str, status: Value) {
        self.call(Method::PATCH, &format!("{}/status", self.claim(name)), &json!({ "status": status })).await;
    }

    /// Deletes a claim.
    pub(crate) async fn delete_claim(&self, name: &str) {
        self.call(Method::DELETE, &self.claim(name), &Value::Null).await;
    }

    fn pod(&self, name: &str) -> String {
        format!("/api/v1/namespaces/{}/pods/{name}", self.namespace)
    }

    fn claim(&self, name: &str) -> String {
        format!("/apis/boilerhouse.dev/v1alpha1/namespaces/{}/boilerhouseclaims/{name}", self.namespace)
    }

    /// Sends a request for an object of this kind (`pods`, `boilerhouseclaims`), or to its status, and returns the object.
    pub(crate) async fn write(&self, method: Method, plural: &str, rest: &str, body: &Value) -> Value {
        let group = if plural == "pods" { "api/v1" } else { "apis/boilerhouse.dev/v1alpha1" };
        self.call(method, &format!("/{group}/namespaces/{}/{plural}{rest}", self.namespace), body).await
    }

    async fn call(&self, method: Method, path: &str, body: &Value) -> Value {
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = Request::builder().method(&method).uri(path).header(CONTENT_TYPE, kind).body(bytes).unwrap();
        self.client.request(request).await.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }
}

/// `"workload=web tenant-"`: Boilerhouse's labels without their prefix; one that ends in `-` is taken away.
fn labels_of(labels: &str) -> Value {
    let pairs = labels.split_whitespace().map(|label| match label.split_once('=') {
        Some((name, value)) => (format!("{PREFIX}{name}"), json!(value)),
        None => (format!("{PREFIX}{}", label.trim_end_matches('-')), Value::Null),
    });
    Value::Object(pairs.collect())
}
