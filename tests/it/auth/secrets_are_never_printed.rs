//! A canary in every place where a secret goes: none of them is told on, at TRACE, in metrics, in answers, in what a
//! process that cannot start says. What of it can be printed inside the process is tried there, in `http/auth/tests`.

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

/// Part of every secret here.
const CANARY: &str = "canary";
const SIGNING: &str = "canary-that-signs-0123456789abcdef";

/// What must not be told on: the canaries, and what is made of them.
struct Secrets(Vec<String>);

impl Secrets {
    fn check(&self, what: &str, text: &str) {
        for secret in &self.0 {
            assert!(!text.contains(secret.as_str()), "{what} tells {secret}: {text}");
        }
    }

    /// The part of a session or of a ticket that makes it one: what it says is no secret.
    fn add_pass(&mut self, pass: &str) {
        self.0.push(pass.rsplit('.').next().unwrap().to_owned());
    }
}

fn file(text: &str) -> (tempfile::NamedTempFile, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let path = file.path().to_string_lossy().into_owned();
    (file, path)
}

/// Credentials that are wrong in every way and place.
fn wrong() -> Vec<(String, Vec<(&'static str, String)>)> {
    let mut wrong = Vec::new();
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
            wrong.push((path.to_owned(), vec![("Authorization", value)]));
        }
        let twice = || ("Authorization", format!("Bearer {CANARY}"));
        wrong.push((path.to_owned(), vec![twice(), twice()]));
        for value in [CANARY, "bbp1.canary.canary", "%63anary-canary"] {
            for name in ["token", "rstream.token"] {
                wrong.push((format!("{path}?{name}={value}"), vec![]));
                wrong.push((format!("{path}?{name}={value}&{name}={value}"), vec![]));
            }
            for name in ["boilerhouse_bridge", "__Host-boilerhouse_bridge"] {
                wrong.push((path.to_owned(), vec![("Cookie", format!("{name}={value}"))]));
                wrong.push((path.to_owned(), vec![("Cookie", format!("{name}={value}; {name}={value}"))]));
            }
        }
    }
    wrong
}

/// All that is asked of a bridge with credentials, good and bad ones, each time from another address, so that none is
/// refused for their number. `asks` makes a request in whichever way.
async fn use_everything(secrets: &mut Secrets, asks: impl AsyncFn(&str, &str, &[(&str, &str)]) -> HttpResponse) {
    let number = AtomicUsize::new(0);
    let asks = async |method: &str, path: &str, headers: &[(&str, &str)]| {
        let number = number.fetch_add(1, Relaxed);
        let from = format!("10.9.{}.{}", number / 250, number % 250);
        asks(method, path, &[headers, &[("X-Forwarded-For", &from)]].concat()).await
    };
    for (credential, status) in
        [("canary-of-the-environment", 200), ("canary-of-the-file", 200), ("e30.canary.good", 200)]
    {
        let authorization = format!("Bearer {credential}");
        let headers = [("Authorization", authorization.as_str())];
        let answer = asks("GET", "/api/v1/instances", &headers).await;
        assert_eq!(answer.status, status, "{credential}: {}", answer.body);
        let ticket = asks("POST", "/api/v1/tickets", &headers).await.json()["ticket"].as_str().unwrap().to_owned();
        let session = asks("POST", "/api/v1/session", &headers).await;
        let session = session.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        secrets.add_pass(&ticket);
        secrets.add_pass(&session);
        let last_of = |text: &str| format!("{}x", &text[..text.len() - 1]);
        for (path, headers, status) in [
            (format!("/api/websocket?token={ticket}"), vec![], 426),
            (format!("/api/sse?x&token={ticket}"), vec![], 400),
            (format!("/api/sse?token={}", last_of(&ticket)), vec![], 401),
            (format!("/ws?token={ticket}"), vec![], 401),
            ("/api/v1/tenants".to_owned(), vec![("Cookie", session.clone())], 200),
            ("/api/v1/tenants".to_owned(), vec![("Cookie", last_of(&session))], 401),
            ("/api/v1/tenants".to_owned(), vec![("Authorization", format!("Bearer {ticket}"))], 401),
        ] {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let answer = asks("GET", &path, &headers).await;
            assert_eq!(answer.status, status, "{path}: {}", answer.body);
            secrets.check(&path, &format!("{answer:?}"));
        }
    }
    for (path, headers) in wrong() {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        for method in ["GET", "POST"] {
            let answer = asks(method, &path, &headers).await;
            secrets.check(&path, &format!("{answer:?}"));
            assert_ne!(answer.status, 429, "{path} {headers:?} {answer:?}");
        }
    }
    let metrics = asks("GET", "/metrics", &[("Authorization", "Bearer canary-of-the-environment")]).await;
    assert!(metrics.body.contains("bridge_credentials_refused_total "), "{}", metrics.body);
    secrets.check("the metrics", &metrics.body);
}

/// What a bridge has said, all of it: at TRACE, and of those whom it has refused.
fn check_log(secrets: &Secrets, bridge: &BridgeProcess) {
    let log = bridge.log();
    assert!(log.len() < bridge_process::LOG_LINES, "the log is longer than what is kept of it");
    let log = log.join("\n");
    for word in ["TRACE", "DEBUG", "refused=the credential is not known here"] {
        assert!(log.contains(word), "{word} is missing: the log is not as it should be: {log}");
    }
    secrets.check("the log", &log);
    assert!(!log.contains("panicked"), "{log}");
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
    let (_kubeconfig, kubeconfig) = file(&kubeconfig.to_string());
    let of_file = json!({"sha256": sha256("canary-of-the-file"), "tenantId": "alice"});
    let keys = KeysFile::new(&[key("alice", &of_file)]);
    let (_signing, signing) = file(SIGNING);
    let certified = TlsFixture::new();
    let private = std::fs::read_to_string(certified.file("tls.key")).unwrap();
    let mut secrets = Secrets(vec![CANARY.to_owned(), "%63anary".to_owned()]);
    // Of a weak secret, the hash is as good as the secret.
    secrets.0.extend(["canary-of-the-environment", "canary-of-the-file", "e30.canary.good", SIGNING].map(sha256));
    secrets.0.push("e30.".to_owned());
    secrets.0.extend(private.lines().filter(|line| !line.starts_with("---")).map(str::to_owned));
    assert!(secrets.0.len() > 7, "the private key has lines");

    let keys_path = keys.path();
    let more = [
        "--keys-file",
        &keys_path,
        "--session-key-file",
        &signing,
        "--token-audience",
        "bridge",
        "--request-rate",
        "1000000",
        "--trusted-proxies",
        "127.0.0.0/8",
    ];
    let variables = [("BOILERHOUSE_API_KEY", "canary-of-the-environment"), ("LOG_LEVEL", "trace")];
    let plain = ["serve", "--port", "0", "--kubeconfig", &kubeconfig, "--namespace", NAMESPACE];
    let plain = BridgeProcess::run_with(&[&plain[..], &more].concat(), &variables).await;
    plain.wait_ready().await;
    let address = plain.address;
    use_everything(&mut secrets, async |method, path, headers| request(address, method, path, headers).await).await;

    // Streams, of a key that is taken back under them, and of a file that somebody has put a key into.
    let authorization = [("Authorization", "Bearer canary-of-the-file")];
    let mut socket = WsClient::with(address, "/ws", &authorization).await.unwrap();
    let mut sse = SseClient::open(address, "/api/sse", &authorization).await;
    keys.write_text("keys: [{name: alice, sha256: canary, key: canary}]");
    poll_until(|| plain.log().iter().any(|line| line.contains("the keys file cannot be used")).then_some(())).await;
    keys.write(&[]);
    let (_, close) = socket.closed(http_client::TEST_TIMEOUT).await;
    assert_eq!(close, Some((1008, "access revoked".to_owned())));
    secrets.check("a stream", &format!("{:?}", sse.rest().await));
    check_log(&secrets, &plain);

    keys.write(&[key("alice", &of_file)]);
    let tls = certified.bridge(&cluster, &more, &variables).await;
    let address = tls.address;
    use_everything(&mut secrets, async |method, path, headers| certified.request(address, method, path, headers).await)
        .await;
    // What no client should send: TLS that is none, with a credential in it.
    http_client::send_raw(address, b"GET /livez HTTP/1.1\r\nAuthorization: Bearer canary\r\n\r\n").await;
    check_log(&secrets, &tls);
}

/// Secrets that cannot be used are not quoted.
#[tokio::test]
async fn unusable_secrets_are_not_printed_at_start() {
    let (certified, unreached) = (TlsFixture::new(), sim_cluster::kubeconfig("http://127.0.0.1:1"));
    let certificate = certified.file("tls.crt").to_string_lossy().into_owned();
    let pem = "-----BEGIN PRIVATE KEY-----\ncanarycanarycanarycanary\n-----END PRIVATE KEY-----\n";
    let files =
        [pem, CANARY, "keys: [{name: a, sha256: canary}]", "keys: [{name: a, key: canary}]", "canary: {", SIGNING];
    let files = files.map(file);
    let [pem, short, hash, known, broken, signing] = files.each_ref().map(|(_, path)| path.as_str());
    let table: &[(&[&str], &str, &str)] = &[
        (&["--tls-cert", &certificate, "--tls-key", pem], "", "cannot serve TLS"),
        (&["--tls-cert", &certificate, "--tls-key", short], "", "cannot serve TLS"),
        (&["--tls-cert", pem, "--tls-key", pem], "", "cannot serve TLS"),
        (&["--session-key-file", short], "", "the session key file"),
        (&["--keys-file", hash], "", "the keys file"),
        (&["--keys-file", known], "", "the keys file"),
        (&["--keys-file", broken], "", "the keys file"),
        (&["--keys-file", signing], "", "the keys file"),
        (&[], "canary canary", "BOILERHOUSE_API_KEY"),
        (&["--kubeconfig", short], "canary", "kubeconfig"),
        (&["--kubeconfig", broken], "canary", "kubeconfig"),
    ];
    for (args, environment, word) in table {
        let mut command = bridge_process::command(&["serve", "--port", "0"]);
        command.args(*args).env("LOG_LEVEL", "trace").env("RUST_BACKTRACE", "full");
        if !args.contains(&"--kubeconfig") {
            command.args(["--kubeconfig", &unreached.path().to_string_lossy()]);
        }
        if !environment.is_empty() {
            command.env("BOILERHOUSE_API_KEY", environment);
        }
        let ended = tokio::time::timeout(http_client::TEST_TIMEOUT, command.kill_on_drop(true).output());
        let ended = ended.await.expect("it goes on").unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
        assert!(!ended.status.success() && said.contains(word), "{args:?}: {said}");
        assert!(!said.contains(CANARY), "{args:?}: {said}");
    }
}
