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
    most_at_once: Arc<AtomicU64>,
    down: Arc<AtomicU64>,
}

impl Cluster {
    fn reviews(&self) -> Reviews {
        let (one, two) = (self.clone(), self.clone());
        Reviews {
            token: Box::new(move |token| one.clone().token(token).boxed()),
            access: Box::new(move |user| {
                two.users.fetch_add(1, SeqCst);
                let denied = user.name == "guest";
                async move { Ok(if denied { Access::Denied("list pods".into()) } else { Access::Granted }) }.boxed()
            }),
        }
    }

    async fn token(self, token: Secret) -> Result<Option<User>, Unavailable> {
        self.tokens.fetch_add(1, SeqCst);
        let at_once = self.at_once.fetch_add(1, SeqCst) + 1;
        self.most_at_once.fetch_max(at_once, SeqCst);
        tokio::time::sleep(Duration::from_millis(10)).await;
        self.at_once.fetch_sub(1, SeqCst);
        if self.down.load(SeqCst) > 0 {
            return Err(Unavailable);
        }
        let name = token.reveal().to_owned();
        Ok((name != "stranger").then(|| User { name, ..User::default() }))
    }

    fn asked(&self) -> (u64, u64) {
        (self.tokens.load(SeqCst), self.users.load(SeqCst))
    }
}

fn token(text: &str) -> Subject {
    Subject::Token(Secret::new(text))
}

fn user(name: &str) -> Arc<User> {
    Arc::new(User { name: name.into(), ..User::default() })
}

#[tokio::test(start_paused = true)]
async fn verdicts_are_remembered_for_a_while() {
    let cluster = Cluster::default();
    let verdicts = Verdicts::new(Config::default(), cluster.reviews());
    let denied = Verdict::MayNot(user("guest"), "list pods".into());
    for (who, verdict, seconds) in
        [("jane", Verdict::May(user("jane")), 60), ("guest", denied, 10), ("stranger", Verdict::Unknown, 10)]
    {
        let asked = cluster.asked();
        let all = join_all((0..100).map(|_| async { verdicts.of(&token(who)).await })).await;
        assert!(all.iter().all(|one| *one == Ok(verdict.clone())), "{all:?}");
        assert_eq!(cluster.asked().0, asked.0 + 1, "a hundred who ask together are one question");
        assert_eq!(verdicts.remembered(&token(who)), Some(verdict.clone()));
        advance(Duration::from_millis(seconds * 1000 - 1)).await;
        assert_eq!(verdicts.of(&token(who)).await, Ok(verdict.clone()));
        assert_eq!(cluster.asked().0, asked.0 + 1);
        advance(Duration::from_millis(1)).await;
        assert_eq!(verdicts.remembered(&token(who)), None);
        assert_eq!(verdicts.of(&token(who)).await, Ok(verdict.clone()));
        assert_eq!(cluster.asked().0, asked.0 + 2);
        assert_eq!(verdicts.afresh(&token(who)).await, Ok(verdict));
        assert_eq!(cluster.asked().0, asked.0 + 3, "past what is remembered");
    }
    let asked = cluster.asked();
    assert_eq!(verdicts.of(&Subject::User(user("jane"))).await, Ok(Verdict::May(user("jane"))));
    assert_eq!(cluster.asked(), (asked.0, asked.1 + 1), "a user is asked about without a token");
}

#[tokio::test(start_paused = true)]
async fn a_cluster_out_of_reach_is_no_verdict() {
    let cluster = Cluster::default();
    let verdicts = Verdicts::new(Config::default(), cluster.reviews());
    verdicts.of(&token("jane")).await.unwrap();
    cluster.down.store(1, SeqCst);
    let all = join_all((0..100).map(|_| async { verdicts.of(&token("joe")).await })).await;
    assert!(all.iter().all(|one| *one == Err(Unavailable)));
    assert_eq!(cluster.asked().0, 2, "and not everybody waits for that");
    assert!(verdicts.of(&token("jane")).await.is_ok(), "what is remembered counts");
    cluster.down.store(0, SeqCst);
    advance(Duration::from_secs(1)).await;
    assert!(verdicts.of(&token("joe")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn questions_and_subjects_are_bounded() {
    let cluster = Cluster::default();
    let config = Config { subjects: 10, questions: 3, ..Config::default() };
    let verdicts = Verdicts::new(config, cluster.reviews());
    let subjects: Vec<Subject> = (0..100).map(|n| token(&format!("user-{n}"))).collect();
    join_all(subjects.iter().map(|subject| verdicts.of(subject))).await;
    assert_eq!(cluster.most_at_once.load(SeqCst), 3);
    verdicts.of(&token("one more")).await.unwrap();
    assert!(verdicts.known.lock().unwrap().len() <= 10);
}

#[tokio::test(start_paused = true)]
async fn who_was_somebody_is_remembered_longer_than_who_was_nobody() {
    let cluster = Cluster::default();
    let verdicts = Verdicts::new(Config { subjects: 4, ..Config::default() }, cluster.reviews());
    for who in ["jane", "guest", "stranger"] {
        verdicts.of(&token(who)).await.unwrap();
    }
    cluster.down.store(1, SeqCst);
    verdicts.of(&token("joe")).await.unwrap_err();
    advance(Duration::from_secs(3600)).await;
    verdicts.of(&token("jane")).await.unwrap_err();
    let was = |who| verdicts.was_somebody(&token(who));
    assert_eq!(["jane", "guest", "stranger", "joe"].map(was), [true, true, false, false], "an outage says nothing");
    cluster.down.store(0, SeqCst);
    verdicts.of(&token("one more")).await.unwrap();
    assert_eq!(verdicts.known.lock().unwrap().len(), 3, "those who were nobody made room");
    let was = |who| verdicts.was_somebody(&token(who));
    assert_eq!(["jane", "guest", "one more"].map(was), [true; 3]);
    advance(Duration::from_secs(1)).await;
    for who in ["two", "three"] {
        verdicts.of(&token(who)).await.unwrap();
    }
    assert_eq!(
        ["jane", "guest", "one more", "three"].map(was),
        [false, false, true, true],
        "then those whose answer does not count"
    );
}

/// A token that has been revoked is a guess from then on.
#[tokio::test(start_paused = true)]
async fn who_is_nobody_any_more_was_nobody() {
    let (cluster, revoked) = (Cluster::default(), Arc::new(AtomicU64::new(0)));
    let ask = revoked.clone();
    let token_is = move |_| {
        let user = (ask.load(SeqCst) == 0).then(User::default);
        async move { Ok(user) }.boxed()
    };
    let reviews = Reviews { token: Box::new(token_is), ..cluster.reviews() };
    let verdicts = Verdicts::new(Config::default(), reviews);
    assert!(!verdicts.was_somebody(&token("jane")));
    verdicts.of(&token("jane")).await.unwrap();
    assert!(verdicts.was_somebody(&token("jane")));
    revoked.store(1, SeqCst);
    verdicts.afresh(&token("jane")).await.unwrap();
    assert!(!verdicts.was_somebody(&token("jane")));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_long_behind_a_cluster_that_hangs() {
    let reviews = Reviews {
        token: Box::new(|_| std::future::pending().boxed()),
        access: Box::new(|_| std::future::pending().boxed()),
    };
    let verdicts = Verdicts::new(Config { questions: 1, ..Config::default() }, reviews);
    let (joe, jane, began) = (token("joe"), token("jane"), Instant::now());
    let behind = async { (verdicts.of(&joe).await, verdicts.of(&jane).await) };
    let answers = tokio::select! {
        biased;
        _ = verdicts.of(&joe) => panic!("the cluster hangs"),
        answers = behind => answers,
    };
    assert_eq!(answers, (Err(Unavailable), Err(Unavailable)), "of one's own subject, and of another");
    assert_eq!(began.elapsed().as_secs(), 10);
}

#[test]
fn a_token_says_when_it_ends() {
    let jwt = |payload: &str| Secret::new(format!("e30.{}.x", BASE64_URL_SAFE_NO_PAD.encode(payload)));
    let at = |seconds| Some(Timestamp::from_second(seconds).unwrap());
    assert_eq!(expiry(&jwt(r#"{"exp":1800000000,"sub":"x"}"#)), at(1_800_000_000));
    assert_eq!(expiry(&jwt(r#"{"exp":1800000000.9}"#)), at(1_800_000_000));
    for silent in
        [jwt("{}"), jwt("[]"), jwt("x"), jwt(r#"{"exp":"soon"}"#), Secret::new("opaque"), Secret::new("a.b.c")]
    {
        assert_eq!(expiry(&silent), None, "{}", silent.reveal());
    }
}

#[test]
fn a_user_is_never_taken_for_a_token() {
    let as_token = token(r#"{"name":"jane","groups":[]}"#);
    assert_ne!(as_token.fingerprint(), Subject::User(user("jane")).fingerprint());
}
