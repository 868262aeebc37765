//! Tests that the binary prints no secret: in its log at level `trace`, in metrics, in responses, and in the errors of
//! a failed start. Every secret contains a canary word. `src/http/auth/tests.rs` tests the `Debug` output of the types.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use boilerhouse_bridge::sim::review::Identity;
use serde_json::{Value, json};

use super::{KeysFile, key, sha256};
use crate::{
    support::{
        bridge_process::{self, BridgeProcess},
        http_client::{self, HttpResponse, WsClient, poll_until, request},
        sim_cluster::{self, NAMESPACE, SimCluster},
        sse_client::SseClient,
    },
    tls::TlsFixture,
};

/// Part of every secret of these tests.
const CANARY: &str = "canary";
const SIGNING_KEY: &str = "canary-that-signs-0123456789abcdef";

/// Texts that must not appear in any output: the canaries, and values derived from secrets.
struct Secrets(Vec<String>);

impl Secrets {
    /// Asserts that `text` contains no secret.
    fn check(&self, source: &str, text: &str) {
        for secret in &self.0 {
            assert!(!text.contains(secret.as_str()), "{source} contains {secret}: {text}");
        }
    }

    /// Adds the signature of a session cookie or a ticket. The payload is no secret.
    fn add_signed_token(&mut self, token: &str) {
        self.0.push(token.rsplit('.').next().unwrap().to_owned());
    }
}

/// Creates a temporary file. Returns it with its path.
fn file(text: &str) -> (tempfile::NamedTempFile, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let path = file.path().to_string_lossy().into_owned();
    (file, path)
}

/// Returns paths and headers of requests with malformed or unknown credentials in every position.
fn invalid_requests() -> Vec<(String, Vec<(&'static str, String)>)> {
    let mut requests = Vec::new();
    let token = format!("e30.{CANARY}.{CANARY}");
    for path in ["/api/v1/instances", "/api/sse", "/ws", "/api/v1/stats", "/metrics", "/api/v1/nothing", "/livez"] {
        for value in [
            format!("Bearer {CANARY}"),
            format!("Bearer {token}"),
            format!("Bearer bbp1.{CANARY}.{CANARY}"),
            format!("Basic {CANARY}"),
            format!("Bearer {CANARY} {CANARY}"),
            CANARY.to_owned(),
        ] {
            requests.push((path.to_owned(), vec![("Authorization", value)]));
        }
        let twice = || ("Authorization", format!("Bearer {CANARY}"));
        requests.push((path.to_owned(), vec![twice(), twice()]));
        for value in [CANARY, "bbp1.canary.canary", "%63anary-canary"] {
            for name in ["token", "rstream.token"] {
                requests.push((format!("{path}?{name}={value}"), vec![]));
                requests.push((format!("{path}?{name}={value}&{name}={value}"), vec![]));
            }
            for name in ["boilerhouse_bridge", "__Host-boilerhouse_bridge"] {
                requests.push((path.to_owned(), vec![("Cookie", format!("{name}={value}"))]));
                requests.push((path.to_owned(), vec![("Cookie", format!("{name}={value}; {name}={value}"))]));
            }
        }
    }
    requests
}

/// Sends requests with valid and invalid credentials and checks the responses. Each request has its own client address,
/// so that no rate limit applies. `send` sends one request over http or https.
async fn send_all_requests(secrets: &mut Secrets, send: impl AsyncFn(&str, &str, &[(&str, &str)]) -> HttpResponse) {
    let number = AtomicUsize::new(0);
    let send = async |method: &str, path: &str, headers: &[(&str, &str)]| {
        let number = number.fetch_add(1, Relaxed);
        let from = format!("10.9.{}.{}", number / 250, number % 250);
        send(method, path, &[headers, &[("X-Forwarded-For", &from)]].concat()).await
    };
    for (credential, status) in
        [("canary-of-the-environment", 200), ("canary-of-the-file", 200), ("e30.canary.good", 200)]
    {
        let authorization = format!("Bearer {credential}");
        let headers = [("Authorization", authorization.as_str())];
        let response = send("GET", "/api/v1/instances", &headers).await;
        assert_eq!(response.status, status, "{credential}: {}", response.body);
        let ticket = send("POST", "/api/v1/tickets", &headers).await.json()["ticket"].as_str().unwrap().to_owned();
        let session = send("POST", "/api/v1/session", &headers).await;
        let session = session.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        secrets.add_signed_token(&ticket);
        secrets.add_signed_token(&session);
        let modified = |text: &str| format!("{}x", &text[..text.len() - 1]);
        for (path, headers, status) in [
            (format!("/api/websocket?token={ticket}"), vec![], 426),
            (format!("/api/sse?x&token={ticket}"), vec![], 400),
            (format!("/api/sse?token={}", modified(&ticket)), vec![], 401),
            (format!("/ws?token={ticket}"), vec![], 401),
            ("/api/v1/tenants".to_owned(), vec![("Cookie", session.clone())], 200),
            ("/api/v1/tenants".to_owned(), vec![("Cookie", modified(&session))], 401),
            ("/api/v1/tenants".to_owned(), vec![("Authorization", format!("Bearer {ticket}"))], 401),
        ] {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let response = send("GET", &path, &headers).await;
            assert_eq!(response.status, status, "{path}: {}", response.body);
            secrets.check(&path, &format!("{response:?}"));
        }
    }
    for (path, headers) in invalid_requests() {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        for method in ["GET", "POST"] {
            let response = send(method, &path, &headers).await;
            secrets.check(&path, &format!("{response:?}"));
            assert_ne!(response.status, 429, "{path} {headers:?} {response:?}");
        }
    }
    let metrics = send("GET", "/metrics", &[("Authorization", "Bearer canary-of-the-environment")]).await;
    assert!(
        metrics.body.contains("bridge_auth_denied_total{reason=\"unknown\"} "),
        "expected denials in: {}",
        metrics.body
    );
    secrets.check("the metrics", &metrics.body);
}

/// Checks the complete log of a bridge. Asserts that it contains the level `trace` and the denials, so that the check
/// is meaningful.
fn check_log(secrets: &Secrets, bridge: &BridgeProcess) {
    let log = bridge.log();
    assert!(log.len() < bridge_process::LOG_LINES, "the log must have fewer than {} lines", bridge_process::LOG_LINES);
    let log = log.join("\n");
    for word in ["TRACE", "DEBUG", "denied=invalid API key: the credential is unknown"] {
        assert!(log.contains(word), "expected '{word}' in the log, found: {log}");
    }
    secrets.check("the log", &log);
    assert!(!log.contains("panicked"), "expected no panic, found: {log}");
}

#[tokio::test]
async fn secrets_do_not_appear_in_any_output() {
    let cluster = SimCluster::new().await;
    let identity = Identity { user: "jane".to_owned(), audiences: vec!["bridge".to_owned()], ..Identity::default() };
    cluster.sim.issue("e30.canary.good", identity);
    for (verb, resource) in crate::support::accounts::REQUIRED_ACCESS {
        let (subject, namespace) = ("jane".to_owned(), NAMESPACE.to_owned());
        cluster.sim.grant(boilerhouse_bridge::sim::review::Rule { subject, namespace, verb, resource });
    }
    let kubeconfig = std::fs::read_to_string(cluster.kubeconfig()).unwrap();
    let mut kubeconfig: Value = serde_json::from_str(&kubeconfig).unwrap();
    kubeconfig["users"][0]["user"] = json!({"token": "canary-of-the-kubeconfig"});
    let (_kubeconfig_file, kubeconfig) = file(&kubeconfig.to_string());
    let key_in_file = json!({"sha256": sha256("canary-of-the-file"), "tenantId": "alice"});
    let keys = KeysFile::new(&[key("alice", &key_in_file)]);
    let (_signing_file, signing_path) = file(SIGNING_KEY);
    let fixture = TlsFixture::new();
    let private_key = std::fs::read_to_string(fixture.file("tls.key")).unwrap();
    let mut secrets = Secrets(vec![CANARY.to_owned(), "%63anary".to_owned()]);
    // The hash of a weak secret reveals the secret to an attacker who tries guesses.
    secrets.0.extend(["canary-of-the-environment", "canary-of-the-file", "e30.canary.good", SIGNING_KEY].map(sha256));
    secrets.0.push("e30.".to_owned());
    secrets.0.extend(private_key.lines().filter(|line| !line.starts_with("---")).map(str::to_owned));
    assert!(secrets.0.len() > 7, "expected lines of the private key, found {} secrets", secrets.0.len());

    let keys_path = keys.path();
    let flags = [
        "--keys-file",
        &keys_path,
        "--session-key-file",
        &signing_path,
        "--token-audience",
        "bridge",
        "--request-rate",
        "1000000",
        "--trusted-proxies",
        "127.0.0.0/8",
    ];
    let variables = [("BOILERHOUSE_API_KEY", "canary-of-the-environment"), ("LOG_LEVEL", "trace")];
    let plain = ["serve", "--port", "0", "--kubeconfig", &kubeconfig, "--namespace", NAMESPACE];
    let plain = BridgeProcess::run_with(&[&plain[..], &flags].concat(), &variables).await;
    plain.wait_ready().await;
    let address = plain.address;
    send_all_requests(&mut secrets, async |method, path, headers| request(address, method, path, headers).await).await;

    // Streams of a key that is removed, after a version of the keys file that contains a key in plain text.
    let authorization = [("Authorization", "Bearer canary-of-the-file")];
    let mut socket = WsClient::with(address, "/ws", &authorization).await.unwrap();
    let mut sse = SseClient::open(address, "/api/sse", &authorization).await;
    keys.write_text("keys: [{name: alice, sha256: canary, key: canary}]");
    poll_until(|| plain.log().iter().any(|line| line.contains("keys file rejected")).then_some(())).await;
    keys.write(&[]);
    let (_, close) = socket.closed(http_client::TEST_TIMEOUT).await;
    assert_eq!(close, Some((1008, "access revoked".to_owned())));
    secrets.check("a stream", &format!("{:?}", sse.rest().await));
    check_log(&secrets, &plain);

    keys.write(&[key("alice", &key_in_file)]);
    let tls = fixture.bridge(&cluster, &flags, &variables).await;
    let address = tls.address;
    send_all_requests(&mut secrets, async |method, path, headers| {
        fixture.request(address, method, path, headers).await
    })
    .await;
    // Plain http with a credential on the TLS port.
    http_client::send_raw(address, b"GET /livez HTTP/1.1\r\nAuthorization: Bearer canary\r\n\r\n").await;
    check_log(&secrets, &tls);
}

/// Errors of invalid files and values at start do not quote them.
#[tokio::test]
async fn unusable_secrets_are_not_printed_at_start() {
    let (tls, unused_kubeconfig) = (TlsFixture::new(), sim_cluster::kubeconfig("http://127.0.0.1:1"));
    let certificate = tls.file("tls.crt").to_string_lossy().into_owned();
    let pem = "-----BEGIN PRIVATE KEY-----\ncanarycanarycanarycanary\n-----END PRIVATE KEY-----\n";
    let files =
        [pem, CANARY, "keys: [{name: a, sha256: canary}]", "keys: [{name: a, key: canary}]", "canary: {", SIGNING_KEY];
    let files = files.map(file);
    let [pem, short, invalid_hash, key_in_file, malformed, signing] = files.each_ref().map(|(_, path)| path.as_str());
    let table: &[(&[&str], &str, &str)] = &[
        (&["--tls-cert", &certificate, "--tls-key", pem], "", "cannot serve TLS"),
        (&["--tls-cert", &certificate, "--tls-key", short], "", "cannot serve TLS"),
        (&["--tls-cert", pem, "--tls-key", pem], "", "cannot serve TLS"),
        (&["--session-key-file", short], "", "the session key file"),
        (&["--keys-file", invalid_hash], "", "the keys file"),
        (&["--keys-file", key_in_file], "", "the keys file"),
        (&["--keys-file", malformed], "", "the keys file"),
        (&["--keys-file", signing], "", "the keys file"),
        (&[], "canary canary", "BOILERHOUSE_API_KEY"),
        (&["--kubeconfig", short], "canary", "kubeconfig"),
        (&["--kubeconfig", malformed], "canary", "kubeconfig"),
    ];
    for (args, environment, word) in table {
        let mut command = bridge_process::command(&["serve", "--port", "0"]);
        command.args(*args).env("LOG_LEVEL", "trace").env("RUST_BACKTRACE", "full");
        if !args.contains(&"--kubeconfig") {
            command.args(["--kubeconfig", &unused_kubeconfig.path().to_string_lossy()]);
        }
        if !environment.is_empty() {
            command.env("BOILERHOUSE_API_KEY", environment);
        }
        let process = tokio::time::timeout(http_client::TEST_TIMEOUT, command.kill_on_drop(true).output());
        let result = process.await.expect("the process must exit").unwrap();
        let output = format!("{}{}", String::from_utf8_lossy(&result.stdout), String::from_utf8_lossy(&result.stderr));
        assert!(!result.status.success(), "expected a failure with {args:?}: {output}");
        assert!(output.contains(word), "expected '{word}' with {args:?}, found: {output}");
        assert!(!output.contains(CANARY), "expected no secret with {args:?}, found: {output}");
    }
}
