//! TLS with `--tls-cert` and `--tls-key`: all endpoints, session cookies, npm clients and startup errors
//! (docs/protocol.md#command-line).

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use futures::StreamExt;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, RootCertStore, crypto::ring::default_provider, pki_types::ServerName},
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::support::{
    bridge_process::{self, BridgeProcess},
    http_client::{self, HttpResponse, TEST_TIMEOUT},
    npm_client::NpmClient,
    sim_cluster::{NAMESPACE, SimCluster},
};

const KEY: &str = "a-key-of-thirty-two-characters-x";

/// A certificate for 127.0.0.1, its key, and a TLS client that trusts it.
pub(crate) struct TlsFixture {
    folder: tempfile::TempDir,
    connector: TlsConnector,
}

impl TlsFixture {
    pub(crate) fn new() -> TlsFixture {
        let folder = tempfile::tempdir().unwrap();
        let certificate = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        std::fs::write(folder.path().join("tls.crt"), certificate.cert.pem()).unwrap();
        std::fs::write(folder.path().join("tls.key"), certificate.signing_key.serialize_pem()).unwrap();
        let mut trusted = RootCertStore::empty();
        trusted.add(certificate.cert.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(trusted).with_no_client_auth();
        TlsFixture { folder, connector: TlsConnector::from(Arc::new(config)) }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the flags of a bridge that serves with the certificate.
    pub(crate) fn flags(&self) -> [String; 4] {
        let file = |name| self.file(name).to_string_lossy().into_owned();
        ["--tls-cert".to_owned(), file("tls.crt"), "--tls-key".to_owned(), file("tls.key")]
    }

    /// Starts a bridge on this cluster that serves with the certificate, and waits until it is ready.
    pub(crate) async fn bridge(
        &self,
        cluster: &SimCluster,
        args: &[&str],
        variables: &[(&str, &str)],
    ) -> BridgeProcess {
        let (kubeconfig, flags) = (cluster.kubeconfig(), self.flags());
        let mut all = vec!["serve", "--port", "0", "--kubeconfig", &kubeconfig, "--namespace", NAMESPACE];
        all.extend(flags.iter().map(String::as_str));
        all.extend(args);
        let bridge = BridgeProcess::run_with(&all, variables).await;
        let ready = timeout(TEST_TIMEOUT, async {
            while self.request(bridge.address, "GET", "/readyz", &[]).await.status != 200 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        ready.await.unwrap_or_else(|_| panic!("the bridge is not ready: {:#?}", bridge.log()));
        bridge
    }

    async fn connect(&self, address: SocketAddr) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        timeout(TEST_TIMEOUT, self.connector.connect(name, stream))
            .await
            .expect("the handshake does not end in time")
            .unwrap()
    }

    /// Sends a request and reads the response up to the close of TLS. Without the close, the response could be incomplete.
    pub(crate) async fn request(
        &self,
        address: SocketAddr,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> HttpResponse {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        let mut stream = self.connect(address).await;
        stream.write_all((request + "\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        timeout(TEST_TIMEOUT, stream.read_to_string(&mut text))
            .await
            .expect("the response does not end in time")
            .unwrap();
        http_client::parse(&text)
    }

    async fn websocket(&self, address: SocketAddr, path: &str) -> WebSocketStream<TlsStream<TcpStream>> {
        let request = format!("wss://{address}{path}").into_client_request().unwrap();
        client_async(request, self.connect(address).await).await.unwrap().0
    }
}

async fn next(socket: &mut WebSocketStream<TlsStream<TcpStream>>) -> Option<Message> {
    loop {
        match timeout(TEST_TIMEOUT, socket.next()).await.expect("no message arrives in time") {
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(message) => return Some(message.unwrap()),
            None => return None,
        }
    }
}

async fn json_of(socket: &mut WebSocketStream<TlsStream<TcpStream>>) -> Value {
    match next(socket).await {
        Some(Message::Text(text)) => serde_json::from_str(&text).unwrap(),
        other => panic!("expected a text message: {other:?}"),
    }
}

#[tokio::test]
async fn all_endpoints_are_served_over_tls() {
    let (cluster, tls) = (SimCluster::new().await, TlsFixture::new());
    let bridge = tls.bridge(&cluster, &[], &[]).await;
    let expected = format!("listening on https://{0}, events on wss://{0}/ws", bridge.address);
    assert!(bridge.log().iter().any(|line| line.contains(&expected)), "{:#?}", bridge.log());
    let list = tls.request(bridge.address, "GET", "/", &[]).await.body;
    for command in [format!("wss://{}/ws", bridge.address), format!("https://{}/api/sse", bridge.address)] {
        assert!(list.contains(&command), "the list at / has no {command}: {list}");
    }
    cluster.create_pod("a");
    let (mut ws, mut full) = (
        tls.websocket(bridge.address, "/ws?snapshot=none").await,
        tls.websocket(bridge.address, "/api/websocket?types=instance").await,
    );
    assert_eq!(json_of(&mut full).await["type"], "state.initial");
    let mut sse = tls.connect(bridge.address).await;
    let request = format!("GET /events HTTP/1.1\r\nHost: {}\r\nAccept: text/event-stream\r\n\r\n", bridge.address);
    sse.write_all(request.as_bytes()).await.unwrap();
    let mut events = Vec::new();
    let read = async |sse: &mut TlsStream<TcpStream>, events: &mut Vec<u8>, until: &str| {
        while !String::from_utf8_lossy(events).contains(until) {
            let read = timeout(TEST_TIMEOUT, sse.read_buf(events)).await.expect("no event arrives in time").unwrap();
            assert_ne!(read, 0, "{}", String::from_utf8_lossy(events));
        }
    };
    read(&mut sse, &mut events, "heartbeat").await;

    cluster.create_pod("b");
    while json_of(&mut ws).await["name"] != "b" {}
    while json_of(&mut full).await["name"] != "b" {}
    read(&mut sse, &mut events, r#""name":"b""#).await;
    // A GET is never older than a delivered event (docs/protocol.md#boilerhouse-stream).
    let instances = tls.request(bridge.address, "GET", "/api/v1/instances", &[]).await;
    let names: Vec<_> = instances.json().as_array().unwrap().iter().map(|instance| instance["name"].clone()).collect();
    assert_eq!(names, [json!("a"), json!("b")]);
    let origin = format!("https://{}", bridge.address);
    for (origin, status) in [(origin.as_str(), 200), ("https://evil.example", 403)] {
        let answer = tls.request(bridge.address, "GET", "/api/v1/stats", &[("Origin", origin)]).await;
        assert_eq!(answer.status, status, "{origin}");
    }

    bridge.signal("TERM").await;
    for socket in [&mut ws, &mut full] {
        let close = loop {
            match next(socket).await.expect("expected a close frame before the end") {
                Message::Close(close) => break close.unwrap(),
                Message::Text(_) => {}
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((u16::from(close.code), close.reason.as_str()), (1012, "draining"));
        assert_eq!(next(socket).await, None, "expected the end after the close frame");
    }
    timeout(TEST_TIMEOUT, sse.read_to_end(&mut events))
        .await
        .expect("the stream does not end in time")
        .expect("expected an orderly end");
    assert!(String::from_utf8_lossy(&events).contains("stream.closing"));
}

#[tokio::test]
async fn tls_session_cookie_is_secure_only() {
    let (cluster, tls) = (SimCluster::new().await, TlsFixture::new());
    let bridge = tls.bridge(&cluster, &[], &[("BOILERHOUSE_API_KEY", KEY)]).await;
    let bearer = format!("Bearer {KEY}");
    let answer = tls.request(bridge.address, "POST", "/api/v1/session", &[("Authorization", &bearer)]).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let cookie = answer.header("set-cookie").unwrap();
    assert!(cookie.starts_with("__Host-") && cookie.contains("; Secure"), "{cookie}");
    let pair = cookie.split(';').next().unwrap();
    let plain = pair.strip_prefix("__Host-").unwrap();
    for (cookie, status) in [(pair, 200), (plain, 401)] {
        let answer = tls.request(bridge.address, "GET", "/api/v1/instances", &[("Cookie", cookie)]).await;
        assert_eq!(answer.status, status, "{cookie}: {}", answer.body);
    }
}

#[tokio::test]
async fn npm_clients_connect_over_tls() {
    let (cluster, tls) = (SimCluster::new().await, TlsFixture::new());
    let bridge = tls.bridge(&cluster, &[], &[]).await;
    let trusted = tls.file("tls.crt");
    let mut clients = [("eventsource.mjs", "https", "/api/sse"), ("websocket.mjs", "wss", "/api/websocket")].map(
        |(script, scheme, path)| {
            NpmClient::start_trusting(&trusted, script, &format!("{scheme}://{}{path}", bridge.address))
        },
    );
    for client in &mut clients {
        client.until(|line| line["event"]["data"]["type"] == "state.initial").await;
    }
    cluster.create_pod("a");
    for client in &mut clients {
        client.until(|line| line["event"]["data"]["name"] == "a").await;
    }
}

#[tokio::test]
async fn unusable_tls_pair_fails_at_start_with_a_clear_error() {
    let (tls, other) = (TlsFixture::new(), TlsFixture::new());
    let [certificate, key, other_key] = [tls.file("tls.crt"), tls.file("tls.key"), other.file("tls.key")]
        .map(|path| path.to_string_lossy().into_owned());
    let missing = tls.file("missing").to_string_lossy().into_owned();
    let table = [
        (
            vec!["--tls-cert", &certificate],
            2,
            "error: --tls-cert needs --tls-key: set the path of the private key".to_owned(),
        ),
        (vec!["--tls-key", &key], 2, "error: --tls-key needs --tls-cert: set the path of the certificate".to_owned()),
        (
            vec!["--tls-cert", &missing, "--tls-key", &key],
            1,
            format!("error: cannot serve TLS: cannot read {missing}: No such file or directory"),
        ),
        (
            vec!["--tls-cert", &key, "--tls-key", &key],
            1,
            format!("error: cannot serve TLS: there is no certificate in PEM in {key}"),
        ),
        (
            vec!["--tls-cert", &certificate, "--tls-key", &certificate],
            1,
            format!("error: cannot serve TLS: there is no private key in PEM in {certificate}"),
        ),
        (
            vec!["--tls-cert", &certificate, "--tls-key", &other_key],
            1,
            format!(
                "error: cannot serve TLS: the certificate in {certificate} and the key in {other_key} cannot be used"
            ),
        ),
    ];
    for (flags, code, text) in table {
        let mut command = bridge_process::command(&["serve", "--port", "0"]);
        let output = timeout(TEST_TIMEOUT, command.args(&flags).kill_on_drop(true).output())
            .await
            .expect("the process does not exit in time")
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(code), 0), "{flags:?}: {stderr}");
        assert!(stderr.contains(&text), "{flags:?}: {stderr}");
    }
}
