//! Metrics of authentication.
//!
//! Must not import: any other module of this crate.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Upper bounds of the duration of a review, in seconds. Both reviews time out within 10 s.
const REVIEW_SECONDS: [f64; 7] = [0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 10.0];

/// Counters and gauges of authentication, with every label set at 0 from the start.
#[derive(Clone, Debug)]
pub struct Metrics {
    denied: Family<ReasonLabels, Counter>,
    revoked: Family<ReasonLabels, Counter>,
    /// Versions of the keys file that could not be used.
    pub(super) keys_file_errors: Counter,
    keys: Gauge,
    leases: Gauge,
    review_cache_entries: Gauge,
    reviews: Family<ReviewLabels, Counter>,
    review_seconds: Family<KindLabels, Histogram, fn() -> Histogram>,
}

/// The reason why a credential lost its rights while streams used it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Revocation {
    /// The key was removed from the keys file or changed, or a first tenant key requires a credential.
    KeyRemoved,
    /// Two consecutive reviews denied the access.
    AccessDenied,
    /// The last approval is older than `review_interval` plus `unreachable_grace`.
    Unreachable,
}

/// The two kinds of reviews.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReviewKind {
    /// A TokenReview.
    Token,
    /// The SubjectAccessReviews of one user.
    Access,
}

/// The outcome of a review.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReviewResult {
    /// The token is valid, or the user has access.
    Allowed,
    /// The token is unknown, or the user has no access.
    Denied,
    /// The API server did not answer.
    Error,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReviewLabels {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Metrics {
            denied: Family::default(),
            revoked: Family::default(),
            keys_file_errors: Counter::default(),
            keys: Gauge::default(),
            leases: Gauge::default(),
            review_cache_entries: Gauge::default(),
            reviews: Family::default(),
            review_seconds: Family::new_with_constructor(|| Histogram::new(REVIEW_SECONDS)),
        };
        for reason in DENIAL_REASONS {
            drop(metrics.denied.get_or_create(&ReasonLabels { reason }));
        }
        for reason in [Revocation::KeyRemoved, Revocation::AccessDenied, Revocation::Unreachable] {
            drop(metrics.revoked.get_or_create(&ReasonLabels { reason: reason.label() }));
        }
        for kind in [ReviewKind::Token, ReviewKind::Access] {
            for result in [ReviewResult::Allowed, ReviewResult::Denied, ReviewResult::Error] {
                drop(metrics.reviews.get_or_create(&ReviewLabels { kind: kind.label(), outcome: result.label() }));
            }
            drop(metrics.review_seconds.get_or_create(&KindLabels { kind: kind.label() }));
        }
        metrics
    }
}

/// Labels of the variants of `Denied`.
const DENIAL_REASONS: [&str; 14] = [
    "missing",
    "malformed",
    "unknown",
    "expired",
    "host_mismatch",
    "bearer_in_query",
    "signed_token_as_bearer",
    "key_cannot_read",
    "key_cannot_ingest",
    "user_cannot_ingest",
    "user_cannot_read",
    "tenant_scoped_key",
    "review_budget_exceeded",
    "review_unavailable",
];

impl Metrics {
    /// Registers all metrics under their names.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("auth_denied", "Denied requests, by reason", self.denied.clone());
        registry.register(
            "auth_revoked",
            "Credentials that lost their rights while streams used them, by reason",
            self.revoked.clone(),
        );
        registry.register(
            "auth_keys_file_errors",
            "Versions of the keys file that could not be used",
            self.keys_file_errors.clone(),
        );
        registry.register("auth_keys", "API keys loaded", self.keys.clone());
        registry.register("auth_leases", "Credentials under observation because streams use them", self.leases.clone());
        registry.register("auth_review_cache_entries", "Cached review outcomes", self.review_cache_entries.clone());
        registry.register(
            "auth_reviews",
            "Reviews of tokens, and of the access of users, by outcome",
            self.reviews.clone(),
        );
        registry.register(
            "auth_review_duration_seconds",
            "Time from sending a review to its answer",
            self.review_seconds.clone(),
        );
    }

    /// Sets the number of loaded API keys.
    pub(super) fn set_keys(&self, keys: usize) {
        self.keys.set(gauge(keys));
    }

    /// Sets the number of credentials under observation and of cached review outcomes.
    pub(super) fn set_gauges(&self, leases: usize, review_cache_entries: usize) {
        self.leases.set(gauge(leases));
        self.review_cache_entries.set(gauge(review_cache_entries));
    }

    /// Counts a denied request.
    pub(super) fn count_denied(&self, reason: &'static str) {
        self.denied.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Counts a credential that lost its rights while streams used it.
    pub(super) fn count_revoked(&self, reason: Revocation) {
        self.revoked.get_or_create(&ReasonLabels { reason: reason.label() }).inc();
    }

    /// Counts a review and its duration.
    pub(super) fn count_review(&self, kind: ReviewKind, result: ReviewResult, duration: Duration) {
        let (kind, outcome) = (kind.label(), result.label());
        self.reviews.get_or_create(&ReviewLabels { kind, outcome }).inc();
        self.review_seconds.get_or_create(&KindLabels { kind }).observe(duration.as_secs_f64());
    }

    /// Returns the number of denied requests with this reason.
    #[cfg(test)]
    pub(super) fn denied(&self, reason: &'static str) -> u64 {
        self.denied.get(&ReasonLabels { reason }).expect("every reason has a counter from the start").get()
    }

    /// Returns the number of credentials that lost their rights for this reason.
    #[cfg(test)]
    pub(super) fn revoked(&self, reason: Revocation) -> u64 {
        self.revoked.get_or_create(&ReasonLabels { reason: reason.label() }).get()
    }
}

/// Converts a count to the value of a gauge.
fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Revocation {
    fn label(self) -> &'static str {
        match self {
            Revocation::KeyRemoved => "key_removed",
            Revocation::AccessDenied => "access_denied",
            Revocation::Unreachable => "unreachable",
        }
    }
}

impl ReviewKind {
    fn label(self) -> &'static str {
        match self {
            ReviewKind::Token => "token",
            ReviewKind::Access => "access",
        }
    }
}

impl ReviewResult {
    fn label(self) -> &'static str {
        match self {
            ReviewResult::Allowed => "allowed",
            ReviewResult::Denied => "denied",
            ReviewResult::Error => "error",
        }
    }
}
