//! `bench`, small: that it measures what it says, not how fast anything is.

use std::process::Stdio;

use serde_json::Value;
use tokio::{process::Command, time::timeout};

use crate::{
    support::{
        bridge_process,
        http_client::TEST_TIMEOUT,
        sim_cluster::{NAMESPACE, SimCluster},
    },
    tls::TlsFixture,
};

async fn run(args: &[&str]) -> (bool, String, String) {
    let mut command: Command = bridge_process::command(args);
    let child = command.kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = timeout(TEST_TIMEOUT * 2, child.wait_with_output()).await.expect("it goes on").unwrap();
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
    let subjects = ["WebSocket", "SSE", "a watch for each client", "floor: one loop", "floor: a task a connection"];
    let both = subjects.map(|name| [name.to_owned(), format!("{name}, one at a time")]).concat();
    assert_eq!(names, both);
    for row in rows {
        // Two rounds of 40 changes for 20 clients, a quarter of them one at a time; a client that has not one of them
        // makes the numbers differ.
        let all = if row["name"].as_str().unwrap().ends_with("one at a time") { 400 } else { 1600 };
        assert_eq!((&row["deliveries"], &row["expected"]), (&all.into(), &all.into()), "{row}");
        assert!(row["max"].as_u64().unwrap() > 0 && row["p50"].as_u64() <= row["p99"].as_u64(), "{row}");
        assert_eq!(row["cpuADelivery"].is_number(), !row["name"].as_str().unwrap().starts_with("a watch"), "{row}");
        assert_eq!(row["timesFloor"].is_number(), row["cpuADelivery"].is_number(), "{row}");
    }
    for bridge in [&rows[0], &rows[2]] {
        assert!(bridge["memoryBeyondEmpty"].is_number(), "{bridge}");
        assert_eq!(bridge["stormNewStates"], 0, "{bridge}");
        assert!(bridge["readsADelivery"].as_f64().unwrap() <= 1.0, "{bridge}");
    }
    assert_eq!((&report["api"]["requestsInStorms"], &report["first"]["pods"]), (&0.into(), &50.into()));
    // Two bridges with two watches each, and the twenty clients that watch themselves.
    assert_eq!((&report["api"]["watchesBefore"], &report["api"]["watches"]), (&4.into(), &24.into()));
}

#[tokio::test]
async fn a_url_that_cannot_be_is_told_once() {
    for (url, told) in [
        ("ftp://127.0.0.1:1/ws", "expected a URL like ws://127.0.0.1:8765/ws: ws, wss, http or https\n"),
        ("/ws", "expected a URL like ws://127.0.0.1:8765/ws: ws, wss, http or https\n"),
        // Nobody listens there: only the superuser may.
        ("ws://127.0.0.1:1/ws", "error: cannot connect to ws://127.0.0.1:1/ws: Connection refused (os error 111)\n"),
    ] {
        let (success, stdout, stderr) = run(&["bench", url]).await;
        assert!(!success && stdout.is_empty() && stderr.contains(told), "{url}: {stderr}");
        assert_eq!(stderr.matches("error:").count(), 1, "{stderr}");
    }
}

#[tokio::test]
async fn tls_is_measured_beside_its_own_floor() {
    let certified = TlsFixture::new();
    let [cert, key] = ["tls.crt", "tls.key"].map(|name| certified.file(name).to_string_lossy().into_owned());
    let args = "bench --connections 10 --rate 40 --seconds 1 --rounds 1 --storm --json";
    let all = [&args.split(' ').collect::<Vec<_>>()[..], &["--tls-cert", &cert, "--tls-key", &key]].concat();
    let (success, stdout, stderr) = run(&all).await;
    assert!(success, "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    let floors = ["floor: one loop", "floor: a task a connection", "floor: one loop, TLS"];
    assert_eq!(names, [&["WebSocket", "SSE", "WebSocket over TLS", "SSE over TLS"][..], &floors].concat());
    for row in rows {
        assert_eq!(
            (&row["deliveries"], &row["isEncrypted"]),
            (&400.into(), &row["name"].as_str().unwrap().contains("TLS").into()),
            "{row}"
        );
    }
    for row in &rows[2..4] {
        let cpu = |row: &Value| row["cpuADelivery"].as_f64().unwrap();
        assert!((row["timesFloor"].as_f64().unwrap() - cpu(row) / cpu(&rows[6])).abs() < 1e-6, "{row}");
        assert_eq!(row["stormNewStates"], 0, "{row}");
    }
}

#[tokio::test]
async fn a_server_with_tls_is_measured_by_those_who_trust_it() {
    let (cluster, certified, other) = (SimCluster::new().await, TlsFixture::new(), TlsFixture::new());
    let bridge = certified.bridge(&cluster, &[], &[]).await;
    let [trusted, stranger] = [&certified, &other].map(|one| one.file("tls.crt").to_string_lossy().into_owned());
    let kubeconfig = cluster.kubeconfig();
    let query = "snapshot=none&types=instance.state";
    for (scheme, path) in [("wss", "/api/websocket"), ("https", "/api/sse")] {
        let url = format!("{scheme}://{}{path}?{query}", bridge.address);
        let args = "--connections 5 --rate 20 --seconds 1 --rounds 1 --json".split(' ');
        let asked = ["bench", &url, "--kubeconfig", &kubeconfig, "--namespace", NAMESPACE].into_iter().chain(args);
        let asked: Vec<&str> = asked.collect();
        let (success, stdout, stderr) = run(&[&asked[..], &["--ca-file", &trusted]].concat()).await;
        assert!(success, "{stderr}");
        let report: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(report["rows"][0]["deliveries"], 100, "{report}");
        let (success, _, stderr) = run(&[&asked[..], &["--ca-file", &stranger]].concat()).await;
        assert!(!success && stderr.contains("certificate"), "{stderr}");
        let (success, _, stderr) = run(&asked).await;
        assert!(!success && stderr.contains("need --ca-file"), "{stderr}");
    }
}

#[tokio::test]
async fn gets_are_made_meanwhile_of_one_bridge_or_the_other() {
    let args = "bench --connections 5 --rate 40 --seconds 1 --rounds 1 --pods 50 --gets --json";
    let (success, stdout, stderr) = run(&args.split(' ').collect::<Vec<_>>()).await;
    assert!(success, "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<&str> = rows[..6].iter().map(|row| row["name"].as_str().unwrap()).collect();
    let modes = |name: &str| ["", ", GETs elsewhere", ", GETs"].map(|mode| format!("{name}{mode}"));
    assert_eq!(names, [modes("WebSocket"), modes("SSE")].concat());
    for (index, row) in rows.iter().enumerate() {
        assert_eq!(row["deliveries"], 200, "{row}");
        assert_eq!(row["getsASecond"].as_f64().is_some_and(|gets| gets > 0.0), index < 6 && index % 3 > 0, "{row}");
    }
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
