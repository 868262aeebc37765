//! Who may not ask, and how they are told.

use std::sync::Arc;

use http::{HeaderValue, header};
use thiserror::Error as ThisError;

use super::{Auth, Needs};
use crate::http::{
    error::{Code, Error},
    rate_limit::{Caller, Limits, Spent},
    unavailable::Later,
};

/// Said to whoever has tried too many credentials that are none.
const TOO_MANY: &str = "too many refused credentials";

/// Why somebody may not ask, in words for the one who does.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
pub(super) enum Refused {
    #[error("a credential is needed: {}", takes(*.0))]
    Missing(Needs),
    #[error("the Authorization header must be 'Bearer' and one credential, once")]
    Malformed,
    #[error("the credential is not known here")]
    Unknown,
    #[error("the credential has expired")]
    Expired,
    #[error("the session is of another host: sign in at this one")]
    OtherHost,
    #[error(
        "only a stream ticket may stand in the query, and POST /api/v1/tickets gives one: send keys and tokens as \
         'Authorization: Bearer'"
    )]
    InQuery,
    #[error("a session or a ticket is no Bearer: tickets open streams, as ?token=")]
    PassAsBearer,
    #[error("the key '{0}' may not read: its access does not include it")]
    NoRead(Arc<str>),
    #[error("user '{0}' may not {1}: both list and watch on pods and boilerhouseclaims are needed")]
    MayNot(String, Arc<str>),
    #[error("the key '{0}' sees one tenant only, and this endpoint shows all")]
    OneTenant(Arc<str>),
    #[error("too many tokens that are nobody's came from this address to ask about another one")]
    NotAsked(Spent),
    #[error("the cluster cannot be asked about the credential")]
    Unchecked,
}

/// How a request that is not admitted is answered.
#[derive(Debug)]
pub(in crate::http) enum Refusal {
    /// It stays so.
    No(Error),
    /// It passes by itself.
    Later(Later),
}

/// What will do where nothing was presented.
fn takes(needs: Needs) -> &'static str {
    match needs {
        Needs::Bearer => "'Authorization: Bearer' with an API key or a Kubernetes token; no session or ticket will do",
        Needs::Ws => {
            "'Authorization: Bearer' with an API key or a Kubernetes token, or a session cookie; a ticket opens the other \
             streams, not /ws"
        }
        Needs::Probe | Needs::Nothing | Needs::Counts | Needs::Read | Needs::Whole | Needs::Stream => {
            "'Authorization: Bearer' with an API key or a Kubernetes token, a session cookie, or, on streams, a ticket as \
             ?token="
        }
    }
}

impl Auth {
    /// How somebody is told. Whoever tried a credential that is none has used one of a few tries.
    pub(super) fn refusal(&self, refused: &Refused, limits: &Limits, address: &Caller) -> Refusal {
        let challenge = |error: &'static str| {
            Error::new(Code::Unauthorized, refused.to_string())
                .with(header::WWW_AUTHENTICATE, HeaderValue::from_static(error))
        };
        match refused {
            Refused::Unchecked => Refusal::Later(Later::Unchecked),
            Refused::NoRead(_) | Refused::MayNot(..) | Refused::OneTenant(_) => {
                Refusal::No(Error::new(Code::Forbidden, refused.to_string()))
            }
            Refused::NotAsked(spent) => {
                self.metrics.refused.inc();
                Refusal::No(spent.refusal(TOO_MANY))
            }
            // Nothing was tried.
            Refused::Missing(_) => Refusal::No(challenge(r#"Bearer realm="boilerhouse-bridge""#)),
            Refused::Malformed
            | Refused::Unknown
            | Refused::Expired
            | Refused::OtherHost
            | Refused::InQuery
            | Refused::PassAsBearer => {
                self.metrics.refused.inc();
                Refusal::No(match limits.refusals.take(address) {
                    Ok(_) => challenge(r#"Bearer realm="boilerhouse-bridge", error="invalid_token""#),
                    Err(spent) => spent.refusal(TOO_MANY),
                })
            }
        }
    }
}
