//! The browser guard: the `Host` and `Origin` rules that hold on every endpoint (`docs/protocol.md#access`).
//!
//! The threat: a developer runs `kubectl port-forward` to the bridge and opens a web page of another site. Requests of that
//! page carry the page's `Origin`. If the page's name resolves to the bridge (DNS rebinding), they carry that name as
//! `Host`. The guard rejects both before the path is evaluated.
//!
//! Guarantees: pure; the decision depends on the headers and the configuration only.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use http::{HeaderMap, HeaderValue, header, uri::Authority};

use super::error::{ApiError, ErrorCode};

/// Characters of an origin that an error message repeats.
const MAX_ORIGIN_CHARS: usize = 200;

/// Hosts and origins that are allowed in addition to IP literals, `localhost` and the request's own origin.
#[derive(Clone, Debug, Default)]
pub struct GuardConfig {
    /// Names that `Host` may carry, with any port (`--allowed-hosts`).
    pub hosts: Vec<HostName>,
    /// Origins of other sites (`CORS_ORIGIN`).
    pub origins: Vec<Origin>,
    /// Whether pages of all origins may send requests, without cookies (`CORS_ORIGIN=*`).
    pub any_origin: bool,
}

/// A name that `Host` may carry: lower case, without a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(String);

/// A web origin (RFC 6454) in normal form: lower case, with an explicit port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

/// The origin of a request that passes the guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginDecision {
    /// No `Origin`, or the bridge's own.
    SameOrigin,
    /// Another origin that is allowed. The value is the one for `Access-Control-Allow-Origin`.
    Allowed(HeaderValue),
    /// Another origin, and all are allowed. The response carries `Access-Control-Allow-Origin: *`, and cookies do not count.
    AnyOrigin,
}

/// The check that rejects a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardCheck {
    /// The check of `Host` and of the host in an absolute request target.
    Host,
    /// The check of `Origin`.
    Origin,
}

/// The rejection of a request.
#[derive(Clone, Debug)]
pub struct GuardError {
    /// The check that failed.
    pub check: GuardCheck,
    /// The response, 400 or 403.
    pub error: ApiError,
}

impl GuardCheck {
    /// Returns the name of the check as the label of a metric.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            GuardCheck::Host => "host",
            GuardCheck::Origin => "origin",
        }
    }
}

impl FromStr for HostName {
    type Err = String;

    /// Parses a DNS name. It rejects a port and a scheme, because a name with either never equals a `Host`.
    fn from_str(text: &str) -> Result<HostName, String> {
        let is_label = |label: &str| {
            !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        };
        // A client sends the trailing dot of an absolute DNS name in `Host`, so it is part of the name.
        if text.strip_suffix('.').unwrap_or(text).split('.').all(is_label) {
            Ok(HostName(text.to_ascii_lowercase()))
        } else {
            Err(format!(
                "'{text}' is not a host name: expected one like bridge.example, without scheme, port or wildcard (it is \
                 valid for every port; IP addresses and localhost are always allowed)"
            ))
        }
    }
}

impl FromStr for Origin {
    type Err = String;

    /// Parses `scheme://host[:port]` with the scheme `http` or `https`.
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

/// Checks the host that a request names and its `Origin`.
///
/// `host` is the one of `Host` and of an absolute request target. It is `None` if the two differ or one is malformed.
///
/// # Errors
/// [`GuardError`] with a 400 for a request without exactly one valid `Host`, else with a 403 that names the setting that would allow the request.
pub fn check(
    host: Option<&Authority>,
    headers: &HeaderMap,
    config: &GuardConfig,
) -> Result<OriginDecision, GuardError> {
    let (host, port) =
        check_host(host, headers, config).map_err(|error| GuardError { check: GuardCheck::Host, error })?;
    check_origin(&host, port, headers, config).map_err(|error| GuardError { check: GuardCheck::Origin, error })
}

fn check_host(
    host: Option<&Authority>,
    headers: &HeaderMap,
    config: &GuardConfig,
) -> Result<(String, Option<u16>), ApiError> {
    // RFC 9112 section 3.2: a request without exactly one valid Host header is a 400.
    let named = single_header(headers, &header::HOST, ErrorCode::BadRequest)?;
    let (host, port) = host.and_then(split_authority).ok_or_else(|| {
        let named = named.and_then(|value| Authority::try_from(value.as_bytes()).ok());
        let is_valid = named.as_ref().and_then(split_authority).is_some();
        // A valid Host header that differs from the request target is a rejection.
        let code = if is_valid { ErrorCode::Forbidden } else { ErrorCode::BadRequest };
        ApiError::new(code, "the request names no valid host; send one valid Host header")
    })?;
    if !cannot_be_rebound(&host) && !config.hosts.iter().any(|name| name.0 == host) {
        let message = format!("host '{host}' is not allowed; add it to --allowed-hosts");
        return Err(ApiError::new(ErrorCode::Forbidden, message));
    }
    Ok((host, port))
}

fn check_origin(
    host: &str,
    port: Option<u16>,
    headers: &HeaderMap,
    config: &GuardConfig,
) -> Result<OriginDecision, ApiError> {
    let Some(value) = single_header(headers, &header::ORIGIN, ErrorCode::Forbidden)? else {
        return Ok(OriginDecision::SameOrigin);
    };
    let not_allowed = || {
        let origin: String = value.to_str().unwrap_or("?").chars().take(MAX_ORIGIN_CHARS).collect();
        let message = format!("origin '{origin}' is not allowed to read from this bridge; add it to CORS_ORIGIN");
        ApiError::new(ErrorCode::Forbidden, message)
    };
    let origin: Origin = value.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(not_allowed)?;
    // After a TLS proxy the schemes of `Origin` and of the connection differ. A `Host` without a port therefore stands for
    // the default port of the origin's scheme.
    let own_port = port.or(default_port(&origin.scheme));
    if origin.host == host && Some(origin.port) == own_port {
        Ok(OriginDecision::SameOrigin)
    } else if config.origins.contains(&origin) {
        Ok(OriginDecision::Allowed(value.clone()))
    } else if config.any_origin {
        Ok(OriginDecision::AnyOrigin)
    } else {
        Err(not_allowed())
    }
}

/// Returns whether no DNS server can make this name resolve to the bridge: it is an IP literal or `localhost`.
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

/// Returns the value of a header. `repeated` is the error code for more than one.
fn single_header<'h>(
    headers: &'h HeaderMap,
    name: &header::HeaderName,
    repeated: ErrorCode,
) -> Result<Option<&'h HeaderValue>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(ApiError::new(repeated, format!("the request has more than one {name} header; send one")));
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
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        check(host.parse().ok().as_ref(), &headers, &config).ok()
    }

    #[test]
    fn addresses_localhost_and_listed_hosts_pass_and_others_are_rejected() {
        for allowed in [
            "127.0.0.1",
            "127.0.0.1:3000",
            "[::1]:3000",
            "10.1.2.3:80",
            "localhost",
            "LOCALHOST:3000",
            "Bridge.Example",
        ] {
            assert_eq!(decision_for(allowed, None), Some(OriginDecision::SameOrigin), "decision for host {allowed}");
        }
        for rejected in [
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
            assert_eq!(decision_for(rejected, None), None, "decision for host {rejected:?}");
        }
    }

    #[test]
    fn host_name_parser_accepts_only_plain_names() {
        for valid in
            ["bridge", "bridge.example", "BRIDGE.Example", "bridge.ns.svc.cluster.local.", "my_bridge", "10.0.0.7"]
        {
            assert_eq!(valid.parse(), Ok(HostName(valid.to_ascii_lowercase())), "parsed host name {valid}");
        }
        for invalid in [
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
            assert!(invalid.parse::<HostName>().is_err(), "expected an error for {invalid:?}");
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
            assert_eq!(
                decision_for(host, Some(origin)),
                Some(OriginDecision::SameOrigin),
                "decision for origin {origin} at host {host}"
            );
        }
        for origin in ["https://app.example", "https://app.example:443", "http://dev.example:8080"] {
            assert_eq!(
                decision_for("localhost:3000", Some(origin)),
                Some(OriginDecision::Allowed(origin.parse().unwrap())),
                "decision for origin {origin}"
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
            assert_eq!(decision_for("localhost:3000", Some(origin)), None, "decision for origin {origin:?}");
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
        assert!(check(None, &HeaderMap::new(), &GuardConfig::default()).is_err(), "expected an error without a host");
    }
}
