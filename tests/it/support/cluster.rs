//! One interface for a cluster on the real control plane and on the simulator: the same requests through the same client,
//! so that one test body runs on both. The simulator is served over TCP for the bridge's binary.
//!
//! Owns the cluster. A real one is of one of three kinds:
//! - the exclusive control plane, which one test at a time holds and may break;
//! - the shared control plane, which tests must not break;
//! - a control plane of this test only.
//!
//! Guarantees: both kinds of cluster can be stopped and started again with the loss of the watch history.

use std::ops::DerefMut;
use std::path::PathBuf;

use boilerhouse_bridge::{
    sim::ApiResource,
    test_support::{ClaimBuilder, PodBuilder},
};
use http::{Method, Request, header::CONTENT_TYPE};
use kube::Client;
use serde_json::{Map, Value, json};
use tokio::sync::{Mutex, OnceCell};

use super::control_plane::ControlPlane;
use super::sim_cluster::{NAMESPACE, SimCluster};

/// The prefix of the labels of Boilerhouse.
const PREFIX: &str = "boilerhouse.dev/";
/// Only the exclusive control plane may be broken.
const SHARED: &str = "other tests use this control plane; use Cluster::real";

/// A cluster and the namespace that the test uses.
pub(crate) struct Cluster {
    server: Server,
    client: Client,
    pub(crate) namespace: String,
}

/// A control plane that only this test uses now.
type ExclusiveControlPlane = Box<dyn DerefMut<Target = ControlPlane> + Send + Sync>;

enum Server {
    Real(ExclusiveControlPlane),
    Shared(&'static ControlPlane),
    Simulated(SimCluster),
}

impl Cluster {
    /// Returns the real control plane that tests may break. Waits until no other test uses it.
    pub(crate) async fn real() -> Self {
        static BREAKABLE: OnceCell<Mutex<ControlPlane>> = OnceCell::const_new();
        let plane = BREAKABLE.get_or_init(async || Mutex::new(ControlPlane::start().await)).await;
        let mut plane = plane.lock().await;
        if !plane.has_api_server() {
            // A failed test can leave it stopped.
            plane.start_api_server().await;
        }
        let client = plane.client().await;
        Self::with_server(Server::Real(Box::new(plane)), client).await
    }

    /// Returns a cluster on a control plane of this test only. Use it where the wait for [`Cluster::real`] would take as
    /// long as a start.
    pub(crate) async fn of(plane: ControlPlane) -> Self {
        let client = plane.client().await;
        // The inner box dereferences to a control plane, as a lock guard does.
        Self::with_server(Server::Real(Box::new(Box::new(plane))), client).await
    }

    /// Returns the real control plane that all tests share which do not break it.
    pub(crate) async fn shared() -> Self {
        let plane = ControlPlane::shared().await;
        Self::with_server(Server::Shared(plane), plane.client().await).await
    }

    /// Returns a simulator of this test only.
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

    /// Returns the control plane.
    ///
    /// # Panics
    /// On the simulator.
    pub(crate) fn plane(&self) -> &ControlPlane {
        match &self.server {
            Server::Real(plane) => plane,
            Server::Shared(plane) => plane,
            Server::Simulated(_) => panic!("the simulator has no control plane"),
        }
    }

    /// Compacts etcd up to now: exact lists at earlier versions get 410.
    pub(crate) async fn compact(&self) {
        match &self.server {
            Server::Simulated(SimCluster { sim, .. }) => sim.store(|store| store.compact(store.revision())),
            Server::Real(plane) => plane.compact().await,
            Server::Shared(_) => panic!("{SHARED}"),
        }
    }

    /// Copies the data of etcd.
    pub(crate) async fn backup(&mut self) {
        self.exclusive().backup_etcd().await;
    }

    /// Restores the copy of etcd's data and starts a new API server on it.
    pub(crate) async fn restore_backup(&mut self) {
        self.exclusive().restore_etcd().await;
        self.client = self.plane().client().await;
    }

    fn exclusive(&mut self) -> &mut ControlPlane {
        match &mut self.server {
            Server::Real(plane) => plane,
            Server::Shared(_) => panic!("{SHARED}"),
            Server::Simulated(_) => panic!("the simulator has no control plane"),
        }
    }

    /// Moves to a new, empty namespace.
    pub(crate) async fn new_namespace(&mut self) {
        self.namespace = self.another_namespace().await;
    }

    /// Creates a namespace and returns its name. The test continues to use its own.
    pub(crate) async fn another_namespace(&self) -> String {
        let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"generateName": "test-"}});
        let created = self.call(Method::POST, "/api/v1/namespaces", &namespace).await;
        created["metadata"]["name"].as_str().unwrap().to_owned()
    }

    /// Deletes the namespace that the test uses, and creates it again under its name. Its objects must be deleted.
    pub(crate) async fn recreate_namespace(&self) {
        if let Server::Simulated(SimCluster { sim, .. }) = &self.server {
            let namespace = json!({"metadata": {"name": self.namespace}, "status": {"phase": "Active"}});
            sim.store(|store| store.delete(ApiResource::Namespaces, "", &self.namespace)).unwrap();
            sim.store(|store| store.create(ApiResource::Namespaces, namespace)).unwrap();
            return;
        }
        let path = format!("/api/v1/namespaces/{}", self.namespace);
        let mut namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": self.namespace}});
        self.call(Method::DELETE, &path, &Value::Null).await;
        // The namespace controller does this when no objects are left. The tests' control plane has no controllers.
        namespace["spec"] = json!({"finalizers": []});
        self.call(Method::PUT, &format!("{path}/finalize"), &namespace).await;
        namespace["spec"] = json!({});
        self.call(Method::POST, "/api/v1/namespaces", &namespace).await;
    }

    /// Returns a client with all permissions.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Returns the uid of the namespace that the test uses.
    pub(crate) async fn namespace_uid(&self) -> String {
        let namespace = self.call(Method::GET, &format!("/api/v1/namespaces/{}", self.namespace), &Value::Null).await;
        namespace["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    /// Returns the path of a kubeconfig file for the bridge's binary.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        match &self.server {
            Server::Real(plane) => plane.kubeconfig(),
            Server::Shared(plane) => plane.kubeconfig(),
            Server::Simulated(simulated) => simulated.kubeconfig().into(),
        }
    }

    /// Kills the API server (kill -9). Every connection ends, and the watch history is lost.
    pub(crate) async fn down(&mut self) {
        match &mut self.server {
            Server::Real(plane) => plane.kill_api_server(),
            Server::Shared(_) => panic!("{SHARED}"),
            Server::Simulated(SimCluster { sim, .. }) => {
                sim.down();
                // A real API server writes objects such as leases at its start. A client that had the newest version
                // then has it no longer.
                let name = format!("written-at-{}", sim.store(|store| store.revision()));
                let namespace = json!({"metadata": {"name": name}});
                sim.store(|store| store.create(ApiResource::Namespaces, namespace)).unwrap();
                sim.restart();
            }
        }
    }

    /// Starts the killed API server at its former address.
    pub(crate) async fn up(&mut self) {
        match &mut self.server {
            Server::Real(plane) => {
                plane.start_api_server().await;
                // The connections to the killed server are closed.
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
        let mut pod = PodBuilder::new(name).json();
        let all = pod["metadata"]["labels"].as_object_mut().unwrap();
        all.extend(labels_of(labels));
        all.retain(|_, value| !value.is_null());
        self.call(Method::POST, &format!("/api/v1/namespaces/{namespace}/pods"), &pod).await;
    }

    /// Changes labels of a Pod: `"pool-status=ready tenant-"` sets one and removes another.
    pub(crate) async fn label_pod(&self, name: &str, labels: &str) {
        self.call(Method::PATCH, &self.pod(name), &json!({"metadata": {"labels": Value::Object(labels_of(labels))}}))
            .await;
    }

    /// Sets a Pod's phase.
    pub(crate) async fn pod_phase(&self, name: &str, phase: &str) {
        let status = json!({"status": {"phase": phase}});
        self.call(Method::PATCH, &format!("{}/status", self.pod(name)), &status).await;
    }

    /// Deletes a Pod with a grace period of 0 s.
    pub(crate) async fn delete_pod(&self, name: &str) {
        self.call(Method::DELETE, &self.pod(name), &json!({"gracePeriodSeconds": 0})).await;
    }

    /// Creates a claim. The API server drops its status at creation.
    pub(crate) async fn create_claim(&self, name: &str, tenant: &str) {
        self.create_claim_in(&self.namespace, name, tenant).await;
    }

    /// Creates a claim in any namespace.
    pub(crate) async fn create_claim_in(&self, namespace: &str, name: &str, tenant: &str) {
        let claim = ClaimBuilder::new(name).tenant(tenant).json();
        let path = format!("/apis/boilerhouse.dev/v1alpha1/namespaces/{namespace}/boilerhouseclaims");
        self.call(Method::POST, &path, &claim).await;
    }

    /// Sets a claim's phase.
    pub(crate) async fn claim_phase(&self, name: &str, phase: &str) {
        self.claim_status(name, json!({ "phase": phase })).await;
    }

    /// Sets these fields of a claim's status.
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

    /// Sends a request for an object of this resource (`pods`, `boilerhouseclaims`) or for its status. Returns the object.
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

/// Parses labels of Boilerhouse without their prefix, such as `"workload=web tenant-"`. A name that ends in `-` has the
/// value null, which removes the label.
fn labels_of(labels: &str) -> Map<String, Value> {
    let pairs = labels.split_whitespace().map(|label| match label.split_once('=') {
        Some((name, value)) => (format!("{PREFIX}{name}"), json!(value)),
        None => (format!("{PREFIX}{}", label.trim_end_matches('-')), Value::Null),
    });
    pairs.collect()
}
