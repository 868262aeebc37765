//! Golden files of two complete streams, one of each transport. The uids, versions and ids of the simulated cluster are
//! fixed. Times and delays are replaced.

use std::fmt::Write as _;

use boilerhouse_bridge::{
    sim::{ApiResource, SimConfig, store::Store},
    test_support::PodBuilder,
};
use serde_json::{Value, json};

use super::{Client, Transport};
use crate::support::{
    golden,
    http_client::TEST_TIMEOUT,
    sim_cluster::{NAMESPACE, SimCluster},
    sse_client::SseEvent,
};

/// The time of the simulated cluster.
const START: &str = "2026-01-02T03:04:05Z";
/// Keys whose values differ from run to run.
const VARYING_KEYS: &[&str] = &["time", "timestamp", "snapshotAt", "since", "upstreamAgeMs", "retryAfterMs"];

/// A title, a change of the cluster, and the types of the events that it causes, in this order.
type Step = (&'static str, fn(&mut Store), &'static [&'static str]);

const STEPS: &[Step] = &[
    (
        "a pod is created",
        |store| {
            let pod = PodBuilder::new("web-1").namespace(NAMESPACE).phase("Pending").workload("web").pool("warming");
            store.create(ApiResource::Pods, pod.json()).unwrap();
        },
        &["instance.state", "pool.depth"],
    ),
    (
        "it gets ready",
        |store| {
            let labels = json!({"boilerhouse.dev/pool-status": "ready"});
            let status = json!({"phase": "Running", "podIP": "10.0.0.4"});
            patch(store, ApiResource::Pods, "web-1", &json!({"metadata": {"labels": labels}, "status": status}));
        },
        &["instance.state", "pool.instance.ready", "pool.depth"],
    ),
    (
        "a claim is created",
        |store| {
            // Without a status, which `ClaimBuilder` always sets.
            let spec = json!({"tenantId": "alice", "workloadRef": "web"});
            let claim = json!({"metadata": {"name": "alice-web", "namespace": NAMESPACE}, "spec": spec});
            store.create(ApiResource::Claims, claim).unwrap();
        },
        &["claim.state"],
    ),
    (
        "it gets the pod",
        |store| {
            let endpoint = json!({"host": "10.0.0.4", "port": 8080});
            let status = json!({
                "phase": "Active", "instanceId": "web-1", "source": "pool", "endpoint": endpoint, "claimedAt": START,
            });
            patch(store, ApiResource::Claims, "alice-web", &json!({ "status": status }));
        },
        &["claim.state", "tenant.claimed"],
    ),
    (
        "which is marked so",
        |store| {
            let labels = json!({"boilerhouse.dev/pool-status": "acquired", "boilerhouse.dev/tenant": "alice"});
            patch(store, ApiResource::Pods, "web-1", &json!({"metadata": {"labels": labels}}));
        },
        &["instance.state", "pool.depth"],
    ),
    (
        "the claim is deleted",
        |store| drop(store.delete(ApiResource::Claims, NAMESPACE, "alice-web").unwrap()),
        &["claim.state", "tenant.released"],
    ),
    // A change of a Pod, as the next step: the order between two resources is not defined.
    (
        "a change that nobody sees",
        |store| patch(store, ApiResource::Pods, "web-1", &json!({"metadata": {"annotations": {"unseen": "true"}}})),
        &[],
    ),
    (
        "and the pod, too",
        |store| drop(store.delete(ApiResource::Pods, NAMESPACE, "web-1").unwrap()),
        &["instance.state", "pool.depth"],
    ),
];

fn patch(store: &mut Store, resource: ApiResource, name: &str, patch: &Value) {
    store.patch(resource, NAMESPACE, name, patch).unwrap();
}

/// A client and the text of what it received.
struct Transcript {
    client: Client,
    text: String,
}

impl Transcript {
    fn title(&mut self, description: &str) {
        writeln!(self.text, "# {description}").unwrap();
    }

    /// Records the next `count` events, and returns their types. Events of one type are sorted, because their order is
    /// not defined.
    async fn record(&mut self, count: usize) -> Vec<String> {
        let mut types = Vec::new();
        let mut events = Vec::new();
        for _ in 0..count {
            let event = self.client.event().await;
            types.push(event.json()["type"].as_str().unwrap().to_owned());
            events.push(format_block(&event));
        }
        let of_one_type = types.windows(2).all(|two| two[0] == two[1]);
        if of_one_type {
            events.sort();
        }
        self.text += &events.concat();
        types
    }
}

fn format_block(block: &SseEvent) -> String {
    let mut text = String::new();
    if block.retry.is_some() {
        text += "retry: N\n";
    }
    for (field, value) in [("id", &block.id), ("event", &block.event)] {
        if let Some(value) = value {
            writeln!(text, "{field}: {value}").unwrap();
        }
    }
    if !block.data.is_empty() {
        writeln!(text, "data: {}", without_varying_values(&block.data)).unwrap();
    }
    text + "\n"
}

/// Returns the JSON with the values of [`VARYING_KEYS`] replaced.
fn without_varying_values(json: &str) -> String {
    let mut json = json.to_owned();
    for key in VARYING_KEYS {
        let key = format!(r#""{key}":"#);
        let mut from = 0;
        while let Some(at) = json[from..].find(&key) {
            from += at + key.len();
            let end = from + json[from..].find([',', '}']).unwrap();
            let replacement = if json[from..end].starts_with('"') { "\"T\"" } else { "N" };
            json.replace_range(from..end, replacement);
        }
    }
    json
}

#[tokio::test]
async fn conversations_match_the_golden_files_on_both_transports() {
    let config = SimConfig { seed: 7, start: START.parse().unwrap(), ..SimConfig::default() };
    let cluster = SimCluster::with(config).await;
    let bridge = cluster.bridge(&["--drain", "0"]).await;
    let mut both = Vec::new();
    for (name, transport, path) in [
        ("stream-sse.txt", Transport::NamedSse, "/api/events/stream?snapshot=state"),
        ("stream-websocket.txt", Transport::WebSocket, "/events/ws?snapshot=state"),
    ] {
        let client = Client::open(&bridge, transport, path).await;
        let mut transcript = Transcript { client, text: format!("> {path}\n\n") };
        assert_eq!(transcript.record(1).await, ["state.initial"]);
        both.push((name, transcript));
    }
    for (description, change, types) in STEPS {
        cluster.sim.store(|store| {
            store.set_time(START.parse().unwrap());
            change(store);
        });
        for (_, transcript) in &mut both {
            transcript.title(description);
            assert_eq!(transcript.record(types.len()).await, *types, "{description}");
        }
    }
    cluster.sim.down();
    for (_, transcript) in &mut both {
        transcript.title("the API server is away");
        transcript.record(2).await;
    }
    cluster.sim.up();
    for (_, transcript) in &mut both {
        transcript.title("and back");
        transcript.record(2).await;
    }
    bridge.signal("TERM").await;
    for (name, mut transcript) in both {
        transcript.title("the bridge ends");
        match &mut transcript.client {
            Client::Sse(events) => {
                let blocks = events.rest().await;
                transcript.text += &blocks.iter().map(format_block).collect::<String>();
            }
            Client::WebSocket(client) => {
                let closing = SseEvent { data: client.text().await, ..SseEvent::default() };
                let (_, close) = client.closed(TEST_TIMEOUT).await;
                writeln!(transcript.text, "{}close: {close:?}", format_block(&closing)).unwrap();
            }
        }
        golden::check(name, &transcript.text);
    }
}
