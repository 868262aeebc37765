//! Many clients of the full stream: a large initial state, a different filter for each client, and a rolling restart of
//! two replicas.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use boilerhouse_bridge::{
    sim::{ApiResource, Verb},
    test_support::{PodBuilder, SeededRng},
};
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

use crate::support::{
    self,
    bridge_process::BridgeProcess,
    full_stream_client::FullStreamClient,
    http_client::{self, TEST_TIMEOUT},
    schemas,
    sim_cluster::{NAMESPACE, SimCluster},
};

/// Number of Pods of a large platform.
const PODS: usize = 10_000;
/// Number of clients that connect at once.
const CONCURRENT_CLIENTS: usize = 100;
/// A message of `state.initial` has at most this many bytes (docs/protocol.md#full-stream).
const PART_BYTES: usize = 32 << 10;
/// Maximum time in which the first run installs the Python client.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(300);

/// Returns the `data:` lines of `state.initial` as `/api/sse` sends them. Nothing is parsed meanwhile: a client that reads too slowly is
/// disconnected.
async fn initial_state_as_text(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // HTTP/1.0: the body has no chunks.
    stream.write_all(format!("GET /api/sse HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    // Only the block of the last part has an id.
    let is_complete = |bytes: &[u8]| {
        let tail = &bytes[bytes.len().saturating_sub(2 * PART_BYTES)..];
        tail.ends_with(b"\n\n") && String::from_utf8_lossy(tail).contains("\nid: ")
    };
    while !is_complete(&bytes) {
        let read = timeout(TEST_TIMEOUT, stream.read_buf(&mut bytes)).await.expect("no part in time").unwrap();
        let tail = || String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(500)..]).into_owned();
        assert!(read > 0, "the stream has ended after {} bytes: {}", bytes.len(), tail());
    }
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.starts_with("HTTP/1."), "{}", &text[..200.min(text.len())]);
    // Without heartbeats, and without what follows the last part.
    text.lines().filter(|line| line.contains("\"state.initial\"")).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn ten_thousand_pods_arrive_in_parts_encoded_once() {
    let cluster = SimCluster::new().await;
    for n in 0..PODS {
        let pod = PodBuilder::new(&format!("pod-{n:05}")).namespace(NAMESPACE).workload("web");
        let pod = pod.tenant(&format!("tenant-{}", n % 100)).json();
        cluster.sim().store(|store| store.create(ApiResource::Pods, pod)).unwrap();
    }
    let bridge = cluster.bridge(&[]).await;
    let all = join_all((0..CONCURRENT_CLIENTS).map(|_| initial_state_as_text(bridge.address))).await;
    // Only one copy is parsed: a debug build is too slow for a hundred times 4 MB.
    assert!(all.iter().all(|text| *text == all[0]), "the clients received different bytes");
    let texts = all[0].lines().filter_map(|line| line.strip_prefix("data: "));
    texts.clone().for_each(|text| schemas::check("/api/sse", text));
    let parts: Vec<Value> = texts.clone().map(|part| serde_json::from_str(part).unwrap()).collect();
    let (last, others) = parts.split_last().unwrap();
    assert!(others.len() > 5 && others.iter().all(|part| part["more"] == true && part["id"].is_null()));
    assert!(last["id"].is_string(), "the last part has no id");
    assert!(parts.iter().all(|part| part["type"] == "state.initial" && part["reason"] == "connect"));
    assert!(texts.clone().all(|part| part.len() <= PART_BYTES));
    let names = parts.iter().flat_map(|part| part["instances"].as_array().unwrap()).map(|i| i["name"].to_string());
    assert_eq!(names.collect::<BTreeSet<_>>().len(), PODS);
    assert_eq!(http_client::metric(bridge.address, "bridge_feed_initial_states_encoded_total").await, 1);

    let url = format!("ws://{}/api/websocket", bridge.address);
    let install = tokio::process::Command::new("tests/python/run").stdin(Stdio::null()).output();
    let installed =
        timeout(INSTALL_TIMEOUT, install).await.expect("the Python package is not installed in time").unwrap();
    assert!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    let python =
        tokio::process::Command::new("tests/python/run").args(["initial_state", &url]).stdin(Stdio::null()).output();
    let python = timeout(3 * TEST_TIMEOUT, python).await.expect("the Python client still runs").unwrap();
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
    let output: Value = serde_json::from_slice(&python.stdout).unwrap();
    assert_eq!(output["instances"], PODS);
}

/// Number of clients, each with a filter of its own. Each of them receives all claims: 1 MB.
const FILTERS: usize = 120;
const CLAIMS: usize = 100;
const DETAIL_BYTES: usize = 10 << 10;
/// Maximum bytes of all projection caches (docs/limits.md), and the maximum growth of the process besides.
const PROJECTION_CACHE_BYTES: u64 = 32 << 20;
const OTHER_BYTES: u64 = 32 << 20;

#[tokio::test]
async fn distinct_filters_stay_within_the_cache_budget() {
    let cluster = SimCluster::new().await;
    for n in 0..CLAIMS {
        // `ClaimBuilder` has no `detail`.
        let claim = json!({"metadata": {"name": format!("claim-{n}"), "namespace": NAMESPACE},
                           "spec": {"tenantId": "t", "workloadRef": "web"},
                           "status": {"phase": "Pending", "detail": "x".repeat(DETAIL_BYTES)}});
        cluster.sim().store(|store| store.create(ApiResource::Claims, claim)).unwrap();
    }
    let bridge = cluster.bridge(&[]).await;
    let mut clients = Vec::new();
    let mut before = 0;
    for n in 0..FILTERS {
        // `{"instances":{"name":"…"}}` does not filter claims.
        let query = format!("params=%7B%22instances%22%3A%7B%22name%22%3A%22none-{n}%22%7D%7D");
        let mut client = FullStreamClient::connect(bridge.address, true, &query, None).await.unwrap();
        let (mut claims, mut more) = (0, true);
        while more {
            let part =
                timeout(TEST_TIMEOUT, client.next()).await.expect("no part in time").expect("the stream has ended");
            claims += part["claims"].as_array().unwrap().len();
            more = part["more"] == true;
        }
        assert_eq!(claims, CLAIMS);
        clients.push(client);
        if n == 0 {
            before = bridge.memory();
        }
    }
    let grown = bridge.memory().saturating_sub(before);
    let cached = http_client::metric(bridge.address, "bridge_feed_projection_cache_bytes").await;
    println!("{} MiB more for {FILTERS} filters, of which {} MiB are cached", grown >> 20, cached >> 20);
    assert!(cached <= PROJECTION_CACHE_BYTES, "{cached} bytes cached");
    assert!(grown <= PROJECTION_CACHE_BYTES + OTHER_BYTES, "the process grew by {grown} bytes");
    assert_eq!(http_client::metric(bridge.address, "bridge_feed_projections").await, FILTERS as u64);
}

/// Number of clients during a rolling restart, and the drain time of each replica in seconds.
const CLIENTS: usize = 1_000;
const DRAIN: u64 = 5;

/// What one client has received.
#[derive(Default)]
struct Received {
    last_id: Option<String>,
    keys: Vec<String>,
    initial_states: usize,
    closing_times: Vec<Instant>,
}

/// Reads the stream from random replicas, with resumes, until `done` is set and all keys have arrived.
async fn read_all(
    seed: u64,
    replicas: Arc<Mutex<Vec<SocketAddr>>>,
    done: Arc<AtomicBool>,
    expected_keys: Arc<Mutex<Vec<String>>>,
) -> Received {
    let (mut received, mut rng) = (Received::default(), SeededRng(seed));
    let complete = |received: &Received| {
        done.load(Ordering::Relaxed) && received.keys.len() >= expected_keys.lock().unwrap().len()
    };
    while !complete(&received) {
        let address = *rng.choose(&replicas.lock().unwrap());
        let mut pause = Duration::from_millis(200);
        if let Some(mut client) = FullStreamClient::connect(address, true, "", received.last_id.as_deref()).await {
            while !complete(&received) {
                // The timeout lets the loop check `complete`.
                let event = match timeout(Duration::from_secs(1), client.next()).await {
                    Ok(Some(event)) => event,
                    Ok(None) => break,
                    Err(_) => continue,
                };
                if let Some(id) = event["id"].as_str() {
                    received.last_id = Some(id.to_owned());
                }
                match event["type"].as_str().unwrap() {
                    "state.initial" => received.initial_states += 1,
                    "stream.closing" => {
                        received.closing_times.push(Instant::now());
                        pause = Duration::from_millis(event["retryAfterMs"].as_u64().unwrap());
                    }
                    "instance.state" => received.keys.push(event["key"].as_str().unwrap().to_owned()),
                    _ => {}
                }
                // The rest of a backfill after its last change can be an empty difference.
                assert!(event["coalesced"] != true || event["type"] == "heartbeat", "{event}");
            }
        }
        if !complete(&received) {
            // The retry delay of a client.
            tokio::time::sleep(pause).await;
        }
    }
    received
}

#[tokio::test]
async fn rolling_restart_under_a_thousand_clients_loses_no_event() {
    support::ensure_file_limit(4 * CLIENTS as u64);
    let cluster = SimCluster::new().await;
    let drain = DRAIN.to_string();
    let args = ["--dedicated-watchers", "0", "--drain", &drain];
    let mut bridges = [cluster.bridge(&args).await, cluster.bridge(&args).await];
    let replicas = Arc::new(Mutex::new(bridges.iter().map(|bridge| bridge.address).collect::<Vec<_>>()));
    let (done, expected_keys) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let clients: Vec<_> = (0..CLIENTS as u64)
        .map(|seed| tokio::spawn(read_all(seed, replicas.clone(), done.clone(), expected_keys.clone())))
        .collect();
    let streams = async || {
        let mut open = 0;
        for bridge in &bridges {
            open += http_client::metric_sum(bridge.address, "bridge_streams", &[]).await;
        }
        open
    };
    let connected = async {
        while streams().await < CLIENTS as u64 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(2 * TEST_TIMEOUT, connected).await.expect("not all clients are connected");
    let (before, started) = (cluster.sim().metrics(), Instant::now());

    let mut written = 0;
    let mut write = || {
        written += 1;
        let name = format!("pod-{}", written % 7);
        let pod = cluster.sim().store(|store| {
            let status = json!({"status": {"phase": format!("phase-{written}")}});
            store
                .patch(ApiResource::Pods, NAMESPACE, &name, &status)
                .or_else(|_| store.create(ApiResource::Pods, PodBuilder::new(&name).namespace(NAMESPACE).json()))
        });
        let metadata = pod.unwrap()["metadata"].clone();
        let [uid, version] = ["uid", "resourceVersion"].map(|key| metadata[key].as_str().unwrap().to_owned());
        expected_keys.lock().unwrap().push(format!("{uid}.{version}.instance.state"));
    };
    #[allow(clippy::needless_range_loop, reason = "the other replica stays in use")]
    for index in 0..2 {
        replicas.lock().unwrap().remove(0);
        bridges[index].signal("TERM").await;
        let status = {
            let ended = bridges[index].ended(TEST_TIMEOUT);
            tokio::pin!(ended);
            loop {
                tokio::select! {
                    status = &mut ended => break status,
                    () = tokio::time::sleep(Duration::from_millis(200)) => write(),
                }
            }
        };
        assert!(status.success(), "{status}");
        let replacement: BridgeProcess = cluster.bridge(&args).await;
        replicas.lock().unwrap().push(replacement.address);
        bridges[index] = replacement;
        write();
    }
    done.store(true, Ordering::Relaxed);
    let expected_keys = expected_keys.lock().unwrap().clone();
    let mut closing_times = Vec::new();
    for client in clients {
        let received = timeout(2 * TEST_TIMEOUT, client).await.expect("a client has not received all events").unwrap();
        assert_eq!(received.keys, expected_keys, "each event once, in order");
        assert_eq!(received.initial_states, 1, "one initial state");
        closing_times.extend(received.closing_times);
    }
    closing_times.sort();
    let spread = *closing_times.last().unwrap() - closing_times[0];
    assert!(
        spread >= Duration::from_secs(DRAIN),
        "two drains were spread over {spread:?}, at least {DRAIN} s expected"
    );
    let after = cluster.sim().metrics();
    let count = |verb| after.count(verb) - before.count(verb);
    // Four watch loops: each lists and watches at the start of its replica, sends a probe after 15 s of silence, and
    // starts a watch every 30 s. Each backfill round, which serves all waiting clients together, costs two lists and
    // two watches.
    let mut backfills = 0;
    for bridge in &bridges {
        backfills += http_client::metric(bridge.address, r#"bridge_feed_backfills_total{outcome="filled"}"#).await;
    }
    let elapsed = started.elapsed().as_secs();
    let (lists, watches) = (4 + 4 * (elapsed / 15 + 1) + 2 * backfills, 4 + 4 * (elapsed / 30 + 1) + 2 * backfills);
    println!(
        "{} events to each of {CLIENTS} clients, {} closes over {spread:?}, {} lists, {} watches, {backfills} backfills in {elapsed} s",
        expected_keys.len(),
        closing_times.len(),
        count(Verb::List),
        count(Verb::Watch)
    );
    assert!(count(Verb::List) <= lists && count(Verb::Watch) <= watches, "at most {lists} lists and {watches} watches");
    // A replica starts at most six backfill rounds a minute (`backfills_per_minute`).
    assert!(backfills <= 2 * 6 * (elapsed / 60 + 1), "{backfills} backfills");
}
