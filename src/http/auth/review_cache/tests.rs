use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use futures::{FutureExt, future::join_all};
use tokio::time::advance;

use super::*;

/// A cluster in which every token but `stranger` is a user of its name, and `guest` may not list pods.
#[derive(Clone, Default)]
struct Cluster {
    tokens: Arc<AtomicU64>,
    users: Arc<AtomicU64>,
    at_once: Arc<AtomicU64>,
    max_concurrent: Arc<AtomicU64>,
    down: Arc<AtomicU64>,
}

impl Cluster {
    fn reviews(&self) -> ReviewBackend {
        let (one, two) = (self.clone(), self.clone());
        ReviewBackend {
            token: Box::new(move |token| one.clone().token(token).boxed()),
            access: Box::new(move |user| {
                two.users.fetch_add(1, SeqCst);
                let denied = user.name == "guest";
                async move { Ok(if denied { AccessDecision::Denied("list pods".into()) } else { AccessDecision::Granted }) }.boxed()
            }),
        }
    }

    async fn token(self, token: Secret) -> Result<Option<KubernetesUser>, ReviewUnavailable> {
        self.tokens.fetch_add(1, SeqCst);
        let at_once = self.at_once.fetch_add(1, SeqCst) + 1;
        self.max_concurrent.fetch_max(at_once, SeqCst);
        tokio::time::sleep(Duration::from_millis(10)).await;
        self.at_once.fetch_sub(1, SeqCst);
        if self.down.load(SeqCst) > 0 {
            return Err(ReviewUnavailable);
        }
        let name = token.expose().to_owned();
        Ok((name != "stranger").then(|| KubernetesUser { name, ..KubernetesUser::default() }))
    }

    fn review_count(&self) -> (u64, u64) {
        (self.tokens.load(SeqCst), self.users.load(SeqCst))
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
    for (who, outcome, seconds) in [
        ("jane", ReviewOutcome::Allowed(user("jane")), 60),
        ("guest", denied, 10),
        ("stranger", ReviewOutcome::Unknown, 10),
    ] {
        let review_count = cluster.review_count();
        let all = join_all((0..100).map(|_| async { cache.get(&token(who)).await })).await;
        assert!(all.iter().all(|one| *one == Ok(outcome.clone())), "{all:?}");
        assert_eq!(cluster.review_count().0, review_count.0 + 1, "a hundred who ask together are one question");
        assert_eq!(cache.cached(&token(who)), Some(outcome.clone()));
        advance(Duration::from_millis(seconds * 1000 - 1)).await;
        assert_eq!(cache.get(&token(who)).await, Ok(outcome.clone()));
        assert_eq!(cluster.review_count().0, review_count.0 + 1);
        advance(Duration::from_millis(1)).await;
        assert_eq!(cache.cached(&token(who)), None);
        assert_eq!(cache.get(&token(who)).await, Ok(outcome.clone()));
        assert_eq!(cluster.review_count().0, review_count.0 + 2);
        assert_eq!(cache.refresh(&token(who)).await, Ok(outcome));
        assert_eq!(cluster.review_count().0, review_count.0 + 3, "past what is remembered");
    }
    let review_count = cluster.review_count();
    assert_eq!(cache.get(&ReviewSubject::User(user("jane"))).await, Ok(ReviewOutcome::Allowed(user("jane"))));
    assert_eq!(cluster.review_count(), (review_count.0, review_count.1 + 1), "a user is asked about without a token");
}

#[tokio::test(start_paused = true)]
async fn unreachable_cluster_produces_no_outcome() {
    let cluster = Cluster::default();
    let cache = ReviewCache::new(Config::default(), cluster.reviews());
    cache.get(&token("jane")).await.unwrap();
    cluster.down.store(1, SeqCst);
    let all = join_all((0..100).map(|_| async { cache.get(&token("joe")).await })).await;
    assert!(all.iter().all(|one| *one == Err(ReviewUnavailable)));
    assert_eq!(cluster.review_count().0, 2, "and not everybody waits for that");
    assert!(cache.get(&token("jane")).await.is_ok(), "what is remembered counts");
    cluster.down.store(0, SeqCst);
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
    cache.get(&token("one more")).await.unwrap();
    assert!(cache.entries.lock().unwrap().len() <= 10);
}

#[tokio::test(start_paused = true)]
async fn authenticated_subjects_stay_cached_longer_than_unknown_ones() {
    let cluster = Cluster::default();
    let cache = ReviewCache::new(Config { max_entries: 4, ..Config::default() }, cluster.reviews());
    for who in ["jane", "guest", "stranger"] {
        cache.get(&token(who)).await.unwrap();
    }
    cluster.down.store(1, SeqCst);
    cache.get(&token("joe")).await.unwrap_err();
    advance(Duration::from_secs(3600)).await;
    cache.get(&token("jane")).await.unwrap_err();
    let was = |who| cache.was_authenticated(&token(who));
    assert_eq!(["jane", "guest", "stranger", "joe"].map(was), [true, true, false, false], "an outage says nothing");
    cluster.down.store(0, SeqCst);
    cache.get(&token("one more")).await.unwrap();
    assert_eq!(cache.entries.lock().unwrap().len(), 3, "those who were nobody made room");
    let was = |who| cache.was_authenticated(&token(who));
    assert_eq!(["jane", "guest", "one more"].map(was), [true; 3]);
    advance(Duration::from_secs(1)).await;
    for who in ["two", "three"] {
        cache.get(&token(who)).await.unwrap();
    }
    assert_eq!(
        ["jane", "guest", "one more", "three"].map(was),
        [false, false, true, true],
        "then those whose answer does not count"
    );
}

/// A token that has been revoked is a guess from then on.
#[tokio::test(start_paused = true)]
async fn revoked_token_is_not_remembered_as_authenticated() {
    let (cluster, revoked) = (Cluster::default(), Arc::new(AtomicU64::new(0)));
    let ask = revoked.clone();
    let token_is = move |_| {
        let user = (ask.load(SeqCst) == 0).then(KubernetesUser::default);
        async move { Ok(user) }.boxed()
    };
    let reviews = ReviewBackend { token: Box::new(token_is), ..cluster.reviews() };
    let cache = ReviewCache::new(Config::default(), reviews);
    assert!(!cache.was_authenticated(&token("jane")));
    cache.get(&token("jane")).await.unwrap();
    assert!(cache.was_authenticated(&token("jane")));
    revoked.store(1, SeqCst);
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
    let (joe, jane, began) = (token("joe"), token("jane"), Instant::now());
    let behind = async { (cache.get(&joe).await, cache.get(&jane).await) };
    let answers = tokio::select! {
        biased;
        _ = cache.get(&joe) => panic!("the cluster hangs"),
        answers = behind => answers,
    };
    assert_eq!(answers, (Err(ReviewUnavailable), Err(ReviewUnavailable)), "of one's own subject, and of another");
    assert_eq!(began.elapsed().as_secs(), 10);
}

#[test]
fn jwt_expiry_reads_the_exp_claim() {
    let jwt = |payload: &str| Secret::new(format!("e30.{}.x", BASE64_URL_SAFE_NO_PAD.encode(payload)));
    let at = |seconds| Some(Timestamp::from_second(seconds).unwrap());
    assert_eq!(jwt_expiry(&jwt(r#"{"exp":1800000000,"sub":"x"}"#)), at(1_800_000_000));
    assert_eq!(jwt_expiry(&jwt(r#"{"exp":1800000000.9}"#)), at(1_800_000_000));
    for silent in
        [jwt("{}"), jwt("[]"), jwt("x"), jwt(r#"{"exp":"soon"}"#), Secret::new("opaque"), Secret::new("a.b.c")]
    {
        assert_eq!(jwt_expiry(&silent), None, "{}", silent.expose());
    }
}

#[test]
fn user_and_token_subjects_have_different_fingerprints() {
    let as_token = token(r#"{"name":"jane","groups":[]}"#);
    assert_ne!(as_token.fingerprint(), ReviewSubject::User(user("jane")).fingerprint());
}
