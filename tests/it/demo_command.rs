//! The `demo` command, as a user runs it right after cloning the repository.

use std::{collections::BTreeSet, process::Stdio, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::{Instant, timeout_at},
};

use crate::support::{
    bridge_process::BridgeProcess,
    golden,
    http_client::{self, WsClient},
    npm_client,
};

/// Within this time the demo must send all four event types (docs/protocol.md#boilerhouse-stream).
const ALL_TYPES_TIMEOUT: Duration = Duration::from_secs(30);
/// Number of consecutive events that two demos with the same seed must have in common.
const COMMON: usize = 30;
/// Maximum number of events that one client connects later than the other.
const MAX_OFFSET: usize = 10_000;

async fn demo(args: &[&str]) -> BridgeProcess {
    BridgeProcess::run(&[&["demo", "--port", "0"][..], args].concat()).await
}

#[tokio::test]
async fn wscat_receives_all_four_types_and_ctrl_c_stops_the_demo() {
    let mut bridge = demo(&["--speed", "5"]).await;
    let started = Instant::now();
    let mut command = npm_client::node("node_modules/wscat/bin/wscat", &["-c", &format!("ws://{}/ws", bridge.address)]);
    // wscat exits at the end of its input, so the pipe stays open.
    let mut wscat = command.stdin(Stdio::piped()).spawn().unwrap();
    let _input = wscat.stdin.take();
    let mut lines = BufReader::new(wscat.stdout.take().unwrap()).lines();
    let mut types = BTreeSet::new();
    while types.len() < 4 {
        let line = timeout_at(started + ALL_TYPES_TIMEOUT, lines.next_line()).await;
        let line =
            line.unwrap_or_else(|_| panic!("received only {types:?}; log: {:#?}", bridge.log())).unwrap().unwrap();
        let event: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        types.insert(event["type"].as_str().unwrap().to_owned());
    }
    assert_eq!(Vec::from_iter(&types), ["instance.state", "pool.instance.ready", "tenant.claimed", "tenant.released"]);

    bridge.signal("INT").await;
    assert_eq!(bridge.ended(http_client::TEST_TIMEOUT).await.code(), Some(130), "{:#?}", bridge.log());
    // wscat has received a close frame, so it exits without an error.
    let output = timeout_at(Instant::now() + http_client::TEST_TIMEOUT, wscat.wait_with_output())
        .await
        .expect("wscat still runs")
        .unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

/// Users copy commands from this output.
#[tokio::test]
async fn demo_output_matches_the_golden_file_and_its_commands_work() {
    let bridge = demo(&[]).await;
    let address = bridge.address.to_string();
    // `BridgeProcess::run` waits for the first line only.
    let text = http_client::poll_until(|| {
        Some(bridge.log()).filter(|log| log.last().is_some_and(|line| line.contains("Ctrl-C")))
    })
    .await;
    let text = text.join("\n") + "\n";
    let program = env!("CARGO_BIN_EXE_boilerhouse-bridge");
    golden::check("demo.txt", &text.replace(&address, "{address}").replace(program, "boilerhouse-bridge"));
    for line in text.lines() {
        let Some((_, path)) = line.split_once(&format!("curl http://{address}")) else { continue };
        let response = http_client::get(bridge.address, path).await;
        assert!(response.status == 200 && !response.json().as_array().unwrap().is_empty(), "{path}: {response:?}");
    }
    assert_eq!(http_client::get(bridge.address, "/readyz?verbose").await.status, 200);
}

#[tokio::test]
async fn equal_seeds_produce_equal_changes() {
    // At the lowest speed nothing changes before the request.
    let (one, same, other) = tokio::join!(
        demo(&["--speed", "0.01", "--seed", "7"]),
        demo(&["--speed", "0.01", "--seed", "7"]),
        demo(&["--speed", "0.01", "--seed", "8"]),
    );
    let [first, equal, different] =
        [initial_instances(&one).await, initial_instances(&same).await, initial_instances(&other).await];
    assert_eq!(first, equal, "instances of two demos with the same seed");
    assert!(first.iter().all(|instance| !different.contains(instance)), "{first:?}\n{different:?}");

    let (one, same, other) = tokio::join!(
        demo(&["--speed", "40", "--seed", "7"]),
        demo(&["--speed", "40", "--seed", "7"]),
        demo(&["--speed", "40", "--seed", "8"]),
    );
    let (mut first, mut equal, mut different) =
        tokio::join!(Recording::start(&one), Recording::start(&same), Recording::start(&other));
    // One client connects some events later than the other. The later one's first events are then inside the earlier
    // one's recording.
    while !first.contains_start_of(&equal) && !equal.contains_start_of(&first) {
        assert!(
            first.events.len() < MAX_OFFSET,
            "the events differ: {:#?}\n{:#?}",
            first.first_events(),
            equal.first_events()
        );
        for recording in [&mut first, &mut equal, &mut different] {
            recording.read().await;
        }
    }
    for run in first.events.windows(COMMON / 2) {
        assert!(!different.contains(run), "two seeds produce equal events: {run:#?}");
    }
}

/// Returns name and uid of each instance.
async fn initial_instances(bridge: &BridgeProcess) -> Vec<(String, String)> {
    let instances = http_client::get(bridge.address, "/api/v1/instances").await.json();
    let field = |instance: &Value, name: &str| instance[name].as_str().unwrap().to_owned();
    let instances = instances.as_array().unwrap().iter();
    let instances: Vec<_> = instances.map(|instance| (field(instance, "name"), field(instance, "uid"))).collect();
    assert_eq!(instances.len(), 8);
    instances
}

/// The events that one client receives.
struct Recording {
    client: WsClient,
    events: Vec<String>,
}

impl Recording {
    /// Connects and reads the first `COMMON` events.
    async fn start(bridge: &BridgeProcess) -> Recording {
        // The order between the two resources is random, so only events about Pods are compared.
        let client = bridge.listen("/ws?snapshot=none&types=instance,pool").await;
        let mut recording = Recording { client, events: Vec::new() };
        while recording.events.len() < COMMON {
            recording.read().await;
        }
        recording
    }

    async fn read(&mut self) {
        self.events.push(self.client.text().await);
    }

    fn first_events(&self) -> &[String] {
        &self.events[..COMMON]
    }

    /// Returns whether these consecutive events occur in the recording.
    fn contains(&self, run: &[String]) -> bool {
        self.events.windows(run.len()).any(|events| events == run)
    }

    fn contains_start_of(&self, other: &Recording) -> bool {
        self.contains(other.first_events())
    }
}
