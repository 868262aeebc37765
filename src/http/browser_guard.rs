//! The browser guard: the rules about `Host`, `Origin` and `Sec-Fetch-Site` that hold on every endpoint
//! (`docs/protocol.md#access`).
//!
//! The threat: a developer runs `kubectl port-forward` to the bridge and opens a web page of another site. Requests of that
//! page carry the page's `Origin`, or no `Origin` and the mark `Sec-Fetch-Site`. If the page's name resolves to the bridge
//! (DNS rebinding), they carry that name as `Host`. The guard rejects all of them: `Host` before the path is evaluated, the
//! others before a credential is read or a request has an effect.
//!
//! Guarantees: pure; the decision depends on the headers and the configuration only.

mod origin;
mod refused_origins;

use http::{HeaderMap, HeaderValue, header, uri::Authority};

use self::origin::{cannot_be_rebound, is_service_name, split_authority};
pub use self::{
    origin::{HostName, Origin},
    refused_origins::{RefusedOrigin, RefusedOrigins},
};
use super::error::{ApiError, ErrorCode};

/// Characters of an origin or a host that an error message and a log line repeat.
const MAX_SHOWN_CHARS: usize = 200;
/// What to do about a refused origin. A page of the bridge has a foreign origin if a proxy replaces `Host`.
const REMEDIES: &str = "if it is the address of the bridge behind a proxy, the proxy must pass the Host header on (nginx: \
                        proxy_set_header Host $http_host; Apache: ProxyPreserveHost On); if it is another site, add it \
                        to CORS_ORIGIN";
/// The values of `Sec-Fetch-Site` (Fetch Metadata, section 2.3) of a request that a page of another origin caused.
const FOREIGN_SITES: [&str; 2] = ["cross-site", "same-site"];

/// Hosts and origins that are allowed in addition to IP literals, `localhost`, names of Services and the request's own
/// origin.
#[derive(Clone, Debug, Default)]
pub struct GuardConfig {
    /// Names that `Host` may carry, with any port (`--allowed-hosts`).
    pub hosts: Vec<HostName>,
    /// Origins of other sites (`CORS_ORIGIN`).
    pub origins: Vec<Origin>,
    /// Whether pages of all origins may send requests, without cookies (`CORS_ORIGIN=*`).
    pub any_origin: bool,
}

/// The origin of a request that passes the guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginDecision {
    /// No `Origin` and no mark of another site, or the bridge's own `Origin`.
    SameOrigin,
    /// Another origin that is allowed. The value is the one for `Access-Control-Allow-Origin`.
    Allowed(HeaderValue),
    /// Another origin, and all are allowed. The response carries `Access-Control-Allow-Origin: *`, and cookies do not count.
    AnyOrigin,
    /// A page of another site makes a window of the browser show the bridge, as a link does. The page cannot read the
    /// response, and the request does not use the budgets of the user.
    Navigation,
}

/// The check that rejects a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardCheck {
    /// The check of `Host` and of the host in an absolute request target.
    Host,
    /// The check of `Origin`.
    Origin,
    /// The check of `Sec-Fetch-Site`.
    Site,
}

/// The rejection of a request.
#[derive(Clone, Debug)]
pub struct GuardError {
    /// The check that failed.
    pub check: GuardCheck,
    /// The response, 400 or 403.
    pub error: ApiError,
    /// The one `Origin` that was refused, for the log.
    pub refused: Option<Box<RefusedOrigin>>,
}

/// The host that a request names, which is allowed.
#[derive(Clone, Debug)]
pub struct RequestHost {
    /// In normal form, without the port.
    name: String,
    port: Option<u16>,
    /// As the client sent it, cut for messages.
    shown: String,
}

impl GuardCheck {
    /// Returns the name of the check as the label of a metric.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            GuardCheck::Host => "host",
            GuardCheck::Origin => "origin",
            GuardCheck::Site => "site",
        }
    }
}

/// Checks the host that a request names.
///
/// `host` is the one of `Host` and of an absolute request target. It is `None` if the two differ or one is malformed.
///
/// # Errors
/// [`GuardError`] with a 400 for a request without exactly one valid `Host`, else with a 403 that names the setting that would
/// allow the request.
pub fn check_host(
    host: Option<&Authority>,
    headers: &HeaderMap,
    config: &GuardConfig,
) -> Result<RequestHost, GuardError> {
    allowed_host(host, headers, config).map_err(|error| GuardError { check: GuardCheck::Host, error, refused: None })
}

/// Checks the `Origin` of a request to this host, and without one its `Sec-Fetch-Site`.
///
/// # Errors
/// [`GuardError`] with a 403 that says how the request would be allowed.
pub fn check_origin(
    host: &RequestHost,
    headers: &HeaderMap,
    config: &GuardConfig,
) -> Result<OriginDecision, GuardError> {
    let failed = |check| move |error| GuardError { check, error, refused: None };
    match single_header(headers, &header::ORIGIN, ErrorCode::Forbidden).map_err(failed(GuardCheck::Origin))? {
        Some(origin) => check_one_origin(origin, host, config),
        None => check_site(headers).map_err(failed(GuardCheck::Site)),
    }
}

fn allowed_host(
    authority: Option<&Authority>,
    headers: &HeaderMap,
    config: &GuardConfig,
) -> Result<RequestHost, ApiError> {
    // RFC 9112 section 3.2: a request without exactly one valid Host header is a 400.
    let named = single_header(headers, &header::HOST, ErrorCode::BadRequest)?;
    let (name, port) = authority.and_then(split_authority).ok_or_else(|| {
        let named = named.and_then(|value| Authority::try_from(value.as_bytes()).ok());
        let is_valid = named.as_ref().and_then(split_authority).is_some();
        // A valid Host header that differs from the request target is a rejection.
        let code = if is_valid { ErrorCode::Forbidden } else { ErrorCode::BadRequest };
        ApiError::new(code, "the request names no valid host; send one valid Host header")
    })?;
    let is_allowed =
        cannot_be_rebound(&name) || is_service_name(&name) || config.hosts.iter().any(|allowed| allowed.matches(&name));
    if !is_allowed {
        let message = format!("host '{}' is not allowed; add it to --allowed-hosts", shown(&name));
        return Err(ApiError::new(ErrorCode::Forbidden, message));
    }
    Ok(RequestHost { name, port, shown: authority.map(|authority| shown(authority.as_str())).unwrap_or_default() })
}

/// Returns the text of a header as messages and the log repeat it.
fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN_CHARS).collect()
}

fn check_one_origin(
    value: &HeaderValue,
    host: &RequestHost,
    config: &GuardConfig,
) -> Result<OriginDecision, GuardError> {
    let RequestHost { name, port, shown: host } = host;
    let refused = |advice: &str| {
        let refused = RefusedOrigin { origin: shown(value.to_str().unwrap_or("?")), host: host.clone() };
        let RefusedOrigin { origin, host } = &refused;
        let message = format!("origin '{origin}' is not allowed to read from this bridge at host '{host}'; {advice}");
        let error = ApiError::new(ErrorCode::Forbidden, message);
        GuardError { check: GuardCheck::Origin, error, refused: Some(Box::new(refused)) }
    };
    let text = value.to_str().unwrap_or_default();
    if text == "null" || text.starts_with("file:") {
        return Err(refused("it stands for a file, a sandboxed frame or a redirect: load the page from a web server"));
    }
    let origin: Origin = text.parse().map_err(|_| refused("it is malformed: send scheme://host[:port]"))?;
    if origin.is_at(name, *port) {
        Ok(OriginDecision::SameOrigin)
    } else if config.origins.contains(&origin) {
        Ok(OriginDecision::Allowed(value.clone()))
    } else if config.any_origin {
        Ok(OriginDecision::AnyOrigin)
    } else {
        Err(refused(REMEDIES))
    }
}

/// Checks the mark that browsers set on a request without `Origin`, such as one for an image. A page cannot change the mark.
/// Other clients and old browsers do not send it.
fn check_site(headers: &HeaderMap) -> Result<OriginDecision, ApiError> {
    let has = |name: &str, accepted: &[&str]| {
        headers.get_all(name).iter().any(|value| accepted.iter().any(|accepted| value == accepted))
    };
    if !has("sec-fetch-site", &FOREIGN_SITES) {
        return Ok(OriginDecision::SameOrigin);
    }
    // A frame has another destination. Only a window that shows the bridge alone is what a person expects of a link.
    if has("sec-fetch-mode", &["navigate"]) && has("sec-fetch-dest", &["document"]) {
        return Ok(OriginDecision::Navigation);
    }
    let message = "a page of another site sent this request without an Origin (Sec-Fetch-Site); add the site to CORS_ORIGIN \
                   and use CORS, or open the address in a window of its own";
    Err(ApiError::new(ErrorCode::Forbidden, message))
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

    fn check(
        host: Option<&Authority>,
        headers: &HeaderMap,
        config: &GuardConfig,
    ) -> Result<OriginDecision, GuardError> {
        check_origin(&check_host(host, headers, config)?, headers, config)
    }

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
            "bridge.boilerhouse.svc",
            "Bridge.Boilerhouse.svc:3000",
            "bridge.boilerhouse.svc.cluster.local:80",
            "bridge-0.bridge.boilerhouse.svc.cluster.local",
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
            "svc",
            ".svc",
            "a..svc",
            "b'idge.boilerhouse.svc",
            "evilsvc",
            "bridge.boilerhouse.svc.",
            "bridge.boilerhouse.svc.evil.example",
            "bridge.boilerhouse.svc.cluster.local.evil.example",
            "bridge.boilerhouse.cluster.local",
            "cluster.local",
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
            ("bridge.boilerhouse.svc:3000", "http://bridge.boilerhouse.svc:3000"),
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

    /// Every advice of a 403 is true: an origin that `CORS_ORIGIN` does not accept is not advised to be added to it.
    #[test]
    fn advice_of_a_rejected_origin_is_a_setting_that_accepts_it() {
        let host: Authority = "localhost:3000".parse().unwrap();
        for (origin, is_accepted) in [
            ("https://app.example", true),
            ("http://127.0.0.1:8080", true),
            ("capacitor://localhost", true),
            ("ionic://localhost", true),
            ("chrome-extension://abcdefghijklmnop", true),
            ("moz-extension://6ad1bd7a-1f3c-4f7f-b5a6-e0b2f0a3f1c9", true),
            ("null", false),
            ("file://", false),
            ("https://app.example/", false),
            ("https://*.example", false),
            ("*", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(header::HOST, "localhost:3000".parse().unwrap());
            headers.append(header::ORIGIN, origin.parse().unwrap());
            let error = format!("{:?}", check(Some(&host), &headers, &GuardConfig::default()).unwrap_err());
            assert_eq!(error.contains("add it to CORS_ORIGIN"), is_accepted, "{error}");
            assert_eq!(origin.parse::<Origin>().is_ok(), is_accepted, "{origin}");
            if let Ok(allowed) = origin.parse() {
                let config = GuardConfig { origins: vec![allowed], ..GuardConfig::default() };
                let decision = check(Some(&host), &headers, &config).ok();
                assert_eq!(decision, Some(OriginDecision::Allowed(origin.parse().unwrap())), "{origin}");
            }
        }
    }

    #[test]
    fn marked_requests_without_an_origin_are_rejected_except_navigations() {
        let decision = |marks: &[(&'static str, &'static str)], any_origin| {
            let mut headers = HeaderMap::new();
            headers.append(header::HOST, "localhost:3000".parse().unwrap());
            for (name, value) in marks {
                headers.append(*name, value.parse().unwrap());
            }
            let config = GuardConfig { any_origin, ..GuardConfig::default() };
            check("localhost:3000".parse().ok().as_ref(), &headers, &config).map_err(|GuardError { check, .. }| check)
        };
        const SITE: &str = "sec-fetch-site";
        const MODE: (&str, &str) = ("sec-fetch-mode", "navigate");
        let document = ("sec-fetch-dest", "document");
        let own = Ok(OriginDecision::SameOrigin);
        for (marks, expected) in [
            (&[][..], own.clone()),
            (&[(SITE, "none"), MODE, document], own.clone()),
            (&[(SITE, "same-origin"), ("sec-fetch-mode", "no-cors")], own.clone()),
            (&[(SITE, "unknown")], own.clone()),
            (&[(SITE, "cross-site")], Err(GuardCheck::Site)),
            (&[(SITE, "same-site")], Err(GuardCheck::Site)),
            (&[(SITE, "none"), (SITE, "cross-site")], Err(GuardCheck::Site)),
            (
                &[(SITE, "cross-site"), ("sec-fetch-mode", "no-cors"), ("sec-fetch-dest", "image")],
                Err(GuardCheck::Site),
            ),
            (&[(SITE, "cross-site"), ("sec-fetch-mode", "no-cors"), document], Err(GuardCheck::Site)),
            (&[(SITE, "cross-site"), MODE], Err(GuardCheck::Site)),
            (&[(SITE, "cross-site"), MODE, ("sec-fetch-dest", "iframe")], Err(GuardCheck::Site)),
            (&[(SITE, "cross-site"), MODE, document], Ok(OriginDecision::Navigation)),
            (&[(SITE, "same-site"), MODE, document], Ok(OriginDecision::Navigation)),
            (&[(SITE, "cross-site"), ("origin", "http://localhost:3000")], own.clone()),
            (&[(SITE, "cross-site"), MODE, document, ("origin", "https://evil.example")], Err(GuardCheck::Origin)),
        ] {
            assert_eq!(decision(marks, false), expected, "{marks:?}");
        }
        // All origins may read with CORS. A request without CORS names no origin.
        assert_eq!(
            decision(&[(SITE, "cross-site"), ("origin", "https://app.example")], true),
            Ok(OriginDecision::AnyOrigin)
        );
        assert_eq!(decision(&[(SITE, "cross-site")], true), Err(GuardCheck::Site));
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
