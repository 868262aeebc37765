//! Who may ask, and what of it they may see.

use jiff::Timestamp;

use super::{denied::Denied, secret::Secret, signed_token::CredentialSubject};
use crate::{event::projection::Scope, http::rate_limit::Caller};

/// What an endpoint asks of whoever comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum AccessRequirement {
    /// Nothing, and as often as they like: probes.
    Probe,
    /// Nothing.
    Public,
    /// Nothing, until keys of tenants exist; then a credential that sees everything: stats and metrics.
    Aggregates,
    /// Nothing, until keys of tenants exist or `--ws-auth` asks for it; then a credential.
    BoilerhouseWs,
    /// A credential that may read.
    Read,
    /// One that sees everything, as pools are counted over all tenants.
    ReadAllTenants,
    /// One that may read; a ticket will do.
    Stream,
    /// An API key or a token itself: sessions and tickets are made of those.
    RawCredential,
}

/// Somebody who may ask.
#[derive(Clone, Debug)]
pub(in crate::http) struct Principal {
    /// Whose budget it is.
    pub(in crate::http) caller: Caller,
    /// What it rests on, and what may be seen.
    pub(super) identity: CredentialIdentity,
    /// When it ends, whatever ends it first.
    pub(super) expires_at: Option<Timestamp>,
}

/// What a principal's rights rest on: looked at again for as long as its streams live.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::http) struct CredentialIdentity {
    /// `None`: nobody in particular.
    pub(super) subject: Option<CredentialSubject>,
    /// The token itself, where it was one.
    pub(super) token: Option<Secret>,
    /// The end of a token, a session or a ticket; a key's own is looked up.
    pub(super) expires_at: Option<Timestamp>,
    pub(super) scope: Scope,
}

impl Principal {
    /// Nobody in particular, where everybody may.
    pub(super) fn anonymous(caller: Caller) -> Principal {
        let identity = CredentialIdentity { subject: None, token: None, expires_at: None, scope: Scope::All };
        Principal { caller, identity, expires_at: None }
    }

    /// What may be seen.
    pub(in crate::http) fn scope(&self) -> &Scope {
        &self.identity.scope
    }

    /// # Errors
    /// Where it does not see enough.
    pub(super) fn authorize(self, requirement: AccessRequirement) -> Result<Principal, Denied> {
        match (requirement, &self.caller, &self.identity.scope) {
            (
                AccessRequirement::ReadAllTenants | AccessRequirement::Aggregates,
                Caller::Key(name),
                Scope::Tenant(_),
            ) => Err(Denied::TenantScopedKey(name.clone())),
            _ => Ok(self),
        }
    }
}
