//! `bench`, small: that it measures what it says, not how fast anything is.

use std::process::Stdio;

use serde_json::Value;
use tokio::{process::Command, time::timeout};

use crate::support::{bridge, web::BOUND};

async fn run(args: &[&str]) -> (bool, String, String) {
    let mut command: Command = bridge::command(args);
    let child = command.kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = timeout(BOUND * 2, child.wait_with_output()).await.expect("it goes on").unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (output.status.success(), stdout, stderr)
}

#[tokio::test]
async fn every_delivery_is_counted_and_a_storm_asks_nothing_of_the_cluster() {
    let args = "bench --connections 20 --rate 40 --burst 4 --seconds 1 --rounds 2 --storm --watch --pods 50 --json";
    let (success, stdout, stderr) = run(&args.split(' ').collect::<Vec<_>>()).await;
    assert!(success, "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["WebSocket", "SSE", "a watch for each client", "floor: one loop", "floor: a task a connection"]);
    for row in rows {
        // Two rounds of 40 changes for 20 clients; a client that has not one of them makes the numbers differ. A task of
        // the floor's has the latest frames only: when it comes too late for some, on a busy machine, they are not told.
        let may_skip = row["name"] == "floor: a task a connection";
        let told = row["deliveries"].as_u64().unwrap();
        assert!(told == 1600 || may_skip && told > 0 && told < 1600, "{row}");
        assert_eq!(row["expected"], 1600, "{row}");
        assert!(row["max"].as_u64().unwrap() > 0 && row["p50"].as_u64() <= row["p99"].as_u64(), "{row}");
        assert_eq!(row["cpuADelivery"].is_number(), row["name"] != "a watch for each client", "{row}");
    }
    for bridge in &rows[..2] {
        assert_eq!(bridge["stormNewStates"], 0, "{bridge}");
        assert!(bridge["readsADelivery"].as_f64().unwrap() <= 1.0, "{bridge}");
    }
    assert_eq!((&report["api"]["listsDuringStorm"], &report["first"]["pods"]), (&0.into(), &50.into()));
    // Two bridges with two watches each, and the twenty clients that watch themselves.
    assert_eq!(report["api"]["watches"], 24);
}

#[tokio::test]
async fn filters_reach_only_those_who_asked() {
    let args = "bench --connections 40 --rate 40 --seconds 1 --rounds 1 --filters 20 --json";
    let (success, stdout, stderr) = run(&args.split(' ').collect::<Vec<_>>()).await;
    assert!(success, "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    for row in &report["rows"].as_array().unwrap()[..2] {
        // Forty changes of twenty pods in turn, each of which two clients asked for.
        assert_eq!(row["deliveries"], 80, "{row}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let (success, _, stderr) = run(&["bench", "http://127.0.0.1:9/api/sse", "--connections", "2"]).await;
    assert!(!success);
    assert!(stderr.contains("http://127.0.0.1:9/api/sse") && stderr.contains("refused"), "{stderr}");
    let (success, _, stderr) = run(&["bench", "--rate", "0"]).await;
    assert!(!success && stderr.contains("accepted is more than 0, up to 10000"), "{stderr}");
}
