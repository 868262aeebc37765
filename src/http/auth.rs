//! Authentication: turns a request into a principal with a scope, or into the reason why it is denied.
//!
//! Owns: the API keys, the cache of reviews, the key that signs session cookies and stream tickets, and the leases of
//! credentials with open streams.
//!
//! Guarantees:
//! - The rights of a principal are checked at each request, and repeatedly while its streams are open ([`lease`]).
//! - No log, error or `Debug` output contains a credential.
//!
//! Must not import: an endpoint; HTTP statuses and error bodies (`http::admit` maps `Denied` to them); any Kubernetes
//! client (the caller provides a [`review_cache::ReviewBackend`]).
//!
//! Specification: docs/protocol.md#access.

mod authenticator;
mod config;
mod credential;
mod denied;
pub mod keys;
mod keys_file;
pub mod lease;
mod metrics;
mod principal;
mod requirement;
pub mod review_cache;
mod review_metrics;
pub mod secret;
pub mod signed_token;
pub mod user;
mod watchdog;

pub use self::{
    authenticator::Authenticator,
    config::{AuthConfigError, Config, CredentialSources},
    keys_file::MAX_KEYS_FILE_BYTES,
    metrics::Metrics,
};
pub(super) use self::{
    credential::{CredentialContext, TICKET_PARAMS, cookie_name, host},
    denied::Denied,
    principal::Principal,
    requirement::AccessRequirement,
};

#[cfg(test)]
mod tests;
