//! Authentication: turns a request into a principal with a scope, or into the reason why it is denied.
//!
//! A principal's rights are checked at each request and, while its streams are open, by the [`lease`] of its credential.
//!
//! Must not import: an endpoint, HTTP statuses and error bodies (`http::admit` maps [`Denied`] to them), and anything of
//! the cluster (the caller hands in a [`review_cache::ReviewBackend`]).

mod authenticator;
mod credential;
mod denied;
pub mod keys;
mod keys_file;
pub mod lease;
mod principal;
mod requirement;
pub mod review_cache;
pub mod secret;
pub mod signed_token;
pub mod user;
mod watchdog;

pub use self::authenticator::{AuthConfigError, Authenticator, Config, CredentialSources, Metrics};
pub(super) use self::{
    credential::{CredentialContext, TICKET_PARAMS, cookie_name, host},
    denied::Denied,
    principal::Principal,
    requirement::AccessRequirement,
};

#[cfg(test)]
mod tests;
