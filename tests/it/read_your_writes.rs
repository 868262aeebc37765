//! Read-your-writes (docs/protocol.md#boilerhouse-stream): a snapshot GET is never older than an event that the same
//! bridge has delivered. The tests delay the hub, while the client of `/ws` has dedicated watchers without a delay.
//!
//! The changes of each object are numbered, and the tenant's name contains the number. An event therefore names its
//! change, and a GET is too old if it returns an earlier change. A deletion has a number too.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::sim::{ApiResource, Sim, SimConfig};
use boilerhouse_bridge::{
    event::{NamespaceId, PerResource, Resource},
    feed::{self, Feed, NotSynced},
    source::{dedicated, hub, retry::Backoff},
    test_support::{ClaimBuilder, PodBuilder, SeededRng},
};
use http::{Method, Request};
use kube::Client;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::support::control_plane::ControlPlane;
use crate::support::http_client::{self, TEST_TIMEOUT, WsClient};
use crate::support::in_process::{Config, DelayedClient, InProcessBridge};
use crate::support::long_form;

/// The namespace of a simulator with the default configuration.
const NAMESPACE: &str = "boilerhouse";
/// The delay of the hub in milliseconds.
const HUB_DELAY: RangeInclusive<u64> = 50..=300;
/// Clients that receive events and send GETs.
const CLIENTS: usize = 5;
/// Objects of each resource that change.
const OBJECTS: u64 = 12;
/// GETs that follow an event, in total.
const GETS: u64 = 1000;
/// The same on the real API server, in the short form.
const REAL_GETS: u64 = 200;

/// Makes changes in one namespace, one after the other.
struct Cluster {
    client: Client,
    namespace: String,
    /// The numbers of the deletions of each object. They are recorded before the deletion is made.
    deletions: Mutex<HashMap<String, Vec<u64>>>,
}

/// A received event: the object, and the number of its change.
#[derive(Debug)]
struct DeliveredEvent {
    name: String,
    change: u64,
    text: String,
}

impl Cluster {
    fn new(client: Client, namespace: &str) -> Cluster {
        Cluster { client, namespace: namespace.to_owned(), deletions: Mutex::default() }
    }

    async fn call(&self, method: Method, resource: &str, path: &str, body: &Value) {
        let group = if resource == "pods" { "/api/v1" } else { "/apis/boilerhouse.dev/v1alpha1" };
        let uri = format!("{group}/namespaces/{}/{resource}{path}", self.namespace);
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).uri(&uri).header("content-type", kind);
        let answer = self.client.request::<Value>(request.body(body.to_string().into_bytes()).unwrap()).await;
        answer.unwrap_or_else(|error| panic!("{uri}: {error}"));
    }

    async fn pod(&self, n: u64, change: u64, exists: bool) {
        let name = format!("pod-{n}");
        let pod = PodBuilder::new(&name).tenant(&tenant(change)).json();
        if exists {
            self.call(Method::PATCH, "pods", &format!("/{name}"), &json!({"metadata": pod["metadata"]})).await;
        } else {
            self.call(Method::POST, "pods", "", &pod).await;
        }
    }

    /// Changes a claim. It is active after even changes and released after odd ones.
    async fn claim(&self, n: u64, change: u64, exists: bool) {
        let name = format!("claim-{n}");
        let claim = ClaimBuilder::new(&name).tenant(&tenant(change)).json();
        let path = format!("/{name}");
        if exists {
            self.call(Method::PATCH, "boilerhouseclaims", &path, &json!({"spec": claim["spec"]})).await;
        } else {
            self.call(Method::POST, "boilerhouseclaims", "", &claim).await;
        }
        let phase = if change.is_multiple_of(2) { "Active" } else { "Released" };
        let status = json!({"status": {"phase": phase}});
        self.call(Method::PATCH, "boilerhouseclaims", &format!("{path}/status"), &status).await;
    }

    async fn delete(&self, resource: &str, name: &str, change: u64) {
        self.deletions.lock().unwrap().entry(name.to_owned()).or_default().push(change);
        self.call(Method::DELETE, resource, &format!("/{name}"), &json!({"gracePeriodSeconds": 0})).await;
    }

    /// Changes random objects until the future is dropped.
    async fn change_randomly(&self) {
        let mut rng = SeededRng(1);
        let mut objects = vec![(0, false); 2 * OBJECTS as usize];
        loop {
            let index = rng.below(2 * OBJECTS);
            let (change, exists) = &mut objects[index as usize];
            *change += 1;
            let n = index / 2;
            let delete = *exists && rng.below(5) == 0;
            match (index % 2, delete) {
                (0, true) => self.delete("pods", &format!("pod-{n}"), *change).await,
                (0, false) => self.pod(n, *change, *exists).await,
                (_, true) => self.delete("boilerhouseclaims", &format!("claim-{n}"), *change).await,
                (_, false) => self.claim(n, *change, *exists).await,
            }
            *exists = !delete;
        }
    }

    /// Checks the result of a GET: the object after a change that is not older than the event, or no object after a
    /// deletion that is not older than the event.
    fn check(&self, delivered: &DeliveredEvent, found: Option<u64>) {
        let deletions = self.deletions.lock().unwrap();
        let deletions = deletions.get(&delivered.name).map_or(&[][..], Vec::as_slice);
        let current = match found {
            Some(change) => change >= delivered.change,
            None => deletions.iter().any(|change| *change >= delivered.change),
        };
        assert!(
            current,
            "received change {} ({}), then found {found:?}; deletions: {deletions:?}",
            delivered.change, delivered.text
        );
    }
}

fn tenant(change: u64) -> String {
    format!("t-{change}")
}

fn change(tenant: &Value) -> u64 {
    let number = tenant.as_str().and_then(|tenant| tenant.strip_prefix("t-"));
    number.unwrap_or_else(|| panic!("the tenant has no change number: {tenant}")).parse().unwrap()
}

impl DeliveredEvent {
    fn new(text: &str) -> DeliveredEvent {
        let event: Value = serde_json::from_str(text).unwrap();
        let last = change(&event["tenantId"]);
        // A deleted Pod has the tenant of its last change, so the deletion has the next number. A deleted claim sends a
        // release with its last tenant. The event does not show whether the claim is deleted or only released, so the
        // test assumes the earlier change.
        let change = if event["phase"] == "Deleted" { last + 1 } else { last };
        DeliveredEvent { name: event["name"].as_str().unwrap().to_owned(), change, text: text.to_owned() }
    }

    /// Sends a GET. Returns the number of the object's last change, or `None` if the object does not exist.
    async fn find(&self, address: SocketAddr) -> Option<u64> {
        if self.name.starts_with("pod-") {
            let answer = http_client::get(address, &format!("/api/v1/instances/{}", self.name)).await;
            match answer.status {
                404 => return None,
                status => assert_eq!(status, 200, "{}", answer.body),
            }
            return Some(change(&answer.json()["tenantId"]));
        }
        let answer = http_client::get(address, "/api/v1/tenants").await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let tenants = answer.json();
        let claims = tenants.as_array().unwrap().iter().flat_map(|tenant| tenant["claims"].as_array().unwrap());
        claims.clone().find(|claim| claim["name"] == self.name.as_str()).map(|claim| change(&claim["tenantId"]))
    }
}

/// Sends a GET after every event, until all clients together have sent enough of them.
async fn refetch(mut listener: WsClient, bridge: SocketAddr, cluster: Arc<Cluster>, left: Arc<AtomicU64>) {
    let mut gets = JoinSet::new();
    while left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
        let delivered = DeliveredEvent::new(&listener.text().await);
        let cluster = cluster.clone();
        gets.spawn(async move {
            let found = delivered.find(bridge).await;
            cluster.check(&delivered, found);
        });
    }
    while let Some(get) = gets.join_next().await {
        get.unwrap();
    }
}

/// Checks that no GET is older than an event that was delivered before it.
async fn check_gets_after_events(client: Client, namespace: &str, gets: u64) {
    let delayed = DelayedClient::new(HUB_DELAY);
    // The GETs wait long enough for a slow machine. Another test covers a GET that stops waiting.
    let mut config = Config {
        feed: feed::Config { read_your_writes_timeout: TEST_TIMEOUT, ..feed::Config::default() },
        ..Config::default()
    };
    // The long form sends more GETs than the default rate allows.
    config.limits.requests = NonZeroU32::MAX;
    let bridge = InProcessBridge::start(namespace, delayed.client(client.clone()), &client, config).await;
    let cluster = Arc::new(Cluster::new(client, namespace));
    let left = Arc::new(AtomicU64::new(gets));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let listener = WsClient::connect(bridge.address, "/ws").await;
        clients.spawn(refetch(listener, bridge.address, cluster.clone(), left.clone()));
    }
    let all = async {
        while let Some(client) = clients.join_next().await {
            client.unwrap();
        }
    };
    tokio::select! {
        () = cluster.change_randomly() => unreachable!("the loop has no end"),
        ended = timeout(4 * TEST_TIMEOUT, all) => ended.expect("too few events arrive in time"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_is_never_older_than_an_event() {
    let sim = Sim::new(SimConfig::default());
    check_gets_after_events(sim.client(NAMESPACE), NAMESPACE, if long_form() { 10 * GETS } else { GETS }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_is_never_older_than_an_event_on_the_real_api_server() {
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace().await;
    check_gets_after_events(plane.client().await, &namespace, if long_form() { GETS } else { REAL_GETS }).await;
}

/// A dedicated watcher that is cut while objects are deleted finds the deletions by a list. A list gives a deletion no
/// version. A GET must wait until the hub has made its own, later list.
#[tokio::test]
async fn get_reflects_deletions_found_by_a_list() {
    let sim = Sim::new(SimConfig::default());
    let delayed = DelayedClient::new(400..=450);
    let backoff = Backoff { max: Duration::from_millis(100), ..Backoff::default() };
    let dedicated = dedicated::Config { backoff, ..dedicated::Config::default() };
    let hub = hub::Config { backoff, ..hub::Config::default() };
    let feed = feed::Config { read_your_writes_timeout: TEST_TIMEOUT, ..feed::Config::default() };
    let config = Config { hub, dedicated, feed, ..Config::default() };
    let client = sim.client(NAMESPACE);
    let bridge = InProcessBridge::start(NAMESPACE, delayed.client(client.clone()), &client, config).await;
    let cluster = Cluster::new(client, NAMESPACE);
    for n in 0..OBJECTS {
        cluster.pod(n, 1, false).await;
        cluster.claim(n, 2, false).await;
    }
    let mut listener = WsClient::connect(bridge.address, "/ws").await;
    for _ in 0..2 * OBJECTS {
        listener.text().await;
    }
    for round in 0..OBJECTS / 3 {
        // The API server is down, so that all watchers miss the deletions.
        sim.down();
        for n in 3 * round..3 * round + 2 {
            sim.store(|store| store.delete(ApiResource::Pods, NAMESPACE, &format!("pod-{n}"))).unwrap();
            sim.store(|store| store.delete(ApiResource::Claims, NAMESPACE, &format!("claim-{n}"))).unwrap();
        }
        sim.restart();
        sim.up();
        for _ in 0..4 {
            let delivered = DeliveredEvent::new(&listener.text().await);
            assert!(delivered.text.contains("Deleted") || delivered.text.contains("tenant.released"), "{delivered:?}");
            assert_eq!(delivered.find(bridge.address).await, None, "{delivered:?}");
        }
    }
}

/// A GET does not wait for changes that are delivered while it waits. Otherwise it could wait without end under load.
#[tokio::test(start_paused = true)]
async fn get_waits_only_for_previously_delivered_events() {
    let (mut hub, feed) = Feed::new(feed::Config::default());
    let pod = |version| PodBuilder::new("a").uid("a").version(version).view();
    hub.set_namespace(NamespaceId::from_uid("namespace"));
    let (mut dedicated, _dedicated_feed) = feed.dedicated();
    for writer in [&mut hub, &mut dedicated] {
        writer.replace(Resource::Pods, vec![pod(5)], 5);
        writer.replace(Resource::Claims, Vec::new(), 5);
    }
    dedicated.upsert(pod(10));
    let mut get = pin!(feed.snapshot());
    assert!(futures::poll!(&mut get).is_pending(), "expected a wait: version 10 is delivered and the hub is at 5");
    dedicated.upsert(pod(20));
    dedicated.replace(Resource::Pods, Vec::new(), 30);
    hub.upsert(pod(9));
    assert!(futures::poll!(&mut get).is_pending(), "expected a wait: the hub is at 9");
    hub.upsert(pod(10));
    assert_eq!(get.await.unwrap().versions, PerResource::new(10, 5));
    let error = feed.snapshot().await.unwrap_err();
    assert_eq!(error, NotSynced, "expected a new GET to wait for version 30 and the deletion");
    hub.upsert(pod(30));
    assert_eq!(feed.snapshot().await.unwrap_err(), NotSynced, "expected a new GET to wait for the deletion");
    hub.remove(Resource::Pods, "a", "a", 31);
    assert_eq!(feed.snapshot().await.unwrap().versions, PerResource::new(31, 5));
}

/// A GET that cannot become current within its wait of 1 s answers 503. The hub's responses are held until then, so the
/// result does not depend on the speed of the machine.
#[tokio::test]
async fn get_is_503_if_older_than_a_delivered_event() {
    let sim = Sim::new(SimConfig::default());
    let delayed = DelayedClient::new(0..=0);
    let client = sim.client(NAMESPACE);
    let bridge = InProcessBridge::start(NAMESPACE, delayed.client(client.clone()), &client, Config::default()).await;
    let cluster = Cluster::new(client, NAMESPACE);
    let mut listener = WsClient::connect(bridge.address, "/ws").await;
    delayed.hold();
    cluster.pod(0, 1, false).await;
    let delivered = DeliveredEvent::new(&listener.text().await);
    let start = Instant::now();
    let answer = http_client::get(bridge.address, "/api/v1/instances").await;
    assert_eq!((answer.status, &answer.json()["code"]), (503, &json!("NOT_READY")), "{}", answer.body);
    let waited = start.elapsed();
    assert!(waited >= Duration::from_secs(1), "expected a wait of 1 s, found {waited:?}");
    assert_eq!(answer.header("retry-after"), Some("1"));
    delayed.release();
    let end = Instant::now() + TEST_TIMEOUT;
    while http_client::get(bridge.address, "/api/v1/instances").await.status != 200 {
        assert!(Instant::now() < end, "the GET still answers 503");
    }
    assert_eq!(delivered.find(bridge.address).await, Some(1));
}
