//! Admission of a request: its credential, its rights, its rate budget.
//!
//! Authentication returns the reason why a request is denied ([`Denied`]). This module maps each reason to a status, a challenge and a
//! use of the caller's budget of denied credentials (`docs/protocol.md#access`).

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::Arc,
};

use http::{HeaderMap, HeaderValue, Method, Version, header};

use super::{
    app::App,
    auth::{AccessRequirement, CredentialContext, Denied},
    browser_guard::{GuardError, OriginDecision},
    caller::Caller,
    conn::Peer,
    error::{ApiError, ErrorCode},
    rate_limit::{BudgetStatus, RateBudget},
    request::ApiRequest,
    unavailable::{Unavailable, too_many_requests},
};
use crate::traces::RequestSpan;

/// The peer of a request that has none. Only one of a unit test has none.
pub(super) const UNKNOWN_PEER: Peer =
    Peer { address: SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)), tls: false };
/// Challenge for a request without a credential (RFC 6750, section 3).
const CHALLENGE: HeaderValue = HeaderValue::from_static(r#"Bearer realm="boilerhouse-bridge""#);
/// Challenge for a request with an unusable credential.
const CHALLENGE_INVALID: HeaderValue =
    HeaderValue::from_static(r#"Bearer realm="boilerhouse-bridge", error="invalid_token""#);
/// Message of the 429 for a caller whose budget of denied credentials is used up.
const TOO_MANY_DENIED: &str = "too many denied credentials";

/// A request of which only `Host` and the path have been checked.
pub(super) struct RawRequest<C> {
    pub(super) app: Arc<App<C>>,
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) query: String,
    /// The result of the checks of `Origin` and `Sec-Fetch-Site`.
    pub(super) origin: Result<OriginDecision, GuardError>,
    pub(super) peer: Option<Peer>,
    /// Only a request of a unit test has none.
    pub(super) version: Option<Version>,
    pub(super) span: RequestSpan,
}

/// Why a request is not admitted.
#[derive(Debug)]
pub(super) enum Rejection {
    /// The same request will be rejected again.
    Error(ApiError),
    /// The condition passes without a change by the client.
    Unavailable(Unavailable),
}

/// Authenticates and authorizes a request, and counts it against the caller's request budget.
///
/// Returns the status of that budget, or `None` for endpoints that it does not limit: probes and streams.
///
/// # Errors
/// Returns a [`Rejection`] if the origin, the credential, its rights or a budget do not allow the request.
pub(super) async fn admit<C>(
    request: RawRequest<C>,
    path_param: Option<String>,
    requirement: AccessRequirement,
) -> Result<(ApiRequest<C>, Option<BudgetStatus>), Rejection> {
    let RawRequest { app, method, headers, query, origin, peer, version, span } = request;
    let decision = origin.map_err(|GuardError { error, .. }| Rejection::Error(error))?;
    let peer = peer.unwrap_or(UNKNOWN_PEER);
    let client = app.trusted_proxies.client_info(peer.address.ip(), peer.tls, &headers);
    // With `CORS_ORIGIN=*` a page of another site may send a credential that it holds itself, but no cookie
    // (docs/protocol.md#access).
    let cookies = decision != OriginDecision::AnyOrigin;
    let is_navigation = decision == OriginDecision::Navigation;
    let address = if is_navigation { Caller::navigation(client.address) } else { Caller::address(client.address) };
    let context = CredentialContext { headers: &headers, query: &query, client, cookies };
    let limits = &app.rate_limits;
    let mut principal = match app.auth.authenticate(requirement, context, &address, &limits.token_reviews).await {
        Ok(principal) => principal,
        Err(denied) => return Err(reject(&denied, &limits.denied_credentials, &address)),
    };
    // A client of an open `/ws` may send a credential. It counts when the other streams are reserved for callers with one.
    if requirement == AccessRequirement::BoilerhouseWs
        && principal.is_anonymous()
        && !app.auth.allows_anonymous()
        && app.streams.has_only_reserved()
        && let Ok(known) = app.auth.identify_request(requirement, context, &address, &limits.token_reviews).await
    {
        principal = known;
    }
    if is_navigation {
        principal.caller = address;
    }
    let status = match requirement {
        // Streams have their own limits (`RateLimits::open_stream`).
        AccessRequirement::Probe
        | AccessRequirement::Stream
        | AccessRequirement::StreamAllTenants
        | AccessRequirement::BoilerhouseWs => None,
        // A post counts for its tunnel (`endpoints/telemetry.rs`).
        AccessRequirement::Ingest => None,
        AccessRequirement::ReadTelemetry => Some(consume(&limits.telemetry_reads, &principal.caller)?),
        AccessRequirement::Public
        | AccessRequirement::Aggregates
        | AccessRequirement::Read
        | AccessRequirement::ReadAllTenants
        | AccessRequirement::RawCredential => Some(consume(&limits.requests, &principal.caller)?),
    };
    // No object has a name that is not UTF-8, so a lossy decoding cannot match one.
    let decode = |encoded: String| percent_encoding::percent_decode_str(&encoded).decode_utf8_lossy().into_owned();
    let path_param = path_param.map(decode);
    let version = version.unwrap_or(Version::HTTP_11);
    if !principal.is_anonymous() {
        span.accept_parent();
    }
    Ok((ApiRequest { app, method, version, headers, query, client, principal, path_param, span }, status))
}

fn consume(budget: &RateBudget, caller: &Caller) -> Result<BudgetStatus, Rejection> {
    budget.consume(caller).map_err(|status| Rejection::Unavailable(Unavailable::RateLimited(status)))
}

/// Maps the reason of a denial to a response.
///
/// An unusable credential consumes one use of the address's budget of denied credentials. When that budget is used up,
/// the response is 429 instead of 401.
pub(super) fn reject(denied: &Denied, denied_credentials: &RateBudget, address: &Caller) -> Rejection {
    let unauthorized = |challenge| {
        ApiError::new(ErrorCode::Unauthorized, denied.to_string()).with(header::WWW_AUTHENTICATE, challenge)
    };
    match denied {
        Denied::Missing(_) => Rejection::Error(unauthorized(CHALLENGE)),
        Denied::Malformed
        | Denied::Unknown
        | Denied::Expired
        | Denied::HostMismatch
        | Denied::BearerInQuery
        | Denied::SignedTokenAsBearer => Rejection::Error(match denied_credentials.consume(address) {
            Ok(_) => unauthorized(CHALLENGE_INVALID),
            Err(status) => too_many_requests(&status, TOO_MANY_DENIED),
        }),
        Denied::KeyCannotRead(_)
        | Denied::KeyCannotIngest(_)
        | Denied::UserCannotIngest
        | Denied::UserCannotRead(..)
        | Denied::TenantScopedKey(_) => Rejection::Error(ApiError::new(ErrorCode::Forbidden, denied.to_string())),
        // The token was not reviewed, so it can be valid.
        Denied::ReviewBudgetExceeded(status) => Rejection::Unavailable(Unavailable::TooManyUnknownTokens(*status)),
        Denied::ReviewUnavailable => Rejection::Unavailable(Unavailable::CredentialCheckUnavailable),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::http::rate_limit::{self, RateLimits};

    /// One denied credential per minute, so that each use of the budget is visible.
    fn budgets() -> RateLimits {
        RateLimits::new(&rate_limit::Config { denied_credentials: NonZeroU32::MIN, ..rate_limit::Config::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn each_denial_maps_to_its_status_and_challenge() {
        const MISSING: Option<&str> = Some(r#"Bearer realm="boilerhouse-bridge""#);
        const INVALID: Option<&str> = Some(r#"Bearer realm="boilerhouse-bridge", error="invalid_token""#);
        let budget = budgets().token_reviews;
        budget.consume(&caller()).unwrap();
        let used_up = budget.check(&caller()).unwrap_err();
        // Reason, status, challenge, Retry-After, uses the budget of denied credentials.
        let table = [
            (Denied::Missing(AccessRequirement::Read), 401, MISSING, false, false),
            (Denied::Malformed, 401, INVALID, false, true),
            (Denied::Unknown, 401, INVALID, false, true),
            (Denied::Expired, 401, INVALID, false, true),
            (Denied::HostMismatch, 401, INVALID, false, true),
            (Denied::BearerInQuery, 401, INVALID, false, true),
            (Denied::SignedTokenAsBearer, 401, INVALID, false, true),
            (Denied::KeyCannotRead("k".into()), 403, None, false, false),
            (Denied::KeyCannotIngest("k".into()), 403, None, false, false),
            (Denied::UserCannotIngest, 403, None, false, false),
            (Denied::UserCannotRead("jane".into(), "list pods".into()), 403, None, false, false),
            (Denied::TenantScopedKey("k".into()), 403, None, false, false),
            (Denied::ReviewBudgetExceeded(used_up), 429, None, true, false),
            (Denied::ReviewUnavailable, 503, None, true, false),
        ];
        for (denied, status, challenge, has_retry_after, uses_budget) in table {
            let budget = budgets().denied_credentials;
            let response = match reject(&denied, &budget, &caller()) {
                Rejection::Error(error) => error.into_response(),
                Rejection::Unavailable(unavailable) => unavailable.to_error().into_response(),
            };
            let headers = response.headers();
            let header = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap());
            assert_eq!(
                (response.status().as_u16(), header("www-authenticate"), header("retry-after").is_some()),
                (status, challenge, has_retry_after),
                "status, challenge and presence of Retry-After of {denied:?}"
            );
            let found = budget.check(&caller()).is_err();
            assert_eq!(found, uses_budget, "whether {denied:?} uses the budget of denied credentials");
            let message = denied.to_string();
            assert_eq!(message.starts_with("missing Authorization header: "), challenge == MISSING, "{message}");
            assert_eq!(message.starts_with("invalid API key: "), challenge == INVALID, "{message}");
            if uses_budget {
                let Rejection::Error(error) = reject(&denied, &budget, &caller()) else { panic!("{denied:?}") };
                assert_eq!(error.into_response().status(), 429, "second {denied:?} with a used-up budget");
            }
        }
    }

    fn caller() -> Caller {
        Caller::address([192, 0, 2, 1].into())
    }
}
