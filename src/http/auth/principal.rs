//! Who may ask, and what of it they may see.

use jiff::Timestamp;

use super::{secret::Secret, signed_token::CredentialSubject};
use crate::{event::projection::Scope, http::caller::Caller};

/// Somebody who may ask.
#[derive(Clone, Debug)]
pub(crate) struct Principal {
    /// Whose budget it is.
    pub(crate) caller: Caller,
    /// What it rests on, and what may be seen.
    pub(super) identity: CredentialIdentity,
    /// When it ends, whatever ends it first.
    pub(super) expires_at: Option<Timestamp>,
}

/// What a principal's rights rest on: looked at again for as long as its streams live.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CredentialIdentity {
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
    pub(crate) fn scope(&self) -> &Scope {
        &self.identity.scope
    }
}
