//! The credential that a request presents: the first of an `Authorization` header, a ticket in the query, a session
//! cookie. Only that one counts: what is wrong is not made good by another one.

use http::{HeaderMap, header};

use super::{denied::Denied, requirement::AccessRequirement, secret::Secret};
use crate::http::forwarded::ClientInfo;

/// A session cookie's name over https: browsers keep such a one from being set by anybody but this very host (RFC 6265bis,
/// "__Host-").
const SECURE_COOKIE: &str = "__Host-boilerhouse_bridge";
/// Its name over http on loopback.
const PLAIN_COOKIE: &str = "boilerhouse_bridge";
/// Names of the query parameter that holds a ticket (docs/protocol.md#stream-endpoints).
pub(crate) const TICKET_PARAMS: [&str; 2] = ["token", "rstream.token"];

/// The parts of a request that say who asks. They hold credentials, and cannot be printed.
#[derive(Clone, Copy)]
pub(crate) struct CredentialContext<'a> {
    pub(crate) headers: &'a HeaderMap,
    pub(crate) query: &'a str,
    pub(crate) client: ClientInfo,
    /// Whether cookies count.
    pub(crate) cookies: bool,
}

/// What was presented. Nothing of it is checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Credential {
    /// `Authorization: Bearer`
    Bearer(Secret),
    /// `?token=`
    Ticket(Secret),
    /// The session cookie.
    Cookie(Secret),
}

impl Credential {
    /// # Errors
    /// Where there is none, or one that cannot be read.
    pub(super) fn of(context: CredentialContext<'_>, requirement: AccessRequirement) -> Result<Credential, Denied> {
        let mut values = context.headers.get_all(header::AUTHORIZATION).into_iter();
        if let Some(value) = values.next() {
            let text = value.to_str().ok().filter(|_| values.next().is_none()).ok_or(Denied::Malformed)?;
            return bearer(text).map(Credential::Bearer).ok_or(Denied::Malformed);
        }
        if requirement == AccessRequirement::RawCredential {
            return Err(Denied::Missing(requirement));
        }
        if requirement == AccessRequirement::Stream {
            let mut parameters = form_urlencoded::parse(context.query.as_bytes());
            if let Some((_, text)) = parameters.find(|(name, _)| TICKET_PARAMS.contains(&&**name)) {
                return Ok(Credential::Ticket(Secret::new(text)));
            }
        }
        let name = cookie_name(context.client).filter(|_| context.cookies).ok_or(Denied::Missing(requirement))?;
        cookie(context.headers, name)?.map(Credential::Cookie).ok_or(Denied::Missing(requirement))
    }
}

/// The session cookie's name; `None` where there are no sessions: over plain http from elsewhere.
pub(crate) fn cookie_name(client: ClientInfo) -> Option<&'static str> {
    match client {
        ClientInfo { secure: true, .. } => Some(SECURE_COOKIE),
        ClientInfo { loopback: true, .. } => Some(PLAIN_COOKIE),
        ClientInfo { .. } => None,
    }
}

/// The Host that a request names, as sessions are bound to it.
pub(crate) fn host(headers: &HeaderMap) -> String {
    headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default().to_ascii_lowercase()
}

fn bearer(text: &str) -> Option<Secret> {
    let (scheme, secret) = text.split_once(' ')?;
    let secret = secret.trim();
    let fine = scheme.eq_ignore_ascii_case("bearer") && !secret.is_empty() && !secret.contains(char::is_whitespace);
    fine.then(|| Secret::new(secret))
}

/// One cookie of this name. Two are nobody's: which of them is meant cannot be known.
fn cookie(headers: &HeaderMap, name: &str) -> Result<Option<Secret>, Denied> {
    let values = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let pairs = values.flat_map(|list| list.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let mut named = pairs.filter(|(have, _)| *have == name).map(|(_, value)| Secret::new(value));
    let first = named.next();
    if named.next().is_some() { Err(Denied::Unknown) } else { Ok(first) }
}
