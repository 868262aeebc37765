//! The reasons why a request is denied, and their texts.
//!
//! Must not import: HTTP statuses and error bodies. `http::admit` maps the reasons to them.
//!
//! Specification: docs/protocol.md#errors.

use std::sync::Arc;

use thiserror::Error as ThisError;

use super::{requirement::AccessRequirement, review_cache::ReviewUnavailable};
use crate::http::rate_limit::BudgetStatus;

/// Why a request is denied. `Display` returns the message for the client. A message of a 401 begins with the words that
/// Boilerhouse uses, because its clients may look for them.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
pub(crate) enum Denied {
    /// The request presents no credential.
    #[error("missing Authorization header: the request has no credential; send {}", accepted_credentials(*.0))]
    Missing(AccessRequirement),
    /// The `Authorization` header is repeated, has another scheme, or has no credential or several.
    #[error("invalid API key: the Authorization header is malformed; send it once, as 'Bearer' and one credential")]
    Malformed,
    /// No key, token or signature matches, or the session cookie is sent twice.
    #[error("invalid API key: the credential is unknown")]
    Unknown,
    /// The key, token, cookie or ticket has expired.
    #[error("invalid API key: the credential has expired")]
    Expired,
    /// The session cookie was issued for another Host.
    #[error("invalid API key: the session cookie belongs to another Host; sign in at this one")]
    HostMismatch,
    /// The query contains a text that is not a stream ticket.
    #[error(
        "invalid API key: the query may contain only a stream ticket; create one with POST /api/v1/tickets, or send the key \
         or token as 'Authorization: Bearer'"
    )]
    BearerInQuery,
    /// The `Authorization` header contains a session cookie or a stream ticket.
    #[error(
        "invalid API key: a session cookie or a stream ticket is not accepted as Bearer; send a ticket as ?token= on a \
         stream"
    )]
    SignedTokenAsBearer,
    /// The key with this name has no permission to read.
    #[error("the key '{0}' has no permission to read; add 'read' to its access in the keys file")]
    KeyCannotRead(Arc<str>),
    /// The key with this name has no permission to post telemetry.
    #[error("the key '{0}' has no permission to post telemetry; add 'ingest' to its access in the keys file")]
    KeyCannotIngest(Arc<str>),
    /// Kubernetes users have no permission to post telemetry.
    #[error("a Kubernetes token has no permission to post telemetry; use an API key with 'ingest' in its access")]
    UserCannotIngest,
    /// The user with this name lacks this right.
    #[error("user '{0}' may not {1}; grant list and watch on pods and boilerhouseclaims")]
    UserCannotRead(String, Arc<str>),
    /// The key with this name is limited to one tenant, and the endpoint shows all tenants.
    #[error("the key '{0}' is limited to one tenant; use a credential for all tenants here")]
    TenantScopedKey(Arc<str>),
    /// The address has used its budget of reviews of unknown tokens.
    #[error("too many unknown tokens from this address; the token was not reviewed")]
    ReviewBudgetExceeded(BudgetStatus),
    /// The API server did not answer the review.
    #[error("the API server did not answer the review of the credential")]
    ReviewUnavailable,
}

impl From<ReviewUnavailable> for Denied {
    fn from(ReviewUnavailable: ReviewUnavailable) -> Denied {
        Denied::ReviewUnavailable
    }
}

impl Denied {
    /// Returns the name of the reason as the label of a metric.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Denied::Missing(_) => "missing",
            Denied::Malformed => "malformed",
            Denied::Unknown => "unknown",
            Denied::Expired => "expired",
            Denied::HostMismatch => "host_mismatch",
            Denied::BearerInQuery => "bearer_in_query",
            Denied::SignedTokenAsBearer => "signed_token_as_bearer",
            Denied::KeyCannotRead(_) => "key_cannot_read",
            Denied::KeyCannotIngest(_) => "key_cannot_ingest",
            Denied::UserCannotIngest => "user_cannot_ingest",
            Denied::UserCannotRead(..) => "user_cannot_read",
            Denied::TenantScopedKey(_) => "tenant_scoped_key",
            Denied::ReviewBudgetExceeded(_) => "review_budget_exceeded",
            Denied::ReviewUnavailable => "review_unavailable",
        }
    }
}

/// Returns the credentials that satisfy a requirement.
fn accepted_credentials(requirement: AccessRequirement) -> &'static str {
    match requirement {
        AccessRequirement::RawCredential => {
            "an API key or a Kubernetes token as 'Authorization: Bearer' (session cookies and stream tickets are not \
             accepted here)"
        }
        AccessRequirement::BoilerhouseWs => {
            "an API key or a Kubernetes token as 'Authorization: Bearer', or a session cookie (/ws does not accept \
             stream tickets)"
        }
        AccessRequirement::Probe
        | AccessRequirement::Public
        | AccessRequirement::Aggregates
        | AccessRequirement::Read
        | AccessRequirement::ReadTelemetry
        | AccessRequirement::Ingest
        | AccessRequirement::ReadAllTenants
        | AccessRequirement::Stream
        | AccessRequirement::StreamAllTenants => {
            "an API key or a Kubernetes token as 'Authorization: Bearer', a session cookie, or, on a stream, a stream \
             ticket as ?token="
        }
    }
}
