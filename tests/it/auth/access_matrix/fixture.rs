//! The bridges that the matrix asks, the credentials that it has, and its requests: written out, and read as far as needed.

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
const SIGNING: &str = "0123456789abcdef0123456789abcdef";
/// An address besides the bridge's own, and a name that it may be called by: what comes there comes through a proxy that
/// speaks https, as no session is made in the clear off loopback.
const IP: &str = "10.1.2.3";
const NAME: &str = "bridge.example";

pub(super) struct Fixture {
    cluster: SimCluster,
    files: (KeysFile, tempfile::NamedTempFile),
    bridge: BridgeProcess,
    /// It knows nobody.
    open: BridgeProcess,
    tokens: BTreeMap<&'static str, String>,
    /// By credential and Host.
    cookies: BTreeMap<(&'static str, &'static str), String>,
    tickets: BTreeMap<&'static str, String>,
}

/// What has come of a request. JSON where it was, with `*` for what differs from run to run; a stream's first events.
#[derive(Debug, PartialEq)]
pub(super) struct Observed {
    pub(super) status: u16,
    pub(super) body: Value,
    pub(super) cors: Option<String>,
}

pub(super) struct Request {
    address: SocketAddr,
    text: String,
    pub(super) origin: Option<String>,
}

impl Fixture {
    pub(super) async fn new() -> Fixture {
        let cluster = two_tenants().await;
        let mut all = three_keys();
        all.push(key("over", &json!({"expiresAt": "2026-01-01T00:00:00Z"})));
        let keys = KeysFile::new(&all);
        keys.write(&[&all[..], &[key("removed", &Value::Null)]].concat());
        let signing = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(signing.path(), SIGNING).unwrap();
        let (file, signing_path) = (keys.path(), signing.path().to_string_lossy().into_owned());
        let common = [
            "--allowed-hosts",
            NAME,
            "--cors-origin",
            "https://app.example",
            "--trusted-proxies",
            "127.0.0.0/8",
            "--request-rate",
            "1000000",
        ];
        let known = ["--keys-file", &file, "--session-key-file", &signing_path, "--token-audience", AUDIENCE];
        let bridge = cluster.bridge(&[&common[..], &known].concat()).await;
        let open = cluster.bridge(&common).await;
        let mut fixture = Fixture {
            tokens: tokens(&cluster).await,
            cluster,
            files: (keys, signing),
            bridge,
            open,
            cookies: BTreeMap::new(),
            tickets: BTreeMap::new(),
        };
        fixture.sign_in().await;
        fixture.files.0.write(&all);
        let removed = async {
            let authorization = bearer("removed");
            let headers = [("Authorization", authorization.as_str()), ("X-Forwarded-For", "192.0.2.1")];
            while request(fixture.bridge.address, "GET", "/api/v1/instances", &headers).await.status != 401 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(TEST_TIMEOUT, removed).await.expect("the key is still known");
        fixture
    }

    /// Sessions and tickets, as clients get them; but for the one that is over, which is signed here.
    async fn sign_in(&mut self) {
        let own = self.bridge.address.to_string();
        let local = format!("localhost:{}", self.bridge.address.port());
        let hosts =
            [("loopback", own.as_str()), ("ip", IP), ("allowed", NAME), ("local", &local), ("other", "10.1.2.4")];
        for (credential, name) in [("cookie", "all"), ("tenant-cookie", "alice")] {
            for (host, text) in hosts {
                let mut headers = vec![("Authorization", bearer(name)), ("Host", text.to_owned())];
                if !text.contains(':') {
                    headers.push(("X-Forwarded-Proto", "https".to_owned()));
                }
                let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
                let answer = request(self.bridge.address, "POST", "/api/v1/session", &headers).await;
                let cookie = answer.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
                self.cookies.insert((credential, host), cookie);
            }
        }
        for (host, elsewhere) in [("loopback", "local"), ("ip", "other"), ("allowed", "other"), ("rebinding", "local")]
        {
            let cookie = self.cookies[&("cookie", elsewhere)].clone();
            self.cookies.insert(("other-cookie", host), cookie);
        }
        let seal = TokenSigner::from_key(SIGNING.as_bytes()).unwrap();
        let holder = CredentialSubject::Key("all".into(), seal.key_id(&Secret::new(secret("all")).fingerprint()));
        let over = SignedToken { purpose: TokenPurpose::Ticket, holder, host: String::new(), expires_s: 1_700_000_000 };
        let over = seal.sign(&over).expose().to_owned();
        self.tickets.insert("expired-ticket", over);
        for (credential, name) in [("ticket", "all"), ("tenant-ticket", "alice"), ("removed-ticket", "removed")] {
            self.tickets.insert(credential, ticket(&self.bridge, name).await);
        }
        self.tickets.insert("key-in-query", secret("all"));
    }

    /// uid and time of creation of a tenant's Pod or claim.
    pub(super) fn uid_and_times(&self, tenant: &str, description: &str) -> [Value; 2] {
        let resource = if description == "pod" { ApiResource::Pods } else { ApiResource::Claims };
        let object = self.cluster.sim.store(|store| store.get(resource, NAMESPACE, &format!("{tenant}-{description}")));
        let metadata = &object.unwrap()["metadata"];
        [metadata["uid"].clone(), metadata["creationTimestamp"].clone()]
    }

    /// `number` tells the requests' addresses apart, so that no limit is met.
    pub(super) fn request(
        &self,
        number: usize,
        credential: &'static str,
        method: &str,
        path: &str,
        origin: &str,
        host: &'static str,
    ) -> Request {
        let known = !["nobody-known", "any-to-nobody"].contains(&credential);
        let address = if known { self.bridge.address } else { self.open.address };
        let (scheme, named) = match host {
            "loopback" => ("http", address.to_string()),
            "ip" => ("https", IP.to_owned()),
            "allowed" => ("https", NAME.to_owned()),
            _ => ("http", format!("evil.example:{}", address.port())),
        };
        let origin = match origin {
            "none" => None,
            "same" => Some(format!("{scheme}://{named}")),
            "allowed" => Some("https://app.example".to_owned()),
            "foreign" => Some("http://foreign.example".to_owned()),
            other => Some(other.to_owned()),
        };
        let mut query = String::new();
        let mut lines = format!("Host: {named}\r\nX-Forwarded-For: 10.9.{}.{}\r\n", number / 250, number % 250);
        if scheme == "https" {
            lines += "X-Forwarded-Proto: https\r\n";
        }
        if let Some(origin) = &origin {
            lines += &format!("Origin: {origin}\r\n");
        }
        let at = if host == "rebinding" { "loopback" } else { host };
        let cookie = self.cookies.get(&(credential, host)).or(self.cookies.get(&(credential, at)));
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
        Request { address, text: format!("{method} {path}{query} HTTP/1.1\r\n{lines}\r\n"), origin }
    }

    fn bearer(&self, credential: &str) -> Option<String> {
        Some(match credential {
            "wrong" | "any-to-nobody" => bearer("nobody"),
            "expired" => bearer("over"),
            "key" => bearer("all"),
            "no-read" => bearer("blind"),
            "tenant" => bearer("alice"),
            token => format!("Bearer {}", self.tokens.get(token)?),
        })
    }
}

/// Kubernetes tokens, by what they lack.
async fn tokens(cluster: &SimCluster) -> BTreeMap<&'static str, String> {
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
    /// Sends it, and reads the answer to its end; of a stream, so many events.
    pub(super) async fn send(&self, events: usize) -> Observed {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(self.text.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        let reading = timeout(TEST_TIMEOUT, async {
            while streamed(&bytes).is_none_or(|received| received.len() < events) {
                if stream.read_buf(&mut bytes).await.unwrap() == 0 {
                    break;
                }
            }
        });
        assert!(reading.await.is_ok(), "no end of {:?} to {}", String::from_utf8_lossy(&bytes), self.text);
        let answer = http_client::parse(&String::from_utf8_lossy(&bytes));
        let cors = answer.header("access-control-allow-origin").map(str::to_owned);
        let body = match streamed(&bytes) {
            Some(received) => received.into(),
            // Numbers that nobody can know; that they are there is enough.
            None if answer.body.starts_with("# HELP bridge_") => json!("# HELP bridge_"),
            None => serde_json::from_str(&answer.body).unwrap_or(json!(answer.body)),
        };
        Observed { status: answer.status, body: held(body), cors }
    }
}

/// The events of a stream's answer so far, each whole; `None`: it is not (yet known to be) a stream.
fn streamed(bytes: &[u8]) -> Option<Vec<Value>> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let (head, mut rest) = (String::from_utf8_lossy(&bytes[..end]), &bytes[end..]);
    let parse = |text: &[u8]| serde_json::from_slice(text).unwrap();
    let mut events = Vec::new();
    if head.starts_with("HTTP/1.1 101 ") {
        // Text frames of a server: RFC 6455, section 5.2.
        while let [0x81, length, ..] = *rest {
            let (at, length) = match (length, rest) {
                (126, [_, _, high, low, ..]) => (4, usize::from(*high) << 8 | usize::from(*low)),
                (126.., _) => break,
                (length, _) => (2, usize::from(length)),
            };
            let Some(text) = rest.get(at..at + length) else { break };
            events.push(parse(text));
            rest = &rest[at + length..];
        }
    } else if head.contains("text/event-stream") {
        let text = String::from_utf8_lossy(rest);
        let whole = text.rsplit_once("\n\n").map_or("", |(whole, _)| whole);
        events.extend(whole.lines().filter_map(|line| line.strip_prefix("data: ")).map(|data| parse(data.as_bytes())));
    } else {
        return None;
    }
    Some(events)
}

/// The body with `*` for what differs from run to run.
fn held(mut body: Value) -> Value {
    let one = |value: &mut Value| {
        for (key, value) in value.as_object_mut().into_iter().flatten() {
            let differs = ["id", "snapshotAt", "connectionId", "since", "expiresAt", "ticket"].contains(&key.as_str());
            if differs && value.as_str().is_some_and(|text| !text.is_empty()) {
                *value = json!("*");
            }
        }
    };
    body.as_array_mut().into_iter().flatten().for_each(one);
    one(&mut body);
    body
}
