//! The configuration of authentication: rules, times and credentials.
//!
//! Must not import: any sibling except `keys`, `review_cache`, `secret` and `signed_token`.
//!
//! Specification: docs/protocol.md#access.

use std::{path::PathBuf, time::Duration};

use jiff::Timestamp;
use thiserror::Error as ThisError;

use super::{
    keys, review_cache,
    secret::Secret,
    signed_token::{SigningKeyError, TokenSigner},
};

/// Rules and times of authentication.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// `/ws` needs a credential also without tenant keys (`--ws-auth required`).
    pub ws_auth: bool,
    /// `/ws`, stats and metrics need a credential also without tenant keys, because pages of every site can send
    /// requests (`CORS_ORIGIN=*`).
    pub require_credentials: bool,
    /// Lifetime of a session cookie (docs/protocol.md#access: at most 12 h).
    pub session_lifetime: Duration,
    /// Lifetime of a stream ticket (docs/protocol.md#access: at most 3600 s).
    pub ticket_lifetime: Duration,
    /// Time between two reviews of a user with open streams (docs/protocol.md#access: 20 s).
    pub review_interval: Duration,
    /// Delay between a denial and the review that confirms it (docs/protocol.md#access: 2 s). An API server that had
    /// just started was observed to deny existing rights for 100 ms. Streams must end within 30 s of a revocation.
    pub denial_confirm_delay: Duration,
    /// Time that streams continue without an answer to reviews (docs/protocol.md#access: 5 min). It starts
    /// `review_interval` after the last approval.
    pub unreachable_grace: Duration,
    /// Time between `auth.expiring` and the expiry of the credential (docs/protocol.md#full-stream: 60 s).
    pub expiry_notice: Duration,
    /// Time between two checks of the leases: 500 ms, because a stream may end at most 1 s after the expiry.
    pub check_interval: Duration,
    /// Time between two reads of the keys file: 2 s. A change takes effect at the second read with the same content, so
    /// a leaked key can be revoked within 5 s (docs/protocol.md#access).
    pub keys_reload_interval: Duration,
    /// Time after which a read of the keys file that has not ended is reported: 5 s. The read continues.
    pub keys_read_timeout: Duration,
    /// Times and bounds of the review cache.
    pub reviews: review_cache::Config,
    /// Returns the current time.
    pub clock: fn() -> Timestamp,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            ws_auth: false,
            require_credentials: false,
            session_lifetime: Duration::from_secs(12 * 3600),
            ticket_lifetime: Duration::from_secs(3600),
            review_interval: Duration::from_secs(20),
            denial_confirm_delay: Duration::from_secs(2),
            unreachable_grace: Duration::from_secs(300),
            expiry_notice: Duration::from_secs(60),
            check_interval: Duration::from_millis(500),
            keys_reload_interval: Duration::from_secs(2),
            keys_read_timeout: Duration::from_secs(5),
            reviews: review_cache::Config::default(),
            clock: Timestamp::now,
        }
    }
}

/// The configured credentials, except Kubernetes tokens (`Authenticator::with_reviews`). Without any, the bridge is
/// open.
#[derive(Debug, Default)]
pub struct CredentialSources {
    /// The API key of the environment. It has all permissions for all tenants.
    pub environment: Option<Secret>,
    /// The path of the keys file.
    pub file: Option<PathBuf>,
    /// Signs session cookies and tickets, with the same key on every replica. `None` draws a random key for this
    /// process.
    pub signer: Option<TokenSigner>,
}

/// Why an authenticator cannot be created.
#[derive(Debug, ThisError)]
pub enum AuthConfigError {
    /// The keys file cannot be read or is invalid.
    #[error("the keys file {} cannot be used", .0.display())]
    Keys(PathBuf, #[source] keys::KeysFileError),
    /// There is no signing key.
    #[error("session cookies and stream tickets cannot be signed")]
    SigningKey(#[from] SigningKeyError),
}
