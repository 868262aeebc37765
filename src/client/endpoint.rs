//! Where a client connects to: URL, transport, query, credential.

use std::{net::IpAddr, path::PathBuf};

use http::{Uri, uri::Scheme};

use super::error::Error;

/// How events are transported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// WebSocket text messages.
    #[default]
    WebSocket,
    /// Server-sent events.
    Sse,
}

/// The ends of the paths that are SSE streams of a bridge or of a relay.
const SSE_PATHS: [&str; 4] = ["/api/sse", "/api/events/stream", "/events/stream", "/events"];

/// What a client sends as `Authorization: Bearer`.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// This token.
    Token(String),
    /// The content of this file without surrounding white space. It is read before each connection.
    File(PathBuf),
}

impl std::fmt::Debug for Credential {
    /// Shows no secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Credential::Token(_) => f.write_str("Token(..)"),
            Credential::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// A stream to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) is_tls: bool,
    /// Without the brackets of IPv6.
    pub(super) host: String,
    pub(super) port: u16,
    /// Host and port as the header `Host` has them.
    pub(super) authority: String,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) transport: Transport,
}

impl Endpoint {
    /// Parses a base URL, or the URL of a stream.
    ///
    /// `http`, `https`, `ws` and `wss` are accepted, and no scheme means `http`. With a path, the URL is the stream itself.
    /// Without a path it is a bridge: the path follows from the transport. Without a transport it is SSE if the path is one of
    /// [`SSE_PATHS`], and WebSocket otherwise.
    ///
    /// # Errors
    /// Text that says what is accepted.
    pub(super) fn parse(url: &str, transport: Option<Transport>) -> Result<Endpoint, Error> {
        let invalid = |reason: &str| Error::Setting(format!("{}: {reason}", without_credential(url)));
        let with_scheme = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: Uri =
            with_scheme.parse().map_err(|_| invalid("not a URL; accepted: http://HOST:PORT, https://HOST"))?;
        let scheme = uri.scheme_str().unwrap_or_default().to_owned();
        let (is_tls, from_scheme) = match scheme.as_str() {
            "http" => (false, None),
            "https" => (true, None),
            "ws" => (false, Some(Transport::WebSocket)),
            "wss" => (true, Some(Transport::WebSocket)),
            _ => return Err(invalid("accepted schemes: http, https, ws, wss")),
        };
        let authority = uri.authority().ok_or_else(|| invalid("the host is missing"))?;
        if authority.as_str().contains('@') {
            return Err(invalid("a URL must not contain a credential; use a file with the token"));
        }
        if has_wrong_port(authority) {
            return Err(invalid("the port is no number from 1 to 65535"));
        }
        let default_port = if is_tls { 443 } else { 80 };
        let has_path = !matches!(uri.path(), "" | "/");
        let transport = match (transport, from_scheme) {
            (Some(Transport::Sse), Some(Transport::WebSocket)) => {
                return Err(invalid("ws and wss are WebSocket; use http or https for SSE"));
            }
            (Some(transport), _) | (None, Some(transport)) => transport,
            (None, None) if SSE_PATHS.iter().any(|end| uri.path().ends_with(end)) => Transport::Sse,
            (None, None) => Transport::default(),
        };
        let path = match (has_path, transport) {
            (true, _) => uri.path().to_owned(),
            (false, Transport::WebSocket) => "/api/websocket".to_owned(),
            (false, Transport::Sse) => "/api/sse".to_owned(),
        };
        Ok(Endpoint {
            is_tls,
            host: authority.host().trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: authority.port_u16().unwrap_or(default_port),
            authority: authority.as_str().to_owned(),
            path,
            query: uri.query().unwrap_or_default().to_owned(),
            transport,
        })
    }

    /// Checks that a credential may be sent.
    ///
    /// # Errors
    /// Plain HTTP to a host that is not loopback.
    pub(super) fn check_credential(&self) -> Result<(), Error> {
        if self.is_tls || self.is_loopback() {
            return Ok(());
        }
        let message = format!(
            "a credential is not sent over plain HTTP to {}: use https, or allow it with --allow-insecure",
            self.authority
        );
        Err(Error::Setting(message))
    }

    /// Checks that a credential may be sent to the address to which the host has led: a name of loopback can lead elsewhere.
    ///
    /// # Errors
    /// Plain HTTP to an address that is not loopback.
    pub(super) fn check_peer(&self, peer: IpAddr) -> Result<(), Error> {
        if self.is_tls || peer.to_canonical().is_loopback() {
            return Ok(());
        }
        let message = format!(
            "{} leads to {peer}, which is not loopback: a credential is not sent there over plain HTTP",
            self.authority
        );
        Err(Error::Setting(message))
    }

    /// Returns whether the query has a stream ticket, which is a credential.
    pub(super) fn has_ticket(&self) -> bool {
        form_urlencoded::parse(self.query.as_bytes()).any(|(name, _)| matches!(&*name, "token" | "rstream.token"))
    }

    fn is_loopback(&self) -> bool {
        let name = self.host.to_ascii_lowercase();
        name == "localhost"
            || name.ends_with(".localhost")
            || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
    }

    /// Returns path and query with these parameters in addition.
    pub(super) fn target(&self, parameters: &[(&str, &str)]) -> String {
        let mut query = form_urlencoded::Serializer::new(self.query.clone());
        query.extend_pairs(parameters);
        match query.finish() {
            query if query.is_empty() => self.path.clone(),
            query => format!("{}?{query}", self.path),
        }
    }

    /// Returns the URL without its query.
    pub(super) fn url(&self) -> String {
        let scheme = if self.is_tls { Scheme::HTTPS } else { Scheme::HTTP };
        format!("{scheme}://{}{}", self.authority, self.path)
    }
}

/// Returns whether a port is named that does not exist. The parser of URLs accepts it.
pub(crate) fn has_wrong_port(authority: &http::uri::Authority) -> bool {
    let after_host = authority.as_str().rsplit(']').next().unwrap_or_default();
    after_host.contains(':') && authority.port_u16().is_none_or(|port| port == 0)
}

/// Returns a URL without what may be a secret: user information, query and fragment. The text need not be a valid URL: a
/// password can contain `/` or `?`, and a query can contain `@`. Where it is not clear which of both it is, nothing but the
/// scheme is left.
pub(crate) fn without_credential(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (&url[..scheme.len() + 3], rest));
    let (before, rest) = rest.rsplit_once('@').unwrap_or(("", rest));
    if before.contains(['?', '#']) {
        return format!("{scheme}...");
    }
    format!("{scheme}{}", rest.split(['?', '#']).next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_bridge_or_a_stream() {
        let url = |url: &str| Endpoint::parse(url, None).map(|endpoint| endpoint.url());
        assert_eq!(url("localhost:3000").unwrap(), "http://localhost:3000/api/websocket");
        assert_eq!(url("https://bridge.example").unwrap(), "https://bridge.example/api/websocket");
        assert_eq!(url("ws://[::1]:3000/events/ws?a=1").unwrap(), "http://[::1]:3000/events/ws");
        let sse = Endpoint::parse("https://h/", Some(Transport::Sse)).unwrap();
        assert_eq!((sse.url().as_str(), sse.port, sse.host.as_str()), ("https://h/api/sse", 443, "h"));
        assert_eq!(Endpoint::parse("http://[::1]:8", None).unwrap().host, "::1");
        let transport = |url: &str| Endpoint::parse(url, None).unwrap().transport;
        for sse in ["https://h/events/stream", "h/events?a=1", "h/api/sse", "http://h/prefix/api/events/stream"] {
            assert_eq!(transport(sse), Transport::Sse, "{sse}");
        }
        for websocket in ["h", "h/events/ws", "h/ws", "h/stream", "ws://h/events"] {
            assert_eq!(transport(websocket), Transport::WebSocket, "{websocket}");
        }
        for (wrong, words) in [
            ("ftp://h", "accepted schemes"),
            ("http://user:secret@h/", "must not contain a credential"),
            ("http://user:secret?secret@h/", "the port is no number"),
            ("http://h:0/?token=se@secret", "the port is no number"),
            ("http://", "not a URL"),
            ("http://h:99999", "the port is no number"),
            ("h:", "the port is no number"),
            ("[::1]:0", "the port is no number"),
            ("a b", "not a URL"),
        ] {
            let error = url(wrong).unwrap_err();
            assert!(error.is_final() && error.to_string().contains(words), "{wrong}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        Endpoint::parse("ws://h", Some(Transport::Sse)).unwrap_err();
    }

    #[test]
    fn shown_urls_have_no_credential() {
        for (url, shown) in [
            ("http://h:1/a", "http://h:1/a"),
            ("http://user:secret@h/a", "http://h/a"),
            ("user:secret@h", "h"),
            ("mqtt://user:se/c@ret@h", "mqtt://h"),
            ("http://h/a?token=secret#secret", "http://h/a"),
            ("http://user:secret?a@h", "http://..."),
            ("http://h/?token=a@secret", "http://..."),
            ("http://user:secret@h/?token=secret", "http://h/"),
            ("tls://u:secret@a:1,tls://u:secret@b:2", "tls://b:2"),
            ("tls://a:1,tls://b:2", "tls://a:1,tls://b:2"),
        ] {
            assert_eq!(without_credential(url), shown, "{url}");
        }
    }

    #[test]
    fn credentials_need_tls_or_loopback() {
        let check = |url: &str| Endpoint::parse(url, None).unwrap().check_credential().is_ok();
        for url in
            ["https://h", "wss://10.0.0.1", "http://127.1.2.3:80", "http://[::1]", "localhost", "http://a.localhost"]
        {
            assert!(check(url), "{url}");
        }
        for url in ["http://10.0.0.1", "http://localhost.example", "ws://bridge", "http://[::2]"] {
            assert!(!check(url), "{url}");
        }
        let check = |url: &str, peer: &str| Endpoint::parse(url, None).unwrap().check_peer(peer.parse().unwrap());
        check("a.localhost", "::ffff:127.0.0.1").unwrap();
        check("https://localhost", "10.0.0.1").unwrap();
        let error = check("a.localhost:80", "10.0.0.1").unwrap_err();
        assert!(error.is_final() && error.to_string().starts_with("a.localhost:80 leads to 10.0.0.1,"), "{error}");
    }

    #[test]
    fn parameters_are_added_to_the_query() {
        let endpoint = Endpoint::parse("http://h/events?a=1", None).unwrap();
        assert_eq!(endpoint.target(&[]), "/events?a=1");
        assert_eq!(endpoint.target(&[("params", r#"{"a":"é"}"#)]), "/events?a=1&params=%7B%22a%22%3A%22%C3%A9%22%7D");
        assert_eq!(Endpoint::parse("http://h", None).unwrap().target(&[]), "/api/websocket");
    }
}
