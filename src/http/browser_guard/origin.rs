//! Hosts and web origins: how they are configured, and how a request names them. Pure.
//!
//! Guarantees: a host or an origin that no request can name is not accepted as a configured value.
//!
//! Must not import: any other module of this crate.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use http::uri::Authority;

/// How the names of Services end in a cluster with the default cluster domain.
const SERVICE_SUFFIXES: [&str; 2] = [".svc", ".svc.cluster.local"];

/// A name that `Host` may carry: lower case, without a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(String);

/// A web origin (RFC 6454) in normal form: lower case, with an explicit port where the scheme has a default one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl HostName {
    /// Returns whether this is the name of a host in normal form.
    pub(super) fn matches(&self, host: &str) -> bool {
        self.0 == host
    }
}

impl std::fmt::Display for HostName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::fmt::Display for Origin {
    /// Writes the normal form.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl FromStr for HostName {
    type Err = String;

    /// Parses a DNS name. It rejects a port and a scheme, because a name with either never equals a `Host`.
    fn from_str(text: &str) -> Result<HostName, String> {
        if is_dns_name(text) {
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

    /// Parses `scheme://host[:port]`. Beside `http` and `https` it accepts the schemes of apps and browser extensions, such
    /// as `capacitor://localhost`.
    ///
    /// # Errors
    /// A text that is no origin, or that no browser sends as one: a wildcard, or an abbreviated IPv4 address.
    fn from_str(text: &str) -> Result<Origin, String> {
        let invalid = |reason: &str| Err(format!("'{text}' is not an origin: {reason}"));
        if text.contains('*') {
            return invalid("it has a wildcard; name each origin, or use * alone for all origins");
        }
        let expected = "expected http://host[:port] or https://host[:port]";
        let Some((scheme, rest)) = text.split_once("://") else { return invalid(expected) };
        let Some((host, port)) = rest.parse::<Authority>().ok().as_ref().and_then(split_authority) else {
            return invalid(expected);
        };
        if !is_scheme(scheme) || !(is_dns_name(&host) || is_ip_address(&host)) {
            return invalid(expected);
        }
        let scheme = scheme.to_ascii_lowercase();
        let port = port.or_else(|| default_port(&scheme));
        Ok(Origin { scheme, host, port })
    }
}

impl Origin {
    /// Returns whether pages of this origin come over plain HTTP from another machine, so that everyone on the way can change
    /// them.
    #[must_use]
    pub fn is_insecure(&self) -> bool {
        self.scheme == "http" && !cannot_be_rebound(&self.host)
    }

    /// Returns the origin of the same host with `https`, as browsers write it: without the default port.
    #[must_use]
    pub fn with_https(&self) -> String {
        match self.port {
            None | Some(80 | 443) => format!("https://{}", self.host),
            Some(port) => format!("https://{}:{port}", self.host),
        }
    }

    /// Returns whether a page of this origin was loaded from this host. `port` is `None` for a `Host` without one.
    ///
    /// The scheme is not compared, because it can differ behind a TLS proxy. A `Host` without a port stands for the default
    /// port of the origin's scheme.
    pub(super) fn is_at(&self, host: &str, port: Option<u16>) -> bool {
        let default = default_port(&self.scheme);
        // A page of another scheme was not loaded over HTTP.
        default.is_some() && self.host == host && self.port == port.or(default)
    }
}

/// Returns whether no DNS server can make this host resolve to the bridge: it is an IP literal or `localhost`.
pub(super) fn cannot_be_rebound(host: &str) -> bool {
    host == "localhost" || is_ip_address(host)
}

/// Returns whether this is the name of a Kubernetes Service: it ends in `.svc` or `.svc.cluster.local`.
///
/// A public DNS server cannot answer for such a name: the top-level domain `svc` does not exist, and `local` is never
/// delegated (RFC 6762, section 3).
pub(super) fn is_service_name(host: &str) -> bool {
    is_dns_name(host) && SERVICE_SUFFIXES.iter().any(|suffix| host.ends_with(suffix))
}

/// Returns the host in normal form and the port, if there is one.
pub(super) fn split_authority(authority: &Authority) -> Option<(String, Option<u16>)> {
    let text = authority.as_str();
    if text.contains('@') || authority.host().is_empty() {
        return None;
    }
    let port = match text.strip_prefix(authority.host())? {
        "" => None,
        rest => Some(rest.strip_prefix(':')?.parse().ok()?),
    };
    let host = match ipv6_literal(authority.host()) {
        // One address has many texts. Browsers send the one of the URL standard, people write others.
        Some(address) => format!("[{address}]"),
        None => authority.host().to_ascii_lowercase(),
    };
    Some((host, port))
}

fn is_ip_address(host: &str) -> bool {
    host.parse::<Ipv4Addr>().is_ok() || ipv6_literal(host).is_some()
}

fn ipv6_literal(host: &str) -> Option<Ipv6Addr> {
    host.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

/// Returns whether a text is a DNS name, with or without the trailing dot of an absolute name, or an IPv4 address.
fn is_dns_name(text: &str) -> bool {
    let is_label =
        |label: &str| !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    // A client sends the trailing dot in `Host`, so it is part of the name.
    let labels = text.strip_suffix('.').unwrap_or(text);
    // A browser reads a name that ends in a number as an IPv4 address, and sends it in full (URL standard, "host parsing").
    let ends_in_number = labels.rsplit('.').next().is_some_and(|last| last.chars().all(|c| c.is_ascii_digit()));
    labels.split('.').all(is_label) && (!ends_in_number || labels.parse::<Ipv4Addr>().is_ok())
}

/// Returns whether a text is the scheme of a URL (RFC 3986, section 3.1).
fn is_scheme(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(is_plain)
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            "10.0.7",
        ] {
            assert!(invalid.parse::<HostName>().is_err(), "expected an error for {invalid:?}");
        }
    }

    #[test]
    fn origin_parser_accepts_what_browsers_and_apps_send() {
        for (text, normal) in [
            ("https://app.example", "https://app.example:443"),
            ("HTTPS://App.Example:443", "https://app.example:443"),
            ("http://app.example:8080", "http://app.example:8080"),
            ("http://my_app.example.", "http://my_app.example.:80"),
            ("http://127.0.0.1", "http://127.0.0.1:80"),
            ("http://[0:0:0:0:0:0:0:1]:3000", "http://[::1]:3000"),
            ("http://[::ffff:7f00:1]", "http://[::ffff:127.0.0.1]:80"),
            ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example:443"),
        ] {
            assert_eq!(text.parse::<Origin>(), normal.parse(), "{text}");
        }
        for text in
            ["capacitor://localhost", "ionic://localhost:8100", "chrome-extension://abcdef", "tauri://localhost"]
        {
            let origin: Origin = text.parse().unwrap();
            assert!(!origin.is_at("localhost", None) && !origin.is_at("localhost", origin.port), "{text}");
        }
    }

    #[test]
    fn origin_parser_rejects_what_no_request_matches() {
        for invalid in [
            "",
            "*",
            "null",
            "app.example",
            "app.example:8080",
            "https://app.example/",
            "https://app.example/path",
            "https://user@app.example",
            "https://app.example:99999",
            "https://",
            "file://",
            "://app.example",
            "1a://app.example",
            "https://a b",
            "https://app,example",
            "https://app..example",
            "https://bücher.example",
            "http://127.1",
            "https://[::1",
        ] {
            assert!(invalid.parse::<Origin>().is_err(), "expected an error for {invalid:?}");
        }
        for wildcard in ["https://*.example", "*://app.example", "https://*", "http://app.example:*"] {
            let error = wildcard.parse::<Origin>().unwrap_err();
            let expected = format!(
                "'{wildcard}' is not an origin: it has a wildcard; name each origin, or use * alone for all origins"
            );
            assert_eq!(error, expected);
        }
    }
}
