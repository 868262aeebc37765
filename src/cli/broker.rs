//! What the flags of MQTT and of NATS share: the URL of a server, names, the certificates to trust. And the error of a binary
//! without a feature.

#[cfg(any(feature = "mqtt", feature = "nats"))]
use std::{path::PathBuf, sync::Arc};

use http::Uri;

use super::exit::CliError;
use crate::client::has_wrong_port;
#[cfg(any(feature = "mqtt", feature = "nats"))]
use crate::{broker::TlsConfig, client};

/// Maximum characters of a name.
const MAX_NAME_CHARS: usize = 128;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BrokerUrl {
    /// Without the brackets of an IPv6 address.
    pub(super) host: String,
    /// `None` where the URL has no port.
    pub(super) port: Option<u16>,
    /// The scheme is the one with TLS.
    pub(super) has_tls: bool,
}

impl BrokerUrl {
    /// Parses a URL with one of these schemes, the second with TLS. `credentials` are the flags for user and password. An error
    /// does not repeat the text, which can contain a password.
    pub(super) fn parse(text: &str, [plain, tls]: [&str; 2], credentials: &str) -> Result<BrokerUrl, String> {
        let expected = || format!("expected {plain}://host:port or {tls}://host:port");
        let uri: Uri = text.parse().map_err(|_| expected())?;
        let has_tls = match uri.scheme_str() {
            Some(scheme) if scheme == plain => false,
            Some(scheme) if scheme == tls => true,
            _ => return Err(expected()),
        };
        let authority = uri.authority().ok_or_else(expected)?;
        if authority.as_str().contains('@') {
            return Err(format!("user and password are not part of the URL; use {credentials}"));
        }
        if uri.path_and_query().is_some_and(|rest| !["", "/"].contains(&rest.as_str())) {
            return Err(format!("{}, without a path", expected()));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if has_wrong_port(authority) {
            return Err(format!("{}, with a port from 1 to 65535", expected()));
        }
        if host.is_empty() {
            return Err(expected());
        }
        Ok(BrokerUrl { host: host.to_owned(), port: authority.port_u16(), has_tls })
    }
}

/// Parses a name of letters, digits and these other characters.
pub(super) fn name(text: &str, others: &[char]) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || others.contains(&c);
    if (1..=MAX_NAME_CHARS).contains(&text.len()) && text.chars().all(is_plain) {
        return Ok(text.to_owned());
    }
    let others: Vec<String> = others.iter().map(|c| format!("'{c}'")).collect();
    Err(format!("expected 1 to {MAX_NAME_CHARS} letters, digits and {}", others.join(", ")))
}

/// Returns how the certificates to trust are read. `flag` is the one with the file.
///
/// # Errors
/// The file cannot be used now. Later, that is an outage.
#[cfg(any(feature = "mqtt", feature = "nats"))]
pub(super) fn tls_config(flag: &str, ca_file: Option<PathBuf>) -> Result<TlsConfig, CliError> {
    let tls = move || client::tls_config(true, ca_file.as_deref()).map_err(|error| error.to_string());
    tls().map_err(|reason| CliError::usage(format!("{flag}: {reason}")))?;
    Ok(Arc::new(tls))
}

/// Returns the error of a flag that needs a feature.
#[cfg(any(not(feature = "mqtt"), not(feature = "nats"), not(feature = "otlp")))]
pub(super) fn without_feature(flag: &str, feature: &str) -> CliError {
    CliError::usage(format!(
        "{flag}: this binary has no {} support; build one with `cargo build --release --features {feature}`",
        feature.to_uppercase()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_has_a_scheme_a_host_and_perhaps_a_port() {
        let url = |text: &str| BrokerUrl::parse(text, ["mqtt", "mqtts"], "--files");
        for (text, host, port, has_tls) in [
            ("mqtt://broker", "broker", None, false),
            ("mqtt://broker/", "broker", None, false),
            ("mqtts://broker.example", "broker.example", None, true),
            ("mqtts://broker:1", "broker", Some(1), true),
            ("mqtt://127.0.0.1:1884", "127.0.0.1", Some(1884), false),
            ("mqtt://[::1]:1884", "::1", Some(1884), false),
            ("mqtt://[::1]", "::1", None, false),
        ] {
            assert_eq!(url(text), Ok(BrokerUrl { host: host.to_owned(), port, has_tls }), "{text}");
        }
        for wrong in [
            "",
            "broker",
            "broker:1883",
            "http://broker",
            "mqtt://",
            "mqtt://:1883",
            "mqtt://broker:0",
            "mqtt://broker:65536",
            "mqtt://broker:x",
            "mqtt://broker:",
            "mqtt://user:secret@broker",
            "mqtt://broker/path",
            "mqtt://broker?x=1",
            "mqtt:/broker",
            "ws://broker",
        ] {
            let error = url(wrong).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn names_have_the_permitted_characters() {
        assert_eq!(name("a-b_C1", &['-', '_']).as_deref(), Ok("a-b_C1"));
        for wrong in ["", "a.b", "a b", "*", &"x".repeat(129)] {
            let error = name(wrong, &['-', '_']).unwrap_err();
            assert_eq!(error, "expected 1 to 128 letters, digits and '-', '_'");
        }
    }
}
