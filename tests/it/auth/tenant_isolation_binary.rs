//! What one tenant's key is told by the binary of another tenant, at every endpoint, over seeded histories of both in one
//! cluster. What the lens itself lets through is tried in `scope`, history by history and byte by byte.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use boilerhouse_bridge::sim::ApiResource;
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
    rng::SeededRng,
    sim_cluster::{NAMESPACE, SimCluster},
};

/// Histories in the long form of the test, and in the short one.
const HISTORIES: [u64; 2] = [300, 50];
/// Writes in a history.
const STEPS: usize = 40;
/// In so many histories, the first ones, the API server forgets its watch history, and everybody lists anew; the watchers
/// of a connection wait longer each time.
const RESTARTED: u64 = 2;
/// The tenant that looks, the other one, and what belongs to neither.
const OWN_TENANT: &str = "alice";
const OTHER_TENANT: &str = "mallory";
const NEITHER: &str = "spare";
/// As long as the other's, and nobody's.
const ABSENT: &str = "nothing";

/// Connections that hear all that the tenant's key is told.
struct StreamTap {
    path: String,
    received: Arc<Mutex<Vec<u8>>>,
    reading: JoinHandle<()>,
    to_bridge: OwnedWriteHalf,
    /// By which it is known that it has heard everything so far: kinds of marks.
    marks: &'static [&'static str],
}

impl Drop for StreamTap {
    fn drop(&mut self) {
        self.reading.abort();
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
        // The same request begins either kind of stream, but for the words that ask for an upgrade.
        let request = match is_websocket(path) {
            true => request,
            false => format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", bridge.address),
        };
        let request = request.replacen("\r\n\r\n", &format!("\r\n{}: {}\r\n\r\n", header.0, header.1), 1);
        stream.write_all(request.as_bytes()).await.unwrap();
        let (mut stream, to_bridge) = stream.into_split();
        let received = Arc::<Mutex<Vec<u8>>>::default();
        let hearing = received.clone();
        let reading = tokio::spawn(async move {
            let mut bytes = Vec::new();
            while stream.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
                hearing.lock().unwrap().append(&mut bytes);
            }
        });
        let tap = StreamTap { path: path.to_owned(), received, reading, to_bridge, marks };
        poll_until(|| tap.has("\r\n\r\n").then_some(())).await;
        assert!(tap.has("HTTP/1.1 200 ") || tap.has("HTTP/1.1 101 "), "{path}: {}", tap.text());
        tap
    }

    /// A pong that nobody asked for: a WebSocket client that says nothing for 45 s is taken for gone.
    async fn is_there(&mut self) {
        if is_websocket(&self.path) {
            self.to_bridge.write_all(b"\x8a\x80\0\0\0\0").await.unwrap();
        }
    }

    fn has(&self, word: &str) -> bool {
        memchr::memmem::find(&self.received.lock().unwrap(), word.as_bytes()).is_some()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.received.lock().unwrap()).into_owned()
    }
}

fn is_websocket(path: &str) -> bool {
    path.contains("/ws") || path.contains("/websocket")
}

/// A cluster of both, and who belongs to whom.
struct TwoTenantCluster {
    cluster: SimCluster,
    rng: SeededRng,
    /// By resource and name.
    owners: BTreeMap<(ApiResource, String), &'static str>,
    /// uids of what has never been the looking tenant's, in this history and in the last one, and of what has.
    hidden: [BTreeSet<String>; 2],
    visible: BTreeSet<String>,
}

impl TwoTenantCluster {
    fn write(&mut self) {
        let resource = *self.rng.choose(&[ApiResource::Pods, ApiResource::Claims]);
        let slot = self.rng.below(3);
        // Some change hands; the others' names say whose they are.
        let (name, owner) =
            match *self.rng.choose(&[OWN_TENANT, OTHER_TENANT, OTHER_TENANT, NEITHER, "shared", "shared"]) {
                "shared" => (format!("shared-{slot}"), *self.rng.choose(&[OWN_TENANT, OTHER_TENANT, NEITHER])),
                owner => (format!("{owner}-{slot}"), owner),
            };
        let there = self.owners.contains_key(&(resource, name.clone()));
        if there && self.rng.below(5) == 0 {
            self.cluster.sim.store(|store| store.delete(resource, NAMESPACE, &name)).unwrap();
            self.owners.remove(&(resource, name));
            return;
        }
        self.put(resource, &name, owner);
    }

    fn put(&mut self, resource: ApiResource, name: &str, owner: &'static str) {
        let object = self.object(resource, name, owner);
        let written = self.cluster.sim.store(|store| match store.get(resource, NAMESPACE, name) {
            None => store.create(resource, object),
            Some(_) => store.modify(resource, NAMESPACE, name, |have| {
                have["metadata"]["labels"] = object["metadata"]["labels"].clone();
                have["metadata"]["annotations"] = object["metadata"]["annotations"].clone();
                have["spec"] = object["spec"].clone();
                have["status"] = object["status"].clone();
            }),
        });
        let uid = written.unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
        self.owners.insert((resource, name.to_owned()), owner);
        if owner == OWN_TENANT {
            self.hidden[0].remove(&uid);
            self.visible.insert(uid);
        } else if !self.visible.contains(&uid) {
            self.hidden[0].insert(uid);
        }
    }

    /// An object all of whose words are its owner's, but for its name; a claim may name anybody's Pod.
    fn object(&mut self, resource: ApiResource, name: &str, owner: &str) -> Value {
        let rng = &mut self.rng;
        let mut word = |description: &str| format!("{owner}-{description}-{}", rng.below(3));
        let labels = json!({"boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": word("workload"),
                            format!("{owner}.example/label"): word("label")});
        let [phase, ip, source, at, detail, active] =
            ["phase", "ip", "source", "at", "detail", "active"].map(&mut word);
        let mut metadata = json!({"name": name, "namespace": NAMESPACE, "labels": labels});
        if resource == ApiResource::Pods {
            metadata["labels"]["boilerhouse.dev/pool-status"] = json!(rng.choose(&["warming", "ready", "acquired"]));
            if owner != NEITHER {
                metadata["labels"]["boilerhouse.dev/tenant"] = json!(owner);
            }
            return json!({"metadata": metadata, "spec": {}, "status": {"phase": phase, "podIP": ip}});
        }
        metadata["annotations"] = json!({"boilerhouse.dev/last-activity": active});
        let pod = format!("{}-{}", rng.choose(&[OWN_TENANT, "shared", owner]), rng.below(3));
        let phase = *rng.choose(&["Active", "Active", "Pending", "Released"]);
        // A claim without a tenant cannot be.
        let tenant = if owner == NEITHER { "spare-tenant" } else { owner };
        // A claim that names another's Pod would tell of that by its own words.
        let pod = if owner == OWN_TENANT { format!("{OWN_TENANT}-{}", rng.below(3)) } else { pod };
        json!({
            "metadata": metadata, "spec": {"tenantId": tenant, "workloadRef": format!("{owner}-workload")},
            "status": {"phase": phase, "instanceId": pod, "source": source, "claimedAt": at, "detail": detail,
                       "endpoint": {"host": format!("{owner}.example"), "port": 1}},
        })
    }

    /// The last of a history: once it has been told, so has everything before it.
    fn mark(&mut self, history: u64) {
        for (resource, kind) in [(ApiResource::Pods, "pod"), (ApiResource::Claims, "claim")] {
            let name = format!("mark-{kind}-{history}-");
            self.put(resource, &name, OWN_TENANT);
            let active = json!({"status": {"phase": "Active"}});
            self.cluster.sim.store(|store| store.patch(resource, NAMESPACE, &name, &active)).unwrap();
        }
    }

    /// Nothing of the histories so far is there any more. That it goes may still be told.
    fn clear(&mut self) {
        self.hidden = [BTreeSet::new(), std::mem::take(&mut self.hidden[0])];
        for (resource, name) in std::mem::take(&mut self.owners).into_keys() {
            self.cluster.sim.store(|store| store.delete(resource, NAMESPACE, &name)).unwrap();
        }
    }

    fn names(&self, resource: ApiResource) -> Vec<&str> {
        let own = self.owners.iter().filter(|((of, _), owner)| *of == resource && **owner == OWN_TENANT);
        own.map(|((_, name), _)| name.as_str()).collect()
    }

    /// No word and no uid of others stands there.
    fn check(&self, description: &str, text: &str) {
        for word in [OTHER_TENANT, NEITHER, "pool.depth"] {
            assert!(!text.contains(word), "{description} tells of {word}: {text}");
        }
        for uid in self.hidden.iter().flatten() {
            assert!(
                !text.contains(uid.as_str()),
                "{description} tells of {uid}, which has never been {OWN_TENANT}'s: {text}"
            );
        }
    }
}

/// A GET with the tenant's key. What differs for other reasons than what is there is left out.
async fn fetch(bridge: &BridgeProcess, path: &str) -> HttpResponse {
    let mut answer = request(bridge.address, "GET", path, &[("Authorization", &bearer(OWN_TENANT))]).await;
    answer.headers.retain(|(name, _)| !["date", "event-cursor", "ratelimit"].contains(&name.as_str()));
    answer
}

/// Every GET at the end of a history.
async fn check_all_endpoints(bridge: &BridgeProcess, model: &TwoTenantCluster) {
    let everything = [
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
    for path in everything {
        model.check(path, &format!("{:?}", fetch(bridge, path).await));
    }
    let names = |answer: &HttpResponse| -> Vec<String> {
        answer.json().as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&fetch(bridge, "/api/v1/instances").await), model.names(ApiResource::Pods));
    let tenants = fetch(bridge, "/api/v1/tenants").await.json();
    assert_eq!(tenants.as_array().unwrap().len(), 1, "{tenants}");
    let claims = tenants[0]["claims"].as_array().unwrap().iter().map(|claim| claim["name"].as_str().unwrap());
    assert_eq!(claims.collect::<Vec<_>>(), model.names(ApiResource::Claims));

    // What is another's is answered as what is not there, to the byte but for the name that was asked for.
    let asks = [
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
    for path in asks {
        let [others, nobodys] = [OTHER_TENANT, ABSENT].map(|name| async move {
            format!("{:?}", fetch(bridge, &path.replace("{}", name)).await).replace(name, "{}")
        });
        assert_eq!(others.await, nobodys.await, "{path}");
    }
}

#[tokio::test]
async fn no_endpoint_reveals_another_tenant() {
    let all = [three_keys(), vec![key(OTHER_TENANT, &json!({"tenantId": OTHER_TENANT}))]].concat();
    let keys = KeysFile::new(&all);
    let mut model = TwoTenantCluster {
        cluster: SimCluster::new().await,
        rng: SeededRng(7),
        owners: BTreeMap::new(),
        hidden: Default::default(),
        visible: BTreeSet::new(),
    };
    let rates = ["--own-watchers", "2", "--request-rate", "1000000"];
    let bridge = model.cluster.bridge(&[&["--keys-file", &keys.path()][..], &rates].concat()).await;
    let (authorization, cookie) = (bearer(OWN_TENANT), cookie(&bridge, OWN_TENANT).await);
    let by_ticket = format!("/api/sse?token={}", ticket(&bridge, OWN_TENANT).await);
    let by_key = ("Authorization", authorization.as_str());
    let both: &[&str] = &["pod", "claim"];
    let filter =
        "%7B%22instances%22:%7B%22tenantId%22:%22mallory%22%7D,%22claims%22:%7B%22tenantId%22:%22mallory%22%7D%7D";
    let (of_others, of_others_too) = (format!("/api/websocket?params={filter}"), format!("/api/sse?params={filter}"));
    let streams = [
        ("/ws", by_key, both),
        ("/ws?snapshot=none", by_key, both),
        // These share the hub's watch.
        ("/ws?types=instance.state", ("Cookie", &cookie), &["pod"]),
        ("/ws?types=pool,tenant", by_key, &["claim"]),
        ("/api/websocket", by_key, both),
        ("/api/websocket?types=pool,tenant,telemetry,mqtt", by_key, &["claim"]),
        ("/api/sse", by_key, both),
        (&by_ticket, ("Accept", "text/event-stream"), both),
        ("/api/events/stream?snapshot=state", ("Cookie", &cookie), both),
        ("/events/stream?snapshot=state", by_key, both),
        ("/events", by_key, both),
        ("/events/ws?snapshot=state", by_key, both),
        // They ask for what is not theirs, and hear nothing: known by what else they have heard when the others are at the end.
        (&of_others, by_key, &[]),
        (&of_others_too, by_key, &[]),
    ];
    let mut taps = Vec::new();
    for (path, header, marks) in streams {
        taps.push(StreamTap::open(&bridge, path, header, marks).await);
    }
    let (mut received, mut handed_over) = (0, 0);
    let histories = if support::long_form() { HISTORIES[0] } else { HISTORIES[1] };
    for history in 0..histories {
        model.rng = SeededRng(history);
        let answer = request(bridge.address, "GET", "/api/v1/instances", &[by_key]).await;
        let resumed = format!("/api/sse?lastEventId={}", answer.header("event-cursor").unwrap());
        for step in 0..STEPS {
            model.write();
            if history < RESTARTED && step == STEPS / 2 {
                model.cluster.sim.restart();
            }
            if step % 4 == 0 {
                tokio::task::yield_now().await;
            }
        }
        let resumed = StreamTap::open(&bridge, &resumed, by_key, both).await;
        model.mark(history);
        for tap in taps.iter().chain([&resumed]) {
            for mark in tap.marks.iter().map(|kind| format!("mark-{kind}-{history}-")) {
                let told = async {
                    while !tap.has(&mark) {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                assert!(timeout(TEST_TIMEOUT, told).await.is_ok(), "{} is not told {mark}: {}", tap.path, tap.text());
            }
            let text = tap.text();
            // The filter's own words stand in no answer.
            model.check(&tap.path, &text);
            received += usize::from(text.contains("alice-workload"));
            handed_over += text.matches(r#""cause":"filtered""#).count();
        }
        check_all_endpoints(&bridge, &model).await;
        model.clear();
        for tap in &mut taps {
            tap.received.lock().unwrap().clear();
            tap.is_there().await;
        }
    }
    println!("{received} streams of histories heard something, {handed_over} of a handover");
    let histories = usize::try_from(histories).unwrap();
    assert!(received > 12 * histories && handed_over > 2 * histories, "{received}, {handed_over}");
}
