//! The field `server` of a cluster, read as client-go reads it. Pure.

use std::fmt;

use http::{
    Uri,
    uri::{Authority, PathAndQuery, Scheme},
};

/// The address of an API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerUrl {
    scheme: Scheme,
    authority: Authority,
    /// The path below which the API is served, without a slash at the end. It is empty for most API servers.
    prefix: String,
    /// Whether the text contains no scheme.
    pub(super) is_scheme_missing: bool,
}

impl ServerUrl {
    /// Parses a URL or a `host:port`. As in client-go, a missing scheme is `http`, and a query and a fragment are ignored.
    ///
    /// # Errors
    /// What is wrong, without the text: a URL may contain a password.
    pub(super) fn parse(text: &str) -> Result<ServerUrl, &'static str> {
        if text.bytes().any(|byte| byte.is_ascii_control()) {
            return Err("the URL contains a line break or another control character; write it on one line");
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Some(Scheme::HTTPS), rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Some(Scheme::HTTP), rest),
            Some(_) => return Err("the scheme must be https or http"),
            None => (None, text),
        };
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if scheme.is_none() && !matches!(path, "" | "/") {
            return Err("the value is neither a URL nor host:port; write https:// before it");
        }
        if authority.contains('@') {
            return Err("the URL contains a user name; use the fields of the user for credentials");
        }
        if authority.ends_with(':') && path.starts_with("//") {
            return Err("the URL contains two schemes");
        }
        // An empty port is the default port of the scheme.
        let authority = authority.strip_suffix(':').unwrap_or(authority);
        let parsed: Authority = authority.parse().map_err(|_| "the URL contains no valid host and port")?;
        let port = authority.strip_prefix(parsed.host()).ok_or("the URL contains no valid host and port")?;
        if !port.is_empty() && parsed.port_u16().is_none() {
            return Err("the URL contains no valid host and port");
        }
        let prefix = path.trim_end_matches('/').to_owned();
        let url = ServerUrl {
            is_scheme_missing: scheme.is_none(),
            scheme: scheme.unwrap_or(Scheme::HTTP),
            authority: parsed,
            prefix,
        };
        if url.host().is_empty() {
            return Err("the URL contains no valid host and port");
        }
        url.at(Some(&PathAndQuery::from_static("/"))).map_err(|_| "the path of the URL is not valid")?;
        Ok(url)
    }

    pub(super) fn is_https(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// Returns the host without the brackets of an IPv6 address.
    pub(super) fn host(&self) -> &str {
        let host = self.authority.host();
        host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
    }

    /// Returns the URL of a request whose path is relative to this server.
    pub(super) fn at(&self, path_and_query: Option<&PathAndQuery>) -> Result<Uri, http::Error> {
        let path_and_query = path_and_query.map_or("/", PathAndQuery::as_str);
        let path = format!("{}{path_and_query}", self.prefix);
        Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone()).path_and_query(path).build()
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_is_parsed_as_client_go_parses_it() {
        for (text, expected) in [
            ("https://10.0.0.1:6443", Some("https://10.0.0.1:6443")),
            ("https://10.0.0.1:6443/", Some("https://10.0.0.1:6443")),
            ("HTTPS://a.example", Some("https://a.example")),
            ("https://a.example:", Some("https://a.example")),
            ("https://a.example/k8s/clusters/c-1/", Some("https://a.example/k8s/clusters/c-1")),
            ("https://a.example/x?y=1#z", Some("https://a.example/x")),
            ("https://[::1]:6443", Some("https://[::1]:6443")),
            ("127.0.0.1:8001", Some("http://127.0.0.1:8001")),
            ("localhost:8001/", Some("http://localhost:8001")),
            ("localhost", Some("http://localhost")),
            ("127.0.0.1:8001/x", None),
            ("//127.0.0.1:8001", None),
            ("https:/127.0.0.1", None),
            ("https://", None),
            ("https:///x", None),
            ("https://:6443", None),
            ("https://a:b:c", None),
            ("https://a:99999", None),
            ("https://a:-1", None),
            ("https://[::1", None),
            ("https://[]", None),
            ("https://a b", None),
            ("https://a/b c", None),
            ("https://a\n", None),
            ("https://canary:canary@a", None),
            ("unix:///run/api.sock", None),
            ("https://https://a", None),
            ("", None),
            ("://", None),
            ("?", None),
        ] {
            let parsed = ServerUrl::parse(text);
            assert_eq!(parsed.as_ref().ok().map(ToString::to_string).as_deref(), expected, "{text:?}");
            if let Err(problem) = parsed {
                assert!(!problem.contains("canary"), "{problem}");
            }
        }
    }

    #[test]
    fn request_path_is_appended_to_the_path_of_the_server() {
        let server = ServerUrl::parse("https://a.example/k8s/").unwrap();
        let request = Uri::from_static("/api/v1/pods?limit=1");
        let uri = server.at(request.path_and_query()).unwrap();
        assert_eq!(uri, "https://a.example/k8s/api/v1/pods?limit=1");
        assert_eq!(server.at(None).unwrap(), "https://a.example/k8s/");
    }
}
