//! Who asks, and what of it they may see: the one place where a request becomes a principal with a scope.
//!
//! Nothing is trusted for longer than it is true: rights are looked up at each request, and for as long as a stream
//! lives ([`lease`]). It knows no cluster (it is handed [`verdict::Reviews`]) and no endpoint, only what each needs.

mod credential;
mod denied;
pub mod keys;
mod keys_file;
pub mod lease;
mod principal;
pub mod review_cache;
pub mod secret;
pub mod signed_token;
mod watchdog;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use http::HeaderMap;
use jiff::Timestamp;
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use thiserror::Error as ThisError;

use self::{
    credential::Presented,
    denied::Refused,
    keys::{Access, Key, Keys},
    keys_file::KeysFile,
    lease::{Hold, Leases},
    principal::Grounds,
    review_cache::{Reviews, Subject, Unavailable, Verdict, Verdicts},
    secret::Secret,
    signed_token::{BadKey, Holder, Pass, Purpose, Seal, User},
};
pub(super) use self::{
    credential::{TICKETS, cookie_name, host},
    denied::Refusal,
    principal::{Needs, Principal},
};
use super::{
    forwarded::Came,
    rate_limit::{Caller, Limits},
};
use crate::event::projection::Scope;

/// A session cookie's name over https: browsers keep such a one from being set by anybody but this very host (RFC 6265bis,
/// "__Host-").
const SECURE_COOKIE: &str = "__Host-boilerhouse_bridge";
/// Its name over http on loopback.
const PLAIN_COOKIE: &str = "boilerhouse_bridge";
/// Bytes of a cookie that every browser takes, name and attributes included (RFC 6265, section 6.1).
const MAX_COOKIE: usize = 4096 - 200;

/// Times of this module.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// `/ws` needs a credential even without tenant keys (`--ws-auth required`).
    pub ws_auth: bool,
    /// So do `/ws`, stats and metrics, because pages of all sites may ask (`CORS_ORIGIN=*`).
    pub closed: bool,
    /// How long a session lasts (protocol.md section 7: at most 12 h).
    pub session: Duration,
    /// How long a ticket opens streams (protocol.md section 7: at most 3600 s).
    pub ticket: Duration,
    /// How often the cluster is asked again about those who have streams (protocol.md section 7: 20 s).
    pub recheck: Duration,
    /// How long after a no it is asked once more, before the no counts: 2 s, far past the 100 ms in which an API server that
    /// has just started was seen to refuse people who may, and well within the 30 s in which streams are to end.
    pub confirm: Duration,
    /// How long streams live on while it cannot be asked (protocol.md section 7: 5 min), from when `recheck` should have
    /// had an answer: that long after the last yes.
    pub unreachable: Duration,
    /// How long before its end a stream is told of it (protocol.md section 3: 60 s).
    pub expiring: Duration,
    /// How often the time is looked at for those who have streams: 500 ms, as their end may be late by 1 s.
    pub tick: Duration,
    /// How often the keys file is read: 2 s, soon enough for a key that has leaked, as a change counts at the second look
    /// that finds the same.
    pub reread: Duration,
    /// What is remembered of the cluster's answers.
    pub verdicts: review_cache::Config,
    /// What time it is.
    pub clock: fn() -> Timestamp,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            ws_auth: false,
            closed: false,
            session: Duration::from_secs(12 * 3600),
            ticket: Duration::from_secs(3600),
            recheck: Duration::from_secs(20),
            confirm: Duration::from_secs(2),
            unreachable: Duration::from_secs(300),
            expiring: Duration::from_secs(60),
            tick: Duration::from_millis(500),
            reread: Duration::from_secs(2),
            verdicts: review_cache::Config::default(),
            clock: Timestamp::now,
        }
    }
}

/// By what a bridge knows those who ask, besides the cluster's tokens ([`Auth::asking`]). By nothing: it is open.
#[derive(Debug, Default)]
pub struct Known {
    /// The one key that may do everything.
    pub environment: Option<Secret>,
    /// The keys file.
    pub file: Option<PathBuf>,
    /// What signs sessions and tickets, the same on every replica; `None`: this process alone knows its own.
    pub seal: Option<Seal>,
}

/// Why a bridge cannot know those who ask.
#[derive(Debug, ThisError)]
pub enum Unusable {
    /// The keys file.
    #[error("the keys file {} cannot be used", .0.display())]
    Keys(PathBuf, #[source] keys::Problem),
    /// No key for sessions.
    #[error("sessions cannot be signed")]
    Seal(#[from] BadKey),
}

/// The parts of a request that say who asks. They hold credentials, and cannot be printed.
#[derive(Clone, Copy)]
pub(super) struct Asks<'a> {
    pub(super) headers: &'a HeaderMap,
    pub(super) query: &'a str,
    pub(super) came: Came,
    /// Whether cookies count.
    pub(super) cookies: bool,
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
pub struct Auth {
    config: Config,
    metrics: Metrics,
    /// Whether anybody is known at all: otherwise all may read.
    is_open: bool,
    keys: RwLock<Arc<Keys>>,
    environment: Option<Secret>,
    file: Option<Mutex<KeysFile>>,
    verdicts: Option<Verdicts>,
    seal: Seal,
    leases: Leases,
}

impl Auth {
    /// # Errors
    /// See [`Unusable`].
    pub fn new(config: Config, known: Known, metrics: Metrics) -> Result<Auth, Unusable> {
        let Known { environment, file, seal } = known;
        let is_open = environment.is_none() && file.is_none();
        let mut keys = Keys::default();
        let file = match file {
            None => None,
            Some(path) => {
                let (file, found) = KeysFile::open(&path).map_err(|problem| Unusable::Keys(path, problem))?;
                keys = found;
                Some(Mutex::new(file))
            }
        };
        if let Some(secret) = &environment {
            keys = keys.with_environment(secret);
        }
        let seal = seal.map_or_else(Seal::random, Ok)?;
        let (keys, verdicts, leases) = (RwLock::new(Arc::new(keys)), None, Leases::default());
        Ok(Auth { config, metrics, is_open, keys, environment, file, verdicts, seal, leases })
    }

    /// Knows the cluster's tokens too, and asks about them so. Apart from [`Auth::new`], as that tells of mistakes before
    /// there is a cluster to connect to.
    #[must_use]
    pub fn asking(self, reviews: Reviews) -> Auth {
        Auth { is_open: false, verdicts: Some(Verdicts::new(self.config.verdicts, reviews)), ..self }
    }

    /// Whether all may read.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Who asks, if they may.
    ///
    /// # Errors
    /// What they are told.
    pub(super) async fn admit(&self, needs: Needs, asks: Asks<'_>, limits: &Limits) -> Result<Principal, Refusal> {
        let address = Caller::address(asks.came.address);
        if self.is_open_for(needs) {
            return Ok(Principal::anyone(address));
        }
        let principal = match Presented::of(asks, needs) {
            Ok(presented) => self.know(presented, asks, limits, &address).await,
            Err(refused) => Err(refused),
        };
        let principal = principal.and_then(|principal| principal.with_rights_for(needs));
        principal.map_err(|refused| {
            tracing::debug!(address = %asks.came.address, %refused, "refused");
            self.refusal(&refused, limits, &address)
        })
    }

    /// Keeps an eye on a principal for as long as somebody has this; `None` where nothing can ever change.
    pub(super) fn hold(&self, principal: &Principal) -> Option<Hold> {
        (!self.is_open).then(|| self.leases.hold(&principal.grounds, |grounds| self.standing(grounds)))
    }

    /// A session cookie or a ticket for a principal, and its end; `None` where it would be too long for a cookie.
    pub(super) fn pass(&self, principal: &Principal, purpose: Purpose, host: &str) -> Option<(Secret, Timestamp)> {
        let holder = principal.grounds.holder.clone()?;
        let lasts = match purpose {
            Purpose::Session => self.config.session,
            Purpose::Ticket => self.config.ticket,
        };
        let now = (self.config.clock)();
        let end = now.as_second().saturating_add(i64::try_from(lasts.as_secs()).unwrap_or(i64::MAX));
        let end = principal.expires_at.map_or(end, |parent| parent.as_second().min(end));
        let pass = Pass { purpose, holder, host: host.to_owned(), expires_s: end };
        let text = self.seal.sign(&pass);
        (purpose == Purpose::Ticket || text.reveal().len() <= MAX_COOKIE).then(|| (text, pass.expires_at()))
    }

    /// What time it is.
    pub(super) fn now(&self) -> Timestamp {
        (self.config.clock)()
    }

    fn is_open_for(&self, needs: Needs) -> bool {
        let tenants = || self.config.closed || self.keys().has_tenants();
        match needs {
            Needs::Probe | Needs::Nothing => true,
            Needs::Counts => self.is_open || !tenants(),
            Needs::Ws => !self.config.ws_auth && (self.is_open || !tenants()),
            Needs::Read | Needs::Whole | Needs::Stream | Needs::Bearer => self.is_open,
        }
    }

    async fn know(
        &self,
        presented: Presented,
        asks: Asks<'_>,
        limits: &Limits,
        address: &Caller,
    ) -> Result<Principal, Refused> {
        let (text, purpose) = match presented {
            Presented::Bearer(secret) => return self.bearer(secret, limits, address).await,
            Presented::Cookie(text) => (text, Purpose::Session),
            Presented::Ticket(text) => (text, Purpose::Ticket),
        };
        let pass = self.seal.open(text.reveal(), purpose).ok_or_else(|| match purpose {
            Purpose::Ticket if !Seal::is_pass(text.reveal()) => Refused::InQuery,
            Purpose::Ticket | Purpose::Session => Refused::Unknown,
        })?;
        if purpose == Purpose::Session && pass.host != credential::host(asks.headers) {
            return Err(Refused::OtherHost);
        }
        let expires_at = Some(pass.expires_at());
        match pass.holder {
            Holder::Key(name, sealed) => {
                let keys = self.keys();
                let key = self.held(&keys, &name, &sealed).ok_or(Refused::Unknown)?;
                self.key(key, expires_at)
            }
            Holder::User(user) => {
                let verdict = self.ask(&Subject::User(user)).await?;
                self.user(verdict, None, expires_at)
            }
        }
    }

    async fn bearer(&self, secret: Secret, limits: &Limits, address: &Caller) -> Result<Principal, Refused> {
        if let Some(key) = self.keys().find(&secret) {
            return self.key(key, None);
        }
        if Seal::is_pass(secret.reveal()) {
            return Err(Refused::PassAsBearer);
        }
        let Some(verdicts) = &self.verdicts else { return Err(Refused::Unknown) };
        let subject = Subject::Token(secret.clone());
        let verdict = match verdicts.remembered(&subject) {
            Some(verdict) => verdict,
            None => {
                // Whoever guesses shall not keep the API server busy, nor those out who came in from the same address before.
                if !verdicts.was_somebody(&subject) {
                    limits.guesses.look(address).map_err(Refused::NotAsked)?;
                }
                let verdict = self.ask(&subject).await?;
                if verdict == Verdict::Unknown {
                    // That it has been asked about cannot be undone where this is one too many.
                    let _ = limits.guesses.take(address);
                }
                verdict
            }
        };
        let expires_at = review_cache::expiry(&secret);
        self.user(verdict, Some(secret), expires_at)
    }

    async fn ask(&self, subject: &Subject) -> Result<Verdict, Refused> {
        let verdicts = self.verdicts.as_ref().ok_or(Refused::Unknown)?;
        verdicts.of(subject).await.map_err(|Unavailable| Refused::Unchecked)
    }

    fn key(&self, key: &Key, expires_at: Option<Timestamp>) -> Result<Principal, Refused> {
        let end = expires_at.into_iter().chain(key.expires_at).min();
        self.in_time(end)?;
        if !key.may(Access::Read) {
            return Err(Refused::NoRead(key.name.clone()));
        }
        let holder = Some(Holder::Key(key.name.clone(), self.seal.name(&key.fingerprint)));
        let grounds = Grounds { holder, token: None, expires_at, scope: scope(key) };
        Ok(Principal { caller: Caller::Key(key.name.clone()), grounds, expires_at: end })
    }

    fn user(
        &self,
        verdict: Verdict,
        token: Option<Secret>,
        expires_at: Option<Timestamp>,
    ) -> Result<Principal, Refused> {
        let user: Arc<User> = match verdict {
            Verdict::Unknown => return Err(Refused::Unknown),
            Verdict::MayNot(user, what) => return Err(Refused::MayNot(user.name.clone(), what)),
            Verdict::May(user) => user,
        };
        self.in_time(expires_at)?;
        let caller = Caller::User(user.name.as_str().into());
        let grounds = Grounds { holder: Some(Holder::User(user)), token, expires_at, scope: Scope::All };
        Ok(Principal { caller, grounds, expires_at })
    }

    /// The key of this name, if it is still the one that the seal called so.
    fn held<'a>(&self, keys: &'a Keys, name: &str, sealed: &str) -> Option<&'a Key> {
        keys.named(name).filter(|key| *self.seal.name(&key.fingerprint) == *sealed)
    }

    fn in_time(&self, expires_at: Option<Timestamp>) -> Result<(), Refused> {
        if expires_at.is_some_and(|end| end <= self.now()) { Err(Refused::Expired) } else { Ok(()) }
    }

    fn keys(&self) -> Arc<Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What a key sees.
fn scope(key: &Key) -> Scope {
    key.tenant.clone().map_or(Scope::All, Scope::Tenant)
}

#[cfg(test)]
mod tests;
