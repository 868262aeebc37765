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

impl ReviewCache {
    /// As [`ReviewCache::get`], without a budget.
    async fn get_unlimited(&self, subject: &ReviewSubject) -> Result<ReviewOutcome, ReviewUnavailable> {
        self.get(subject, || Ok(())).await
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
        let results = join_all((0..100).map(|_| async { cache.get_unlimited(&token(name)).await })).await;
        assert!(
            results.iter().all(|result| *result == Ok(outcome.clone())),
            "expected {outcome:?}, found: {results:?}"
        );
        assert_eq!(cluster.review_counts().0, before.0 + 1, "expected one review for 100 concurrent calls");
        assert_eq!(cache.cached(&token(name)), Some(outcome.clone()));
        advance(Duration::from_millis(seconds * 1000 - 1)).await;
        assert_eq!(cache.get_unlimited(&token(name)).await, Ok(outcome.clone()));
        assert_eq!(cluster.review_counts().0, before.0 + 1, "expected the cached outcome before its expiry");
        advance(Duration::from_millis(1)).await;
        assert_eq!(cache.cached(&token(name)), None);
        assert_eq!(cache.get_unlimited(&token(name)).await, Ok(outcome.clone()));
        assert_eq!(cluster.review_counts().0, before.0 + 2, "expected a review after the expiry");
        assert_eq!(cache.refresh(&token(name)).await, Ok(outcome));
        assert_eq!(cluster.review_counts().0, before.0 + 3, "expected a review regardless of the cache");
    }
    let before = cluster.review_counts();
    assert_eq!(cache.get_unlimited(&ReviewSubject::User(user("jane"))).await, Ok(ReviewOutcome::Allowed(user("jane"))));
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
    cache.get_unlimited(&token("jane")).await.unwrap();
    cluster.is_down.store(true, SeqCst);
    let results = join_all((0..100).map(|_| async { cache.get_unlimited(&token("joe")).await })).await;
    assert!(results.iter().all(|result| *result == Err(ReviewUnavailable)), "expected errors, found: {results:?}");
    assert_eq!(cluster.review_counts().0, 2, "expected one failed review for 100 concurrent calls");
    assert!(cache.get_unlimited(&token("jane")).await.is_ok(), "expected the cached outcome during the outage");
    cluster.is_down.store(false, SeqCst);
    advance(Duration::from_secs(1)).await;
    assert!(cache.get_unlimited(&token("joe")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn concurrent_reviews_and_cache_entries_are_bounded() {
    let cluster = Cluster::default();
    let config = Config { max_entries: 10, max_concurrent_reviews: 3, ..Config::default() };
    let cache = ReviewCache::new(config, cluster.reviews());
    let subjects: Vec<ReviewSubject> = (0..100).map(|n| token(&format!("user-{n}"))).collect();
    join_all(subjects.iter().map(|subject| cache.get_unlimited(subject))).await;
    assert_eq!(cluster.max_concurrent.load(SeqCst), 3);
    cache.get_unlimited(&token("another")).await.unwrap();
    let entries = cache.len();
    assert!(entries <= 10, "expected at most 10 entries, found {entries}");
}

#[tokio::test(start_paused = true)]
async fn authenticated_subjects_stay_cached_longer_than_unknown_ones() {
    let cluster = Cluster::default();
    let cache = ReviewCache::new(Config { max_entries: 4, ..Config::default() }, cluster.reviews());
    for name in ["jane", "guest", "unknown"] {
        cache.get_unlimited(&token(name)).await.unwrap();
    }
    cluster.is_down.store(true, SeqCst);
    cache.get_unlimited(&token("joe")).await.unwrap_err();
    advance(Duration::from_secs(3600)).await;
    cache.get_unlimited(&token("jane")).await.unwrap_err();
    let was_authenticated = |name| cache.was_authenticated(&token(name));
    assert_eq!(
        ["jane", "guest", "unknown", "joe"].map(was_authenticated),
        [true, true, false, false],
        "expected no change by failed reviews"
    );
    cluster.is_down.store(false, SeqCst);
    for name in ["first", "second"] {
        cache.get_unlimited(&token(name)).await.unwrap();
        assert_eq!(cache.len(), 4, "expected one eviction for {name}");
    }
    assert_eq!(
        ["jane", "guest", "unknown", "first", "second"].map(was_authenticated),
        [true, true, false, true, true],
        "expected eviction of the entries without a user"
    );
    advance(Duration::from_secs(1)).await;
    for name in ["third", "fourth"] {
        cache.get_unlimited(&token(name)).await.unwrap();
    }
    assert_eq!(
        ["jane", "guest", "first", "second", "third", "fourth"].map(was_authenticated),
        [false, false, true, true, true, true],
        "expected eviction of the expired entries"
    );
}

/// One client can send many unknown tokens. None of them may cost a scan of the complete cache.
#[tokio::test(start_paused = true)]
async fn entry_in_a_full_cache_examines_a_fixed_number_of_others() {
    const MAX_ENTRIES: usize = 1_000;
    let cluster = Cluster::default();
    let cache = ReviewCache::new(Config { max_entries: MAX_ENTRIES, ..Config::default() }, cluster.reviews());
    join_all((0..MAX_ENTRIES).map(async |n| drop(cache.get_unlimited(&token(&format!("first-{n}"))).await))).await;
    for n in 0..MAX_ENTRIES {
        let next = cache.lock().order[EVICTION_CANDIDATES];
        cache.get_unlimited(&token(&format!("second-{n}"))).await.unwrap();
        let entries = cache.lock();
        // Evictions examine the entries in this order, and the examined ones move to the end.
        assert!(entries.order[0] == next, "expected {EVICTION_CANDIDATES} examined entries for entry {n}");
        assert_eq!((entries.by_subject.len(), entries.order.len()), (MAX_ENTRIES, MAX_ENTRIES));
    }
}

#[tokio::test(start_paused = true)]
async fn entries_in_use_are_not_evicted() {
    let cluster = Cluster::default();
    let cache = ReviewCache::new(Config { max_entries: 4, ..Config::default() }, cluster.reviews());
    let used: Vec<_> = (0..100).map(|n| cache.entry(&token(&format!("used-{n}")))).collect();
    for n in 0..100 {
        cache.get_unlimited(&token(&format!("unused-{n}"))).await.unwrap();
        assert!(cache.len() <= used.len() + EVICTION_CANDIDATES, "found {} entries", cache.len());
    }
    drop(used);
    cache.get_unlimited(&token("last")).await.unwrap();
    assert_eq!(cache.len(), 4);
}

/// The budget is taken when the review starts: not while it waits, and not for a cached outcome.
#[tokio::test(start_paused = true)]
async fn budget_is_reserved_only_for_reviews_that_run() {
    let cluster = Cluster::default();
    let cache = ReviewCache::new(Config { max_concurrent_reviews: 3, ..Config::default() }, cluster.reviews());
    let reserved = AtomicU64::new(0);
    let results = join_all((0..100).map(async |n| {
        let reserve = || {
            reserved.fetch_add(1, SeqCst);
            assert!(cluster.concurrent.load(SeqCst) < 3, "expected a free permit");
            Ok::<_, ReviewUnavailable>(())
        };
        cache.get(&token(&format!("user-{}", n % 10)), reserve).await
    }));
    assert!(results.await.iter().all(Result::is_ok));
    assert_eq!((cluster.review_counts().0, reserved.load(SeqCst)), (10, 10));
    let before = cluster.review_counts();
    let refused = cache.get(&token("another"), || Err(ReviewUnavailable)).await;
    assert_eq!((refused, cluster.review_counts()), (Err(ReviewUnavailable), before), "expected no review");
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
    cache.get_unlimited(&token("jane")).await.unwrap();
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
    let waiting = async { (cache.get_unlimited(&joe).await, cache.get_unlimited(&jane).await) };
    let results = tokio::select! {
        biased;
        result = cache.get_unlimited(&joe) => panic!("expected no result while the cluster hangs, found: {result:?}"),
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
