use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use futures::{FutureExt, future::join_all};
use tokio::time::advance;

use super::*;

/// A cluster in which a token is the name of its user. The token `unknown` has no user, and `guest` may not list pods.
#[derive(Clone, Default)]
struct Cluster {
    token_reviews: Arc<AtomicU64>,
    access_reviews: Arc<AtomicU64>,
    concurrent: Arc<AtomicU64>,
    max_concurrent: Arc<AtomicU64>,
    is_down: Arc<AtomicBool>,
}

impl Cluster {
    fn reviews(&self) -> ReviewBackend {
        let (for_tokens, for_access) = (self.clone(), self.clone());
        ReviewBackend {
            token: Box::new(move |token| for_tokens.clone().review_token(token).boxed()),
            access: Box::new(move |user| {
                for_access.access_reviews.fetch_add(1, SeqCst);
                let denied = user.name == "guest";
                let decision =
                    if denied { AccessDecision::Denied("list pods".into()) } else { AccessDecision::Granted };
                async move { Ok(decision) }.boxed()
            }),
        }
    }

    async fn review_token(self, token: Secret) -> Result<Option<KubernetesUser>, ReviewUnavailable> {
        self.token_reviews.fetch_add(1, SeqCst);
        let concurrent = self.concurrent.fetch_add(1, SeqCst) + 1;
        self.max_concurrent.fetch_max(concurrent, SeqCst);
        tokio::time::sleep(Duration::from_millis(10)).await;
        self.concurrent.fetch_sub(1, SeqCst);
        if self.is_down.load(SeqCst) {
            return Err(ReviewUnavailable);
        }
        let name = token.expose().to_owned();
        Ok((name != "unknown").then(|| KubernetesUser { name, ..KubernetesUser::default() }))
    }

    /// Returns the numbers of TokenReviews and SubjectAccessReviews.
    fn review_counts(&self) -> (u64, u64) {
        (self.token_reviews.load(SeqCst), self.access_reviews.load(SeqCst))
    }
}

fn token(text: &str) -> ReviewSubject {
    ReviewSubject::Token(Secret::new(text))
}

fn user(name: &str) -> Arc<KubernetesUser> {
    Arc::new(KubernetesUser { name: name.into(), ..KubernetesUser::default() })
}

#[tokio::test(start_paused = true)]
async fn outcomes_are_cached_for_their_time_to_live() {
    let cluster = Cluster::default();
    let cache = ReviewCache::new(Config::default(), cluster.reviews());
    let denied = ReviewOutcome::Denied(user("guest"), "list pods".into());
    for (name, outcome, seconds) in [
        ("jane", ReviewOutcome::Allowed(user("jane")), 60),
        ("guest", denied, 10),
        ("unknown", ReviewOutcome::Unknown, 10),
    ] {
        let before = cluster.review_counts();
        let results = join_all((0..100).map(|_| async { cache.get(&token(name)).await })).await;
        assert!(
            results.iter().all(|result| *result == Ok(outcome.clone())),
            "expected {outcome:?}, found: {results:?}"
        );
        assert_eq!(cluster.review_counts().0, before.0 + 1, "expected one review for 100 concurrent calls");
        assert_eq!(cache.cached(&token(name)), Some(outcome.clone()));
        advance(Duration::from_millis(seconds * 1000 - 1)).await;
        assert_eq!(cache.get(&token(name)).await, Ok(outcome.clone()));
        assert_eq!(cluster.review_counts().0, before.0 + 1, "expected the cached outcome before its expiry");
        advance(Duration::from_millis(1)).await;
        assert_eq!(cache.cached(&token(name)), None);
        assert_eq!(cache.get(&token(name)).await, Ok(outcome.clone()));
        assert_eq!(cluster.review_counts().0, before.0 + 2, "expected a review after the expiry");
        assert_eq!(cache.refresh(&token(name)).await, Ok(outcome));
        assert_eq!(cluster.review_counts().0, before.0 + 3, "expected a review regardless of the cache");
    }
    let before = cluster.review_counts();
    assert_eq!(cache.get(&ReviewSubject::User(user("jane"))).await, Ok(ReviewOutcome::Allowed(user("jane"))));
    assert_eq!(
        cluster.review_counts(),
        (before.0, before.1 + 1),
        "expected a SubjectAccessReview without a TokenReview for a user"
    );
}

#[tokio::test(start_paused = true)]
async fn unreachable_cluster_produces_no_outcome() {
    let cluster = Cluster::default();
    let cache = ReviewCache::new(Config::default(), cluster.reviews());
    cache.get(&token("jane")).await.unwrap();
    cluster.is_down.store(true, SeqCst);
    let results = join_all((0..100).map(|_| async { cache.get(&token("joe")).await })).await;
    assert!(results.iter().all(|result| *result == Err(ReviewUnavailable)), "expected errors, found: {results:?}");
    assert_eq!(cluster.review_counts().0, 2, "expected one failed review for 100 concurrent calls");
    assert!(cache.get(&token("jane")).await.is_ok(), "expected the cached outcome during the outage");
    cluster.is_down.store(false, SeqCst);
    advance(Duration::from_secs(1)).await;
    assert!(cache.get(&token("joe")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn concurrent_reviews_and_cache_entries_are_bounded() {
    let cluster = Cluster::default();
    let config = Config { max_entries: 10, max_concurrent_reviews: 3, ..Config::default() };
    let cache = ReviewCache::new(config, cluster.reviews());
    let subjects: Vec<ReviewSubject> = (0..100).map(|n| token(&format!("user-{n}"))).collect();
    join_all(subjects.iter().map(|subject| cache.get(subject))).await;
    assert_eq!(cluster.max_concurrent.load(SeqCst), 3);
    cache.get(&token("another")).await.unwrap();
    let entries = cache.entries.lock().unwrap().len();
    assert!(entries <= 10, "expected at most 10 entries, found {entries}");
}

#[tokio::test(start_paused = true)]
async fn authenticated_subjects_stay_cached_longer_than_unknown_ones() {
    let cluster = Cluster::default();
    let cache = ReviewCache::new(Config { max_entries: 4, ..Config::default() }, cluster.reviews());
    for name in ["jane", "guest", "unknown"] {
        cache.get(&token(name)).await.unwrap();
    }
    cluster.is_down.store(true, SeqCst);
    cache.get(&token("joe")).await.unwrap_err();
    advance(Duration::from_secs(3600)).await;
    cache.get(&token("jane")).await.unwrap_err();
    let was_authenticated = |name| cache.was_authenticated(&token(name));
    assert_eq!(
        ["jane", "guest", "unknown", "joe"].map(was_authenticated),
        [true, true, false, false],
        "expected no change by failed reviews"
    );
    cluster.is_down.store(false, SeqCst);
    cache.get(&token("first")).await.unwrap();
    assert_eq!(cache.entries.lock().unwrap().len(), 3, "expected eviction of the entries without a user");
    assert_eq!(["jane", "guest", "first"].map(was_authenticated), [true; 3]);
    advance(Duration::from_secs(1)).await;
    for name in ["second", "third"] {
        cache.get(&token(name)).await.unwrap();
    }
    assert_eq!(
        ["jane", "guest", "first", "third"].map(was_authenticated),
        [false, false, true, true],
        "expected eviction of the expired entries"
    );
}

/// After a revocation, the token counts as unknown for the budget of token reviews.
#[tokio::test(start_paused = true)]
async fn revoked_token_is_not_remembered_as_authenticated() {
    let (cluster, revoked) = (Cluster::default(), Arc::new(AtomicBool::new(false)));
    let is_revoked = revoked.clone();
    let review_token = move |_| {
        let user = (!is_revoked.load(SeqCst)).then(KubernetesUser::default);
        async move { Ok(user) }.boxed()
    };
    let reviews = ReviewBackend { token: Box::new(review_token), ..cluster.reviews() };
    let cache = ReviewCache::new(Config::default(), reviews);
    assert!(!cache.was_authenticated(&token("jane")));
    cache.get(&token("jane")).await.unwrap();
    assert!(cache.was_authenticated(&token("jane")));
    revoked.store(true, SeqCst);
    cache.refresh(&token("jane")).await.unwrap();
    assert!(!cache.was_authenticated(&token("jane")));
}

#[tokio::test(start_paused = true)]
async fn reviews_fail_after_10_s_when_the_cluster_hangs() {
    let reviews = ReviewBackend {
        token: Box::new(|_| std::future::pending().boxed()),
        access: Box::new(|_| std::future::pending().boxed()),
    };
    let cache = ReviewCache::new(Config { max_concurrent_reviews: 1, ..Config::default() }, reviews);
    let (joe, jane, start) = (token("joe"), token("jane"), Instant::now());
    let waiting = async { (cache.get(&joe).await, cache.get(&jane).await) };
    let results = tokio::select! {
        biased;
        result = cache.get(&joe) => panic!("expected no result while the cluster hangs, found: {result:?}"),
        results = waiting => results,
    };
    assert_eq!(
        results,
        (Err(ReviewUnavailable), Err(ReviewUnavailable)),
        "expected errors for the subject under review and for another subject"
    );
    assert_eq!(start.elapsed().as_secs(), 10);
}

#[test]
fn jwt_expiry_reads_the_exp_claim() {
    let jwt = |payload: &str| Secret::new(format!("e30.{}.x", BASE64_URL_SAFE_NO_PAD.encode(payload)));
    let at = |seconds| Some(Timestamp::from_second(seconds).unwrap());
    assert_eq!(jwt_expiry(&jwt(r#"{"exp":1800000000,"sub":"x"}"#)), at(1_800_000_000));
    assert_eq!(jwt_expiry(&jwt(r#"{"exp":1800000000.9}"#)), at(1_800_000_000));
    for without_expiry in
        [jwt("{}"), jwt("[]"), jwt("x"), jwt(r#"{"exp":"soon"}"#), Secret::new("opaque"), Secret::new("a.b.c")]
    {
        assert_eq!(jwt_expiry(&without_expiry), None, "expected no expiry of {}", without_expiry.expose());
    }
}

#[test]
fn user_and_token_subjects_have_different_fingerprints() {
    let as_token = token(r#"{"name":"jane","groups":[]}"#);
    assert_ne!(as_token.fingerprint(), ReviewSubject::User(user("jane")).fingerprint());
}
