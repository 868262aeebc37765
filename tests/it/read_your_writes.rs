//! "Event, then refetch" (docs/protocol.md#boilerhouse-stream): a GET is never older than an event that a socket of the same bridge
//! has delivered before, though that socket has watchers of its own and the hub hears everything later.
//!
//! Every change of an object raises a number in its tenant's name, the change that deletes it too. So an event says
//! which change it is about, and what a GET shows is at least that one or it is too old.

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
    event::{Instance, NamespaceId, PerResource, Resource, View},
    feed::{self, Feed, NotSynced},
    source::{dedicated, hub},
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
use crate::support::rng::SeededRng;

/// The namespace that a simulator begins with.
const NAMESPACE: &str = "boilerhouse";
/// How late the hub hears of everything, in milliseconds: within what a GET waits for (a second).
const LATE: RangeInclusive<u64> = 50..=300;
/// How late it hears when a GET cannot wait for it.
const TOO_LATE: RangeInclusive<u64> = 2000..=2100;
/// Sockets that are told, and GET.
const SOCKETS: usize = 5;
/// Objects that change, of each resource.
const OBJECTS: u64 = 12;
/// GETs after an event.
const GETS: u64 = 1000;
/// On the real API server, unless the long form is asked for.
const REAL_GETS: u64 = 200;

/// Changes one namespace, one change after the other.
struct Cluster {
    client: Client,
    namespace: String,
    /// By object: the changes that were deletions, noted before they are made.
    deletions: Mutex<HashMap<String, Vec<u64>>>,
}

/// What an event is about.
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
        let labels = json!({"boilerhouse.dev/managed": "true", "boilerhouse.dev/tenant": tenant(change)});
        let (name, metadata) = (format!("pod-{n}"), json!({"name": format!("pod-{n}"), "labels": labels}));
        if exists {
            self.call(Method::PATCH, "pods", &format!("/{name}"), &json!({ "metadata": metadata })).await;
        } else {
            let spec = json!({"containers": [{"name": "main", "image": "none"}]});
            self.call(Method::POST, "pods", "", &json!({"metadata": metadata, "spec": spec})).await;
        }
    }

    /// Active in even changes, released in odd ones.
    async fn claim(&self, n: u64, change: u64, exists: bool) {
        let name = format!("claim-{n}");
        let spec = json!({"tenantId": tenant(change), "workloadRef": "web"});
        let (path, body) = (format!("/{name}"), json!({ "spec": spec }));
        if exists {
            self.call(Method::PATCH, "boilerhouseclaims", &path, &body).await;
        } else {
            let claim = json!({
                "apiVersion": "boilerhouse.dev/v1alpha1", "kind": "BoilerhouseClaim", "metadata": {"name": name},
                "spec": spec,
            });
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

    /// Changes random objects until it is dropped.
    async fn live(&self) {
        let mut rng = SeededRng(1);
        let mut objects = vec![(0, false); 2 * OBJECTS as usize];
        loop {
            let which = rng.below(2 * OBJECTS);
            let (change, exists) = &mut objects[which as usize];
            *change += 1;
            let n = which / 2;
            let delete = *exists && rng.below(5) == 0;
            match (which % 2, delete) {
                (0, true) => self.delete("pods", &format!("pod-{n}"), *change).await,
                (0, false) => self.pod(n, *change, *exists).await,
                (_, true) => self.delete("boilerhouseclaims", &format!("claim-{n}"), *change).await,
                (_, false) => self.claim(n, *change, *exists).await,
            }
            *exists = !delete;
        }
    }

    /// Whether what a GET says of an object is what some change made of it that is not older than the one told.
    fn check(&self, delivered: &DeliveredEvent, found: Option<u64>) {
        let deletions = self.deletions.lock().unwrap();
        let deletions = deletions.get(&delivered.name).map_or(&[][..], Vec::as_slice);
        let good = match found {
            Some(change) => change >= delivered.change,
            None => deletions.iter().any(|change| *change >= delivered.change),
        };
        assert!(
            good,
            "told of change {} ({}), then found {found:?}; deletions: {deletions:?}",
            delivered.change, delivered.text
        );
    }
}

fn tenant(change: u64) -> String {
    format!("t-{change}")
}

fn change(tenant: &Value) -> u64 {
    let number = tenant.as_str().and_then(|tenant| tenant.strip_prefix("t-"));
    number.unwrap_or_else(|| panic!("no tenant of ours: {tenant}")).parse().unwrap()
}

impl DeliveredEvent {
    fn new(text: &str) -> DeliveredEvent {
        let event: Value = serde_json::from_str(text).unwrap();
        let named = change(&event["tenantId"]);
        // A claim's end is told as a release with the last tenant it had: whether it is gone or only released at that
        // change cannot be known from the event, so the earlier one must do.
        let change = if event["phase"] == "Deleted" { named + 1 } else { named };
        DeliveredEvent { name: event["name"].as_str().unwrap().to_owned(), change, text: text.to_owned() }
    }

    /// What the snapshot says of the object: which change made it so, or that it is not there.
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

/// GETs after every event that a socket is told of, until there have been enough.
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

/// Every one of so many GETs shows what an event has told before.
async fn gets_are_not_older_than_events(client: Client, namespace: &str, gets: u64) {
    let late = DelayedClient::new(LATE);
    // However slow the machine is: that a GET gives up is another test's.
    let mut config = Config {
        feed: feed::Config { read_your_writes_timeout: TEST_TIMEOUT, ..feed::Config::default() },
        ..Config::default()
    };
    // Nor is it how many GETs one may make: the long form makes more than that.
    config.limits.requests = NonZeroU32::MAX;
    let bridge = InProcessBridge::start(namespace, late.client(client.clone()), &client, config).await;
    let cluster = Arc::new(Cluster::new(client, namespace));
    let left = Arc::new(AtomicU64::new(gets));
    let mut sockets = JoinSet::new();
    for _ in 0..SOCKETS {
        let listener = WsClient::connect(bridge.address, "/ws").await;
        sockets.spawn(refetch(listener, bridge.address, cluster.clone(), left.clone()));
    }
    let all = async {
        while let Some(socket) = sockets.join_next().await {
            socket.unwrap();
        }
    };
    tokio::select! {
        () = cluster.live() => unreachable!("it lives for ever"),
        over = timeout(4 * TEST_TIMEOUT, all) => over.expect("too few events"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_is_never_older_than_an_event() {
    let sim = Sim::new(SimConfig::default());
    gets_are_not_older_than_events(sim.client(NAMESPACE), NAMESPACE, if long_form() { 10 * GETS } else { GETS }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_is_never_older_than_an_event_on_the_real_api_server() {
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace().await;
    gets_are_not_older_than_events(plane.client().await, &namespace, if long_form() { GETS } else { REAL_GETS }).await;
}

/// An own watch that is cut while objects are deleted finds that out by a list, which gives a deletion no version: the
/// hub, which makes its own list later, must not be asked before.
#[tokio::test]
async fn get_reflects_deletions_found_by_a_list() {
    let sim = Sim::new(SimConfig::default());
    let late = DelayedClient::new(400..=450);
    let own = dedicated::Config { error_delay: Duration::from_millis(20), ..dedicated::Config::default() };
    let hub = hub::Config { backoff_max: Duration::from_millis(100), ..hub::Config::default() };
    let feed = feed::Config { read_your_writes_timeout: TEST_TIMEOUT, ..feed::Config::default() };
    let config = Config { hub, dedicated: own, feed, ..Config::default() };
    let client = sim.client(NAMESPACE);
    let bridge = InProcessBridge::start(NAMESPACE, late.client(client.clone()), &client, config).await;
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
        // The hub has heard of everything before, and nobody of what happens while the API server is gone.
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

/// Things go on happening while a GET waits: for those it does not wait, or under load it would for ever.
#[tokio::test(start_paused = true)]
async fn get_waits_only_for_previously_delivered_events() {
    let (mut hub, feed) = Feed::new(feed::Config::default());
    let pod = |rv| {
        View::Instance(Arc::new(Instance {
            name: "a".into(),
            uid: "a".into(),
            resource_version: rv,
            ..Instance::default()
        }))
    };
    hub.set_namespace(NamespaceId::from_uid("home"));
    let (mut own, _own_feed) = feed.dedicated();
    for writer in [&mut hub, &mut own] {
        writer.replace(Resource::Pods, vec![pod(5)], 5);
        writer.replace(Resource::Claims, Vec::new(), 5);
    }
    own.upsert(pod(10));
    let mut get = pin!(feed.snapshot());
    assert!(futures::poll!(&mut get).is_pending(), "10 has been told, and the hub is at 5");
    own.upsert(pod(20));
    own.replace(Resource::Pods, Vec::new(), 30);
    hub.upsert(pod(9));
    assert!(futures::poll!(&mut get).is_pending(), "not yet");
    hub.upsert(pod(10));
    assert_eq!(get.await.unwrap().versions, PerResource::new(10, 5));
    let late = feed.snapshot().await.unwrap_err();
    assert_eq!(late, NotSynced, "a GET that comes now waits for 30, and for the deletion");
    hub.upsert(pod(30));
    assert_eq!(feed.snapshot().await.unwrap_err(), NotSynced, "the deletion is still to come");
    hub.remove(Resource::Pods, "a", "a", 31);
    assert_eq!(feed.snapshot().await.unwrap().versions, PerResource::new(31, 5));
}

/// What cannot be waited for is not shown.
#[tokio::test]
async fn get_is_503_if_older_than_a_delivered_event() {
    let sim = Sim::new(SimConfig::default());
    let late = DelayedClient::new(0..=0);
    let client = sim.client(NAMESPACE);
    let bridge = InProcessBridge::start(NAMESPACE, late.client(client.clone()), &client, Config::default()).await;
    let cluster = Cluster::new(client, NAMESPACE);
    let mut listener = WsClient::connect(bridge.address, "/ws").await;
    late.set(TOO_LATE);
    cluster.pod(0, 1, false).await;
    let delivered = DeliveredEvent::new(&listener.text().await);
    let start = Instant::now();
    let answer = http_client::get(bridge.address, "/api/v1/instances").await;
    assert_eq!((answer.status, &answer.json()["code"]), (503, &json!("NOT_READY")), "{}", answer.body);
    let waited = start.elapsed();
    assert!(waited >= Duration::from_secs(1), "it waits for a second first: {waited:?}");
    assert_eq!(answer.header("retry-after"), Some("1"));
    let end = start + TEST_TIMEOUT;
    while http_client::get(bridge.address, "/api/v1/instances").await.status != 200 {
        assert!(Instant::now() < end, "still 503");
    }
    assert_eq!(delivered.find(bridge.address).await, Some(1));
}
