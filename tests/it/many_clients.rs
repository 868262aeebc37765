//! Many clients of the full stream at once: a large first picture, as many filters as clients, and two replicas restarted
//! one after the other.

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

use boilerhouse_bridge::sim::{ApiResource, Verb};
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::support::{
    self,
    bridge_process::BridgeProcess,
    full_stream_client::FullStreamClient,
    http_client::{self, TEST_TIMEOUT},
    rng::SeededRng,
    sim_cluster::{NAMESPACE, SimCluster},
};

/// Pods of a large platform.
const PODS: usize = 10_000;
/// Clients that come together.
const TOGETHER: usize = 100;
/// A message of `state.initial` has at most this many bytes (docs/protocol.md#full-stream).
const PART_BYTES: usize = 256 << 10;

#[tokio::test]
async fn ten_thousand_pods_arrive_in_parts_encoded_once() {
    let cluster = SimCluster::new().await;
    for n in 0..PODS {
        let labels = json!({"boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": "web",
                            "boilerhouse.dev/tenant": format!("tenant-{}", n % 100)});
        let pod = json!({"metadata": {"name": format!("pod-{n:05}"), "namespace": NAMESPACE, "labels": labels}});
        cluster.sim().store(|store| store.create(ApiResource::Pods, pod)).unwrap();
    }
    let bridge = cluster.bridge(&[]).await;
    let clients = (0..TOGETHER).map(|_| async {
        let mut on = FullStreamClient::connect(bridge.address, true, "", None).await.unwrap();
        let mut parts: Vec<String> = Vec::new();
        while parts.last().is_none_or(|part| part.ends_with("\"more\":true}")) {
            parts.push(timeout(TEST_TIMEOUT, on.text()).await.expect("in time").expect("open"));
        }
        parts
    });
    let all = join_all(clients).await;
    // Looked into once: a test without optimisation is too slow a reader for a hundred times 4 MB.
    assert!(all.iter().all(|parts| *parts == all[0]), "the same bytes for all");
    let parts: Vec<Value> = all[0].iter().map(|part| serde_json::from_str(part).unwrap()).collect();
    let (last, others) = parts.split_last().unwrap();
    assert!(others.len() > 5 && others.iter().all(|part| part["more"] == true && part["id"].is_null()));
    assert!(last["id"].is_string(), "the last part has the id");
    assert!(parts.iter().all(|part| part["type"] == "state.initial" && part["reason"] == "connect"));
    assert!(all[0].iter().all(|part| part.len() <= PART_BYTES));
    let names = parts.iter().flat_map(|part| part["instances"].as_array().unwrap()).map(|i| i["name"].to_string());
    assert_eq!(names.collect::<BTreeSet<_>>().len(), PODS);
    assert_eq!(http_client::metric(bridge.address, "bridge_feed_initial_states_encoded_total").await, 1);

    let url = format!("ws://{}/api/websocket", bridge.address);
    let python = tokio::process::Command::new("tests/python/run").args(["first", &url]).stdin(Stdio::null()).output();
    let python = timeout(3 * TEST_TIMEOUT, python).await.expect("in time").unwrap();
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
    let said: Value = serde_json::from_slice(&python.stdout).unwrap();
    assert_eq!(said["instances"], PODS);
}

/// Clients that look each in its own way, and what all of them are shown: 1 MB.
const FILTERS: usize = 120;
const CLAIMS: usize = 100;
const DETAIL_BYTES: usize = 10 << 10;
/// What a bridge keeps rendered for all of them (docs/performance.md), and how much more it may grow by meanwhile.
const PROJECTION_CACHE_BYTES: u64 = 32 << 20;
const OTHER_BYTES: u64 = 32 << 20;

#[tokio::test]
async fn distinct_filters_stay_within_the_cache_budget() {
    let cluster = SimCluster::new().await;
    for n in 0..CLAIMS {
        let claim = json!({"metadata": {"name": format!("claim-{n}"), "namespace": NAMESPACE},
                           "spec": {"tenantId": "t", "workloadRef": "web"},
                           "status": {"phase": "Pending", "detail": "x".repeat(DETAIL_BYTES)}});
        cluster.sim().store(|store| store.create(ApiResource::Claims, claim)).unwrap();
    }
    let bridge = cluster.bridge(&[]).await;
    let mut clients = Vec::new();
    let mut before = 0;
    for n in 0..FILTERS {
        // `{"instances":{"name":"…"}}`: says nothing about claims.
        let query = format!("params=%7B%22instances%22%3A%7B%22name%22%3A%22none-{n}%22%7D%7D");
        let mut client = FullStreamClient::connect(bridge.address, true, &query, None).await.unwrap();
        let (mut claims, mut more) = (0, true);
        while more {
            let part = timeout(TEST_TIMEOUT, client.next()).await.expect("in time").expect("open");
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
    let kept = http_client::metric(bridge.address, "bridge_feed_projection_cache_bytes").await;
    println!("{} MiB more for {FILTERS} filters, of which {} MiB are kept rendered", grown >> 20, kept >> 20);
    assert!(kept <= PROJECTION_CACHE_BYTES, "{kept}");
    assert!(grown <= PROJECTION_CACHE_BYTES + OTHER_BYTES, "{grown}");
    assert_eq!(http_client::metric(bridge.address, "bridge_feed_projections").await, FILTERS as u64);
}

/// Clients under a rolling restart, and the seconds over which each replica sends them away.
const CLIENTS: usize = 1_000;
const DRAIN: u64 = 5;

/// What one client has.
#[derive(Default)]
struct Held {
    last: Option<String>,
    keys: Vec<String>,
    pictures: usize,
    closing_received: Vec<Instant>,
}

/// Follows the stream, wherever it is served, until the flag is set and every key is there.
async fn follow(
    seed: u64,
    replicas: Arc<Mutex<Vec<SocketAddr>>>,
    done: Arc<AtomicBool>,
    all: Arc<Mutex<Vec<String>>>,
) -> Held {
    let (mut held, mut rng) = (Held::default(), SeededRng(seed));
    let complete = |held: &Held| done.load(Ordering::Relaxed) && held.keys.len() >= all.lock().unwrap().len();
    while !complete(&held) {
        let address = *rng.choose(&replicas.lock().unwrap());
        let mut pause = Duration::from_millis(200);
        if let Some(mut on) = FullStreamClient::connect(address, true, "", held.last.as_deref()).await {
            while !complete(&held) {
                // Looks up now and then, for the end of the test.
                let event = match timeout(Duration::from_secs(1), on.next()).await {
                    Ok(Some(event)) => event,
                    Ok(None) => break,
                    Err(_) => continue,
                };
                if let Some(id) = event["id"].as_str() {
                    held.last = Some(id.to_owned());
                }
                match event["type"].as_str().unwrap() {
                    "state.initial" => held.pictures += 1,
                    "stream.closing" => {
                        held.closing_received.push(Instant::now());
                        pause = Duration::from_millis(event["retryAfterMs"].as_u64().unwrap());
                    }
                    "instance.state" => held.keys.push(event["key"].as_str().unwrap().to_owned()),
                    _ => {}
                }
                assert_ne!(event["coalesced"], true, "{event}");
            }
        }
        if !complete(&held) {
            tokio::time::sleep(pause).await;
        }
    }
    held
}

#[tokio::test]
async fn rolling_restart_under_a_thousand_clients_loses_no_event() {
    support::ensure_file_limit(4 * CLIENTS as u64);
    let cluster = SimCluster::new().await;
    let drain = DRAIN.to_string();
    let args = ["--own-watchers", "0", "--drain", &drain];
    let mut bridges = [cluster.bridge(&args).await, cluster.bridge(&args).await];
    let replicas = Arc::new(Mutex::new(bridges.iter().map(|bridge| bridge.address).collect::<Vec<_>>()));
    let (done, all) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let clients: Vec<_> = (0..CLIENTS as u64)
        .map(|seed| tokio::spawn(follow(seed, replicas.clone(), done.clone(), all.clone())))
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
    timeout(2 * TEST_TIMEOUT, connected).await.expect("all are there");
    let (before, started) = (cluster.sim().metrics(), Instant::now());

    let mut written = 0;
    let mut write = || {
        written += 1;
        let name = format!("pod-{}", written % 7);
        let pod = cluster.sim().store(|store| {
            let status = json!({"status": {"phase": format!("phase-{written}")}});
            store.patch(ApiResource::Pods, NAMESPACE, &name, &status).or_else(|_| {
                let labels = json!({"boilerhouse.dev/managed": "true"});
                store.create(
                    ApiResource::Pods,
                    json!({"metadata": {"name": name, "namespace": NAMESPACE, "labels": labels}}),
                )
            })
        });
        let meta = pod.unwrap()["metadata"].clone();
        let [uid, rv] = ["uid", "resourceVersion"].map(|key| meta[key].as_str().unwrap().to_owned());
        all.lock().unwrap().push(format!("{uid}.{rv}.instance.state"));
    };
    #[allow(clippy::needless_range_loop, reason = "the other one goes on being used")]
    for which in 0..2 {
        replicas.lock().unwrap().remove(0);
        bridges[which].signal("TERM").await;
        let status = {
            let ended = bridges[which].ended(TEST_TIMEOUT);
            tokio::pin!(ended);
            loop {
                tokio::select! {
                    status = &mut ended => break status,
                    () = tokio::time::sleep(Duration::from_millis(200)) => write(),
                }
            }
        };
        assert!(status.success(), "{status}");
        let fresh: BridgeProcess = cluster.bridge(&args).await;
        replicas.lock().unwrap().push(fresh.address);
        bridges[which] = fresh;
        write();
    }
    done.store(true, Ordering::Relaxed);
    let all = all.lock().unwrap().clone();
    let mut closing_received = Vec::new();
    for client in clients {
        let held = timeout(2 * TEST_TIMEOUT, client).await.expect("it has everything").unwrap();
        assert_eq!(held.keys, all, "each once, in order");
        assert_eq!(held.pictures, 1, "no further picture");
        closing_received.extend(held.closing_received);
    }
    closing_received.sort();
    let spread = *closing_received.last().unwrap() - closing_received[0];
    assert!(spread >= Duration::from_secs(DRAIN), "twice over most of the drain time: {spread:?}");
    let after = cluster.sim().metrics();
    let count = |verb| after.count(verb) - before.count(verb);
    // Two replicas' starts; a question each 15 s of silence and a watch each 30 s go on, of four watchers; and what each has
    // asked of the past, for all who waited for it together.
    let mut pasts = 0;
    for bridge in &bridges {
        pasts += http_client::metric(bridge.address, r#"bridge_feed_backfills_total{outcome="filled"}"#).await;
    }
    let elapsed = started.elapsed().as_secs();
    let (lists, watches) = (4 + 4 * (elapsed / 15 + 1) + 2 * pasts, 4 + 4 * (elapsed / 30 + 1) + 2 * pasts);
    println!(
        "{} events to each of {CLIENTS}, {} goodbyes over {spread:?}, {} lists, {} watches, {pasts} pasts in {elapsed} s",
        all.len(),
        closing_received.len(),
        count(Verb::List),
        count(Verb::Watch)
    );
    assert!(count(Verb::List) <= lists && count(Verb::Watch) <= watches, "at most {lists} lists and {watches} watches");
    // A round of the past serves everybody who waits, and begins at most six times a minute.
    assert!(pasts <= 2 * 6 * (elapsed / 60 + 1), "{pasts} rounds");
}
