//! The credential that a request presents.
//!
//! Guarantees:
//! - Only the first credential counts, in the order `Authorization` header, ticket in the query, session cookie. A
//!   later one does not replace an invalid earlier one.
//!
//! Must not import: any sibling except `denied`, `requirement` and `secret`.
//!
//! Specification: docs/protocol.md#access, "Credentials".

use http::{HeaderMap, header};

use super::{denied::Denied, requirement::AccessRequirement, secret::Secret};
use crate::http::forwarded::ClientInfo;

/// Name of the session cookie over https. Browsers accept a cookie with the prefix `__Host-` only from this host itself
/// (RFC 6265bis).
const SECURE_COOKIE: &str = "__Host-boilerhouse_bridge";
/// Name of the session cookie over plain http on loopback.
const PLAIN_COOKIE: &str = "boilerhouse_bridge";
/// Names of the query parameter with a stream ticket (docs/protocol.md#stream-endpoints).
pub(crate) const TICKET_PARAMS: [&str; 2] = ["token", "rstream.token"];

/// The parts of a request that can contain a credential. It has no `Debug`, so that they cannot be printed.
#[derive(Clone, Copy)]
pub(crate) struct CredentialContext<'a> {
    pub(crate) headers: &'a HeaderMap,
    pub(crate) query: &'a str,
    pub(crate) client: ClientInfo,
    /// Whether the session cookie is accepted.
    pub(crate) cookies: bool,
}

/// A presented credential that is not checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Credential {
    /// From `Authorization: Bearer`.
    Bearer(Secret),
    /// From `?token=` or `?rstream.token=`.
    Ticket(Secret),
    /// From the session cookie.
    Cookie(Secret),
}

impl Credential {
    /// Returns the first credential of a request.
    ///
    /// # Errors
    /// [`Denied::Missing`] without a credential, [`Denied::Malformed`] for a malformed `Authorization` header,
    /// [`Denied::Unknown`] for a repeated session cookie.
    pub(super) fn of(context: CredentialContext<'_>, requirement: AccessRequirement) -> Result<Credential, Denied> {
        let mut values = context.headers.get_all(header::AUTHORIZATION).into_iter();
        if let Some(value) = values.next() {
            let text = value.to_str().ok().filter(|_| values.next().is_none()).ok_or(Denied::Malformed)?;
            return bearer(text).map(Credential::Bearer).ok_or(Denied::Malformed);
        }
        if requirement == AccessRequirement::RawCredential {
            return Err(Denied::Missing(requirement));
        }
        if matches!(requirement, AccessRequirement::Stream | AccessRequirement::StreamAllTenants) {
            let mut parameters = form_urlencoded::parse(context.query.as_bytes());
            if let Some((_, text)) = parameters.find(|(name, _)| TICKET_PARAMS.contains(&&**name)) {
                return Ok(Credential::Ticket(Secret::new(text)));
            }
        }
        let name = cookie_name(context.client).filter(|_| context.cookies).ok_or(Denied::Missing(requirement))?;
        cookie(context.headers, name)?.map(Credential::Cookie).ok_or(Denied::Missing(requirement))
    }
}

/// Returns the name of the session cookie; `None` over plain http from another machine, which gets no session.
pub(crate) fn cookie_name(client: ClientInfo) -> Option<&'static str> {
    match client {
        ClientInfo { secure: true, .. } => Some(SECURE_COOKIE),
        ClientInfo { loopback: true, .. } => Some(PLAIN_COOKIE),
        ClientInfo { .. } => None,
    }
}

/// Returns the `Host` header in lower case, to which session cookies are bound; an empty text without the header.
pub(crate) fn host(headers: &HeaderMap) -> String {
    headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default().to_ascii_lowercase()
}

/// Returns the credential of `Bearer <credential>`; `None` for any other text.
fn bearer(text: &str) -> Option<Secret> {
    let (scheme, secret) = text.split_once(' ')?;
    let secret = secret.trim();
    let is_valid = scheme.eq_ignore_ascii_case("bearer") && !secret.is_empty() && !secret.contains(char::is_whitespace);
    is_valid.then(|| Secret::new(secret))
}

/// Returns the value of the cookie with this name.
///
/// # Errors
/// [`Denied::Unknown`] for two cookies with this name: it is ambiguous which of them the client means.
fn cookie(headers: &HeaderMap, name: &str) -> Result<Option<Secret>, Denied> {
    let values = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let pairs = values.flat_map(|list| list.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let mut matching = pairs.filter(|(key, _)| *key == name).map(|(_, value)| Secret::new(value));
    let first = matching.next();
    if matching.next().is_some() { Err(Denied::Unknown) } else { Ok(first) }
}
