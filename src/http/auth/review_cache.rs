//! What the cluster says of tokens and users: asked by function values, remembered for a little while.
//!
//! Always: one question at a time about one subject, whoever asks, and only so many at once about all who come (those who
//! have streams do not queue with them); a bounded number of subjects is remembered. That nobody could be asked is no
//! verdict, and hardly remembered.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use futures::future::BoxFuture;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::{
    sync::{Mutex as AsyncMutex, Semaphore},
    time::{Instant, timeout_at},
};

use super::{
    secret::{Fingerprint, Secret},
    signed_token::KubernetesUser,
};

/// Asks the cluster. Made by whoever knows it.
pub struct ReviewBackend {
    /// Whose token this is, for our audience; `None`: nobody's.
    pub token: ReviewFn<Secret, Option<KubernetesUser>>,
    /// Whether a user may list and watch all that is read here; if not, what it may not, in a few words.
    pub access: ReviewFn<Arc<KubernetesUser>, AccessDecision>,
}

/// A question to the cluster, as a function value. It ends by itself, within seconds.
pub type ReviewFn<Q, A> = Box<dyn Fn(Q) -> BoxFuture<'static, Result<A, ReviewUnavailable>> + Send + Sync>;

/// The cluster could not be asked. Why is said in the log by whoever tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReviewUnavailable;

/// A user's rights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessDecision {
    /// To everything that is read here.
    Granted,
    /// Not to this: `list pods`.
    Denied(Arc<str>),
}

/// What a question came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReviewOutcome {
    /// This user, who may.
    Allowed(Arc<KubernetesUser>),
    /// This user, who may not do this.
    Denied(Arc<KubernetesUser>, Arc<str>),
    /// Nobody's token.
    Unknown,
}

impl ReviewOutcome {
    /// Whether it is a no.
    pub(super) fn is_denied(&self) -> bool {
        !matches!(self, ReviewOutcome::Allowed(_))
    }
}

/// Whom a question is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum ReviewSubject {
    /// Whoever holds this token.
    Token(Secret),
    /// A user who was known by a token before.
    User(Arc<KubernetesUser>),
}

/// For how long what is remembered.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// That somebody may (docs/protocol.md: at most 60 s).
    pub allowed_ttl: Duration,
    /// That somebody may not (10 s: whoever has just been granted a right should not wait for long).
    pub denied_ttl: Duration,
    /// That nobody could be asked (1 s: the next one need not find out by himself).
    pub unavailable_ttl: Duration,
    /// Subjects that are remembered: 4096, each of a few hundred bytes.
    pub max_entries: usize,
    /// Questions to the API server at once: 8, a small part of what it serves. As many about those who have streams, and as
    /// many about a no, so that neither a crowd that comes nor the other keeps them waiting.
    pub max_concurrent_reviews: usize,
    /// How long one waits for its turn (5 s, a half of what a stream's client may wait for its head); then it counts as not
    /// asked.
    pub queue_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            allowed_ttl: Duration::from_secs(60),
            denied_ttl: Duration::from_secs(10),
            unavailable_ttl: Duration::from_secs(1),
            max_entries: 4096,
            max_concurrent_reviews: 8,
            queue_timeout: Duration::from_secs(5),
        }
    }
}

type CachedOutcome = Option<(Instant, Result<ReviewOutcome, ReviewUnavailable>)>;

/// What is remembered of a subject.
#[derive(Default)]
struct CacheEntry {
    /// Its turn, and what came of the last question.
    lock: AsyncMutex<CachedOutcome>,
    /// Whether it was somebody when the cluster last said, however long ago. Beside the turn, as it is looked at while
    /// somebody has that.
    was_authenticated: AtomicBool,
}

/// What is remembered.
pub(super) struct ReviewCache {
    config: Config,
    reviews: ReviewBackend,
    entries: Mutex<HashMap<Fingerprint, Arc<CacheEntry>>>,
    permits: Semaphore,
}

impl ReviewCache {
    pub(super) fn new(config: Config, reviews: ReviewBackend) -> ReviewCache {
        let permits = Semaphore::new(config.max_concurrent_reviews);
        ReviewCache { config, reviews, entries: Mutex::default(), permits }
    }

    /// What is remembered of a subject and still counts; asks nobody.
    pub(super) fn cached(&self, subject: &ReviewSubject) -> Option<ReviewOutcome> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get(&subject.fingerprint())?.clone();
        drop(entries);
        let cached = entry.lock.try_lock().ok()?;
        self.unexpired(&cached).and_then(Result::ok)
    }

    /// Whether a subject was somebody when the cluster last said, as long as there is room to remember it.
    pub(super) fn was_authenticated(&self, subject: &ReviewSubject) -> bool {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(&subject.fingerprint()).is_some_and(|entry| entry.was_authenticated.load(Relaxed))
    }

    /// What is remembered, or else what the cluster says now.
    pub(super) async fn get(&self, subject: &ReviewSubject) -> Result<ReviewOutcome, ReviewUnavailable> {
        let (entry, by) = (self.entry(subject), Instant::now() + self.config.queue_timeout);
        let mut cached = timeout_at(by, entry.lock.lock()).await.map_err(|_| ReviewUnavailable)?;
        if let Some(outcome) = self.unexpired(&cached) {
            return outcome;
        }
        // It is never closed: that could be the other error.
        let _one = timeout_at(by, self.permits.acquire())
            .await
            .map_err(|_| ReviewUnavailable)?
            .map_err(|_| ReviewUnavailable)?;
        self.review_and_store(subject, &entry, &mut cached).await
    }

    /// What the cluster says now, whatever is remembered; and from now on that is remembered. How many ask so at once is
    /// up to the caller.
    pub(super) async fn refresh(&self, subject: &ReviewSubject) -> Result<ReviewOutcome, ReviewUnavailable> {
        let (entry, by) = (self.entry(subject), Instant::now() + self.config.queue_timeout);
        let mut cached = timeout_at(by, entry.lock.lock()).await.map_err(|_| ReviewUnavailable)?;
        self.review_and_store(subject, &entry, &mut cached).await
    }

    fn unexpired(&self, cached: &CachedOutcome) -> Option<Result<ReviewOutcome, ReviewUnavailable>> {
        let (at, outcome) = cached.as_ref()?;
        let counts_for = match outcome {
            Ok(outcome) if outcome.is_denied() => self.config.denied_ttl,
            Ok(_) => self.config.allowed_ttl,
            Err(ReviewUnavailable) => self.config.unavailable_ttl,
        };
        (at.elapsed() < counts_for).then(|| outcome.clone())
    }

    async fn review_and_store(
        &self,
        subject: &ReviewSubject,
        entry: &CacheEntry,
        cached: &mut CachedOutcome,
    ) -> Result<ReviewOutcome, ReviewUnavailable> {
        let outcome = self.review(subject).await;
        if let Ok(outcome) = &outcome {
            entry.was_authenticated.store(*outcome != ReviewOutcome::Unknown, Relaxed);
        }
        *cached = Some((Instant::now(), outcome.clone()));
        outcome
    }

    async fn review(&self, subject: &ReviewSubject) -> Result<ReviewOutcome, ReviewUnavailable> {
        let user = match subject {
            ReviewSubject::User(user) => user.clone(),
            ReviewSubject::Token(token) => match (self.reviews.token)(token.clone()).await? {
                Some(user) => Arc::new(user),
                None => return Ok(ReviewOutcome::Unknown),
            },
        };
        Ok(match (self.reviews.access)(user.clone()).await? {
            AccessDecision::Granted => ReviewOutcome::Allowed(user),
            AccessDecision::Denied(what) => ReviewOutcome::Denied(user, what),
        })
    }

    fn entry(&self, subject: &ReviewSubject) -> Arc<CacheEntry> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let fingerprint = subject.fingerprint();
        if let Some(entry) = entries.get(&fingerprint) {
            return entry.clone();
        }
        let in_use = |entry: &Arc<CacheEntry>| Arc::strong_count(entry) > 1;
        let counts =
            |entry: &Arc<CacheEntry>| entry.lock.try_lock().is_ok_and(|cached| self.unexpired(&cached).is_some());
        let is_full = |entries: &HashMap<_, _>| entries.len() >= self.config.max_entries;
        // Room is made by those whose answer does not count any more, first of them by those who were nobody.
        if is_full(&entries) {
            entries.retain(|_, entry| in_use(entry) || entry.was_authenticated.load(Relaxed) || counts(entry));
        }
        if is_full(&entries) {
            entries.retain(|_, entry| in_use(entry) || counts(entry));
        }
        // Where all of them count, some are asked about once more; those that somebody waits for stay.
        if is_full(&entries) {
            let mut over = entries.len() + 1 - self.config.max_entries;
            entries.retain(|_, entry| {
                let goes = over > 0 && !in_use(entry);
                over -= usize::from(goes);
                !goes
            });
        }
        entries.entry(fingerprint).or_default().clone()
    }
}

impl fmt::Debug for ReviewCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReviewCache").field("config", &self.config).finish_non_exhaustive()
    }
}

impl fmt::Debug for ReviewBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReviewBackend")
    }
}

impl ReviewSubject {
    /// What it is remembered by: the hash of a token, not the token.
    fn fingerprint(&self) -> Fingerprint {
        match self {
            ReviewSubject::Token(token) => Fingerprint::of(format!("token {}", token.expose()).as_bytes()),
            ReviewSubject::User(user) => {
                // Strings only: this cannot fail.
                let user = serde_json::to_string(user).unwrap_or_default();
                Fingerprint::of(format!("user {user}").as_bytes())
            }
        }
    }
}

/// When a token ends by itself: `exp` of a JWT (RFC 7519, section 4.1.4), which only a token that has been reviewed is
/// asked for. Other tokens do not say.
pub(super) fn jwt_expiry(token: &Secret) -> Option<Timestamp> {
    #[derive(Deserialize)]
    struct Claims {
        exp: Option<f64>,
    }
    let payload = token.expose().split('.').nth(1)?;
    let claims: Claims = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    // Whole seconds, rounded down: a token ends rather too early than too late.
    Timestamp::from_second(claims.exp?.floor() as i64).ok()
}

#[cfg(test)]
mod tests;
