//! Connections with watchers of their own, on a real API server (docs/protocol.md#boilerhouse-stream): what they cost it, how soon
//! that is over, and that nobody can tell them from the hub's connections by what they are told.

mod concurrent_lists;
mod malformed_fields;

use std::process::Stdio;
use std::time::Duration;

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
use crate::support::rng::SeededRng;

/// Connections with watchers of their own, in these tests.
const DEDICATED: u64 = 3;
/// How soon the API server must be rid of a connection's watches (issue 4: 5 s).
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a peer may be silent (docs/protocol.md#boilerhouse-stream).
const SILENCE: Duration = Duration::from_secs(45);
/// Pause between two looks at a state that is waited for.
const POLL: Duration = Duration::from_millis(20);
/// Random changes that all kinds of connections are told alike.
const CHANGES: usize = 200;

/// A control plane whose watches nobody else counts or adds to, and which takes claims of any shape: whoever has it has
/// it alone.
async fn plane() -> MutexGuard<'static, ControlPlane> {
    static PLANE: OnceCell<Mutex<ControlPlane>> = OnceCell::const_new();
    let start = async || {
        let plane = ControlPlane::start().await;
        read_claim_event(&plane).await;
        Mutex::new(plane)
    };
    PLANE.get_or_init(start).await.lock().await
}

/// Takes the schema of claims away, and waits until that has come into force.
async fn read_claim_event(plane: &ControlPlane) {
    let cluster = Cluster::new(plane).await;
    let crd = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/boilerhouseclaims.boilerhouse.dev";
    let mut definition = cluster.call(Method::GET, crd, &Value::Null).await;
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"] =
        json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    cluster.call(Method::PUT, crd, &definition).await;
    let start = Instant::now();
    while let Err(error) = cluster.try_call(Method::POST, &cluster.claims(), &claim("any", &json!({"spec": 1}))).await {
        assert!(start.elapsed() < TEST_TIMEOUT, "the schema is still there: {error}");
        sleep(POLL).await;
    }
}

/// A claim with these parts.
fn claim(name: &str, parts: &Value) -> Value {
    let mut claim =
        json!({"apiVersion": "boilerhouse.dev/v1alpha1", "kind": "BoilerhouseClaim", "metadata": {"name": name}});
    claim.as_object_mut().unwrap().extend(parts.as_object().unwrap().clone());
    claim
}

/// Watches of the two resources that the bridge watches.
async fn watches(plane: &ControlPlane) -> u64 {
    plane.watches("pods").await + plane.watches("boilerhouseclaims").await
}

/// Waits until there are so many, and says how long it took.
async fn watches_become(plane: &ControlPlane, wanted: u64, bound: Duration) -> Duration {
    let start = Instant::now();
    loop {
        let now = watches(plane).await;
        if now == wanted {
            return start.elapsed();
        }
        assert!(start.elapsed() < bound, "{now} watches instead of {wanted} after {bound:?}");
        sleep(POLL).await;
    }
}

/// Writes to one namespace.
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

    async fn create_pod(&self, name: &str, labels: &Value) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
            "spec": {"containers": [{"name": "main", "image": "none"}]},
        });
        self.call(Method::POST, &self.pods(), &pod).await;
    }

    async fn delete_pod(&self, name: &str) {
        let now = json!({"gracePeriodSeconds": 0});
        self.call(Method::DELETE, &format!("{}/{name}", self.pods()), &now).await;
    }

    async fn create_claim(&self, name: &str, tenant: &str) {
        let spec = json!({"spec": {"tenantId": tenant, "workloadRef": "web"}});
        self.call(Method::POST, &self.claims(), &claim(name, &spec)).await;
    }

    async fn claim_status(&self, name: &str, status: &Value) {
        let path = format!("{}/{name}/status", self.claims());
        self.call(Method::PATCH, &path, &json!({ "status": status })).await;
    }

    /// A pod and an active claim of this name: whoever has been told of both has been told everything before.
    async fn mark(&self, name: &str) {
        self.create_pod(name, &json!({"boilerhouse.dev/managed": "true"})).await;
        self.create_claim(name, name).await;
        self.claim_status(name, &json!({"phase": "Active"})).await;
    }

    /// One random change, most of which some listener is told of.
    async fn change(&self, rng: &mut SeededRng, alive: &mut [(bool, bool)]) {
        let n = rng.below(alive.len() as u64) as usize;
        let (name, (pod, claim)) = (format!("object-{n}"), &mut alive[n]);
        let one = format!("{}/{name}", self.pods());
        match (rng.below(8), *pod, *claim) {
            (0 | 1, false, _) => {
                let pool = *rng.choose(&["warming", "ready"]);
                let labels = json!({"boilerhouse.dev/managed": "true", "boilerhouse.dev/pool-status": pool});
                self.create_pod(&name, &labels).await;
                *pod = true;
            }
            (0, true, _) => {
                self.delete_pod(&name).await;
                *pod = false;
            }
            (1 | 2, true, _) => {
                let phase = *rng.choose(&["Pending", "Running", "Failed"]);
                let status = json!({"status": {"phase": phase, "message": rng.below(1 << 32).to_string()}});
                self.call(Method::PATCH, &format!("{one}/status"), &status).await;
            }
            (3 | 4, true, _) => {
                let labels = json!({
                    "boilerhouse.dev/pool-status": rng.choose(&["warming", "ready", "acquired"]),
                    "boilerhouse.dev/tenant": rng.choose(&["alice", "bob", "carol"]),
                    "step": rng.below(1 << 32).to_string(),
                });
                self.call(Method::PATCH, &one, &json!({"metadata": {"labels": labels}})).await;
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

/// What a listener is told up to both parts of the mark: of pods, and of claims. The two resources are watched apart, so
/// nothing says how they interleave.
async fn received(listener: &mut WsClient, mark: &str) -> [Vec<String>; 2] {
    let mut received = [Vec::new(), Vec::new()];
    let mut over = [false; 2];
    while over != [true; 2] {
        let text = listener.text().await;
        let event: Value = serde_json::from_str(&text).unwrap();
        let of_claim = usize::from(event["type"].as_str().unwrap().starts_with("tenant."));
        over[of_claim] |= event["name"] == mark;
        received[of_claim].push(text);
    }
    received
}

#[tokio::test]
async fn dedicated_connection_uses_two_watches_and_shared_uses_none() {
    let plane = plane().await;
    let cluster = Cluster::new(&plane).await;
    let without = watches(&plane).await;
    let bridge = BridgeProcess::serve(&plane, &cluster.namespace, &["--own-watchers", "3"]).await;
    let hub = without + 2;
    watches_become(&plane, hub, TEST_TIMEOUT).await;
    let mut own = Vec::new();
    for n in 1..=DEDICATED {
        own.push(bridge.listen("/ws").await);
        watches_become(&plane, hub + 2 * n, TEST_TIMEOUT).await;
    }
    let all = hub + 2 * DEDICATED;
    let mut others = [bridge.listen("/ws").await, bridge.listen("/ws").await, bridge.listen("/ws").await];
    cluster.mark("first").await;
    for listener in own.iter_mut().chain(&mut others) {
        // What watches had been needed for this are there.
        received(listener, "first").await;
    }
    watches_become(&plane, all, TEST_TIMEOUT).await;

    let mut endings = vec![Ending::Close, Ending::Reset, Ending::Kill];
    if long_form() {
        endings.push(Ending::Silence);
    }
    drop(own.split_off(1));
    watches_become(&plane, hub + 2, TEST_TIMEOUT).await;
    for (n, ending) in endings.into_iter().enumerate() {
        // One stays; what another one leaves is taken by the next.
        let victim = Victim::new(ending, &bridge).await;
        watches_become(&plane, hub + 4, TEST_TIMEOUT).await;
        let held = victim.end().await;
        let stay = join_all(own.iter_mut().chain(&mut others).map(WsClient::expect_no_messages));
        let gone = tokio::select! {
            gone = watches_become(&plane, hub + 2, ending.bound()) => gone,
            _ = stay => unreachable!("they stay for ever"),
        };
        println!("{ending:?}: its watches were gone after {gone:?}");
        assert!(gone >= ending.earliest(), "{ending:?} after {gone:?}");
        drop(held);
        let mark = format!("after-{n}");
        let mut next = bridge.listen("/ws?snapshot=none").await;
        watches_become(&plane, hub + 4, TEST_TIMEOUT).await;
        cluster.mark(&mark).await;
        received(&mut next, &mark).await;
        for listener in own.iter_mut().chain(&mut others) {
            received(listener, &mark).await;
        }
        drop(next);
        watches_become(&plane, hub + 2, RELEASE_TIMEOUT).await;
    }
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    /// With a close frame, the connection left open: the bridge's answer ends it.
    Close,
    /// With a TCP reset.
    Reset,
    /// Its process is killed.
    Kill,
    /// Not at all: its peer neither sends nor acknowledges anything at the WebSocket's level any more.
    Silence,
}

/// A connection that is about to end.
enum Victim {
    Here(Ending, WsClient),
    Process(Child),
}

impl Ending {
    fn earliest(self) -> Duration {
        // It was last heard of a moment before it was looked at.
        if self == Ending::Silence { SILENCE - RELEASE_TIMEOUT } else { Duration::ZERO }
    }

    fn bound(self) -> Duration {
        if self == Ending::Silence { SILENCE + RELEASE_TIMEOUT } else { RELEASE_TIMEOUT }
    }
}

impl Victim {
    async fn new(ending: Ending, bridge: &BridgeProcess) -> Victim {
        if ending != Ending::Kill {
            return Victim::Here(ending, bridge.listen("/ws").await);
        }
        let script = "exec 3<>/dev/tcp/127.0.0.1/$0; printf %s \"$1\" >&3; exec cat <&3";
        let (port, request) = (bridge.address.port().to_string(), http_client::upgrade(bridge.address, "/ws"));
        let mut bash = Command::new("bash");
        bash.args(["-c", script, &port, &request]).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        Victim::Process(bash.spawn().unwrap())
    }

    /// Ends it; what is returned must be held until that has been seen.
    async fn end(self) -> Option<WsClient> {
        match self {
            Victim::Here(Ending::Silence, listener) => Some(listener),
            Victim::Here(Ending::Close, mut listener) => {
                listener.close().await;
                Some(listener)
            }
            Victim::Here(_, listener) => {
                let stream = listener.into_stream();
                SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                None
            }
            Victim::Process(mut child) => {
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
    let bridge = BridgeProcess::serve(&plane, &cluster.namespace, &["--own-watchers", "3"]).await;
    let mut rng = SeededRng(4);
    let mut alive = [(false, false); 8];
    for _ in 0..20 {
        cluster.change(&mut rng, &mut alive).await;
    }
    cluster.mark("present").await;
    let mut listeners = Vec::new();
    let before = watches(&plane).await;
    for _ in 0..2 * DEDICATED {
        listeners.push(bridge.listen("/ws").await);
    }
    watches_become(&plane, before + 2 * DEDICATED, TEST_TIMEOUT).await;
    let changes = async {
        for _ in 0..CHANGES {
            cluster.change(&mut rng, &mut alive).await;
        }
        cluster.mark("over").await;
    };
    let listen = join_all(listeners.iter_mut().map(|listener| received(listener, "over")));
    let ((), all) = tokio::join!(changes, listen);
    let (first, others) = all.split_first().unwrap();
    for (n, other) in others.iter().enumerate() {
        assert_eq!(first, other, "the first socket and number {}", n + 2);
    }
    let [pods, claims] = first;
    let count = |texts: &[String], kind: &str| texts.iter().filter(|text| text.contains(kind)).count();
    let least = [
        (count(pods, "instance.state"), 50),
        (count(pods, "Deleted"), 2),
        (count(pods, "pool.instance.ready"), 10),
        (count(claims, "tenant.claimed"), 10),
        (count(claims, "tenant.released"), 5),
    ];
    println!("of each kind, and at least: {least:?}");
    assert!(least.iter().all(|(count, least)| count >= least), "the changes are too tame: {least:?}");
}
