//! The checks of a running bridge.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::{Run, run};
use crate::support::{
    bridge_process::BridgeProcess,
    http_client::{self, poll_until_async},
    sim_cluster::{KEY, NAMESPACE, SimCluster},
};

const IDS: &str = "bridge-ready,bridge-streams,bridge-rate";

async fn check(url: &str, args: &[&str]) -> Run {
    let mut all = vec!["--only", IDS, "--url", url];
    all.extend(args);
    run(&all).await
}

#[tokio::test]
async fn running_bridge_passes() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let url = format!("http://{}", bridge.address);
    let works = check(&url, &[]).await;
    works.expect_passed("bridge-ready", "[+] pods: live; [+] boilerhouseclaims: live; ready");
    works.expect_passed("bridge-streams", "SSE and WebSocket deliver a heartbeat");
    works.expect_passed("bridge-rate", "of 6000 requests a minute are left");
    assert_eq!((works.code, &works.report["base_url"]), (0, &url.clone().into()));
    // A trailing slash and a URL without a scheme name the same bridge.
    let short = check(&format!("{}/", bridge.address), &[]).await;
    assert_eq!(short.report["base_url"], url);
    let without = run(&["--only", IDS]).await;
    without.expect("bridge-ready", "skipped", "info", "no --url");
    assert_eq!(without.code, 0);
}

#[tokio::test]
async fn relay_passes_and_its_streams_are_named() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let upstream = format!("http://{}", bridge.address);
    let relay = BridgeProcess::run(&["relay", "--upstream", &upstream, "--listen", "127.0.0.1:0"]).await;
    let is_up = async || {
        let body = http_client::get(relay.address, "/readyz?verbose").await.body;
        body.starts_with("[+]").then_some(())
    };
    poll_until_async(is_up).await;
    let works = check(&format!("http://{}", relay.address), &[]).await;
    works.expect_passed("bridge-ready", "ready");
    works.expect("bridge-streams", "skipped", "info", &format!("--url http://{}/events", relay.address));
    works.expect("bridge-rate", "skipped", "info", "it is a relay");
    assert_eq!(works.code, 0);
}

#[tokio::test]
async fn credential_of_a_bridge_is_checked() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge_with_key().await;
    let url = format!("http://{}", bridge.address);
    let without = check(&url, &[]).await;
    without.expect_passed("bridge-ready", "ready");
    without.expect("bridge-streams", "failed", "error", "HTTP 401");
    without.expect("bridge-rate", "failed", "error", "HTTP 401");
    // The hints repeat the flags of the run.
    let expected =
        |flags: &str| format!("boilerhouse-bridge doctor --url {url}{flags} --only bridge-streams,bridge-rate");
    assert_eq!(without.hint("bridge-streams"), expected("") + " --token-file FILE");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), KEY).unwrap();
    let with = check(&url, &["--token-file", &file.path().to_string_lossy()]).await;
    with.expect_passed("bridge-streams", "heartbeat");
    with.expect_passed("bridge-rate", "left");
    assert!(!with.report.to_string().contains(KEY));
    let absent = check(&url, &["--port", "0", "--token-file", "/nowhere/token"]).await;
    assert_eq!(absent.hint("bridge-streams"), expected(" --port 0") + " --token-file FILE");
}

#[tokio::test]
async fn rate_limit_that_is_reached_is_a_warning() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&["--request-rate", "1"]).await;
    assert_eq!(http_client::get(bridge.address, "/api/v1/connections").await.status, 200);
    let limited = check(&format!("http://{}", bridge.address), &[]).await;
    limited.expect("bridge-rate", "failed", "warning", "the limit is reached");
    let connections = format!("http://{}/api/v1/connections", bridge.address);
    assert_eq!(limited.hint("bridge-rate"), format!("curl -si {connections} | grep -i ratelimit"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), KEY).unwrap();
    let path = file.path().to_string_lossy().into_owned();
    let with_token = check(&format!("http://{}", bridge.address), &["--token-file", &path]).await;
    let header = format!("-H \"Authorization: Bearer $(cat {path})\"");
    assert_eq!(with_token.hint("bridge-rate"), format!("curl -si {header} {connections} | grep -i ratelimit"));
    assert_eq!(limited.code, 0);
}

#[tokio::test]
async fn bridge_that_is_not_ready_or_has_lost_its_cluster_is_reported() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    cluster.sim.down();
    let url = format!("http://{}", bridge.address);
    let is_down = async || {
        let body = http_client::get(bridge.address, "/readyz?verbose").await.body;
        (body.matches("down for").count() == 2).then_some(())
    };
    poll_until_async(is_down).await;
    let down = check(&url, &[]).await;
    down.expect("bridge-ready", "failed", "warning", "[-] pods: down for");
    // Streams still deliver: they report the outage.
    down.expect_passed("bridge-streams", "heartbeat");

    let starting = BridgeProcess::start(&cluster.kubeconfig(), NAMESPACE, &[]).await;
    let not_ready = check(&format!("http://{}", starting.address), &[]).await;
    not_ready.expect("bridge-ready", "failed", "error", "not ready: the first lists are not complete yet");
    not_ready.expect("bridge-streams", "skipped", "info", "the check bridge-ready failed");
}

#[tokio::test]
async fn other_servers_are_no_bridge() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        for answer in [
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
            "HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\na page with [-]\n",
            "HTTP/1.1 302 Found\r\nlocation: /login?a\r\n\r\n",
        ] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    for _ in 0..2 {
        check(&url, &[]).await.expect("bridge-ready", "failed", "error", "answers, but is no bridge");
    }
    check(&url, &[]).await.expect("bridge-ready", "failed", "error", "a redirect to /login;");
    tokio::time::timeout(Duration::from_secs(30), server).await.unwrap().unwrap();
    check(&url, &[]).await.expect("bridge-ready", "failed", "error", "no answer from http://127.0.0.1:");
    // With a file, the certificates of the system are not needed for https either.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.crt");
    let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(&file, certified.cert.pem()).unwrap();
    let with_file = check(&url.replace("http:", "https:"), &["--ca-file", &file.to_string_lossy()]).await;
    with_file.expect("bridge-ready", "failed", "error", "no answer from https://127.0.0.1:");
}
