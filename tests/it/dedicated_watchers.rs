//! `/ws` connections with dedicated watchers on a real API server (docs/protocol.md#boilerhouse-stream): the number of
//! their watches, the end of the watches with the connection, and events that equal those of connections to the hub.

mod concurrent_lists;
mod malformed_fields;
mod open_budget;

use std::process::Stdio;
use std::time::Duration;

use boilerhouse_bridge::test_support::{PodBuilder, SeededRng};
use futures::future::join_all;
use http::{Method, Request};
use kube::Client;
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, MutexGuard, OnceCell};
use tokio::time::{Instant, sleep};

use crate::support::bridge_process::BridgeProcess;
use crate::support::control_plane::ControlPlane;
use crate::support::http_client::{self, TEST_TIMEOUT, WsClient};
use crate::support::long_form;

/// Number of connections with dedicated watchers in these tests.
const DEDICATED: u64 = 3;
/// Bound on the time from the end of a connection to the end of its watches.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a WebSocket peer may send nothing (docs/protocol.md#boilerhouse-stream).
const PEER_IDLE_TIMEOUT: Duration = Duration::from_secs(45);
/// Pause between two polls of a state.
const POLL: Duration = Duration::from_millis(20);
/// Number of random changes that all connections receive.
const CHANGES: usize = 200;

/// Locks a control plane that only the tests of this module use, so that no other test changes its number of watches.
/// It accepts claims with fields of any type.
async fn plane() -> MutexGuard<'static, ControlPlane> {
    static PLANE: OnceCell<Mutex<ControlPlane>> = OnceCell::const_new();
    let start = async || {
        let plane = ControlPlane::start().await;
        remove_claim_schema(&plane).await;
        Mutex::new(plane)
    };
    PLANE.get_or_init(start).await.lock().await
}

/// Removes the schema of claims, and waits until the API server accepts a claim with a malformed field.
async fn remove_claim_schema(plane: &ControlPlane) {
    let cluster = Cluster::new(plane).await;
    let crd = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/boilerhouseclaims.boilerhouse.dev";
    let mut definition = cluster.call(Method::GET, crd, &Value::Null).await;
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"] =
        json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    cluster.call(Method::PUT, crd, &definition).await;
    let start = Instant::now();
    while let Err(error) = cluster.try_call(Method::POST, &cluster.claims(), &claim("any", &json!({"spec": 1}))).await {
        assert!(start.elapsed() < TEST_TIMEOUT, "the API server still checks the schema: {error}");
        sleep(POLL).await;
    }
}

/// Returns a claim with these members. `ClaimBuilder` is not used, because the members have wrong types in some tests.
fn claim(name: &str, parts: &Value) -> Value {
    let mut claim =
        json!({"apiVersion": "boilerhouse.dev/v1alpha1", "kind": "BoilerhouseClaim", "metadata": {"name": name}});
    claim.as_object_mut().unwrap().extend(parts.as_object().unwrap().clone());
    claim
}

/// Returns the number of watches of the two resources.
async fn watches(plane: &ControlPlane) -> u64 {
    plane.watches("pods").await + plane.watches("boilerhouseclaims").await
}

/// Waits until the API server serves `expected` watches, and returns how long it took.
async fn wait_for_watches(plane: &ControlPlane, expected: u64, bound: Duration) -> Duration {
    let start = Instant::now();
    loop {
        let now = watches(plane).await;
        if now == expected {
            return start.elapsed();
        }
        assert!(start.elapsed() < bound, "{now} watches after {bound:?}, expected {expected}");
        sleep(POLL).await;
    }
}

/// A client that writes to one namespace.
struct Cluster {
    client: Client,
    namespace: String,
}

impl Cluster {
    async fn new(plane: &ControlPlane) -> Cluster {
        Cluster { client: plane.client().await, namespace: plane.namespace().await }
    }

    fn pods(&self) -> String {
        format!("/api/v1/namespaces/{}/pods", self.namespace)
    }

    fn claims(&self) -> String {
        format!("/apis/boilerhouse.dev/v1alpha1/namespaces/{}/boilerhouseclaims", self.namespace)
    }

    async fn call(&self, method: Method, path: &str, body: &Value) -> Value {
        self.try_call(method, path, body).await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    async fn try_call(&self, method: Method, path: &str, body: &Value) -> kube::Result<Value> {
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.client.request(request.body(body).unwrap()).await
    }

    async fn create_pod(&self, pod: PodBuilder) {
        self.call(Method::POST, &self.pods(), &pod.json()).await;
    }

    async fn delete_pod(&self, name: &str) {
        let immediately = json!({"gracePeriodSeconds": 0});
        self.call(Method::DELETE, &format!("{}/{name}", self.pods()), &immediately).await;
    }

    async fn create_claim(&self, name: &str, tenant: &str) {
        let spec = json!({"spec": {"tenantId": tenant, "workloadRef": "web"}});
        self.call(Method::POST, &self.claims(), &claim(name, &spec)).await;
    }

    async fn claim_status(&self, name: &str, status: &Value) {
        let path = format!("{}/{name}/status", self.claims());
        self.call(Method::PATCH, &path, &json!({ "status": status })).await;
    }

    /// Creates a Pod and an active claim of this name. A client that has received both has received all earlier events.
    async fn mark(&self, name: &str) {
        self.create_pod(PodBuilder::new(name)).await;
        self.create_claim(name, name).await;
        self.claim_status(name, &json!({"phase": "Active"})).await;
    }

    /// Makes one random change. Most changes cause an event. `existing` says which Pods and claims exist.
    async fn change(&self, rng: &mut SeededRng, existing: &mut [(bool, bool)]) {
        let n = rng.below(existing.len() as u64) as usize;
        let (name, (pod, claim)) = (format!("object-{n}"), &mut existing[n]);
        let pod_path = format!("{}/{name}", self.pods());
        match (rng.below(8), *pod, *claim) {
            (0 | 1, false, _) => {
                let pool = *rng.choose(&["warming", "ready"]);
                self.create_pod(PodBuilder::new(&name).pool(pool)).await;
                *pod = true;
            }
            (0, true, _) => {
                self.delete_pod(&name).await;
                *pod = false;
            }
            (1 | 2, true, _) => {
                let phase = *rng.choose(&["Pending", "Running", "Failed"]);
                let status = json!({"status": {"phase": phase, "message": rng.below(1 << 32).to_string()}});
                self.call(Method::PATCH, &format!("{pod_path}/status"), &status).await;
            }
            (3 | 4, true, _) => {
                let labels = json!({
                    "boilerhouse.dev/pool-status": rng.choose(&["warming", "ready", "acquired"]),
                    "boilerhouse.dev/tenant": rng.choose(&["alice", "bob", "carol"]),
                    "step": rng.below(1 << 32).to_string(),
                });
                self.call(Method::PATCH, &pod_path, &json!({"metadata": {"labels": labels}})).await;
            }
            (_, _, false) => {
                let tenant = *rng.choose(&["alice", "böb", "c\"d"]);
                self.create_claim(&name, tenant).await;
                *claim = true;
            }
            (5, _, true) => {
                self.call(Method::DELETE, &format!("{}/{name}", self.claims()), &Value::Null).await;
                *claim = false;
            }
            (_, _, true) => {
                let phase = *rng.choose(&["Pending", "Active", "Active", "Releasing", "Released"]);
                let detail = rng.below(1 << 32).to_string();
                self.claim_status(&name, &json!({"phase": phase, "source": "pool", "detail": detail})).await;
            }
        }
    }
}

/// Reads until both objects of a mark have been received, and returns the events of Pods and those of claims. The two
/// resources have separate watches, so the order between them is not defined.
async fn received(client: &mut WsClient, mark: &str) -> [Vec<String>; 2] {
    let mut received = [Vec::new(), Vec::new()];
    let mut complete = [false; 2];
    while complete != [true; 2] {
        let text = client.text().await;
        let event: Value = serde_json::from_str(&text).unwrap();
        let of_claim = usize::from(event["type"].as_str().unwrap().starts_with("tenant."));
        complete[of_claim] |= event["name"] == mark;
        received[of_claim].push(text);
    }
    received
}

#[tokio::test]
async fn dedicated_connection_uses_two_watches_and_shared_uses_none() {
    let plane = plane().await;
    let cluster = Cluster::new(&plane).await;
    let without = watches(&plane).await;
    let bridge = BridgeProcess::serve(&plane, &cluster.namespace, &["--dedicated-watchers", "3"]).await;
    let hub = without + 2;
    wait_for_watches(&plane, hub, TEST_TIMEOUT).await;
    let mut dedicated = Vec::new();
    for n in 1..=DEDICATED {
        dedicated.push(bridge.listen("/ws").await);
        wait_for_watches(&plane, hub + 2 * n, TEST_TIMEOUT).await;
    }
    let all = hub + 2 * DEDICATED;
    let mut shared = [bridge.listen("/ws").await, bridge.listen("/ws").await, bridge.listen("/ws").await];
    cluster.mark("first").await;
    for client in dedicated.iter_mut().chain(&mut shared) {
        // After this event all watches that the connection needs exist.
        received(client, "first").await;
    }
    wait_for_watches(&plane, all, TEST_TIMEOUT).await;

    let mut endings = vec![Ending::Close, Ending::Reset, Ending::Kill];
    if long_form() {
        endings.push(Ending::Silence);
    }
    drop(dedicated.split_off(1));
    wait_for_watches(&plane, hub + 2, TEST_TIMEOUT).await;
    for (n, ending) in endings.into_iter().enumerate() {
        // One dedicated connection stays open. A new connection uses the slot that another one releases.
        let ending_client = EndingClient::new(ending, &bridge).await;
        wait_for_watches(&plane, hub + 4, TEST_TIMEOUT).await;
        let guard = ending_client.end().await;
        let other_clients = join_all(dedicated.iter_mut().chain(&mut shared).map(WsClient::expect_no_messages));
        let elapsed = tokio::select! {
            elapsed = wait_for_watches(&plane, hub + 2, ending.bound()) => elapsed,
            _ = other_clients => unreachable!("expect_no_messages does not return"),
        };
        println!("{ending:?}: the watches ended after {elapsed:?}");
        assert!(elapsed >= ending.earliest(), "{ending:?}: the watches ended after {elapsed:?}, too early");
        drop(guard);
        let mark = format!("after-{n}");
        let mut next = bridge.listen("/ws?snapshot=none").await;
        wait_for_watches(&plane, hub + 4, TEST_TIMEOUT).await;
        cluster.mark(&mark).await;
        received(&mut next, &mark).await;
        for client in dedicated.iter_mut().chain(&mut shared) {
            received(client, &mark).await;
        }
        drop(next);
        wait_for_watches(&plane, hub + 2, RELEASE_TIMEOUT).await;
    }
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    /// With a close frame. The TCP connection stays open until the bridge answers.
    Close,
    /// With a TCP reset.
    Reset,
    /// The process of the client is killed.
    Kill,
    /// By the bridge: the client sends no WebSocket frame any more, and answers no ping.
    Silence,
}

/// The client of a connection that will end.
enum EndingClient {
    /// A client in this process.
    Local(Ending, WsClient),
    Process(Child),
}

impl Ending {
    /// Returns the minimum time from the end of the connection to the end of its watches.
    fn earliest(self) -> Duration {
        // The last frame of the client arrived before the measurement started.
        if self == Ending::Silence { PEER_IDLE_TIMEOUT - RELEASE_TIMEOUT } else { Duration::ZERO }
    }

    /// Returns the maximum time from the end of the connection to the end of its watches.
    fn bound(self) -> Duration {
        if self == Ending::Silence { PEER_IDLE_TIMEOUT + RELEASE_TIMEOUT } else { RELEASE_TIMEOUT }
    }
}

impl EndingClient {
    async fn new(ending: Ending, bridge: &BridgeProcess) -> EndingClient {
        if ending != Ending::Kill {
            return EndingClient::Local(ending, bridge.listen("/ws").await);
        }
        let script = "exec 3<>/dev/tcp/127.0.0.1/$0; printf %s \"$1\" >&3; exec cat <&3";
        let (port, request) = (bridge.address.port().to_string(), http_client::upgrade(bridge.address, "/ws"));
        let mut bash = Command::new("bash");
        bash.args(["-c", script, &port, &request]).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        EndingClient::Process(bash.spawn().unwrap())
    }

    /// Ends the connection. The caller must hold the returned client until the watches have ended.
    async fn end(self) -> Option<WsClient> {
        match self {
            EndingClient::Local(Ending::Silence, client) => Some(client),
            EndingClient::Local(Ending::Close, mut client) => {
                client.close().await;
                Some(client)
            }
            EndingClient::Local(_, client) => {
                let stream = client.into_stream();
                SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                None
            }
            EndingClient::Process(mut child) => {
                child.kill().await.unwrap();
                None
            }
        }
    }
}

#[tokio::test]
async fn dedicated_and_shared_connections_send_equal_events() {
    let plane = plane().await;
    let cluster = Cluster::new(&plane).await;
    let bridge = BridgeProcess::serve(&plane, &cluster.namespace, &["--dedicated-watchers", "3"]).await;
    let mut rng = SeededRng(4);
    let mut existing = [(false, false); 8];
    for _ in 0..20 {
        cluster.change(&mut rng, &mut existing).await;
    }
    cluster.mark("present").await;
    let mut clients = Vec::new();
    let before = watches(&plane).await;
    for _ in 0..2 * DEDICATED {
        clients.push(bridge.listen("/ws").await);
    }
    wait_for_watches(&plane, before + 2 * DEDICATED, TEST_TIMEOUT).await;
    let changes = async {
        for _ in 0..CHANGES {
            cluster.change(&mut rng, &mut existing).await;
        }
        cluster.mark("last").await;
    };
    let read = join_all(clients.iter_mut().map(|client| received(client, "last")));
    let ((), all) = tokio::join!(changes, read);
    let (first, others) = all.split_first().unwrap();
    for (n, other) in others.iter().enumerate() {
        assert_eq!(first, other, "events of socket 1 and socket {}", n + 2);
    }
    let [pods, claims] = first;
    let count = |texts: &[String], kind: &str| texts.iter().filter(|text| text.contains(kind)).count();
    let coverage = [
        (count(pods, "instance.state"), 50),
        (count(pods, "Deleted"), 2),
        (count(pods, "pool.instance.ready"), 10),
        (count(claims, "tenant.claimed"), 10),
        (count(claims, "tenant.released"), 5),
    ];
    println!("number of events and minimum, by type: {coverage:?}");
    assert!(coverage.iter().all(|(count, min)| count >= min), "too few events of a type: {coverage:?}");
}
