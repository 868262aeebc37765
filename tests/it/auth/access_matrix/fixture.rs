//! The bridges, the credentials and the requests of the access matrix. Requests are raw HTTP/1.1 text, and responses
//! are read only as far as the test needs them.

use std::{collections::BTreeMap, fmt, net::SocketAddr, time::Duration};

use boilerhouse_bridge::{
    http::auth::{
        secret::Secret,
        signed_token::{CredentialSubject, SignedToken, TokenPurpose, TokenSigner},
    },
    sim::ApiResource,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    auth::{KeysFile, bearer, key, secret, three_keys, ticket, two_tenants},
    support::{
        accounts::{Accounts, REQUIRED_ACCESS, RbacSubject},
        bridge_process::BridgeProcess,
        http_client::{self, TEST_TIMEOUT, request},
        sim_cluster::{NAMESPACE, SimCluster},
    },
};

const AUDIENCE: &str = "boilerhouse-bridge";
const SIGNING_KEY: &str = "0123456789abcdef0123456789abcdef";
/// Hosts other than the bridge's own address: an IP address, and a name in `--allowed-hosts`. Requests for them
/// simulate an https proxy, because the bridge creates no session over plain http except on loopback.
const PROXY_IP: &str = "10.1.2.3";
const ALLOWED_HOST: &str = "bridge.example";

pub(super) struct Fixture {
    cluster: SimCluster,
    /// The keys file and the session key file.
    files: (KeysFile, tempfile::NamedTempFile),
    bridge: BridgeProcess,
    /// A bridge without configured credentials.
    open_bridge: BridgeProcess,
    /// Kubernetes tokens by name of the credential.
    tokens: BTreeMap<&'static str, String>,
    /// By name of the credential and Host.
    cookies: BTreeMap<(&'static str, &'static str), String>,
    /// By name of the credential.
    tickets: BTreeMap<&'static str, String>,
}

/// The checked parts of a response. The body is the JSON, or the first events of a stream, with `*` for values that
/// differ between runs.
#[derive(Debug, PartialEq)]
pub(super) struct Observed {
    pub(super) status: u16,
    pub(super) body: Value,
    pub(super) cors: Option<String>,
}

/// A request as text, and the address of the bridge.
pub(super) struct Request {
    address: SocketAddr,
    text: String,
    pub(super) origin: Option<String>,
    pub(super) host: String,
}

impl Fixture {
    pub(super) async fn new() -> Fixture {
        let cluster = two_tenants().await;
        let mut all = three_keys();
        all.push(key("expired", &json!({"expiresAt": "2026-01-01T00:00:00Z"})));
        let keys = KeysFile::new(&all);
        keys.write(&[&all[..], &[key("removed", &Value::Null)]].concat());
        let signing = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(signing.path(), SIGNING_KEY).unwrap();
        let (file, signing_path) = (keys.path(), signing.path().to_string_lossy().into_owned());
        let common = [
            "--allowed-hosts",
            ALLOWED_HOST,
            "--cors-origin",
            "https://app.example",
            "--trusted-proxies",
            "127.0.0.0/8",
            "--request-rate",
            "1000000",
        ];
        let credentials = ["--keys-file", &file, "--session-key-file", &signing_path, "--token-audience", AUDIENCE];
        let bridge = cluster.bridge(&[&common[..], &credentials].concat()).await;
        let open_bridge = cluster.bridge(&common).await;
        let mut fixture = Fixture {
            tokens: create_tokens(&cluster).await,
            cluster,
            files: (keys, signing),
            bridge,
            open_bridge,
            cookies: BTreeMap::new(),
            tickets: BTreeMap::new(),
        };
        fixture.sign_in().await;
        fixture.files.0.write(&all);
        let is_rejected = async {
            let authorization = bearer("removed");
            let headers = [("Authorization", authorization.as_str()), ("X-Forwarded-For", "192.0.2.1")];
            while request(fixture.bridge.address, "GET", "/api/v1/instances", &headers).await.status != 401 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(TEST_TIMEOUT, is_rejected).await.expect("the bridge must reject the removed key");
        fixture
    }

    /// Requests session cookies and tickets as clients do. The expired ticket is signed here instead.
    async fn sign_in(&mut self) {
        let bridge_host = self.bridge.address.to_string();
        let local = format!("localhost:{}", self.bridge.address.port());
        let hosts = [
            ("loopback", bridge_host.as_str()),
            ("ip", PROXY_IP),
            ("allowed", ALLOWED_HOST),
            ("local", &local),
            ("other", "10.1.2.4"),
        ];
        for (credential, name) in [("cookie", "all"), ("tenant-cookie", "alice")] {
            for (host, text) in hosts {
                let mut headers = vec![("Authorization", bearer(name)), ("Host", text.to_owned())];
                if !text.contains(':') {
                    headers.push(("X-Forwarded-Proto", "https".to_owned()));
                }
                let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
                let response = request(self.bridge.address, "POST", "/api/v1/session", &headers).await;
                let cookie = response.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
                self.cookies.insert((credential, host), cookie);
            }
        }
        for (host, other_host) in [("loopback", "local"), ("ip", "other"), ("allowed", "other"), ("rebinding", "local")]
        {
            let cookie = self.cookies[&("cookie", other_host)].clone();
            self.cookies.insert(("other-cookie", host), cookie);
        }
        let signer = TokenSigner::from_key(SIGNING_KEY.as_bytes()).unwrap();
        let holder = CredentialSubject::Key("all".into(), signer.key_id(&Secret::new(secret("all")).fingerprint()));
        let expired =
            SignedToken { purpose: TokenPurpose::Ticket, holder, host: String::new(), expires_s: 1_700_000_000 };
        self.tickets.insert("expired-ticket", signer.sign(&expired).expose().to_owned());
        for (credential, name) in [("ticket", "all"), ("tenant-ticket", "alice"), ("removed-ticket", "removed")] {
            self.tickets.insert(credential, ticket(&self.bridge, name).await);
        }
        self.tickets.insert("key-in-query", secret("all"));
    }

    /// Returns `uid` and `creationTimestamp` of a tenant's Pod or claim; `kind` is `pod` or `claim`.
    pub(super) fn uid_and_creation(&self, tenant: &str, kind: &str) -> [Value; 2] {
        let resource = if kind == "pod" { ApiResource::Pods } else { ApiResource::Claims };
        let object = self.cluster.sim.store(|store| store.get(resource, NAMESPACE, &format!("{tenant}-{kind}")));
        let metadata = &object.unwrap()["metadata"];
        [metadata["uid"].clone(), metadata["creationTimestamp"].clone()]
    }

    /// Builds the request of one cell. Each `number` has its own client address, so that no rate limit applies.
    pub(super) fn request(
        &self,
        number: usize,
        credential: &'static str,
        method: &str,
        path: &str,
        origin: &str,
        host: &'static str,
    ) -> Request {
        let is_open = ["open-none", "open-any"].contains(&credential);
        let address = if is_open { self.open_bridge.address } else { self.bridge.address };
        let (scheme, host_header) = match host {
            "loopback" => ("http", address.to_string()),
            "ip" => ("https", PROXY_IP.to_owned()),
            "allowed" => ("https", ALLOWED_HOST.to_owned()),
            _ => ("http", format!("evil.example:{}", address.port())),
        };
        let origin = match origin {
            "none" => None,
            "same" => Some(format!("{scheme}://{host_header}")),
            "allowed" => Some("https://app.example".to_owned()),
            "foreign" => Some("http://foreign.example".to_owned()),
            other => Some(other.to_owned()),
        };
        let mut query = String::new();
        let mut lines = format!("Host: {host_header}\r\nX-Forwarded-For: 10.9.{}.{}\r\n", number / 250, number % 250);
        if scheme == "https" {
            lines += "X-Forwarded-Proto: https\r\n";
        }
        if let Some(origin) = &origin {
            lines += &format!("Origin: {origin}\r\n");
        }
        let issued_for = if host == "rebinding" { "loopback" } else { host };
        let cookie = self.cookies.get(&(credential, host)).or(self.cookies.get(&(credential, issued_for)));
        if let Some(bearer) = self.bearer(credential) {
            lines += &format!("Authorization: {bearer}\r\n");
        } else if let Some(cookie) = cookie {
            lines += &format!("Cookie: {cookie}\r\n");
        } else if let Some(ticket) = self.tickets.get(credential) {
            query = format!("{}token={ticket}", if path.contains('?') { '&' } else { '?' });
        }
        if path == "/ws" || path.contains("websocket") || path.starts_with("/events/ws") {
            lines += "Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                      Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        } else {
            lines += "Connection: close\r\n";
        }
        Request { address, text: format!("{method} {path}{query} HTTP/1.1\r\n{lines}\r\n"), origin, host: host_header }
    }

    fn bearer(&self, credential: &str) -> Option<String> {
        Some(match credential {
            "wrong" | "open-any" => bearer("unknown"),
            "expired" => bearer("expired"),
            "key" => bearer("all"),
            "no-read" => bearer("blind"),
            "tenant" => bearer("alice"),
            token => format!("Bearer {}", self.tokens.get(token)?),
        })
    }
}

/// Creates Kubernetes tokens. The name of a token names the right or the audience that it lacks.
async fn create_tokens(cluster: &SimCluster) -> BTreeMap<&'static str, String> {
    let accounts = Accounts::Simulated(&cluster.sim);
    let rights = |without: &str| {
        let mut rights = REQUIRED_ACCESS.to_vec();
        rights.retain(|(verb, _)| without.is_empty() || !format!("{verb:?}").eq_ignore_ascii_case(without));
        rights
    };
    let mut tokens = BTreeMap::new();
    for (name, without, audience) in [
        ("token", "", AUDIENCE),
        ("other-audience", "", "another"),
        ("no-list", "list", AUDIENCE),
        ("no-watch", "watch", AUDIENCE),
    ] {
        accounts.create_account(NAMESPACE, name).await;
        accounts.bind(NAMESPACE, RbacSubject::Account(name), &rights(without)).await;
        tokens.insert(name, accounts.create_token(NAMESPACE, name, &[audience]).await);
    }
    tokens
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {:?}", self.status, self.body, self.cors)
    }
}

impl Request {
    /// Sends the request. Reads the response to its end, or the first `events` events of a stream.
    pub(super) async fn send(&self, events: usize) -> Observed {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(self.text.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        let reading = timeout(TEST_TIMEOUT, async {
            while stream_events(&bytes).is_none_or(|received| received.len() < events) {
                if stream.read_buf(&mut bytes).await.unwrap() == 0 {
                    break;
                }
            }
        });
        let complete = reading.await.is_ok();
        assert!(
            complete,
            "expected a complete response to {}, found: {:?}",
            self.text,
            String::from_utf8_lossy(&bytes)
        );
        let response = http_client::parse(&String::from_utf8_lossy(&bytes));
        let cors = response.header("access-control-allow-origin").map(str::to_owned);
        let body = match stream_events(&bytes) {
            Some(received) => received.into(),
            // The values of metrics differ between runs, so only the start is compared.
            None if response.body.starts_with("# HELP ") => json!("# HELP "),
            None => serde_json::from_str(&response.body).unwrap_or(json!(response.body)),
        };
        Observed { status: response.status, body: mask_variable_values(body), cors }
    }
}

/// Returns the complete events of a stream; `None` if the response is not a stream or its head is not complete.
fn stream_events(bytes: &[u8]) -> Option<Vec<Value>> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let (head, mut rest) = (String::from_utf8_lossy(&bytes[..end]), &bytes[end..]);
    let parse = |text: &[u8]| serde_json::from_slice(text).unwrap();
    let mut events = Vec::new();
    if head.starts_with("HTTP/1.1 101 ") {
        // Unmasked text frames: RFC 6455, section 5.2.
        while let [0x81, length, ..] = *rest {
            let (start, length) = match (length, rest) {
                (126, [_, _, high, low, ..]) => (4, usize::from(*high) << 8 | usize::from(*low)),
                (126.., _) => break,
                (length, _) => (2, usize::from(length)),
            };
            let Some(text) = rest.get(start..start + length) else { break };
            events.push(parse(text));
            rest = &rest[start + length..];
        }
    } else if head.contains("text/event-stream") {
        let text = String::from_utf8_lossy(rest);
        let complete = text.rsplit_once("\n\n").map_or("", |(complete, _)| complete);
        events
            .extend(complete.lines().filter_map(|line| line.strip_prefix("data: ")).map(|data| parse(data.as_bytes())));
    } else {
        return None;
    }
    Some(events)
}

/// Replaces the values that differ between runs by `*`.
fn mask_variable_values(mut body: Value) -> Value {
    let mask = |value: &mut Value| {
        for (key, value) in value.as_object_mut().into_iter().flatten() {
            let is_variable =
                ["id", "snapshotAt", "connectionId", "since", "expiresAt", "ticket"].contains(&key.as_str());
            if is_variable && value.as_str().is_some_and(|text| !text.is_empty()) {
                *value = json!("*");
            }
        }
    };
    body.as_array_mut().into_iter().flatten().for_each(mask);
    mask(&mut body);
    body
}
