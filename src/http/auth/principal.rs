//! The authenticated or anonymous caller, with its scope.
//!
//! Must not import: any sibling except `secret` and `signed_token`.

use jiff::Timestamp;

use super::{secret::Secret, signed_token::CredentialSubject};
use crate::{event::projection::Scope, http::caller::Caller};

/// The caller of an admitted request.
#[derive(Clone, Debug)]
pub(crate) struct Principal {
    /// The identity that budgets are counted for.
    pub(crate) caller: Caller,
    /// The credential on which the rights are based, and the scope.
    pub(super) identity: CredentialIdentity,
    /// The earliest expiry of the key, token, session cookie or stream ticket.
    pub(super) expires_at: Option<Timestamp>,
    /// What the principal may do.
    pub(super) access: Access,
}

/// What a principal may do with what is in its scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    /// Read snapshots and streams.
    pub(super) read: bool,
    /// Post telemetry.
    pub(super) ingest: bool,
}

/// The credential on which the rights of a principal are based. It is checked repeatedly while streams of the principal
/// are open.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CredentialIdentity {
    /// `None` for an anonymous principal.
    pub(super) subject: Option<CredentialSubject>,
    /// The Kubernetes token, if the principal presented one.
    pub(super) token: Option<Secret>,
    /// The expiry of a token, a session cookie or a stream ticket. The expiry of a key is read from the current keys.
    pub(super) expires_at: Option<Timestamp>,
    /// What the principal may read.
    pub(super) scope: Scope,
}

impl Principal {
    /// Returns the principal of a request that needs no credential.
    pub(super) fn anonymous(caller: Caller) -> Principal {
        let identity = CredentialIdentity { subject: None, token: None, expires_at: None, scope: Scope::All };
        Principal { caller, identity, expires_at: None, access: Access { read: true, ingest: true } }
    }

    /// Returns whether the principal has presented no credential.
    pub(crate) fn is_anonymous(&self) -> bool {
        self.identity.subject.is_none()
    }

    /// Returns what the principal may read.
    pub(crate) fn scope(&self) -> &Scope {
        &self.identity.scope
    }
}
