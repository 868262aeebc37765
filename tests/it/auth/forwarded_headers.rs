//! What a client behind a trusted proxy can forge (docs/SECURITY.md#threat-model). The tests send the requests that a proxy
//! on this machine sends: the headers of the client, and those that the proxy adds.

use super::{KeysFile, bearer, three_keys, two_tenants};
use crate::support::http_client::{HttpResponse, request};

/// How a proxy treats `X-Forwarded-For`.
#[derive(Clone, Copy, Debug)]
enum Proxy {
    /// It appends the address of its client to the header, as a list.
    Appends,
    /// It adds a header of its own after the one of its client.
    AddsHeader,
    /// It replaces the header.
    Replaces,
}

impl Proxy {
    /// Returns the headers of a request that a client at `address` sends with `X-Forwarded-For: forged`.
    fn forward(self, forged: Option<&str>, address: &str) -> Vec<(&'static str, String)> {
        let name = "X-Forwarded-For";
        let own = (name, address.to_owned());
        match (self, forged) {
            (Proxy::Replaces, _) | (_, None) => vec![own],
            (Proxy::Appends, Some(forged)) => vec![(name, format!("{forged}, {address}"))],
            (Proxy::AddsHeader, Some(forged)) => vec![(name, forged.to_owned()), own],
        }
    }
}

const CLIENT: &str = "192.0.2.1";
const FORGED: &[&str] = &[
    "198.51.100.7",
    "127.0.0.1",
    "::1",
    "::ffff:198.51.100.7",
    "198.51.100.7, 198.51.100.8, 127.0.0.1",
    "unknown",
    "",
    ",,,",
    "198.51.100.7:1234",
    "\"[2001:db8::1]:80\"",
];

/// The request budget shows which caller a request counts for: each caller has one request.
#[tokio::test]
async fn client_forges_no_address_behind_a_proxy_that_reports_it() {
    let cluster = two_tenants().await;
    for proxy in [Proxy::Appends, Proxy::AddsHeader, Proxy::Replaces] {
        let bridge = cluster.bridge(&["--request-rate", "1", "--trusted-proxies", "127.0.0.0/8"]).await;
        let get = async |forged: Option<&str>, address: &str, more: &[(&str, &str)]| {
            let headers = proxy.forward(forged, address);
            let mut headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            headers.extend(more);
            request(bridge.address, "GET", "/api/v1/stats", &headers).await.status
        };
        assert_eq!(get(None, CLIENT, &[]).await, 200);
        for forged in FORGED {
            assert_eq!(get(Some(forged), CLIENT, &[]).await, 429, "{proxy:?}, X-Forwarded-For: {forged}");
        }
        // The bridge does not read other headers about the client's address.
        for (name, value) in [
            ("Forwarded", "for=198.51.100.7;proto=https;host=bridge.example"),
            ("X-Real-IP", "198.51.100.7"),
            ("X-Client-IP", "198.51.100.7"),
            ("True-Client-IP", "198.51.100.7"),
            ("CF-Connecting-IP", "198.51.100.7"),
            ("X-Forwarded-Host", "localhost"),
            ("X-Forwarded-Port", "443"),
        ] {
            assert_eq!(get(None, CLIENT, &[(name, value)]).await, 429, "{proxy:?}, {name}: {value}");
        }
        assert_eq!(get(Some("198.51.100.7"), "192.0.2.2", &[]).await, 200, "{proxy:?}: another client");
    }
}

/// docs/SECURITY.md states these as mistakes of the configuration, and not as defended.
#[tokio::test]
async fn client_forges_its_address_where_the_proxy_or_the_trust_is_too_wide() {
    let cluster = two_tenants().await;
    let trusted = "127.0.0.0/8,192.0.2.0/24";
    let bridge = cluster.bridge(&["--request-rate", "1", "--trusted-proxies", trusted]).await;
    let get = async |forwarded: &str| {
        request(bridge.address, "GET", "/api/v1/stats", &[("X-Forwarded-For", forwarded)]).await.status
    };
    // The proxy passes the header on.
    assert_eq!([get("198.51.100.1").await, get("198.51.100.1").await, get("198.51.100.2").await], [200, 429, 200]);
    // The address of the client is in --trusted-proxies, so it counts as another proxy.
    assert_eq!([get("198.51.100.3, 192.0.2.1").await, get("198.51.100.4, 192.0.2.1").await], [200, 200]);
    // The proxy passes X-Forwarded-Host on and adds none. A rebound name is refused, unless the proxy replaces Host.
    for (host, status) in [("evil.example", 403), ("localhost", 200)] {
        let rebound = [("X-Forwarded-For", "198.51.100.5"), ("Host", host), ("X-Forwarded-Host", "localhost")];
        assert_eq!(request(bridge.address, "GET", "/api/v1/stats", &rebound).await.status, status, "{host}");
    }
}

/// `X-Forwarded-Proto` decides whether a session cookie is set over https. A client that forges it affects its own cookie
/// only. `X-Forwarded-Host` replaces `Host` only as the proxy adds it, and `Forwarded` never does.
#[tokio::test]
async fn client_forges_no_scheme_and_no_host() {
    let (cluster, keys) = (two_tenants().await, KeysFile::new(&three_keys()));
    let flags = ["--keys-file", &keys.path(), "--allowed-hosts", "bridge.example", "--trusted-proxies"];
    let all = bearer("all");
    let https = async |trusted: &str, schemes: &[&str]| {
        let bridge = cluster.bridge(&[&flags[..], &[trusted]].concat()).await;
        let mut headers = vec![("Authorization", all.as_str()), ("Host", "bridge.example")];
        headers.extend(schemes.iter().map(|scheme| ("X-Forwarded-Proto", *scheme)));
        let signed_in: HttpResponse = request(bridge.address, "POST", "/api/v1/session", &headers).await;
        assert!([200, 403].contains(&signed_in.status), "{signed_in:?}");
        signed_in.header("set-cookie").is_some_and(|cookie| cookie.contains("; Secure"))
    };
    assert!(!https("10.0.0.0/8", &["https"]).await, "the header of a client that is no trusted proxy has no effect");
    for (schemes, is_https) in [
        (&["https"][..], true),
        (&["http"], false),
        // The client sends the first value, and the proxy the last one.
        (&["https", "http"], false),
        (&["https, http"], false),
        (&["http", "https"], true),
        (&[], false),
    ] {
        assert_eq!(https("127.0.0.0/8", schemes).await, is_https, "{schemes:?}");
    }
    let forwarded = ("Forwarded", "host=bridge.example;proto=https");
    for (trusted, (name, value)) in [
        ("127.0.0.0/8", forwarded),
        ("10.0.0.0/8", forwarded),
        ("10.0.0.0/8", ("X-Forwarded-Host", "bridge.example")),
        // The client sends the first value, and the proxy the last one.
        ("127.0.0.0/8", ("X-Forwarded-Host", "bridge.example, evil.example")),
    ] {
        let bridge = cluster.bridge(&[&flags[..], &[trusted]].concat()).await;
        let headers = [("Authorization", all.as_str()), ("Host", "evil.example"), (name, value)];
        let response = request(bridge.address, "GET", "/api/v1/instances", &headers).await;
        assert_eq!(response.status, 403, "{name}: {value}: {response:?}");
        let origin = [("Authorization", all.as_str()), ("Origin", "https://evil.example"), (name, "evil.example")];
        assert_eq!(request(bridge.address, "GET", "/api/v1/instances", &origin).await.status, 403, "{name}");
    }
}
