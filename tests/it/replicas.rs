//! Several replicas with NATS between them (docs/protocol.md#replicas).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use boilerhouse_bridge::sim::ApiResource;
use serde_json::{Value, json};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    support::{
        bridge_process::BridgeProcess,
        broker::{Broker, assert_metrics_are_documented},
        http_client::{self, WsClient, metric, poll_until_async},
        sim_cluster::{NAMESPACE, SimCluster},
    },
    telemetry::{body, path, send},
};

/// What is served within this time does not wait for a stopped NATS, whose requests have a limit of 5 s.
#[cfg(feature = "mqtt")]
const SOON: Duration = Duration::from_secs(4);

/// Creates a Pod and returns its uid.
fn create_pod(cluster: &SimCluster, name: &str) -> String {
    let labels = json!({"boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": "web"});
    let pod = json!({"metadata": {"name": name, "namespace": NAMESPACE, "labels": labels}});
    let created = cluster.sim().store(|store| store.create(ApiResource::Pods, pod)).unwrap();
    created["metadata"]["uid"].as_str().unwrap().to_owned()
}

/// Posts telemetry with this number of requests. Returns the status.
async fn post(address: SocketAddr, uid: &str, requests: u64) -> u16 {
    let mut body = body();
    body["metrics"]["requests"] = json!(requests);
    let headers = [("Content-Type", "application/json")];
    send(address, &path(uid), &headers, body.to_string().as_bytes()).await.status
}

/// Returns the number of requests of each tunnel in the GET of a bridge.
async fn served(bridge: &BridgeProcess) -> BTreeMap<String, u64> {
    let answer = http_client::get(bridge.address, "/v1/tunnels/telemetry").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answer = answer.json();
    let snapshots = answer.as_array().unwrap().iter();
    snapshots
        .map(|s| (s["tunnelId"].as_str().unwrap().to_owned(), s["metrics"]["requests"].as_u64().unwrap()))
        .collect()
}

async fn state(bridge: &BridgeProcess) -> String {
    let answer = http_client::get(bridge.address, "/readyz?verbose").await;
    assert_eq!(answer.status, 200, "without NATS the bridge stays ready: {}", answer.body);
    let line = answer.body.lines().find_map(|line| line.strip_prefix("[i] nats: "));
    line.unwrap_or_else(|| panic!("no line about NATS: {}", answer.body)).to_owned()
}

async fn wait_for_state(bridge: &BridgeProcess, text: &str) {
    poll_until_async(async || state(bridge).await.contains(text).then_some(())).await;
}

/// Starts a bridge and waits until it reads the bucket.
async fn start(cluster: &SimCluster, nats: &Broker, args: &[&str]) -> BridgeProcess {
    let url = format!("nats://{}", nats.address);
    let bridge = cluster.bridge(&[&["--nats-url", &url], args].concat()).await;
    wait_for_state(&bridge, "connected").await;
    bridge
}

async fn open(bridge: &BridgeProcess, types: &str) -> WsClient {
    WsClient::connect_live(bridge.address, &format!("/api/websocket?snapshot=none&types={types}")).await
}

/// Collects all events of a stream until the bridge ends it.
async fn collect(bridge: &BridgeProcess, types: &str) -> JoinHandle<Vec<Value>> {
    let mut stream = open(bridge, types).await;
    tokio::spawn(async move {
        let mut events = Vec::new();
        // A stream is never silent for so long: it has heartbeats.
        while let Some(text) = stream.next_text().await {
            let event: Value = serde_json::from_str(&text).unwrap();
            if event["type"] != "heartbeat" {
                events.push(event);
            }
        }
        events
    })
}

/// Asserts that no telemetry is there twice, and returns the number of requests of each event.
fn each_once(events: &[Value]) -> Vec<u64> {
    let telemetry = events.iter().filter(|event| event["type"] == "telemetry");
    let mut seen = BTreeSet::new();
    telemetry
        .map(|event| {
            let key = format!("{} {} {}", event["tunnelId"], event["receivedAt"], event["metrics"]);
            assert!(seen.insert(key), "twice on a stream: {event}");
            event["metrics"]["requests"].as_u64().unwrap()
        })
        .collect()
}

#[tokio::test]
async fn telemetry_of_one_replica_is_served_by_all() {
    let nats = Broker::nats("", &[]).await;
    let cluster = SimCluster::new().await;
    let (a, b) = (create_pod(&cluster, "a"), create_pod(&cluster, "b"));
    let mut bridges = Vec::new();
    for _ in 0..3 {
        bridges.push(start(&cluster, &nats, &[]).await);
    }
    let mut streams = Vec::new();
    for bridge in &bridges {
        streams.push(open(bridge, "telemetry").await);
    }
    let mut slowest = Duration::ZERO;
    for (number, uid) in [(0, &a), (1, &b), (2, &a)] {
        let (taker, requests) = (&bridges[number], number as u64 + 1);
        let begin = Instant::now();
        assert_eq!(post(taker.address, uid, requests).await, 200);
        assert_eq!(
            served(taker).await.get(uid),
            Some(&requests),
            "what is acknowledged is in the GET of the same replica"
        );
        for (bridge, stream) in bridges.iter().zip(&mut streams) {
            let event = stream.event().await;
            assert_eq!((&event["tunnelId"], &event["metrics"]["requests"]), (&json!(uid), &json!(requests)), "{event}");
            poll_until_async(async || (served(bridge).await.get(uid) == Some(&requests)).then_some(())).await;
        }
        slowest = slowest.max(begin.elapsed());
    }
    println!("from a post to the last of three GETs and streams: at most {slowest:?}");
    // An instance that only one replica knows would be a race of watches; the pod is gone on all of them.
    cluster.sim().store(|store| store.delete(ApiResource::Pods, NAMESPACE, "b")).unwrap();
    for bridge in &bridges {
        poll_until_async(async || (!served(bridge).await.contains_key(&b)).then_some(())).await;
    }
    // Also after a restart of all.
    drop(bridges);
    let bridge = start(&cluster, &nats, &[]).await;
    assert_eq!(served(&bridge).await, BTreeMap::from([(a.clone(), 3)]));
    assert_eq!(metric(bridge.address, "bridge_nats_up").await, 1);
    assert_metrics_are_documented(bridge.address, "bridge_nats").await;
    assert_eq!(metric(bridge.address, "bridge_nats_telemetry_total{outcome=\"malformed\"}").await, 0);
}

#[tokio::test]
async fn ttl_holds_on_all_replicas_and_after_a_restart() {
    let nats = Broker::nats("", &[]).await;
    let cluster = SimCluster::new().await;
    let uid = create_pod(&cluster, "a");
    // The bucket has another TTL before.
    drop(start(&cluster, &nats, &["--telemetry-ttl", "60"]).await);
    let args = ["--telemetry-ttl", "2"];
    let bridges = [start(&cluster, &nats, &args).await, start(&cluster, &nats, &args).await];
    let begin = Instant::now();
    assert_eq!(post(bridges[0].address, &uid, 1).await, 200);
    poll_until_async(async || (served(&bridges[1]).await.len() == 1).then_some(())).await;
    for bridge in &bridges {
        poll_until_async(async || served(bridge).await.is_empty().then_some(())).await;
        assert!(begin.elapsed() >= Duration::from_millis(1_990), "{:?}", begin.elapsed());
    }
    let bridge = start(&cluster, &nats, &args).await;
    assert_eq!(served(&bridge).await, BTreeMap::new());
}

#[tokio::test]
async fn outage_of_nats_is_reported_and_ends() {
    let mut nats = Broker::nats("", &[]).await;
    let cluster = SimCluster::new().await;
    let (a, b) = (create_pod(&cluster, "a"), create_pod(&cluster, "b"));
    let bridges = [start(&cluster, &nats, &[]).await, start(&cluster, &nats, &[]).await];
    assert_eq!(post(bridges[0].address, &a, 1).await, 200);
    poll_until_async(async || (served(&bridges[1]).await.len() == 1).then_some(())).await;
    // Control events reach streams of all types.
    let mut streams = [open(&bridges[0], "instance").await, open(&bridges[1], "instance").await];
    nats.kill();
    for (bridge, stream) in bridges.iter().zip(&mut streams) {
        let event = stream.event().await;
        assert_eq!((&event["type"], &event["resource"]), (&json!("upstream.down"), &json!("nats")), "{event}");
        assert!(event["reason"].is_string() && event["since"].is_string(), "{event}");
        wait_for_state(bridge, "down for ").await;
        assert_eq!(metric(bridge.address, "bridge_nats_up").await, 0);
        assert_eq!(served(bridge).await, BTreeMap::from([(a.clone(), 1)]), "it goes on with what it has");
        let headers = [("Content-Type", "application/json")];
        let answer = send(bridge.address, &path(&b), &headers, body().to_string().as_bytes()).await;
        assert_eq!((answer.status, &answer.json()["code"]), (503, &json!("NOT_READY")), "NATS does not have it");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    cluster.create_pod("c");
    for stream in &mut streams {
        assert_eq!(stream.event().await["type"], "instance.state", "changes of the cluster are sent");
    }
    nats.restart().await;
    for (bridge, stream) in bridges.iter().zip(&mut streams) {
        let event = stream.event().await;
        assert_eq!((&event["type"], &event["resource"]), (&json!("upstream.up"), &json!("nats")), "{event}");
        wait_for_state(bridge, "connected").await;
    }
    assert_eq!(post(bridges[1].address, &b, 2).await, 200);
    for bridge in &bridges {
        let expected = BTreeMap::from([(a.clone(), 1), (b.clone(), 2)]);
        poll_until_async(async || (served(bridge).await == expected).then_some(())).await;
    }
}

#[tokio::test]
async fn bucket_that_is_created_again_starts_again() {
    let mut nats = Broker::nats("", &[]).await;
    let cluster = SimCluster::new().await;
    let uid = create_pod(&cluster, "a");
    let bridges = [start(&cluster, &nats, &[]).await, start(&cluster, &nats, &[]).await];
    for requests in 1..=5 {
        assert_eq!(post(bridges[0].address, &uid, requests).await, 200);
    }
    poll_until_async(async || (served(&bridges[1]).await.get(&uid) == Some(&5)).then_some(())).await;
    let mut streams = [open(&bridges[0], "telemetry").await, open(&bridges[1], "telemetry").await];
    nats.kill();
    std::fs::remove_dir_all(nats.file("store")).unwrap();
    for bridge in &bridges {
        wait_for_state(bridge, "down for ").await;
    }
    nats.restart().await;
    for bridge in &bridges {
        wait_for_state(bridge, "connected").await;
    }
    // Its revision is 1, and the replicas have read up to 5 of the former bucket.
    assert_eq!(post(bridges[1].address, &uid, 6).await, 200);
    for (bridge, stream) in bridges.iter().zip(&mut streams) {
        let is_telemetry = |event: &Value| event["type"] == "telemetry";
        let event = loop {
            let event = stream.event().await;
            if is_telemetry(&event) {
                break event;
            }
            assert!(event["type"].as_str().unwrap().starts_with("upstream."), "{event}");
        };
        assert_eq!(event["metrics"]["requests"], 6);
        assert_eq!(served(bridge).await, BTreeMap::from([(uid.clone(), 6)]));
    }
}

/// A server that requires a user, with the rights that docs/protocol.md#replicas names.
const AUTHENTICATED: &str = include_str!("../nats-server/authenticated.conf");
/// The credentials of the user.
const CREDENTIALS: &str = include_str!("../nats-server/bridge.creds");

#[tokio::test]
async fn tls_and_credentials_are_checked_and_read_again_before_each_try() {
    let certificate = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let foreign = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (pem, key) = (certificate.cert.pem(), certificate.signing_key.serialize_pem());
    let config = format!("{AUTHENTICATED}\ntls {{ cert_file: \"DIR/tls.crt\", key_file: \"DIR/tls.key\" }}\n");
    let foreign = foreign.cert.pem();
    let files = [("tls.crt", &*pem), ("tls.key", &*key), ("ca.crt", &*foreign), ("bridge.creds", "nothing")];
    let nats = Broker::nats(&config, &files).await;
    let file = |name| nats.file(name).to_string_lossy().into_owned();
    let (url, ca, credentials) = (format!("tls://{}", nats.address), file("ca.crt"), file("bridge.creds"));
    let cluster = SimCluster::new().await;
    let uid = create_pod(&cluster, "a");
    let args = ["--nats-url", &url, "--nats-ca-file", &ca, "--nats-credentials-file", &credentials];
    let bridges = [cluster.bridge(&args).await, cluster.bridge(&args).await];
    wait_for_state(&bridges[0], "the credentials file has no valid user JWT and seed").await;
    assert_eq!(post(bridges[0].address, &uid, 1).await, 503);
    std::fs::write(&credentials, CREDENTIALS).unwrap();
    wait_for_state(&bridges[0], "certificate").await;
    std::fs::write(&ca, &pem).unwrap();
    for bridge in &bridges {
        wait_for_state(bridge, "connected").await;
    }
    assert_eq!(post(bridges[0].address, &uid, 1).await, 200);
    poll_until_async(async || (served(&bridges[1]).await.get(&uid) == Some(&1)).then_some(())).await;
    let log = bridges[0].log().join("\n");
    let secrets = CREDENTIALS.lines().filter(|line| line.len() > 50 && !line.contains(' '));
    for secret in secrets {
        assert!(!log.contains(secret), "no credential in the log");
    }
}

/// Posts to bridges in turn, each time with a higher number, until it is aborted. The last of these numbers that was
/// acknowledged is in `acknowledged`.
async fn post_in_turn(
    addresses: tokio::sync::watch::Receiver<Vec<SocketAddr>>,
    uid: String,
    acknowledged: tokio::sync::watch::Sender<u64>,
) {
    for number in 1.. {
        let address = {
            let addresses = addresses.borrow();
            addresses[number as usize % addresses.len()]
        };
        if try_post(address, &uid, number).await == Some(200) {
            acknowledged.send_replace(number);
        }
        sleep(Duration::from_millis(60)).await;
    }
}

/// Posts to a bridge that may end before it answers.
async fn try_post(address: SocketAddr, uid: &str, requests: u64) -> Option<u16> {
    tokio::net::TcpStream::connect(address).await.ok()?;
    let (uid, posted) = (uid.to_owned(), requests);
    // A panic of the client is a connection that was cut.
    tokio::spawn(async move { post(address, &uid, posted).await }).await.ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_bridges_and_nats_are_killed() {
    let mut nats = Broker::nats("", &[]).await;
    let cluster = SimCluster::new().await;
    let uids: Vec<String> = (0..3).map(|n| create_pod(&cluster, &format!("p{n}"))).collect();
    let mut bridges = Vec::new();
    for _ in 0..3 {
        bridges.push(start(&cluster, &nats, &[]).await);
    }
    let mut collected = Vec::new();
    for bridge in &bridges {
        collected.push(collect(bridge, "telemetry").await);
    }
    let addresses = |bridges: &[BridgeProcess]| bridges.iter().map(|bridge| bridge.address).collect::<Vec<_>>();
    let (targets, receiver) = tokio::sync::watch::channel(addresses(&bridges));
    let mut posters = Vec::new();
    for uid in &uids {
        let (sender, acknowledged) = tokio::sync::watch::channel(0);
        posters.push((tokio::spawn(post_in_turn(receiver.clone(), uid.clone(), sender)), acknowledged));
    }
    let progress = async |posters: &mut Vec<(JoinHandle<()>, tokio::sync::watch::Receiver<u64>)>, more: u64| {
        for (_, acknowledged) in posters {
            let target = *acknowledged.borrow() + more;
            let reached = acknowledged.wait_for(|number| *number >= target);
            tokio::time::timeout(http_client::TEST_TIMEOUT, reached).await.expect("no acknowledgements").unwrap();
        }
    };
    progress(&mut posters, 3).await;
    for killed in ["a bridge", "NATS", "both"] {
        if killed != "NATS" {
            bridges[0].signal("KILL").await;
        }
        if killed != "a bridge" {
            nats.kill();
            wait_for_state(&bridges[1], "down for ").await;
            nats.restart().await;
        }
        if killed != "NATS" {
            bridges[0] = start(&cluster, &nats, &[]).await;
            collected.push(collect(&bridges[0], "telemetry").await);
            targets.send_replace(addresses(&bridges));
        }
        for bridge in &bridges {
            wait_for_state(bridge, "connected").await;
        }
        progress(&mut posters, 3).await;
        println!("killed and back: {killed}");
    }
    let mut acknowledged = BTreeMap::new();
    for ((poster, number), uid) in posters.into_iter().zip(&uids) {
        poster.abort();
        let _ = poster.await;
        acknowledged.insert(uid.clone(), *number.borrow());
    }
    for bridge in &bridges {
        let has_all = async || {
            let served = served(bridge).await;
            acknowledged.iter().all(|(uid, number)| served.get(uid) >= Some(number)).then_some(())
        };
        poll_until_async(has_all).await;
    }
    let [first, rest @ ..] = &bridges[..] else { unreachable!() };
    let expected = served(first).await;
    for bridge in rest {
        poll_until_async(async || (served(bridge).await == expected).then_some(())).await;
    }
    for bridge in &bridges {
        bridge.signal("KILL").await;
    }
    let mut events = 0;
    for stream in collected {
        let mut by_tunnel = BTreeMap::<String, u64>::new();
        let sent = stream.await.unwrap();
        events += each_once(&sent).len();
        for event in sent.iter().filter(|event| event["type"] == "telemetry") {
            let newest = by_tunnel.entry(event["tunnelId"].to_string()).or_default();
            let number = event["metrics"]["requests"].as_u64().unwrap();
            assert!(number > *newest, "in order: {number} after {newest}");
            *newest = number;
        }
    }
    println!("{acknowledged:?} acknowledged, {events} events on five streams, none twice");
}

#[cfg(feature = "mqtt")]
#[tokio::test]
async fn mqtt_message_that_one_replica_takes_reaches_the_clients_of_all() {
    let (mut nats, mqtt) = (Broker::nats("", &[]).await, Broker::mosquitto(&["allow_anonymous true"], &[]).await);
    let cluster = SimCluster::new().await;
    let url = format!("mqtt://{}", mqtt.address);
    let args = ["--mqtt-url", &url, "--mqtt-topic", "$share/replicas/#", "--mqtt-rate", "10000"];
    let bridges = [start(&cluster, &nats, &args).await, start(&cluster, &nats, &args).await];
    let mut streams = Vec::new();
    for bridge in &bridges {
        poll_until_async(async || (metric(bridge.address, "bridge_mqtt_up").await == 1).then_some(())).await;
        streams.push(open(bridge, "mqtt").await);
    }
    for n in 0..20 {
        mqtt.publish("a", n.to_string().as_bytes(), &["-q", "1"]).await;
    }
    for stream in &mut streams {
        let mut received = Vec::new();
        for _ in 0..20 {
            received.push(stream.event().await["payload"].as_u64().unwrap());
        }
        received.sort_unstable();
        assert_eq!(received, (0..20).collect::<Vec<_>>(), "each message once on the streams of each replica");
    }
    let taken = [
        metric(bridges[0].address, "bridge_nats_messages_total{outcome=\"sent\"}").await,
        metric(bridges[1].address, "bridge_nats_messages_total{outcome=\"sent\"}").await,
    ];
    assert_eq!(taken[0] + taken[1], 20, "{taken:?}");
    assert!(taken.iter().all(|taken| *taken > 0), "both replicas take messages: {taken:?}");
    // Without NATS, a message reaches the clients of the replica that takes it.
    nats.kill();
    for (bridge, stream) in bridges.iter().zip(&mut streams) {
        wait_for_state(bridge, "down for ").await;
        assert_eq!(stream.event().await["type"], "upstream.down");
    }
    for n in 20..24 {
        mqtt.publish("a", n.to_string().as_bytes(), &["-q", "1"]).await;
    }
    let total = async || {
        let published = "bridge_mqtt_messages_total{outcome=\"published\"}";
        let counts = [metric(bridges[0].address, published).await, metric(bridges[1].address, published).await];
        (counts[0] + counts[1] == 24).then_some([counts[0] - taken[0], counts[1] - taken[1]])
    };
    let counts = poll_until_async(total).await;
    let mut received = Vec::new();
    for (stream, count) in streams.iter_mut().zip(counts) {
        for _ in 0..count {
            received.push(stream.event().await["payload"].as_u64().unwrap());
        }
    }
    received.sort_unstable();
    assert_eq!(received, [20, 21, 22, 23]);
}

/// Messages of 60 KB while NATS does not read: more than its queue and the buffers of the kernel hold.
#[cfg(feature = "mqtt")]
const STALLED: u64 = 600;

#[cfg(feature = "mqtt")]
#[tokio::test]
async fn stalled_nats_does_not_delay_messages_to_the_own_clients() {
    let (nats, mqtt) = (Broker::nats("", &[]).await, Broker::mosquitto(&["allow_anonymous true"], &[]).await);
    let cluster = SimCluster::new().await;
    let url = format!("mqtt://{}", mqtt.address);
    let args = ["--mqtt-url", &url, "--mqtt-topic", "#", "--mqtt-rate", "10000"];
    let bridge = start(&cluster, &nats, &args).await;
    poll_until_async(async || (metric(bridge.address, "bridge_mqtt_up").await == 1).then_some(())).await;
    let mut stream = open(&bridge, "mqtt").await;
    nats.signal("STOP");
    let payload = format!("\"{}\"", "x".repeat(60_000));
    let mut received = Duration::ZERO;
    let begin = Instant::now();
    for _ in 0..STALLED / 20 {
        mqtt.publish("a", payload.as_bytes(), &["-q", "1", "--repeat", "20", "--repeat-delay", "0"]).await;
        let sent = Instant::now();
        for _ in 0..20 {
            while stream.event().await["type"] != "mqtt.message" {}
        }
        received = received.max(sent.elapsed());
    }
    assert!(received < SOON, "the last of 20 messages after {received:?}");
    let not_sent = metric(bridge.address, "bridge_nats_messages_total{outcome=\"not_sent\"}").await;
    assert!(not_sent > 0, "the queue was full");
    println!("{STALLED} messages in {:?}, {not_sent} not sent; the last of 20 after {received:?}", begin.elapsed());
    nats.signal("CONT");
}
