//! Who may ask, and what of it they may see.

use jiff::Timestamp;

use super::{denied::Refused, secret::Secret, signed_token::Holder};
use crate::{event::projection::Scope, http::rate_limit::Caller};

/// What an endpoint asks of whoever comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Needs {
    /// Nothing, and as often as they like: probes.
    Probe,
    /// Nothing.
    Nothing,
    /// Nothing, until keys of tenants exist; then a credential that sees everything: stats and metrics.
    Counts,
    /// Nothing, until keys of tenants exist or `--ws-auth` asks for it; then a credential.
    Ws,
    /// A credential that may read.
    Read,
    /// One that sees everything, as pools are counted over all tenants.
    Whole,
    /// One that may read; a ticket will do.
    Stream,
    /// An API key or a token itself: sessions and tickets are made of those.
    Bearer,
}

/// Somebody who may ask.
#[derive(Clone, Debug)]
pub(in crate::http) struct Principal {
    /// Whose budget it is.
    pub(in crate::http) caller: Caller,
    /// What it rests on, and what may be seen.
    pub(super) grounds: Grounds,
    /// When it ends, whatever ends it first.
    pub(super) expires_at: Option<Timestamp>,
}

/// What a principal's rights rest on: looked at again for as long as its streams live.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::http) struct Grounds {
    /// `None`: nobody in particular.
    pub(super) holder: Option<Holder>,
    /// The token itself, where it was one.
    pub(super) token: Option<Secret>,
    /// The end of a token, a session or a ticket; a key's own is looked up.
    pub(super) expires_at: Option<Timestamp>,
    pub(super) scope: Scope,
}

impl Principal {
    /// Nobody in particular, where everybody may.
    pub(super) fn anyone(caller: Caller) -> Principal {
        let grounds = Grounds { holder: None, token: None, expires_at: None, scope: Scope::All };
        Principal { caller, grounds, expires_at: None }
    }

    /// What may be seen.
    pub(in crate::http) fn scope(&self) -> &Scope {
        &self.grounds.scope
    }

    /// # Errors
    /// Where it does not see enough.
    pub(super) fn with_rights_for(self, needs: Needs) -> Result<Principal, Refused> {
        match (needs, &self.caller, &self.grounds.scope) {
            (Needs::Whole | Needs::Counts, Caller::Key(name), Scope::Tenant(_)) => {
                Err(Refused::OneTenant(name.clone()))
            }
            _ => Ok(self),
        }
    }
}
