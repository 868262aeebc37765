//! Test of tenant isolation in the binary: no endpoint sends data of another tenant to a tenant key, over seeded
//! histories of both tenants in one cluster. `tenant_isolation_feed` tests the projections of the feed byte by byte.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use boilerhouse_bridge::{sim::ApiResource, test_support::SeededRng};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, tcp::OwnedWriteHalf},
    task::JoinHandle,
    time::timeout,
};

use super::{KeysFile, bearer, cookie, key, three_keys, ticket};
use crate::support::{
    self,
    bridge_process::BridgeProcess,
    http_client::{self, HttpResponse, TEST_TIMEOUT, poll_until, request},
    sim_cluster::{NAMESPACE, SimCluster},
};

/// Number of histories in the long form and in the short form of the test.
const HISTORIES: [u64; 2] = [300, 25];
/// Writes in a history.
const WRITES: usize = 40;
/// Number of histories, from the first one, in which the API server loses its watch history, so that all watchers list
/// again. More would make the test slow: a dedicated watcher waits longer before each list.
const HISTORIES_WITH_RESTART: u64 = 2;
/// The tenant that reads, the other one, and the owner of objects without a tenant.
const OWN: &str = "alice";
const OTHER: &str = "mallory";
const NO_TENANT: &str = "spare";
/// A tenant that does not exist. Its name is as long as that of the other tenant, so that responses can be compared.
const ABSENT: &str = "nothing";

/// A stream of the tenant key that records all received bytes.
struct StreamTap {
    path: String,
    received: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
    to_bridge: OwnedWriteHalf,
    /// Kinds of the marker objects that the stream delivers. When they have arrived, all earlier events have.
    marks: &'static [&'static str],
}

impl Drop for StreamTap {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl StreamTap {
    async fn open(
        bridge: &BridgeProcess,
        path: &str,
        header: (&str, &str),
        marks: &'static [&'static str],
    ) -> StreamTap {
        let mut stream = TcpStream::connect(bridge.address).await.unwrap();
        let request = http_client::upgrade(bridge.address, path);
        // An SSE request is the same without the upgrade headers.
        let request = match is_websocket(path) {
            true => request,
            false => format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", bridge.address),
        };
        let request = request.replacen("\r\n\r\n", &format!("\r\n{}: {}\r\n\r\n", header.0, header.1), 1);
        stream.write_all(request.as_bytes()).await.unwrap();
        let (mut stream, to_bridge) = stream.into_split();
        let received = Arc::<Mutex<Vec<u8>>>::default();
        let buffer = received.clone();
        let reader = tokio::spawn(async move {
            let mut bytes = Vec::new();
            while stream.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
                buffer.lock().unwrap().append(&mut bytes);
            }
        });
        let tap = StreamTap { path: path.to_owned(), received, reader, to_bridge, marks };
        poll_until(|| tap.contains("\r\n\r\n").then_some(())).await;
        let opened = tap.contains("HTTP/1.1 200 ") || tap.contains("HTTP/1.1 101 ");
        assert!(opened, "expected a stream at {path}, found: {}", tap.text());
        tap
    }

    /// Sends an unsolicited pong, because the bridge closes a WebSocket that receives nothing for 45 s.
    async fn keep_alive(&mut self) {
        if is_websocket(&self.path) {
            self.to_bridge.write_all(b"\x8a\x80\0\0\0\0").await.unwrap();
        }
    }

    fn contains(&self, word: &str) -> bool {
        memchr::memmem::find(&self.received.lock().unwrap(), word.as_bytes()).is_some()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.received.lock().unwrap()).into_owned()
    }
}

fn is_websocket(path: &str) -> bool {
    path.contains("/ws") || path.contains("/websocket")
}

/// A cluster with objects of both tenants, and a record of their owners.
struct TwoTenantCluster {
    cluster: SimCluster,
    rng: SeededRng,
    /// Owner of each existing object, by resource and name.
    owners: BTreeMap<(ApiResource, String), &'static str>,
    /// The uids of objects that never belonged to the reading tenant: of this history and of the previous one.
    hidden: [BTreeSet<String>; 2],
    /// The uids of objects that belong or belonged to the reading tenant.
    visible: BTreeSet<String>,
}

impl TwoTenantCluster {
    /// Creates, changes or deletes one random object.
    fn write(&mut self) {
        let resource = *self.rng.choose(&[ApiResource::Pods, ApiResource::Claims]);
        let slot = self.rng.below(3);
        // A shared object can change its owner. The name of every other object names its owner.
        let (name, owner) = match *self.rng.choose(&[OWN, OTHER, OTHER, NO_TENANT, "shared", "shared"]) {
            "shared" => (format!("shared-{slot}"), *self.rng.choose(&[OWN, OTHER, NO_TENANT])),
            owner => (format!("{owner}-{slot}"), owner),
        };
        let exists = self.owners.contains_key(&(resource, name.clone()));
        if exists && self.rng.below(5) == 0 {
            self.cluster.sim.store(|store| store.delete(resource, NAMESPACE, &name)).unwrap();
            self.owners.remove(&(resource, name));
            return;
        }
        self.put(resource, &name, owner);
    }

    /// Creates an object or replaces its values, and records its owner.
    fn put(&mut self, resource: ApiResource, name: &str, owner: &'static str) {
        let object = self.object(resource, name, owner);
        let written = self.cluster.sim.store(|store| match store.get(resource, NAMESPACE, name) {
            None => store.create(resource, object),
            Some(_) => store.modify(resource, NAMESPACE, name, |current| {
                current["metadata"]["labels"] = object["metadata"]["labels"].clone();
                current["metadata"]["annotations"] = object["metadata"]["annotations"].clone();
                current["spec"] = object["spec"].clone();
                current["status"] = object["status"].clone();
            }),
        });
        let uid = written.unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
        self.owners.insert((resource, name.to_owned()), owner);
        if owner == OWN {
            self.hidden[0].remove(&uid);
            self.visible.insert(uid);
        } else if !self.visible.contains(&uid) {
            self.hidden[0].insert(uid);
        }
    }

    /// Returns an object whose values contain the word of its owner, except its name. A claim can name a Pod of any
    /// owner.
    fn object(&mut self, resource: ApiResource, name: &str, owner: &str) -> Value {
        let rng = &mut self.rng;
        let mut word = |field: &str| format!("{owner}-{field}-{}", rng.below(3));
        let labels = json!({"boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": word("workload"),
                            format!("{owner}.example/label"): word("label")});
        let [phase, ip, source, at, detail, active] =
            ["phase", "ip", "source", "at", "detail", "active"].map(&mut word);
        let mut metadata = json!({"name": name, "namespace": NAMESPACE, "labels": labels});
        if resource == ApiResource::Pods {
            metadata["labels"]["boilerhouse.dev/pool-status"] = json!(rng.choose(&["warming", "ready", "acquired"]));
            if owner != NO_TENANT {
                metadata["labels"]["boilerhouse.dev/tenant"] = json!(owner);
            }
            return json!({"metadata": metadata, "spec": {}, "status": {"phase": phase, "podIP": ip}});
        }
        metadata["annotations"] = json!({"boilerhouse.dev/last-activity": active});
        let pod = format!("{}-{}", rng.choose(&[OWN, "shared", owner]), rng.below(3));
        let phase = *rng.choose(&["Active", "Active", "Pending", "Released"]);
        // The schema of a claim requires a tenant.
        let tenant = if owner == NO_TENANT { "spare-tenant" } else { owner };
        // The tenant's own claims name only its own Pods: a name of another Pod would be the tenant's own data.
        let pod = if owner == OWN { format!("{OWN}-{}", rng.below(3)) } else { pod };
        json!({
            "metadata": metadata, "spec": {"tenantId": tenant, "workloadRef": format!("{owner}-workload")},
            "status": {"phase": phase, "instanceId": pod, "source": source, "claimedAt": at, "detail": detail,
                       "endpoint": {"host": format!("{owner}.example"), "port": 1}},
        })
    }

    /// Writes the marker objects at the end of a history. A stream that has delivered them has delivered all earlier
    /// events.
    fn write_marks(&mut self, history: u64) {
        for (resource, kind) in [(ApiResource::Pods, "pod"), (ApiResource::Claims, "claim")] {
            let name = format!("mark-{kind}-{history}-");
            self.put(resource, &name, OWN);
            let active = json!({"status": {"phase": "Active"}});
            self.cluster.sim.store(|store| store.patch(resource, NAMESPACE, &name, &active)).unwrap();
        }
    }

    /// Deletes all objects. The events of the deletions can arrive during the next history.
    fn delete_all(&mut self) {
        self.hidden = [BTreeSet::new(), std::mem::take(&mut self.hidden[0])];
        for (resource, name) in std::mem::take(&mut self.owners).into_keys() {
            self.cluster.sim.store(|store| store.delete(resource, NAMESPACE, &name)).unwrap();
        }
    }

    /// Returns the names of the objects of the reading tenant.
    fn own_names(&self, resource: ApiResource) -> Vec<&str> {
        let own = self.owners.iter().filter(|((of, _), owner)| *of == resource && **owner == OWN);
        own.map(|((_, name), _)| name.as_str()).collect()
    }

    /// Asserts that `text` contains no word and no uid of another owner.
    fn check(&self, source: &str, text: &str) {
        for word in [OTHER, NO_TENANT, "pool.depth"] {
            assert!(!text.contains(word), "{source} contains {word}: {text}");
        }
        for uid in self.hidden.iter().flatten() {
            assert!(!text.contains(uid.as_str()), "{source} contains {uid}, which never belonged to {OWN}: {text}");
        }
    }
}

/// Sends a GET with the tenant key. Removes the headers that differ between equal responses.
async fn get_as_tenant(bridge: &BridgeProcess, path: &str) -> HttpResponse {
    let mut response = request(bridge.address, "GET", path, &[("Authorization", &bearer(OWN))]).await;
    response.headers.retain(|(name, _)| !["date", "event-cursor", "ratelimit"].contains(&name.as_str()));
    response
}

/// Checks every GET endpoint at the end of a history.
async fn check_all_endpoints(bridge: &BridgeProcess, model: &TwoTenantCluster) {
    let paths = [
        "/api/v1/instances",
        "/api/v1/tenants",
        "/api/v1/tenants/alice",
        "/api/v1/connections",
        "/api/v1/pools",
        "/api/v1/stats",
        "/metrics",
        "/readyz?verbose",
        "/livez",
        "/api/v1/health",
        "/",
        "/api/v1/instances?params=%7B%22instances%22:%7B%22labels%22:%7B%22boilerhouse.dev/managed%22:null%7D%7D%7D",
    ];
    for path in paths {
        model.check(path, &format!("{:?}", get_as_tenant(bridge, path).await));
    }
    let names = |response: &HttpResponse| -> Vec<String> {
        response.json().as_array().unwrap().iter().map(|object| object["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&get_as_tenant(bridge, "/api/v1/instances").await), model.own_names(ApiResource::Pods));
    let tenants = get_as_tenant(bridge, "/api/v1/tenants").await.json();
    assert_eq!(tenants.as_array().unwrap().len(), 1, "{tenants}");
    let claims = tenants[0]["claims"].as_array().unwrap().iter().map(|claim| claim["name"].as_str().unwrap());
    assert_eq!(claims.collect::<Vec<_>>(), model.own_names(ApiResource::Claims));

    // The response for an object of another tenant equals that for an absent object, except for the requested name.
    let requests = [
        "/api/v1/instances/{}-0",
        "/api/v1/instances/{}-1",
        "/api/v1/instances/{}-2",
        "/api/v1/tenants/{}",
        "/api/v1/instances?params=%7B%22instances%22:%7B%22tenantId%22:%22{}%22%7D%7D",
        "/api/v1/instances?params=%7B%22instances%22:%7B%22workloadRef%22:%22{}-workload-0%22%7D%7D",
        "/api/v1/instances?params=%7B%22instances%22:%7B%22labels%22:%7B%22{}.example/label%22:null%7D%7D%7D",
        "/api/v1/tenants?params=%7B%22claims%22:%7B%22tenantId%22:%22{}%22%7D%7D",
        "/api/v1/pools?params=%7B%22instances%22:%7B%22tenantId%22:%22{}%22%7D%7D",
        "/api/v1/stats?params=%7B%22claims%22:%7B%22tenantId%22:%22{}%22%7D%7D",
    ];
    for path in requests {
        let [of_other, of_absent] = [OTHER, ABSENT].map(|name| async move {
            format!("{:?}", get_as_tenant(bridge, &path.replace("{}", name)).await).replace(name, "{}")
        });
        assert_eq!(of_other.await, of_absent.await, "{path}");
    }
}

#[tokio::test]
async fn no_endpoint_reveals_another_tenant() {
    let all = [three_keys(), vec![key(OTHER, &json!({"tenantId": OTHER}))]].concat();
    let keys = KeysFile::new(&all);
    let mut model = TwoTenantCluster {
        cluster: SimCluster::new().await,
        rng: SeededRng(7),
        owners: BTreeMap::new(),
        hidden: Default::default(),
        visible: BTreeSet::new(),
    };
    let rates = ["--dedicated-watchers", "2", "--request-rate", "1000000"];
    let bridge = model.cluster.bridge(&[&["--keys-file", &keys.path()][..], &rates].concat()).await;
    let (authorization, cookie) = (bearer(OWN), cookie(&bridge, OWN).await);
    let by_ticket = format!("/api/sse?token={}", ticket(&bridge, OWN).await);
    let by_key = ("Authorization", authorization.as_str());
    let both_marks: &[&str] = &["pod", "claim"];
    let filter =
        "%7B%22instances%22:%7B%22tenantId%22:%22mallory%22%7D,%22claims%22:%7B%22tenantId%22:%22mallory%22%7D%7D";
    let (ws_for_other, sse_for_other) =
        (format!("/api/websocket?params={filter}"), format!("/api/sse?params={filter}"));
    let streams = [
        ("/ws", by_key, both_marks),
        ("/ws?snapshot=none", by_key, both_marks),
        // The next streams use the hub: both dedicated watchers are in use.
        ("/ws?types=instance.state", ("Cookie", &cookie), &["pod"]),
        ("/ws?types=pool,tenant", by_key, &["claim"]),
        ("/api/websocket", by_key, both_marks),
        ("/api/websocket?types=pool,tenant,telemetry,mqtt", by_key, &["claim"]),
        ("/api/sse", by_key, both_marks),
        (&by_ticket, ("Accept", "text/event-stream"), both_marks),
        ("/api/events/stream?snapshot=state", ("Cookie", &cookie), both_marks),
        ("/events/stream?snapshot=state", by_key, both_marks),
        ("/events", by_key, both_marks),
        ("/events/ws?snapshot=state", by_key, both_marks),
        // These streams request objects of another tenant and receive no events. They are checked when the other
        // streams are complete.
        (&ws_for_other, by_key, &[]),
        (&sse_for_other, by_key, &[]),
    ];
    let mut taps = Vec::new();
    for (path, header, marks) in streams {
        taps.push(StreamTap::open(&bridge, path, header, marks).await);
    }
    let (mut with_events, mut filtered) = (0, 0);
    let histories = if support::long_form() { HISTORIES[0] } else { HISTORIES[1] };
    for history in 0..histories {
        model.rng = SeededRng(history);
        let response = request(bridge.address, "GET", "/api/v1/instances", &[by_key]).await;
        let resumed = format!("/api/sse?lastEventId={}", response.header("event-cursor").unwrap());
        for step in 0..WRITES {
            model.write();
            if history < HISTORIES_WITH_RESTART && step == WRITES / 2 {
                model.cluster.sim.restart();
            }
            if step % 4 == 0 {
                tokio::task::yield_now().await;
            }
        }
        let resumed = StreamTap::open(&bridge, &resumed, by_key, both_marks).await;
        model.write_marks(history);
        for tap in taps.iter().chain([&resumed]) {
            for mark in tap.marks.iter().map(|kind| format!("mark-{kind}-{history}-")) {
                let delivered = async {
                    while !tap.contains(&mark) {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                let complete = timeout(TEST_TIMEOUT, delivered).await.is_ok();
                assert!(complete, "expected {mark} on {}, found: {}", tap.path, tap.text());
            }
            let text = tap.text();
            // No stream repeats the words of its filter.
            model.check(&tap.path, &text);
            with_events += usize::from(text.contains("alice-workload"));
            filtered += text.matches(r#""cause":"filtered""#).count();
        }
        check_all_endpoints(&bridge, &model).await;
        model.delete_all();
        for tap in &mut taps {
            tap.received.lock().unwrap().clear();
            tap.keep_alive().await;
        }
    }
    println!("{with_events} streams received events, {filtered} events with the cause `filtered`");
    let histories = usize::try_from(histories).unwrap();
    assert!(
        with_events > 12 * histories && filtered > 2 * histories,
        "for each history, expected events on more than 12 streams and more than 2 `filtered` events, found \
         {with_events} and {filtered}"
    );
}
