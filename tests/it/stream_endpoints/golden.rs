//! Two whole conversations to the letter, one of each transport: what clients are scripted against. Uids, versions and so
//! ids are the simulated cluster's own and fixed; times and waits are left out.

use std::fmt::Write as _;

use boilerhouse_bridge::sim::{ApiResource, SimConfig, store::Store};
use serde_json::{Value, json};

use super::{Carrier, Client};
use crate::support::{
    golden,
    http_client::TEST_TIMEOUT,
    sim_cluster::{NAMESPACE, SimCluster},
    sse_client::SseEvent,
};

/// The time of the simulated cluster.
const START: &str = "2026-01-02T03:04:05Z";
/// What differs from run to run.
const CHANCE: &[&str] = &["time", "timestamp", "snapshotAt", "since", "upstreamAgeMs", "retryAfterMs"];

/// What is done to the cluster, and the types that it is told by, in this order.
type Step = (&'static str, fn(&mut Store), &'static [&'static str]);

const STEPS: &[Step] = &[
    (
        "a pod is created",
        |store| {
            let labels = json!({
                "boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": "web",
                "boilerhouse.dev/pool-status": "warming",
            });
            let metadata = json!({"name": "web-1", "namespace": NAMESPACE, "labels": labels});
            let pod = json!({"metadata": metadata, "status": {"phase": "Pending"}});
            store.create(ApiResource::Pods, pod).unwrap();
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
    // Of the pods, as the next one: between two resources there is no order.
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

/// One client, and what it has been told.
struct Transcript {
    client: Client,
    text: String,
}

impl Transcript {
    fn title(&mut self, description: &str) {
        writeln!(self.text, "# {description}").unwrap();
    }

    /// The next events; some come in any order.
    async fn record(&mut self, count: usize) -> Vec<String> {
        let mut types = Vec::new();
        let mut events = Vec::new();
        for _ in 0..count {
            let event = self.client.event().await;
            types.push(event.json()["type"].as_str().unwrap().to_owned());
            events.push(show(&event));
        }
        let of_one_type = types.windows(2).all(|two| two[0] == two[1]);
        if of_one_type {
            events.sort();
        }
        self.text += &events.concat();
        types
    }
}

fn show(block: &SseEvent) -> String {
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
        writeln!(text, "data: {}", without_chance(&block.data)).unwrap();
    }
    text + "\n"
}

/// The same JSON, the values of what is chance replaced.
fn without_chance(json: &str) -> String {
    let mut json = json.to_owned();
    for key in CHANCE {
        let key = format!(r#""{key}":"#);
        let mut from = 0;
        while let Some(at) = json[from..].find(&key) {
            from += at + key.len();
            let end = from + json[from..].find([',', '}']).unwrap();
            let shown = if json[from..end].starts_with('"') { "\"T\"" } else { "N" };
            json.replace_range(from..end, shown);
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
    for (name, carrier, path) in [
        ("stream-sse.txt", Carrier::Named, "/api/events/stream?snapshot=state"),
        ("stream-websocket.txt", Carrier::WebSocket, "/events/ws?snapshot=state"),
    ] {
        let mut client = Client::open(&bridge, carrier, path).await;
        let mut text = format!("> {path}\n\n");
        if let Client::Sse(events) = &mut client {
            text += &show(&events.block().await.unwrap());
        }
        let mut transcript = Transcript { client, text };
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
                transcript.text += &blocks.iter().map(show).collect::<String>();
            }
            Client::WebSocket(listener) => {
                let closing = SseEvent { data: listener.text().await, ..SseEvent::default() };
                let (_, close) = listener.closed(TEST_TIMEOUT).await;
                writeln!(transcript.text, "{}close: {close:?}", show(&closing)).unwrap();
            }
        }
        golden::check(name, &transcript.text);
    }
}
