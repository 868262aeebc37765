//! Who asks, and what of it they may see: the one place where a request becomes a principal with a scope.
//!
//! Nothing is trusted for longer than it is true: rights are looked up at each request, and for as long as a stream
//! lives ([`lease`]). It knows no cluster (it is handed [`review_cache::ReviewBackend`]) and no endpoint, only what each needs.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use jiff::Timestamp;
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use thiserror::Error as ThisError;

use super::{
    credential::{self, Credential, CredentialContext},
    denied::Denied,
    keys::{self, ApiKey, ApiKeys, Permission},
    keys_file::KeysFile,
    lease::{CredentialStatus, CredentialWatch, LeaseTable},
    principal::{CredentialIdentity, Principal},
    requirement::AccessRequirement,
    review_cache::{self, ReviewBackend, ReviewCache, ReviewOutcome, ReviewSubject, ReviewUnavailable},
    secret::Secret,
    signed_token::{CredentialSubject, SignedToken, SigningKeyError, TokenPurpose, TokenSigner},
    user::KubernetesUser,
};
use crate::{
    event::projection::Scope,
    http::{caller::Caller, rate_limit::RateBudget},
    wire::CloseReason,
};

/// Bytes of a cookie that every browser takes, name and attributes included (RFC 6265, section 6.1).
const MAX_COOKIE: usize = 4096 - 200;

/// Times of this module.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// `/ws` needs a credential even without tenant keys (`--ws-auth required`).
    pub ws_auth: bool,
    /// So do `/ws`, stats and metrics, because pages of all sites may ask (`CORS_ORIGIN=*`).
    pub require_credentials: bool,
    /// How long a session lasts (docs/protocol.md#access: at most 12 h).
    pub session_lifetime: Duration,
    /// How long a ticket opens streams (docs/protocol.md#access: at most 3600 s).
    pub ticket_lifetime: Duration,
    /// How often the cluster is asked again about those who have streams (docs/protocol.md#access: 20 s).
    pub review_interval: Duration,
    /// How long after a no it is asked once more, before the no counts: 2 s, far past the 100 ms in which an API server that
    /// has just started was seen to refuse people who may, and well within the 30 s in which streams are to end.
    pub denial_confirm_delay: Duration,
    /// How long streams live on while it cannot be asked (docs/protocol.md#access: 5 min), from when `review_interval` should have
    /// had an answer: that long after the last yes.
    pub unreachable_grace: Duration,
    /// How long before its end a stream is told of it (docs/protocol.md#full-stream: 60 s).
    pub expiry_notice: Duration,
    /// How often the time is looked at for those who have streams: 500 ms, as their end may be late by 1 s.
    pub check_interval: Duration,
    /// How often the keys file is read: 2 s, soon enough for a key that has leaked, as a change counts at the second look
    /// that finds the same.
    pub keys_reload_interval: Duration,
    /// What is remembered of the cluster's answers.
    pub reviews: review_cache::Config,
    /// What time it is.
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
            reviews: review_cache::Config::default(),
            clock: Timestamp::now,
        }
    }
}

/// By what a bridge knows those who ask, besides the cluster's tokens ([`Authenticator::with_reviews`]). By nothing: it is open.
#[derive(Debug, Default)]
pub struct CredentialSources {
    /// The one key that may do everything.
    pub environment: Option<Secret>,
    /// The keys file.
    pub file: Option<PathBuf>,
    /// What signs sessions and tickets, the same on every replica; `None`: this process alone knows its own.
    pub signer: Option<TokenSigner>,
}

/// Why a bridge cannot know those who ask.
#[derive(Debug, ThisError)]
pub enum AuthConfigError {
    /// The keys file.
    #[error("the keys file {} cannot be used", .0.display())]
    Keys(PathBuf, #[source] keys::KeysFileError),
    /// No key for sessions.
    #[error("sessions cannot be signed")]
    SigningKey(#[from] SigningKeyError),
}

/// What this module counts.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Credentials that were refused.
    pub refused: Counter,
    /// Streams' credentials that were taken back while they lived.
    pub revoked: Counter,
    /// Versions of the keys file that could not be used.
    pub bad_keys_files: Counter,
}

impl Metrics {
    /// Names them in a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("credentials_refused", "Credentials that were refused", self.refused.clone());
        registry.register("credentials_revoked", "Credentials taken back while they had streams", self.revoked.clone());
        registry.register(
            "keys_file_errors",
            "Versions of the keys file that are not used",
            self.bad_keys_files.clone(),
        );
    }
}

/// Knows those who ask.
#[derive(Debug)]
pub struct Authenticator {
    pub(super) config: Config,
    pub(super) metrics: Metrics,
    /// Whether anybody is known at all: otherwise all may read.
    pub(super) allows_anonymous: bool,
    pub(super) keys: RwLock<Arc<ApiKeys>>,
    pub(super) environment: Option<Secret>,
    pub(super) file: Option<Mutex<KeysFile>>,
    pub(super) reviews: Option<ReviewCache>,
    signer: TokenSigner,
    pub(super) leases: LeaseTable,
}

impl Authenticator {
    /// # Errors
    /// See [`AuthConfigError`].
    pub fn new(config: Config, sources: CredentialSources, metrics: Metrics) -> Result<Authenticator, AuthConfigError> {
        let CredentialSources { environment, file, signer } = sources;
        let allows_anonymous = environment.is_none() && file.is_none();
        let mut keys = ApiKeys::default();
        let file = match file {
            None => None,
            Some(path) => {
                let (file, found) = KeysFile::open(&path).map_err(|error| AuthConfigError::Keys(path, error))?;
                keys = found;
                Some(Mutex::new(file))
            }
        };
        if let Some(secret) = &environment {
            keys = keys.with_environment(secret);
        }
        let signer = signer.map_or_else(TokenSigner::random, Ok)?;
        let (keys, reviews, leases) = (RwLock::new(Arc::new(keys)), None, LeaseTable::default());
        Ok(Authenticator { config, metrics, allows_anonymous, keys, environment, file, reviews, signer, leases })
    }

    /// Knows the cluster's tokens too, and asks about them so. Apart from [`Authenticator::new`], as that tells of mistakes before
    /// there is a cluster to connect to.
    #[must_use]
    pub fn with_reviews(self, reviews: ReviewBackend) -> Authenticator {
        Authenticator { allows_anonymous: false, reviews: Some(ReviewCache::new(self.config.reviews, reviews)), ..self }
    }

    /// Whether all may read.
    #[must_use]
    pub fn allows_anonymous(&self) -> bool {
        self.allows_anonymous
    }

    /// Who asks, if they may.
    ///
    /// # Errors
    /// What they are told.
    pub(crate) async fn authenticate(
        &self,
        requirement: AccessRequirement,
        context: CredentialContext<'_>,
        token_reviews: &RateBudget,
    ) -> Result<Principal, Denied> {
        let address = Caller::address(context.client.address);
        if self.allows_anonymous_for(requirement) {
            return Ok(Principal::anonymous(address));
        }
        let principal = match Credential::of(context, requirement) {
            Ok(credential) => self.identify(credential, context, token_reviews, &address).await,
            Err(denied) => Err(denied),
        };
        let principal = principal.and_then(|principal| authorize(principal, requirement));
        principal.inspect_err(|denied| {
            tracing::debug!(address = %context.client.address, %denied, "refused");
        })
    }

    /// Keeps an eye on a principal for as long as somebody has this; `None` where nothing can ever change.
    pub(crate) fn watch(&self, principal: &Principal) -> Option<CredentialWatch> {
        (!self.allows_anonymous).then(|| self.leases.watch(&principal.identity, |identity| self.status(identity)))
    }

    /// A session cookie or a ticket for a principal, and its end; `None` where it would be too long for a cookie.
    pub(crate) fn issue(
        &self,
        principal: &Principal,
        purpose: TokenPurpose,
        host: &str,
    ) -> Option<(Secret, Timestamp)> {
        let subject = principal.identity.subject.clone()?;
        let lasts = match purpose {
            TokenPurpose::Session => self.config.session_lifetime,
            TokenPurpose::Ticket => self.config.ticket_lifetime,
        };
        let now = (self.config.clock)();
        let end = now.as_second().saturating_add(i64::try_from(lasts.as_secs()).unwrap_or(i64::MAX));
        let end = principal.expires_at.map_or(end, |parent| parent.as_second().min(end));
        let token = SignedToken { purpose, holder: subject, host: host.to_owned(), expires_s: end };
        let text = self.signer.sign(&token);
        (purpose == TokenPurpose::Ticket || text.expose().len() <= MAX_COOKIE).then(|| (text, token.expires_at()))
    }

    /// What time it is.
    pub(crate) fn now(&self) -> Timestamp {
        (self.config.clock)()
    }

    /// How a credential stands by what is known here.
    pub(crate) fn status(&self, identity: &CredentialIdentity) -> CredentialStatus {
        let keys = self.keys();
        let mut end = identity.expires_at;
        let is_valid = match &identity.subject {
            None => self.allows_anonymous || !keys.has_tenants(),
            Some(CredentialSubject::User(_)) => true,
            Some(CredentialSubject::Key(name, key_id)) => {
                let key = self.find_signed_key(&keys, name, key_id);
                end = end.into_iter().chain(key.and_then(|key| key.expires_at)).min();
                key.is_some_and(|key| key.allows(Permission::Read) && scope(key) == identity.scope)
            }
        };
        let now = self.now();
        match end {
            _ if !is_valid => CredentialStatus::Ended(CloseReason::AccessRevoked),
            Some(end) if end <= now => CredentialStatus::Ended(CloseReason::CredentialExpired),
            Some(end) if now.saturating_add(self.config.expiry_notice).is_ok_and(|soon| end <= soon) => {
                CredentialStatus::Expiring(end)
            }
            _ => CredentialStatus::Valid,
        }
    }

    fn allows_anonymous_for(&self, requirement: AccessRequirement) -> bool {
        let tenants = || self.config.require_credentials || self.keys().has_tenants();
        match requirement {
            AccessRequirement::Probe | AccessRequirement::Public => true,
            AccessRequirement::Aggregates => self.allows_anonymous || !tenants(),
            AccessRequirement::BoilerhouseWs => !self.config.ws_auth && (self.allows_anonymous || !tenants()),
            AccessRequirement::Read
            | AccessRequirement::ReadAllTenants
            | AccessRequirement::Stream
            | AccessRequirement::RawCredential => self.allows_anonymous,
        }
    }

    async fn identify(
        &self,
        credential: Credential,
        context: CredentialContext<'_>,
        token_reviews: &RateBudget,
        address: &Caller,
    ) -> Result<Principal, Denied> {
        let (text, purpose) = match credential {
            Credential::Bearer(secret) => return self.authenticate_bearer(secret, token_reviews, address).await,
            Credential::Cookie(text) => (text, TokenPurpose::Session),
            Credential::Ticket(text) => (text, TokenPurpose::Ticket),
        };
        let token = self.signer.verify(text.expose(), purpose).ok_or_else(|| match purpose {
            TokenPurpose::Ticket if !TokenSigner::is_signed_token(text.expose()) => Denied::BearerInQuery,
            TokenPurpose::Ticket | TokenPurpose::Session => Denied::Unknown,
        })?;
        if purpose == TokenPurpose::Session && token.host != credential::host(context.headers) {
            return Err(Denied::HostMismatch);
        }
        let expires_at = Some(token.expires_at());
        match token.holder {
            CredentialSubject::Key(name, key_id) => {
                let keys = self.keys();
                let key = self.find_signed_key(&keys, &name, &key_id).ok_or(Denied::Unknown)?;
                self.key(key, expires_at)
            }
            CredentialSubject::User(user) => {
                let outcome = self.review(&ReviewSubject::User(user)).await?;
                self.user(outcome, None, expires_at)
            }
        }
    }

    async fn authenticate_bearer(
        &self,
        secret: Secret,
        token_reviews: &RateBudget,
        address: &Caller,
    ) -> Result<Principal, Denied> {
        if let Some(key) = self.keys().find(&secret) {
            return self.key(key, None);
        }
        if TokenSigner::is_signed_token(secret.expose()) {
            return Err(Denied::SignedTokenAsBearer);
        }
        let Some(reviews) = &self.reviews else { return Err(Denied::Unknown) };
        let subject = ReviewSubject::Token(secret.clone());
        let outcome = match reviews.cached(&subject) {
            Some(outcome) => outcome,
            None => {
                // Whoever guesses shall not keep the API server busy, nor those out who came in from the same address before.
                if !reviews.was_authenticated(&subject) {
                    token_reviews.check(address).map_err(Denied::ReviewBudgetExceeded)?;
                }
                let outcome = self.review(&subject).await?;
                if outcome == ReviewOutcome::Unknown {
                    // That it has been asked about cannot be undone where this is one too many.
                    let _ = token_reviews.consume(address);
                }
                outcome
            }
        };
        let expires_at = review_cache::jwt_expiry(&secret);
        self.user(outcome, Some(secret), expires_at)
    }

    async fn review(&self, subject: &ReviewSubject) -> Result<ReviewOutcome, Denied> {
        let reviews = self.reviews.as_ref().ok_or(Denied::Unknown)?;
        reviews.get(subject).await.map_err(|ReviewUnavailable| Denied::ReviewUnavailable)
    }

    fn key(&self, key: &ApiKey, expires_at: Option<Timestamp>) -> Result<Principal, Denied> {
        let end = expires_at.into_iter().chain(key.expires_at).min();
        self.check_expiry(end)?;
        if !key.allows(Permission::Read) {
            return Err(Denied::KeyCannotRead(key.name.clone()));
        }
        let subject = Some(CredentialSubject::Key(key.name.clone(), self.signer.key_id(&key.fingerprint)));
        let identity = CredentialIdentity { subject, token: None, expires_at, scope: scope(key) };
        Ok(Principal { caller: Caller::Key(key.name.clone()), identity, expires_at: end })
    }

    fn user(
        &self,
        outcome: ReviewOutcome,
        token: Option<Secret>,
        expires_at: Option<Timestamp>,
    ) -> Result<Principal, Denied> {
        let user: Arc<KubernetesUser> = match outcome {
            ReviewOutcome::Unknown => return Err(Denied::Unknown),
            ReviewOutcome::Denied(user, what) => return Err(Denied::UserCannotRead(user.name.clone(), what)),
            ReviewOutcome::Allowed(user) => user,
        };
        self.check_expiry(expires_at)?;
        let caller = Caller::User(user.name.as_str().into());
        let identity =
            CredentialIdentity { subject: Some(CredentialSubject::User(user)), token, expires_at, scope: Scope::All };
        Ok(Principal { caller, identity, expires_at })
    }

    /// The key of this name, if it is still the one that the seal called so.
    fn find_signed_key<'a>(&self, keys: &'a ApiKeys, name: &str, key_id: &str) -> Option<&'a ApiKey> {
        keys.named(name).filter(|key| *self.signer.key_id(&key.fingerprint) == *key_id)
    }

    fn check_expiry(&self, expires_at: Option<Timestamp>) -> Result<(), Denied> {
        if expires_at.is_some_and(|end| end <= self.now()) { Err(Denied::Expired) } else { Ok(()) }
    }

    fn keys(&self) -> Arc<ApiKeys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What a key sees.
fn scope(key: &ApiKey) -> Scope {
    key.tenant.clone().map_or(Scope::All, Scope::Tenant)
}

/// # Errors
/// Where it does not see enough.
fn authorize(principal: Principal, requirement: AccessRequirement) -> Result<Principal, Denied> {
    match (requirement, &principal.caller, &principal.identity.scope) {
        (
            AccessRequirement::ReadAllTenants | AccessRequirement::Aggregates,
            Caller::Key(name),
            Scope::Tenant(_),
        ) => Err(Denied::TenantScopedKey(name.clone())),
        _ => Ok(principal),
    }
}
