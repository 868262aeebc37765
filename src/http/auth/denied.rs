//! Who may not ask, and how they are told.

use std::sync::Arc;

use http::{HeaderValue, header};
use thiserror::Error as ThisError;

use super::{AccessRequirement, Authenticator};
use crate::http::{
    error::{ApiError, ErrorCode},
    rate_limit::{BudgetStatus, Caller, RateLimits},
    unavailable::Unavailable,
};

/// Said to whoever has tried too many credentials that are none.
const TOO_MANY: &str = "too many refused credentials";

/// Why somebody may not ask, in words for the one who does.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
pub(super) enum Denied {
    #[error("a credential is needed: {}", accepted_credentials(*.0))]
    Missing(AccessRequirement),
    #[error("the Authorization header must be 'Bearer' and one credential, once")]
    Malformed,
    #[error("the credential is not known here")]
    Unknown,
    #[error("the credential has expired")]
    Expired,
    #[error("the session is of another host: sign in at this one")]
    HostMismatch,
    #[error(
        "only a stream ticket may stand in the query, and POST /api/v1/tickets gives one: send keys and tokens as \
         'Authorization: Bearer'"
    )]
    BearerInQuery,
    #[error("a session or a ticket is no Bearer: tickets open streams, as ?token=")]
    SignedTokenAsBearer,
    #[error("the key '{0}' may not read: its access does not include it")]
    KeyCannotRead(Arc<str>),
    #[error("user '{0}' may not {1}: both list and watch on pods and boilerhouseclaims are needed")]
    UserCannotRead(String, Arc<str>),
    #[error("the key '{0}' sees one tenant only, and this endpoint shows all")]
    TenantScopedKey(Arc<str>),
    #[error("too many tokens that are nobody's came from this address to ask about another one")]
    ReviewBudgetExceeded(BudgetStatus),
    #[error("the cluster cannot be asked about the credential")]
    ReviewUnavailable,
}

/// How a request that is not admitted is answered.
#[derive(Debug)]
pub(in crate::http) enum Rejection {
    /// It stays so.
    Error(ApiError),
    /// It passes by itself.
    Unavailable(Unavailable),
}

/// What will do where nothing was presented.
fn accepted_credentials(requirement: AccessRequirement) -> &'static str {
    match requirement {
        AccessRequirement::RawCredential => {
            "'Authorization: Bearer' with an API key or a Kubernetes token; no session or ticket will do"
        }
        AccessRequirement::BoilerhouseWs => {
            "'Authorization: Bearer' with an API key or a Kubernetes token, or a session cookie; a ticket opens the other \
             streams, not /ws"
        }
        AccessRequirement::Probe
        | AccessRequirement::Public
        | AccessRequirement::Aggregates
        | AccessRequirement::Read
        | AccessRequirement::ReadAllTenants
        | AccessRequirement::Stream => {
            "'Authorization: Bearer' with an API key or a Kubernetes token, a session cookie, or, on streams, a ticket as \
             ?token="
        }
    }
}

impl Authenticator {
    /// How somebody is told. Whoever tried a credential that is none has used one of a few tries.
    pub(super) fn reject(&self, denied: &Denied, limits: &RateLimits, address: &Caller) -> Rejection {
        let challenge = |error: &'static str| {
            ApiError::new(ErrorCode::Unauthorized, denied.to_string())
                .with(header::WWW_AUTHENTICATE, HeaderValue::from_static(error))
        };
        match denied {
            Denied::ReviewUnavailable => Rejection::Unavailable(Unavailable::CredentialCheckUnavailable),
            Denied::KeyCannotRead(_) | Denied::UserCannotRead(..) | Denied::TenantScopedKey(_) => {
                Rejection::Error(ApiError::new(ErrorCode::Forbidden, denied.to_string()))
            }
            Denied::ReviewBudgetExceeded(status) => {
                self.metrics.refused.inc();
                Rejection::Error(status.too_many_requests(TOO_MANY))
            }
            // Nothing was tried.
            Denied::Missing(_) => Rejection::Error(challenge(r#"Bearer realm="boilerhouse-bridge""#)),
            Denied::Malformed
            | Denied::Unknown
            | Denied::Expired
            | Denied::HostMismatch
            | Denied::BearerInQuery
            | Denied::SignedTokenAsBearer => {
                self.metrics.refused.inc();
                Rejection::Error(match limits.denied_credentials.consume(address) {
                    Ok(_) => challenge(r#"Bearer realm="boilerhouse-bridge", error="invalid_token""#),
                    Err(status) => status.too_many_requests(TOO_MANY),
                })
            }
        }
    }
}
