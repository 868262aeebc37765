//! The demo as somebody who has just cloned the repository runs it.

use std::{collections::BTreeSet, process::Stdio, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::{Instant, timeout_at},
};

use crate::support::{bridge_process::BridgeProcess, golden, http_client, npm_client};

/// How long somebody waits for all four types (docs/protocol.md#boilerhouse-stream) before they think that it does not work.
const ALL_TYPES: Duration = Duration::from_secs(30);
/// How long Ctrl-C may take.
const END: Duration = Duration::from_secs(3);
/// Events of a story that are compared, and how many of them two listeners must have in common: the second begins to
/// listen some steps after the first.
const COMPARED: usize = 60;
const COMMON: usize = 30;

async fn demo(args: &[&str]) -> BridgeProcess {
    BridgeProcess::run(&[&["demo", "--port", "0"][..], args].concat()).await
}

#[tokio::test]
async fn wscat_receives_all_four_types_and_ctrl_c_stops_the_demo() {
    let mut bridge = demo(&["--speed", "5"]).await;
    let started = Instant::now();
    let mut command = npm_client::node("node_modules/wscat/bin/wscat", &["-c", &format!("ws://{}/ws", bridge.address)]);
    // At the end of its input wscat leaves.
    let mut wscat = command.stdin(Stdio::piped()).spawn().unwrap();
    let _input = wscat.stdin.take();
    let mut lines = BufReader::new(wscat.stdout.take().unwrap()).lines();
    let mut types = BTreeSet::new();
    while types.len() < 4 {
        let line = timeout_at(started + ALL_TYPES, lines.next_line()).await;
        let line = line.unwrap_or_else(|_| panic!("only {types:?}: {:#?}", bridge.log())).unwrap().unwrap();
        let event: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        types.insert(event["type"].as_str().unwrap().to_owned());
    }
    assert_eq!(Vec::from_iter(&types), ["instance.state", "pool.instance.ready", "tenant.claimed", "tenant.released"]);

    bridge.signal("INT").await;
    assert_eq!(bridge.ended(END).await.code(), Some(130), "{:#?}", bridge.log());
    // It has been told, and leaves without a complaint.
    let output = timeout_at(Instant::now() + http_client::TEST_TIMEOUT, wscat.wait_with_output())
        .await
        .expect("wscat stays")
        .unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

/// What it prints is what people paste.
#[tokio::test]
async fn demo_output_matches_the_golden_file_and_its_commands_work() {
    let bridge = demo(&[]).await;
    let address = bridge.address.to_string();
    // The line that was waited for is the first.
    let text = http_client::poll_until(|| {
        Some(bridge.log()).filter(|log| log.last().is_some_and(|line| line.contains("Ctrl-C")))
    })
    .await;
    let text = text.join("\n") + "\n";
    golden::check("demo.txt", &text.replace(&address, "{address}"));
    for line in text.lines() {
        let Some((_, path)) = line.split_once(&format!("curl http://{address}")) else { continue };
        let answer = http_client::get(bridge.address, path).await;
        assert!(answer.status == 200 && !answer.json().as_array().unwrap().is_empty(), "{path}: {answer:?}");
    }
    assert_eq!(http_client::get(bridge.address, "/readyz?verbose").await.status, 200);
}

#[tokio::test]
async fn equal_seeds_show_equal_changes() {
    // Slow, so that nothing has happened yet when the beginning is asked for.
    let (one, same, other) = tokio::join!(
        demo(&["--speed", "0.01", "--seed", "7"]),
        demo(&["--speed", "0.01", "--seed", "7"]),
        demo(&["--speed", "0.01", "--seed", "8"]),
    );
    let [first, again, another] = [beginning(&one).await, beginning(&same).await, beginning(&other).await];
    assert_eq!(first, again);
    assert!(first.iter().all(|instance| !another.contains(instance)), "{first:?}\n{another:?}");

    let (one, same, other) = tokio::join!(
        demo(&["--speed", "40", "--seed", "7"]),
        demo(&["--speed", "40", "--seed", "7"]),
        demo(&["--speed", "40", "--seed", "8"]),
    );
    let (first, again, another) = tokio::join!(story(&one), story(&same), story(&other));
    assert!(overlap(&first, &again) >= COMMON, "{first:#?}\n{again:#?}");
    assert!(overlap(&first, &another) < COMMON / 2, "{first:#?}\n{another:#?}");
}

/// Names and uids at the beginning.
async fn beginning(bridge: &BridgeProcess) -> Vec<(String, String)> {
    let instances = http_client::get(bridge.address, "/api/v1/instances").await.json();
    let field = |instance: &Value, name: &str| instance[name].as_str().unwrap().to_owned();
    let instances = instances.as_array().unwrap().iter();
    let instances: Vec<_> = instances.map(|instance| (field(instance, "name"), field(instance, "uid"))).collect();
    assert_eq!(instances.len(), 8);
    instances
}

/// Some of what happens, as it is told.
async fn story(bridge: &BridgeProcess) -> Vec<String> {
    // One resource only: the order between the two is chance.
    let mut listener = bridge.listen("/ws?snapshot=none&types=instance,pool").await;
    let mut received = Vec::new();
    while received.len() < COMPARED {
        received.push(listener.text().await);
    }
    received
}

/// How long the longest stretch is that ends one story and begins the other.
fn overlap(a: &[String], b: &[String]) -> usize {
    let ends_begin = |a: &[String], b: &[String]| (0..=COMPARED).rev().find(|len| a.ends_with(&b[..*len])).unwrap_or(0);
    ends_begin(a, b).max(ends_begin(b, a))
}
