//! Who may ask at all: the `Host` and `Origin` rules of docs/protocol.md#access, the same on every endpoint.
//!
//! The threat: somebody has the bridge on a `kubectl port-forward` and opens a web page. The page's requests carry the
//! page's `Origin`; and if DNS is made to point the page's own name at us, they carry that name as `Host`. Both are
//! refused before a path is looked at. Pure: headers in, verdict out.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use http::{HeaderMap, HeaderValue, header, uri::Authority};

use super::error::{ApiError, ErrorCode};

/// What is allowed beyond the request's own origin, IP literals and `localhost`.
#[derive(Clone, Debug, Default)]
pub struct GuardConfig {
    /// Names that `Host` may carry, with any port.
    pub hosts: Vec<HostName>,
    /// Origins of other sites.
    pub origins: Vec<Origin>,
    /// All of them may ask, with a credential that they hold themselves.
    pub any_origin: bool,
}

/// A name that `Host` may carry: lower case, without a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(String);

/// A web origin (RFC 6454), normalised: lower case, and the port always there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

/// What a request passed the guard as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginDecision {
    /// Without an `Origin`, or from the bridge's own.
    SameOrigin,
    /// From another site that is allowed: this goes into `Access-Control-Allow-Origin`.
    Allowed(HeaderValue),
    /// From any other site, as all are allowed: it is told so, and no cookie counts.
    AnyOrigin,
}

impl FromStr for HostName {
    type Err = String;

    /// Reads a name as DNS has it. What else could be written there would never be equal to a `Host`: a port, a scheme.
    fn from_str(text: &str) -> Result<HostName, String> {
        let label = |label: &str| {
            !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        };
        // The dot at the end of a full name is part of what a client calls us by.
        if text.strip_suffix('.').unwrap_or(text).split('.').all(label) {
            Ok(HostName(text.to_ascii_lowercase()))
        } else {
            Err(format!(
                "'{text}' is not a host name: expected one like bridge.example, without scheme, port or wildcard (it is \
                 good for every port; IP addresses and localhost always pass)"
            ))
        }
    }
}

impl FromStr for Origin {
    type Err = String;

    /// Reads `scheme://host[:port]`, http or https.
    fn from_str(text: &str) -> Result<Origin, String> {
        let invalid = || format!("'{text}' is not an origin: expected http://host[:port] or https://host[:port]");
        let (scheme, rest) = text.split_once("://").ok_or_else(invalid)?;
        let scheme = scheme.to_ascii_lowercase();
        let default = default_port(&scheme).ok_or_else(invalid)?;
        let authority: Authority = rest.parse().map_err(|_| invalid())?;
        let (host, port) = split_authority(&authority).ok_or_else(invalid)?;
        Ok(Origin { scheme, host, port: port.unwrap_or(default) })
    }
}

/// Checks whom a request names as its host (in `Host` and in an absolute request target, which must agree) and its
/// `Origin`.
///
/// # Errors
/// 403 with what would have to be set to let it pass.
pub fn check(host: Option<&Authority>, headers: &HeaderMap, config: &GuardConfig) -> Result<OriginDecision, ApiError> {
    let (host, port) = host_and_port(host, headers, config)?;
    let Some(text) = single_header(headers, &header::ORIGIN)? else { return Ok(OriginDecision::SameOrigin) };
    let denied = || {
        let shown: String = text.to_str().unwrap_or("?").chars().take(200).collect();
        ApiError::new(
            ErrorCode::Forbidden,
            format!("origin '{shown}' may not read this bridge: add it to CORS_ORIGIN to allow it"),
        )
    };
    let origin: Origin = text.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(denied)?;
    // The scheme may differ behind a TLS proxy, so a Host without a port stands for the default of the origin's.
    let own_port = port.or(default_port(&origin.scheme));
    if origin.host == host && Some(origin.port) == own_port {
        Ok(OriginDecision::SameOrigin)
    } else if config.origins.contains(&origin) {
        Ok(OriginDecision::Allowed(text.clone()))
    } else if config.any_origin {
        Ok(OriginDecision::AnyOrigin)
    } else {
        Err(denied())
    }
}

fn host_and_port(
    host: Option<&Authority>,
    headers: &HeaderMap,
    config: &GuardConfig,
) -> Result<(String, Option<u16>), ApiError> {
    single_header(headers, &header::HOST)?;
    let named = host.and_then(split_authority);
    let (host, port) =
        named.ok_or_else(|| ApiError::new(ErrorCode::Forbidden, "the request does not name one valid host"))?;
    if !cannot_be_rebound(&host) && !config.hosts.iter().any(|name| name.0 == host) {
        let message = format!("host '{host}' is not served here: add it to --allowed-hosts to allow it");
        return Err(ApiError::new(ErrorCode::Forbidden, message));
    }
    Ok((host, port))
}

/// Names that no DNS server can point at us: IP literals and `localhost`.
fn cannot_be_rebound(host: &str) -> bool {
    let v6 = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    host == "localhost" || host.parse::<Ipv4Addr>().is_ok() || v6.is_some_and(|v6| v6.parse::<Ipv6Addr>().is_ok())
}

fn split_authority(authority: &Authority) -> Option<(String, Option<u16>)> {
    let text = authority.as_str();
    if text.contains('@') || authority.host().is_empty() {
        return None;
    }
    let port = match text.strip_prefix(authority.host())? {
        "" => None,
        rest => Some(rest.strip_prefix(':')?.parse().ok()?),
    };
    Some((authority.host().to_ascii_lowercase(), port))
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

fn single_header<'h>(headers: &'h HeaderMap, name: &header::HeaderName) -> Result<Option<&'h HeaderValue>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(ApiError::new(ErrorCode::Forbidden, format!("the request has more than one {name} header")));
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision_for(host: &str, origin: Option<&str>) -> Option<OriginDecision> {
        let config = GuardConfig {
            hosts: vec!["Bridge.example".parse().unwrap()],
            origins: vec!["https://app.example".parse().unwrap(), "http://dev.example:8080".parse().unwrap()],
            any_origin: false,
        };
        let mut headers = HeaderMap::new();
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        check(host.parse().ok().as_ref(), &headers, &config).ok()
    }

    #[test]
    fn addresses_localhost_and_listed_hosts_pass_and_others_are_rejected() {
        for good in [
            "127.0.0.1",
            "127.0.0.1:3000",
            "[::1]:3000",
            "10.1.2.3:80",
            "localhost",
            "LOCALHOST:3000",
            "Bridge.Example",
        ] {
            assert_eq!(decision_for(good, None), Some(OriginDecision::SameOrigin), "{good}");
        }
        for bad in [
            "evil.example",
            "evil.example:3000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.1",
            "0x7f000001",
            "localhost.",
            "user@localhost",
            "[::1",
            "localhost:99999",
            "localhost:",
            "",
        ] {
            assert_eq!(decision_for(bad, None), None, "{bad:?}");
        }
    }

    #[test]
    fn host_name_parser_accepts_only_plain_names() {
        for good in
            ["bridge", "bridge.example", "BRIDGE.Example", "bridge.ns.svc.cluster.local.", "my_bridge", "10.0.0.7"]
        {
            assert_eq!(good.parse(), Ok(HostName(good.to_ascii_lowercase())), "{good}");
        }
        for bad in [
            "",
            ".",
            "bridge..example",
            ".example",
            "bridge.example:8080",
            "https://bridge.example",
            "bridge.example/",
            "*",
            "*.example",
            "bücher.example",
            "[::1]",
            "a b",
        ] {
            assert!(bad.parse::<HostName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn own_and_listed_origins_pass_and_others_are_rejected() {
        for (host, origin) in [
            ("localhost:3000", "http://localhost:3000"),
            ("localhost", "http://localhost"),
            ("localhost:80", "http://localhost"),
            ("localhost", "http://localhost:80"),
            ("bridge.example", "https://bridge.example"),
            ("bridge.example:443", "https://bridge.example"),
            ("[::1]:3000", "http://[::1]:3000"),
            ("LocalHost:3000", "http://localhost:3000"),
        ] {
            assert_eq!(decision_for(host, Some(origin)), Some(OriginDecision::SameOrigin), "{origin} at {host}");
        }
        for origin in ["https://app.example", "https://app.example:443", "http://dev.example:8080"] {
            assert_eq!(
                decision_for("localhost:3000", Some(origin)),
                Some(OriginDecision::Allowed(origin.parse().unwrap())),
                "{origin}"
            );
        }
        for origin in [
            "null",
            "http://localhost",
            "http://localhost:3001",
            "https://localhost:3001",
            "http://127.0.0.1:3000",
            "http://app.example",
            "https://app.example:444",
            "https://app.example.evil",
            "https://evil.example",
            "file://",
            "https://app.example/",
            "*",
            "",
        ] {
            assert_eq!(decision_for("localhost:3000", Some(origin)), None, "{origin:?}");
        }
    }

    #[test]
    fn missing_or_duplicate_host_is_rejected() {
        let mut headers = HeaderMap::new();
        let host = "localhost".parse().ok();
        headers.append(header::HOST, "localhost".parse().unwrap());
        assert!(check(host.as_ref(), &headers, &GuardConfig::default()).is_ok());
        headers.append(header::HOST, "localhost".parse().unwrap());
        assert!(check(host.as_ref(), &headers, &GuardConfig::default()).is_err());
        assert!(check(None, &HeaderMap::new(), &GuardConfig::default()).is_err(), "no host at all");
    }
}
