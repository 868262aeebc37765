//! Who may not ask, and how they are told.

use std::sync::Arc;

use thiserror::Error as ThisError;

use super::requirement::AccessRequirement;
use crate::http::rate_limit::BudgetStatus;

/// Why somebody may not ask, in words for the one who does.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
pub(crate) enum Denied {
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
