//! Checks of the scenario `fan-out`.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{report_of, run_load};
use crate::{
    http_client::wait_until_ready,
    processes::{BRIDGE, BridgeProcess},
    simulated_cluster::SimulatedCluster,
    tls::{self, CertificateFiles},
};

const NAMESPACE: &str = "boilerhouse";
const BASELINES: [&str; 2] = ["baseline: one loop", "baseline: one task per connection"];

fn rows(report: &Value) -> Result<&Vec<Value>> {
    report["rows"].as_array().with_context(|| format!("no rows in {report}"))
}

fn name(row: &Value) -> &str {
    row["name"].as_str().unwrap_or_default()
}

fn names(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(name).collect()
}

/// Checks that each row has this number of deliveries. A client that misses one event makes the number differ.
fn ensure_deliveries(rows: &[Value], expected: impl Fn(&Value) -> u64) -> Result<()> {
    for row in rows {
        let expected = expected(row);
        ensure!(row["deliveries"] == expected && row["expected"] == expected, "{expected} were expected: {row}");
        ensure!(row["max"].as_u64() > Some(0) && row["p50"].as_u64() <= row["p99"].as_u64(), "{row}");
    }
    Ok(())
}

pub(super) fn every_delivery_is_counted() -> Result<()> {
    let command = "--connections 20 --rate 40 --burst 4 --seconds 0.3 --rounds 2 --raw-watch --skip-memory";
    let report = report_of(command, &[])?;
    let rows = rows(&report)?;
    let targets = ["WebSocket", "SSE", "raw watch per client", BASELINES[0], BASELINES[1]];
    let expected = targets.map(|name| [name.to_owned(), format!("{name}, unbatched")]).concat();
    ensure!(names(rows) == expected, "{:?}", names(rows));
    // Two rounds of 12 changes for 20 clients, or of a quarter of these changes.
    ensure_deliveries(rows, |row| if name(row).ends_with("unbatched") { 120 } else { 480 })?;
    for row in rows {
        ensure!(row["cpuPerDelivery"].is_number() != name(row).starts_with("raw watch"), "{row}");
        ensure!(row["vsBaseline"].is_number() == row["cpuPerDelivery"].is_number(), "{row}");
    }
    for bridge in [&rows[0], &rows[2]] {
        ensure!(bridge["readsPerDelivery"].as_f64().is_some_and(|reads| reads <= 1.0), "{bridge}");
    }
    // Two watches for each of two bridges, and one for each of the 20 clients.
    let api = &report["api"];
    ensure!(api["watchesWithoutClients"] == 4 && api["watches"] == 24, "{api}");
    Ok(())
}

pub(super) fn reconnect_storm_sends_no_api_request() -> Result<()> {
    let command = "--connections 20 --rate 40 --seconds 0.5 --rounds 1 --static-pods 50 --reconnect-storm";
    let report = report_of(command, &[])?;
    let rows = rows(&report)?;
    ensure_deliveries(rows, |_| 400)?;
    for bridge in &rows[..2] {
        ensure!(bridge["memoryAboveEmpty"].is_number() && bridge["memoryPerConnection"].is_number(), "{bridge}");
        ensure!(bridge["reconnectStormInitialStates"] == 0, "{bridge}");
        ensure!(bridge["reconnectStormMillis"].is_number(), "{bridge}");
    }
    ensure!(report["api"]["requestsInReconnectStorms"] == 0, "{}", report["api"]);
    ensure!(report["initialState"]["pods"] == 50, "{}", report["initialState"]);
    Ok(())
}

pub(super) fn gets_run_on_one_bridge_or_the_other() -> Result<()> {
    let command = "--connections 5 --rate 40 --seconds 0.5 --rounds 1 --static-pods 50 --with-gets --skip-memory";
    let report = report_of(command, &[])?;
    let rows = rows(&report)?;
    let modes = |name: &str| ["", ", GETs on other", ", GETs on same"].map(|mode| format!("{name}{mode}"));
    let expected = [modes("WebSocket"), modes("SSE")].concat();
    ensure!(names(&rows[..6]) == expected, "{:?}", names(rows));
    ensure_deliveries(rows, |_| 100)?;
    for (index, row) in rows.iter().enumerate() {
        let has_gets = row["getsPerSecond"].as_f64().is_some_and(|gets| gets > 0.0);
        ensure!(has_gets == (index < 6 && index % 3 > 0), "{row}");
    }
    Ok(())
}

pub(super) fn filtered_clients_receive_their_events_only() -> Result<()> {
    let report = report_of("--connections 40 --rate 80 --seconds 0.5 --rounds 1 --filters 20 --skip-memory", &[])?;
    for row in &rows(&report)?[..2] {
        // Forty changes of twenty Pods in turn. Two clients have a filter for each Pod.
        ensure!(row["deliveries"] == 80 && row["expected"].is_null(), "{row}");
    }
    Ok(())
}

pub(super) fn tls_has_a_baseline_of_its_own() -> Result<()> {
    let certificate = CertificateFiles::new()?;
    let [cert, key] = certificate.flags();
    let command = "--connections 10 --rate 40 --seconds 0.5 --rounds 1 --reconnect-storm --skip-memory";
    let report = report_of(command, &[&cert, &key])?;
    let rows = rows(&report)?;
    let bridges = ["WebSocket", "SSE", "WebSocket over TLS", "SSE over TLS"];
    let expected = [&bridges[..], &BASELINES, &["baseline: one loop, TLS"]].concat();
    ensure!(names(rows) == expected, "{:?}", names(rows));
    ensure_deliveries(rows, |_| 200)?;
    for row in rows {
        ensure!(row["isEncrypted"] == name(row).contains("TLS"), "{row}");
    }
    let cpu = |row: &Value| row["cpuPerDelivery"].as_f64().context("no processor time");
    for row in &rows[2..4] {
        let ratio = cpu(row)? / cpu(&rows[6])?;
        ensure!(row["vsBaseline"].as_f64().is_some_and(|printed| (printed - ratio).abs() < 1e-6), "{row}");
        ensure!(row["reconnectStormInitialStates"] == 0, "{row}");
    }
    Ok(())
}

pub(super) fn existing_tls_server_needs_trusted_clients() -> Result<()> {
    let (certificate, other) = (CertificateFiles::new()?, CertificateFiles::new()?);
    let cluster = SimulatedCluster::start(&[NAMESPACE])?;
    let args = [&["--namespace".to_owned(), NAMESPACE.to_owned()][..], &certificate.flags()].concat();
    let bridge = BridgeProcess::serve(BRIDGE.as_ref(), &args, &cluster.kubeconfig())?;
    let [trusted, unknown] = [&certificate, &other].map(|files| files.certificate().to_string_lossy().into_owned());
    wait_until_ready(&bridge.address, Some(&tls::client(trusted.as_ref())?))?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), cluster.kubeconfig())?;
    let kubeconfig = format!("--kubeconfig={}", file.path().display());
    for (scheme, path) in [("wss", "/api/websocket"), ("https", "/api/sse")] {
        let url = format!("{scheme}://{}{path}?snapshot=none&types=instance.state", bridge.address);
        let command = format!("{url} --connections 5 --rate 20 --seconds 0.5 --rounds 1 --skip-memory");
        let report = report_of(&command, &[&kubeconfig, "--namespace", NAMESPACE, "--ca-file", &trusted])?;
        ensure!(report["rows"][0]["deliveries"] == 50, "{report}");
        let (success, _, stderr) = run_load(&[&url, &kubeconfig, "--ca-file", &unknown])?;
        ensure!(!success && stderr.contains("certificate"), "{stderr}");
        let (success, _, stderr) = run_load(&[&url, &kubeconfig])?;
        ensure!(!success && stderr.contains("need --ca-file"), "{stderr}");
    }
    Ok(())
}

pub(super) fn errors_are_reported_once() -> Result<()> {
    let not_a_url = "expected a URL such as ws://127.0.0.1:8765/ws: ws, wss, http or https\n";
    // Only the superuser may listen on these ports, and no program of this test does.
    let refused = |url: &str| format!("error: cannot connect to {url}: Connection refused (os error 111)\n");
    for (args, expected) in [
        (&["ftp://127.0.0.1:1/ws"][..], not_a_url.to_owned()),
        (&["fan-out", "/ws"], not_a_url.to_owned()),
        (&["ws://127.0.0.1:1/ws"], refused("ws://127.0.0.1:1/ws")),
        (&["http://127.0.0.1:9/api/sse", "--connections", "2"], refused("http://127.0.0.1:9/api/sse")),
        (&["--rate", "0"], "expected a number above 0, up to 10000\n".to_owned()),
    ] {
        let (success, stdout, stderr) = run_load(args)?;
        ensure!(!success && stdout.is_empty() && stderr.contains(&expected), "{args:?}: {stderr}");
        ensure!(stderr.matches("error:").count() == 1, "{args:?}: {stderr}");
    }
    Ok(())
}
