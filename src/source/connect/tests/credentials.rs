//! Credentials that are renewed: files, and the results of plugins.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    super::{ClusterConnection, Config, connect},
    full_text,
    test_server::{Seen, TestServer},
};
use crate::source::error::{RequestInfo, UpstreamError};
use http::StatusCode;
use kube::client::Body;

/// How long a test waits for a state.
const BOUND: Duration = Duration::from_secs(30);

/// A server, a folder with a kubeconfig, and the configuration that names it. All files are read again for each request.
struct Fixture {
    server: TestServer,
    dir: TempDir,
    config: Config,
}

impl Fixture {
    async fn new(user: &Value) -> Fixture {
        let (server, dir) = (TestServer::start().await, tempfile::tempdir().unwrap());
        let path = dir.path().join("config");
        fs::write(dir.path().join("ca.crt"), &server.certificate).unwrap();
        let kubeconfig = json!({
            "current-context": "home",
            "clusters": [{"name": "c", "cluster": {"server": server.url, "certificate-authority": "ca.crt"}}],
            "contexts": [{"name": "home", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": user}],
        });
        fs::write(&path, kubeconfig.to_string()).unwrap();
        let config = Config {
            kubeconfig: Some(path),
            reload_interval: Duration::ZERO,
            reload_after_rejection: Duration::ZERO,
            file_wait: BOUND,
            plugin_wait: BOUND,
            plugin_min_interval: Duration::ZERO,
            ..Config::default()
        };
        Fixture { server, dir, config }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        // The file is replaced in one step, as programs that renew credentials do it.
        let path = self.dir.path().join(name);
        fs::write(path.with_extension("new"), text).unwrap();
        fs::rename(path.with_extension("new"), &path).unwrap();
        path
    }

    async fn connect(&self) -> ClusterConnection {
        connect(&self.config).await.unwrap_or_else(|error| panic!("{}", full_text(&error)))
    }

    /// Returns the only request that the server has seen since the last call.
    fn seen(&self) -> Seen {
        let seen = self.server.take_seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen[0].clone()
    }
}

async fn send(connection: &ClusterConnection) -> Result<StatusCode, UpstreamError> {
    let request = http::Request::get("/api").body(Body::empty()).unwrap();
    let info = RequestInfo { verb: "list", resource: "pods".into(), namespace: "bh".into(), server: "".into() };
    let response = connection.client.send(request).await;
    response.map(|response| response.status()).map_err(|error| UpstreamError::from_client_error(&error, &info))
}

fn bearer(token: &str) -> Option<String> {
    Some(format!("Bearer {token}"))
}

/// A user whose plugin appends a line to the file `runs` and then runs this script in the folder of the kubeconfig.
fn plugin(dir: &Path, script: &str) -> Value {
    let script = format!("cd '{}'; echo >>runs; {script}", dir.display());
    json!({"exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": ["-c", script], "interactiveMode": "Never",
    }})
}

/// A fixture with a plugin. The plugin runs in the folder of the fixture.
async fn with_plugin(script: &str) -> Fixture {
    let mut fixture = Fixture::new(&json!({})).await;
    let path = fixture.config.kubeconfig.clone().unwrap();
    let mut kubeconfig: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    kubeconfig["users"][0]["user"] = plugin(fixture.dir.path(), script);
    fs::write(&path, kubeconfig.to_string()).unwrap();
    fixture.config.plugin_notice = Duration::from_millis(50);
    fixture
}

fn runs(fixture: &Fixture) -> usize {
    fs::read_to_string(fixture.dir.path().join("runs")).unwrap_or_default().lines().count()
}

fn credential(status: &Value) -> String {
    json!({"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "status": status}).to_string()
}

#[tokio::test]
async fn renewed_token_file_is_read_again_and_a_missing_one_keeps_the_token() {
    let fixture = Fixture::new(&json!({"tokenFile": "token"})).await;
    let path = fixture.write("token", "one\n");
    let connection = fixture.connect().await;
    for (content, expected) in [(Some("one\n"), "one"), (Some("two\n"), "two"), (None, "two"), (Some("\n"), "two")] {
        match content {
            Some(content) => drop(fixture.write("token", content)),
            None => fs::remove_file(&path).unwrap(),
        }
        send(&connection).await.unwrap();
        assert_eq!(fixture.seen().authorization, bearer(expected), "the file contains {content:?}");
    }
}

#[tokio::test]
async fn files_are_read_again_only_after_the_interval_or_a_rejection() {
    let mut fixture = Fixture::new(&json!({"tokenFile": "token"})).await;
    fixture.config.reload_interval = Duration::from_secs(3600);
    fixture.write("token", "one");
    let connection = fixture.connect().await;
    fixture.write("token", "two");
    fixture.server.answer(&[200, 401, 200]);
    for (status, token) in [(200, "one"), (401, "one"), (200, "two")] {
        assert_eq!(send(&connection).await.unwrap(), status);
        assert_eq!(fixture.seen().authorization, bearer(token));
    }
}

#[tokio::test]
async fn renewed_client_certificate_is_presented_on_the_next_request() {
    let fixture = Fixture::new(&json!({"client-certificate": "client.crt", "client-key": "client.key"})).await;
    let [one, two] = ["one", "two"].map(|name| fixture.server.client(name));
    fixture.write("client.crt", &one.0);
    fixture.write("client.key", &one.1);
    let connection = fixture.connect().await;
    send(&connection).await.unwrap();
    assert_eq!(fixture.seen().certificate.as_ref(), Some(&one.2));
    // Between the two renames, the certificate and the key do not belong together.
    fixture.write("client.crt", &two.0);
    send(&connection).await.unwrap();
    assert_eq!(fixture.seen().certificate.as_ref(), Some(&one.2));
    fixture.write("client.key", &two.1);
    send(&connection).await.unwrap();
    assert_eq!(fixture.seen().certificate.as_ref(), Some(&two.2));
    // Broken and missing files change nothing.
    fixture.write("client.crt", "none");
    fs::remove_file(fixture.dir.path().join("client.key")).unwrap();
    send(&connection).await.unwrap();
    assert_eq!(fixture.seen().certificate.as_ref(), Some(&two.2));
}

#[tokio::test]
async fn renewed_authority_is_used_for_new_connections() {
    let fixture = Fixture::new(&json!({"token": "a"})).await;
    let connection = fixture.connect().await;
    send(&connection).await.unwrap();
    let other = TestServer::start().await;
    fixture.write("ca.crt", &other.certificate);
    let error = send(&connection).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Tls { .. }), "expected a TLS error: {error:?}");
    fixture.write("ca.crt", &format!("{}{}", other.certificate, fixture.server.certificate));
    send(&connection).await.unwrap();
}

#[tokio::test]
async fn plugin_runs_once_while_its_token_is_accepted_and_again_after_a_rejection() {
    let fixture = with_plugin(&format!("echo '{}'", credential(&json!({"token": "a"})))).await;
    let connection = fixture.connect().await;
    assert_eq!((runs(&fixture), connection.awaited()), (0, Some("the first answer of the API server")));
    fixture.server.answer(&[200, 200, 401, 200]);
    for (status, expected) in [(200, 1), (200, 1), (401, 1), (200, 2), (200, 2)] {
        assert_eq!(send(&connection).await.unwrap(), status);
        assert_eq!((fixture.seen().authorization, runs(&fixture)), (bearer("a"), expected));
    }
    assert_eq!(connection.awaited(), None);
}

#[tokio::test]
async fn plugin_runs_again_when_its_credential_has_ended_but_not_within_the_interval() {
    let ended = credential(&json!({"token": "a", "expirationTimestamp": "2020-01-01T00:00:00Z"}));
    let mut fixture = with_plugin(&format!("echo '{ended}'")).await;
    for (interval, expected) in [(Duration::ZERO, 3), (Duration::from_secs(3600), 4)] {
        fixture.config.plugin_min_interval = interval;
        let connection = fixture.connect().await;
        for _ in 0..3 {
            send(&connection).await.unwrap();
        }
        assert_eq!(runs(&fixture), expected, "with an interval of {interval:?}");
    }
}

#[tokio::test]
async fn certificate_of_a_plugin_is_presented_and_renewed() {
    let fixture = with_plugin("cat credential").await;
    let connection = fixture.connect().await;
    for name in ["one", "two"] {
        let (certificate, key, der) = fixture.server.client(name);
        let status = json!({"clientCertificateData": certificate, "clientKeyData": key, "token": name});
        fixture.write("credential", &credential(&status));
        fixture.server.answer(&[200, 401]);
        send(&connection).await.unwrap();
        assert_eq!(fixture.seen(), Seen { authorization: bearer(name), certificate: Some(der) });
        // The rejection makes the plugin run again.
        send(&connection).await.unwrap();
        fixture.seen();
    }
}

/// No request is sent with such a certificate, so no 401 can make the plugin run again.
#[tokio::test]
async fn plugin_runs_again_after_a_certificate_that_cannot_be_used() {
    let fixture = with_plugin("cat credential").await;
    let connection = fixture.connect().await;
    let [(one, _, _), (two, key, der)] = ["one", "two"].map(|name| fixture.server.client(name));
    let credential_of = |certificate: &str| {
        credential(&json!({"clientCertificateData": certificate, "clientKeyData": key, "token": "t"}))
    };
    fixture.write("credential", &credential_of(&one));
    let error = send(&connection).await.unwrap_err().to_string();
    assert!(error.contains("does not belong to the certificate"), "{error}");
    fixture.write("credential", &credential_of(&two));
    send(&connection).await.unwrap();
    assert_eq!(fixture.seen(), Seen { authorization: bearer("t"), certificate: Some(der) });
}

#[tokio::test]
async fn failing_plugin_is_named_and_its_output_and_arguments_are_hidden() {
    let mut fixture = with_plugin("echo canary; echo canary >&2; exit 3").await;
    fixture.config.plugin_min_interval = Duration::from_secs(3600);
    let connection = fixture.connect().await;
    for _ in 0..2 {
        let error = send(&connection).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Credentials(_)), "{error:?}");
        let text = format!("{error} {error:?}");
        assert!(text.contains("user `u`: exec: the credential plugin `sh` failed: exit status: 3"), "{text}");
        assert!(!text.contains("canary"), "{text}");
    }
    assert_eq!(runs(&fixture), 1, "the error of the run must count for the interval");
}

/// The plugin starts a process of its own, which would outlive it.
#[tokio::test]
async fn plugin_that_hangs_is_reported_and_killed_at_its_limit_with_its_processes() {
    let mut fixture = with_plugin("sleep 3600 & echo $! >child; wait").await;
    fixture.config.plugin_wait = Duration::from_millis(200);
    fixture.config.plugin_timeout = Duration::from_secs(2);
    fixture.config.plugin_min_interval = Duration::from_secs(3600);
    let connection = fixture.connect().await;
    let started = Instant::now();
    let error = send(&connection).await.unwrap_err().to_string();
    assert!(error.ends_with("user `u`: exec: the credential plugin has not ended yet"), "{error}");
    assert_eq!(connection.awaited(), Some("the credential plugin of the kubeconfig"));
    let last = loop {
        let error = send(&connection).await.unwrap_err().to_string();
        if !error.ends_with("has not ended yet") {
            break error;
        }
        assert!(started.elapsed() < BOUND, "{error}");
    };
    assert!(last.contains("`sh` failed: it did not end within 2 s and was killed"), "{last}");
    assert_eq!(runs(&fixture), 1, "all requests must wait for one run");
    let child = fs::read_to_string(fixture.dir.path().join("child")).unwrap();
    let stat = format!("/proc/{}/stat", child.trim());
    // A killed process without a parent is a zombie (state Z) until init collects it.
    while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(started.elapsed() < BOUND, "the process that the plugin started still runs");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn plugin_output_without_an_end_is_an_error() {
    let fixture = with_plugin("while :; do echo 0123456789012345678901234567890123456789; done").await;
    let error = send(&fixture.connect().await).await.unwrap_err().to_string();
    assert!(error.contains("its output has more than 1 MiB"), "{error}");
}

#[tokio::test]
async fn credentials_are_sent_over_https_only() {
    let fixture = with_plugin("exit 1").await;
    let path = fixture.config.kubeconfig.clone().unwrap();
    let text = fs::read_to_string(&path).unwrap().replace("https://", "http://");
    fs::write(&path, text).unwrap();
    // The server accepts TLS only: the request fails, and no plugin runs for it.
    send(&fixture.connect().await).await.unwrap_err();
    assert_eq!(runs(&fixture), 0);
}
