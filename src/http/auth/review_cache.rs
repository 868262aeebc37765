//! Reviews of Kubernetes tokens and users, with a cache of their outcomes.
//!
//! Owns: the cache entries of all subjects, and the permits for concurrent reviews.
//!
//! Guarantees:
//! - At most one review of a subject runs at once. Concurrent callers share its outcome.
//! - At most `max_concurrent_reviews` reviews for requests run at once. The repeated reviews of credentials with open
//!   streams (`ReviewCache::refresh`) do not wait for these permits.
//! - The number of cache entries is bounded by `max_entries`, except for entries in use. A new entry in a full cache
//!   examines at most `EVICTION_CANDIDATES` others for each one that it evicts.
//! - A review without an answer is not an outcome. It is cached for `unavailable_ttl` only.
//!
//! Must not import: any sibling except `secret` and `user`; any Kubernetes client. [`ReviewBackend`] provides the
//! functions that send the reviews.
//!
//! Specification: docs/protocol.md#access, "Kubernetes tokens".

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
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
    user::KubernetesUser,
};

/// The functions that send reviews to the API server.
pub struct ReviewBackend {
    /// Sends a TokenReview for the configured audience. Returns the user of the token; `None` if the API server rejects
    /// the token.
    pub token: ReviewFn<Secret, Option<KubernetesUser>>,
    /// Sends SubjectAccessReviews. Returns whether the user may list and watch both watched resources.
    pub access: ReviewFn<Arc<KubernetesUser>, AccessDecision>,
}

/// A function that sends a review. It must return within seconds, also without an answer of the API server.
pub type ReviewFn<Q, A> = Box<dyn Fn(Q) -> BoxFuture<'static, Result<A, ReviewUnavailable>> + Send + Sync>;

/// The API server did not answer a review. The function that sent the review logs the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReviewUnavailable;

/// The rights of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessDecision {
    /// The user may list and watch both watched resources.
    Granted,
    /// The user lacks this right, for example `list pods`.
    Denied(Arc<str>),
}

/// The outcome of a review.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReviewOutcome {
    /// The user has all needed rights.
    Allowed(Arc<KubernetesUser>),
    /// The user lacks the right that the text names.
    Denied(Arc<KubernetesUser>, Arc<str>),
    /// The API server rejects the token.
    Unknown,
}

impl ReviewOutcome {
    /// Returns whether the outcome does not permit access.
    pub(super) fn is_denied(&self) -> bool {
        !matches!(self, ReviewOutcome::Allowed(_))
    }
}

/// What a review is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum ReviewSubject {
    /// A token, and the user that it belongs to.
    Token(Secret),
    /// A user that an earlier TokenReview returned.
    User(Arc<KubernetesUser>),
}

/// Times to live and bounds.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Time to live of `ReviewOutcome::Allowed` (docs/protocol.md#access: 60 s).
    pub allowed_ttl: Duration,
    /// Time to live of a denial (docs/protocol.md#access: 10 s). It is short, so that a newly granted right takes
    /// effect soon.
    pub denied_ttl: Duration,
    /// Time to live of a failed review (docs/protocol.md#access: 1 s). During an outage, requests then do not each wait
    /// for a failure of their own.
    pub unavailable_ttl: Duration,
    /// Maximum number of cache entries (4096, each of a few hundred bytes).
    pub max_entries: usize,
    /// Maximum number of concurrent reviews for requests (8, a small part of the load that an API server can serve).
    /// The repeated reviews of credentials with open streams, and the confirmations of denials, have the same number
    /// each. So none of the three delays the others.
    pub max_concurrent_reviews: usize,
    /// Maximum time that a caller waits for a running review of its subject and for a permit. Afterwards the review
    /// counts as failed (5 s, half of the time that the client of a stream may wait for the response head).
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

/// Cache entries of which one eviction selects the least useful. A scan of the complete cache would block all requests for
/// each unknown token.
const EVICTION_CANDIDATES: usize = 16;

type CachedOutcome = Option<(Instant, Result<ReviewOutcome, ReviewUnavailable>)>;

/// The cached state of one subject.
#[derive(Default)]
struct CacheEntry {
    /// The result of the last review. The lock is held while a review of the subject runs.
    lock: AsyncMutex<CachedOutcome>,
    /// Whether the last outcome identified a user, independent of its age. It is outside of the lock, because it is
    /// read while a review runs.
    was_authenticated: AtomicBool,
}

/// Sends reviews and caches their outcomes.
pub(super) struct ReviewCache {
    config: Config,
    reviews: ReviewBackend,
    entries: Mutex<Entries>,
    permits: Semaphore,
}

/// All cache entries.
#[derive(Default)]
struct Entries {
    by_subject: HashMap<Fingerprint, Arc<CacheEntry>>,
    /// The keys of `by_subject`, in the order in which evictions examine them.
    order: VecDeque<Fingerprint>,
}

impl ReviewCache {
    /// Creates an empty cache.
    pub(super) fn new(config: Config, reviews: ReviewBackend) -> ReviewCache {
        let permits = Semaphore::new(config.max_concurrent_reviews);
        ReviewCache { config, reviews, entries: Mutex::default(), permits }
    }

    /// Returns the number of entries, expired ones included.
    pub(super) fn len(&self) -> usize {
        self.lock().by_subject.len()
    }

    /// Returns the unexpired outcome of a subject. It sends no review, and returns `None` while a review of the subject
    /// runs.
    pub(super) fn cached(&self, subject: &ReviewSubject) -> Option<ReviewOutcome> {
        let entry = self.lock().by_subject.get(&subject.fingerprint())?.clone();
        let cached = entry.lock.try_lock().ok()?;
        self.unexpired(&cached).and_then(Result::ok)
    }

    /// Returns whether the last outcome of a subject identified a user, independent of its age. It is `false` after the
    /// entry was evicted.
    pub(super) fn was_authenticated(&self, subject: &ReviewSubject) -> bool {
        self.lock().by_subject.get(&subject.fingerprint()).is_some_and(|entry| entry.was_authenticated.load(Relaxed))
    }

    /// Returns the unexpired result of a subject, or sends a review.
    ///
    /// `reserve` is called immediately before a review is sent. Its error is returned, and no review is sent. It is not
    /// called while the review waits for a permit, so that at most `max_concurrent_reviews` uses of a budget are taken by
    /// reviews that run.
    ///
    /// # Errors
    /// The error of `reserve`. [`ReviewUnavailable`] if the API server does not answer, or after `queue_timeout` without a
    /// permit.
    ///
    /// Cancel safe: a cancelled call stores no result.
    pub(super) async fn get<E: From<ReviewUnavailable>>(
        &self,
        subject: &ReviewSubject,
        reserve: impl FnOnce() -> Result<(), E>,
    ) -> Result<ReviewOutcome, E> {
        let (entry, deadline) = (self.entry(subject), Instant::now() + self.config.queue_timeout);
        let mut cached = timeout_at(deadline, entry.lock.lock()).await.map_err(|_| ReviewUnavailable)?;
        if let Some(outcome) = self.unexpired(&cached) {
            return Ok(outcome?);
        }
        // The second error means a closed semaphore, which this one never is.
        let _permit = timeout_at(deadline, self.permits.acquire())
            .await
            .map_err(|_| ReviewUnavailable)?
            .map_err(|_| ReviewUnavailable)?;
        reserve()?;
        Ok(self.review_and_store(subject, &entry, &mut cached).await?)
    }

    /// Sends a review regardless of the cache, and caches its result. The caller must bound the number of concurrent
    /// calls.
    ///
    /// # Errors
    /// [`ReviewUnavailable`] if the API server does not answer, or if another review of the subject runs for longer
    /// than `queue_timeout`.
    ///
    /// Cancel safe: a cancelled call stores no result.
    pub(super) async fn refresh(&self, subject: &ReviewSubject) -> Result<ReviewOutcome, ReviewUnavailable> {
        let (entry, deadline) = (self.entry(subject), Instant::now() + self.config.queue_timeout);
        let mut cached = timeout_at(deadline, entry.lock.lock()).await.map_err(|_| ReviewUnavailable)?;
        self.review_and_store(subject, &entry, &mut cached).await
    }

    fn unexpired(&self, cached: &CachedOutcome) -> Option<Result<ReviewOutcome, ReviewUnavailable>> {
        let (at, outcome) = cached.as_ref()?;
        let time_to_live = match outcome {
            Ok(outcome) if outcome.is_denied() => self.config.denied_ttl,
            Ok(_) => self.config.allowed_ttl,
            Err(ReviewUnavailable) => self.config.unavailable_ttl,
        };
        (at.elapsed() < time_to_live).then(|| outcome.clone())
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
            AccessDecision::Denied(right) => ReviewOutcome::Denied(user, right),
        })
    }

    /// Returns the entry of a subject. For a new entry in a full cache, it evicts others.
    fn entry(&self, subject: &ReviewSubject) -> Arc<CacheEntry> {
        let mut entries = self.lock();
        let fingerprint = subject.fingerprint();
        if let Some(entry) = entries.by_subject.get(&fingerprint) {
            return entry.clone();
        }
        // Entries that were in use are evicted later, so this can be more than one.
        while entries.by_subject.len() >= self.config.max_entries && self.evict(&mut entries) {}
        entries.order.push_back(fingerprint);
        entries.by_subject.entry(fingerprint).or_default().clone()
    }

    /// Evicts the least useful of the next [`EVICTION_CANDIDATES`] entries. Returns false if all of them are in use.
    fn evict(&self, entries: &mut Entries) -> bool {
        let Entries { by_subject, order } = entries;
        let mut least: Option<((bool, bool), Fingerprint)> = None;
        for _ in 0..EVICTION_CANDIDATES.min(order.len()) {
            let Some(key) = order.pop_front() else { break };
            let unused = by_subject.get(&key).filter(|entry| Arc::strong_count(entry) == 1);
            // An expired entry is less useful than another, and among equals an entry of a subject without a user is.
            let usefulness = unused.map(|entry| {
                let is_unexpired = entry.lock.try_lock().is_ok_and(|cached| self.unexpired(&cached).is_some());
                (is_unexpired, entry.was_authenticated.load(Relaxed))
            });
            let kept = match usefulness {
                Some(usefulness) if least.is_none_or(|(other, _)| usefulness < other) => {
                    least.replace((usefulness, key)).map(|(_, other)| other)
                }
                Some(_) | None => Some(key),
            };
            order.extend(kept);
        }
        let Some((_, key)) = least else { return false };
        by_subject.remove(&key);
        true
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// Returns the key of the cache entry. It is a hash, so that the cache contains no tokens.
    fn fingerprint(&self) -> Fingerprint {
        match self {
            ReviewSubject::Token(token) => Fingerprint::of(format!("token {}", token.expose()).as_bytes()),
            ReviewSubject::User(user) => {
                // Serialization cannot fail: a user consists of strings only.
                let user = serde_json::to_string(user).unwrap_or_default();
                Fingerprint::of(format!("user {user}").as_bytes())
            }
        }
    }
}

/// Returns the expiry of a token: the `exp` claim of a JWT (RFC 7519, section 4.1.4), or `None` for other tokens.
///
/// It does not verify the signature. Use it only for a token that a TokenReview has accepted.
pub(super) fn jwt_expiry(token: &Secret) -> Option<Timestamp> {
    #[derive(Deserialize)]
    struct Claims {
        exp: Option<f64>,
    }
    let payload = token.expose().split('.').nth(1)?;
    let claims: Claims = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    // Rounded down to whole seconds, so that the token is never accepted after its expiry.
    Timestamp::from_second(claims.exp?.floor() as i64).ok()
}

#[cfg(test)]
mod tests;
