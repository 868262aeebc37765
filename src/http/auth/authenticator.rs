//! The authenticator: the only place where a request becomes a principal with a scope.
//!
//! Owns: the current API keys, the cache of reviews, the signer of session cookies and stream tickets, and the leases.
//!
//! Guarantees:
//! - The rights of a principal are read from the current keys or from a review at each request. They are never taken
//!   from a session cookie or a ticket.
//! - The review of a token that no review has accepted before takes one use of the address's budget of token reviews. The
//!   use is given back if the API server accepts the token. An exhausted budget does not block tokens that were accepted
//!   before.
//!
//! Must not import: an endpoint, a Kubernetes client (the caller provides a [`review_cache::ReviewBackend`]).
//!
//! Specification: docs/protocol.md#access.

use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;

use super::{
    config::{AuthConfigError, Config, CredentialSources},
    credential::{self, Credential, CredentialContext},
    denied::Denied,
    keys::{ApiKey, ApiKeys, Permission},
    keys_file::KeysFile,
    lease::{CredentialStatus, CredentialWatch, LeaseTable},
    metrics::Metrics,
    principal::{Access, CredentialIdentity, Principal},
    requirement::AccessRequirement,
    review_cache::{self, ReviewBackend, ReviewCache, ReviewOutcome, ReviewSubject},
    review_metrics,
    secret::Secret,
    signed_token::{CredentialSubject, SignedToken, TokenPurpose, TokenSigner},
    user::KubernetesUser,
};
use crate::{
    event::projection::Scope,
    http::{caller::Caller, rate_limit::RateBudget},
    wire::CloseReason,
};

/// Maximum number of bytes of a session cookie's value. Every browser accepts 4096 bytes including name and attributes
/// (RFC 6265, section 6.1), for which 200 bytes are reserved.
const MAX_COOKIE: usize = 4096 - 200;

/// Authenticates requests, issues session cookies and tickets, and observes the credentials of open streams.
#[derive(Debug)]
pub struct Authenticator {
    pub(super) config: Config,
    pub(super) metrics: Metrics,
    /// Whether no credential is configured, so that every client may read.
    pub(super) allows_anonymous: bool,
    pub(super) keys: RwLock<Arc<ApiKeys>>,
    pub(super) environment: Option<Secret>,
    /// Shared with the blocking thread that reads the file.
    pub(super) file: Option<Arc<KeysFile>>,
    pub(super) reviews: Option<ReviewCache>,
    signer: TokenSigner,
    pub(super) leases: LeaseTable,
}

impl Authenticator {
    /// Creates an authenticator for API keys.
    ///
    /// # Errors
    /// See [`AuthConfigError`].
    pub fn new(config: Config, sources: CredentialSources, metrics: Metrics) -> Result<Authenticator, AuthConfigError> {
        let CredentialSources { environment, file, signer } = sources;
        let allows_anonymous = environment.is_none() && file.is_none();
        let mut keys = ApiKeys::default();
        let file = match file {
            None => None,
            Some(path) => {
                let (file, parsed) = KeysFile::open(&path).map_err(|error| AuthConfigError::Keys(path, error))?;
                keys = parsed;
                Some(Arc::new(file))
            }
        };
        if let Some(secret) = &environment {
            keys = keys.with_environment(secret);
        }
        let signer = signer.map_or_else(TokenSigner::random, Ok)?;
        metrics.set_keys(keys.len());
        let (keys, reviews, leases) = (RwLock::new(Arc::new(keys)), None, LeaseTable::default());
        Ok(Authenticator { config, metrics, allows_anonymous, keys, environment, file, reviews, signer, leases })
    }

    /// Adds Kubernetes tokens as credentials. It is separate from [`Authenticator::new`], which reports mistakes of the
    /// configuration before the bridge connects to a cluster.
    #[must_use]
    pub fn with_reviews(self, reviews: ReviewBackend) -> Authenticator {
        let reviews = review_metrics::measure(reviews, &self.metrics);
        Authenticator { allows_anonymous: false, reviews: Some(ReviewCache::new(self.config.reviews, reviews)), ..self }
    }

    /// Returns whether no credential is configured, so that every client may read.
    #[must_use]
    pub fn allows_anonymous(&self) -> bool {
        self.allows_anonymous
    }

    /// Authenticates and authorizes a request.
    ///
    /// `address` is the caller of a request without a credential. Denials count for it too. The call can wait for a review:
    /// for at most `queue_timeout` and the timeout of the [`ReviewBackend`].
    ///
    /// # Errors
    /// [`Denied`] if the credential does not satisfy `requirement`, or if its review fails.
    pub(crate) async fn authenticate(
        &self,
        requirement: AccessRequirement,
        context: CredentialContext<'_>,
        address: &Caller,
        token_reviews: &RateBudget,
    ) -> Result<Principal, Denied> {
        if self.allows_anonymous_for(requirement) {
            return Ok(Principal::anonymous(address.clone()));
        }
        let principal = self.identify_request(requirement, context, address, token_reviews).await;
        let principal = principal.and_then(|principal| authorize(principal, requirement));
        principal.inspect_err(|denied| {
            self.metrics.count_denied(denied.label());
            tracing::debug!(address = %context.client.address, %denied, "request denied");
        })
    }

    /// Returns the principal of the credential that a request presents, also where none is required. It does not check that
    /// the scope of the principal satisfies `requirement`, and can wait as [`Authenticator::authenticate`].
    ///
    /// # Errors
    /// [`Denied`] without a credential that permits to read, or to ingest where `requirement` says so.
    pub(crate) async fn identify_request(
        &self,
        requirement: AccessRequirement,
        context: CredentialContext<'_>,
        address: &Caller,
        token_reviews: &RateBudget,
    ) -> Result<Principal, Denied> {
        let credential = Credential::of(context, requirement)?;
        let principal = self.identify(credential, context, token_reviews, address).await?;
        let Access { read, ingest } = principal.access;
        match (&principal.caller, requirement) {
            (_, AccessRequirement::Ingest) if ingest => Ok(principal),
            (Caller::Key(name), AccessRequirement::Ingest) => Err(Denied::KeyCannotIngest(name.clone())),
            (_, AccessRequirement::Ingest) => Err(Denied::UserCannotIngest),
            (Caller::Key(name), _) if !read => Err(Denied::KeyCannotRead(name.clone())),
            _ => Ok(principal),
        }
    }

    /// Observes the credential of a principal while the result exists. Returns `None` on an open bridge, where rights
    /// never change.
    pub(crate) fn watch(&self, principal: &Principal) -> Option<CredentialWatch> {
        (!self.allows_anonymous).then(|| self.leases.watch(&principal.identity, |identity| self.status(identity)))
    }

    /// Returns a session cookie or a ticket for a principal, and its expiry. Returns `None` for an anonymous principal,
    /// and if the cookie would be longer than [`MAX_COOKIE`].
    pub(crate) fn issue(
        &self,
        principal: &Principal,
        purpose: TokenPurpose,
        host: &str,
    ) -> Option<(Secret, Timestamp)> {
        let subject = principal.identity.subject.clone()?;
        let lifetime = match purpose {
            TokenPurpose::Session => self.config.session_lifetime,
            TokenPurpose::Ticket => self.config.ticket_lifetime,
        };
        let now = (self.config.clock)();
        let end = now.as_second().saturating_add(i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX));
        let end = principal.expires_at.map_or(end, |parent| parent.as_second().min(end));
        let token = SignedToken { purpose, holder: subject, host: host.to_owned(), expires_s: end };
        let text = self.signer.sign(&token);
        (purpose == TokenPurpose::Ticket || text.expose().len() <= MAX_COOKIE).then(|| (text, token.expires_at()))
    }

    /// Updates the gauges that are counted when the metrics are read: leases and cached reviews.
    pub(crate) fn update_gauges(&self) {
        self.metrics.set_gauges(self.leases.len(), self.reviews.as_ref().map_or(0, ReviewCache::len));
    }

    /// Returns the current time.
    pub(crate) fn now(&self) -> Timestamp {
        (self.config.clock)()
    }

    /// Returns the status of a credential by its expiry and the current keys, without a review.
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
            Some(end) if now.saturating_add(self.config.expiry_notice).is_ok_and(|notice_end| end <= notice_end) => {
                CredentialStatus::Expiring(end)
            }
            _ => CredentialStatus::Valid,
        }
    }

    /// Returns whether a requirement is satisfied without a credential.
    fn allows_anonymous_for(&self, requirement: AccessRequirement) -> bool {
        let restricted = || self.config.require_credentials || self.keys().has_tenants();
        match requirement {
            AccessRequirement::Probe | AccessRequirement::Public => true,
            AccessRequirement::Aggregates => self.allows_anonymous || !restricted(),
            AccessRequirement::BoilerhouseWs => !self.config.ws_auth && (self.allows_anonymous || !restricted()),
            AccessRequirement::Read
            | AccessRequirement::ReadAllTenants
            | AccessRequirement::Stream
            | AccessRequirement::StreamAllTenants
            | AccessRequirement::ReadTelemetry
            | AccessRequirement::Ingest
            | AccessRequirement::RawCredential => self.allows_anonymous,
        }
    }

    /// Returns the principal of a credential.
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
                self.principal_of_key(key, expires_at)
            }
            CredentialSubject::User(user) => {
                let outcome = self.review_user(user).await?;
                self.principal_of_user(outcome, None, expires_at)
            }
        }
    }

    /// Returns the principal of an API key or a Kubernetes token.
    async fn authenticate_bearer(
        &self,
        secret: Secret,
        token_reviews: &RateBudget,
        address: &Caller,
    ) -> Result<Principal, Denied> {
        if let Some(key) = self.keys().find(&secret) {
            return self.principal_of_key(key, None);
        }
        if TokenSigner::is_signed_token(secret.expose()) {
            return Err(Denied::SignedTokenAsBearer);
        }
        let Some(reviews) = &self.reviews else { return Err(Denied::Unknown) };
        let subject = ReviewSubject::Token(secret.clone());
        let outcome = match reviews.cached(&subject) {
            Some(outcome) => outcome,
            None => self.review_token(reviews, &subject, token_reviews, address).await?,
        };
        let expires_at = review_cache::jwt_expiry(&secret);
        self.principal_of_user(outcome, Some(secret), expires_at)
    }

    /// Reviews a token. A use of the budget is taken before the review and given back if the API server accepts the token,
    /// so that parallel guesses cause no more reviews than the budget has.
    async fn review_token(
        &self,
        reviews: &ReviewCache,
        subject: &ReviewSubject,
        token_reviews: &RateBudget,
        address: &Caller,
    ) -> Result<ReviewOutcome, Denied> {
        // The budget does not apply to tokens that were accepted before, so that guesses do not block other clients of the
        // same address.
        if reviews.was_authenticated(subject) {
            return reviews.get(subject, || Ok(())).await;
        }
        // With an exhausted budget, a guess does not delay the reviews of others.
        token_reviews.check(address).map_err(Denied::ReviewBudgetExceeded)?;
        let mut reservation = None;
        let reserve = || {
            reservation = Some(token_reviews.reserve(address).map_err(Denied::ReviewBudgetExceeded)?);
            Ok::<_, Denied>(())
        };
        let outcome = reviews.get(subject, reserve).await?;
        if let Some(reservation) = reservation.filter(|_| outcome != ReviewOutcome::Unknown) {
            reservation.give_back();
        }
        Ok(outcome)
    }

    /// Returns the cached or new outcome of a review of a user.
    async fn review_user(&self, user: Arc<KubernetesUser>) -> Result<ReviewOutcome, Denied> {
        let reviews = self.reviews.as_ref().ok_or(Denied::Unknown)?;
        reviews.get(&ReviewSubject::User(user), || Ok(())).await
    }

    /// Returns the principal of an API key. `expires_at` is the expiry of the cookie or ticket that names the key.
    fn principal_of_key(&self, key: &ApiKey, expires_at: Option<Timestamp>) -> Result<Principal, Denied> {
        let end = expires_at.into_iter().chain(key.expires_at).min();
        self.check_expiry(end)?;
        let subject = Some(CredentialSubject::Key(key.name.clone(), self.signer.key_id(&key.fingerprint)));
        let identity = CredentialIdentity { subject, token: None, expires_at, scope: scope(key) };
        let access = Access { read: key.allows(Permission::Read), ingest: key.allows(Permission::Ingest) };
        Ok(Principal { caller: Caller::Key(key.name.clone()), identity, expires_at: end, access })
    }

    /// Returns the principal of a reviewed user.
    fn principal_of_user(
        &self,
        outcome: ReviewOutcome,
        token: Option<Secret>,
        expires_at: Option<Timestamp>,
    ) -> Result<Principal, Denied> {
        let user: Arc<KubernetesUser> = match outcome {
            ReviewOutcome::Unknown => return Err(Denied::Unknown),
            ReviewOutcome::Denied(user, right) => return Err(Denied::UserCannotRead(user.name.clone(), right)),
            ReviewOutcome::Allowed(user) => user,
        };
        self.check_expiry(expires_at)?;
        let caller = Caller::User(user.name.as_str().into());
        let identity =
            CredentialIdentity { subject: Some(CredentialSubject::User(user)), token, expires_at, scope: Scope::All };
        Ok(Principal { caller, identity, expires_at, access: Access { read: true, ingest: false } })
    }

    /// Returns the key with this name, if it is the key for which the cookie or ticket was issued.
    fn find_signed_key<'a>(&self, keys: &'a ApiKeys, name: &str, key_id: &str) -> Option<&'a ApiKey> {
        keys.named(name).filter(|key| *self.signer.key_id(&key.fingerprint) == *key_id)
    }

    /// # Errors
    /// [`Denied::Expired`] from `expires_at` on.
    fn check_expiry(&self, expires_at: Option<Timestamp>) -> Result<(), Denied> {
        if expires_at.is_some_and(|end| end <= self.now()) { Err(Denied::Expired) } else { Ok(()) }
    }

    fn keys(&self) -> Arc<ApiKeys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Returns the scope of a key.
fn scope(key: &ApiKey) -> Scope {
    key.tenant.clone().map_or(Scope::All, Scope::Tenant)
}

/// Checks that the scope of a principal satisfies a requirement.
///
/// # Errors
/// [`Denied::TenantScopedKey`] for a tenant key where a credential for all tenants is required.
fn authorize(principal: Principal, requirement: AccessRequirement) -> Result<Principal, Denied> {
    let for_all_tenants = matches!(
        requirement,
        AccessRequirement::ReadAllTenants | AccessRequirement::StreamAllTenants | AccessRequirement::Aggregates
    );
    match (&principal.caller, &principal.identity.scope) {
        (Caller::Key(name), Scope::Tenant(_)) if for_all_tenants => Err(Denied::TenantScopedKey(name.clone())),
        _ => Ok(principal),
    }
}
