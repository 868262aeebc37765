//! Tests of the budget of token reviews: guesses are limited by address, and valid tokens are not.

use futures::future::{join, join_all};

use super::*;

/// Parallel requests take the budget before a review starts.
#[tokio::test(start_paused = true)]
async fn parallel_guesses_cause_sixty_reviews() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    cluster.review_ms.store(100, SeqCst);
    let guesses = (0..200).map(|attempt| format!("guess{attempt}"));
    let rejections = join_all(guesses.map(async |guess| {
        authenticate(&auth, &limits, HERE, &guess).await.expect_err("expected a rejection of a guess")
    }));
    let statuses: Vec<u16> = rejections.await.into_iter().map(|rejection| status_of(rejection).0).collect();
    assert_eq!(cluster.review_count.load(SeqCst), 60);
    let count = |status| statuses.iter().filter(|found| **found == status).count();
    assert_eq!((count(401), count(429)), (60, 140), "{statuses:?}");
}

/// A bridge that has just started knows no token.
#[tokio::test(start_paused = true)]
async fn parallel_valid_tokens_need_no_budget() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    cluster.review_ms.store(10, SeqCst);
    let tokens = (0..500).map(|number| format!("valid{number}"));
    let admitted = join_all(tokens.map(async |token| authenticate(&auth, &limits, HERE, &token).await.is_ok())).await;
    assert!(admitted.iter().all(|admitted| *admitted));
    assert_eq!(cluster.review_count.load(SeqCst), 500);
    for attempt in 0..60 {
        let rejection = authenticate(&auth, &limits, HERE, &format!("guess{attempt}")).await.unwrap_err();
        assert_eq!(status_of(rejection).0, 401, "expected the complete budget, attempt {attempt}");
    }
}

/// An API server in trouble does not get more guesses than another one.
#[tokio::test(start_paused = true)]
async fn reviews_without_an_answer_use_the_budget() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    cluster.is_down.store(true, SeqCst);
    let mut statuses = Vec::new();
    for attempt in 0..100 {
        let rejection = authenticate(&auth, &limits, HERE, &format!("guess{attempt}")).await.unwrap_err();
        statuses.push(status_of(rejection).0);
    }
    assert_eq!(cluster.review_count.load(SeqCst), 60);
    assert_eq!(statuses, [vec![503; 60], vec![429; 40]].concat());
    cluster.is_down.store(false, SeqCst);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(authenticate(&auth, &limits, HERE, "valid").await.is_ok(), "expected a use after 1 s");
    cluster.review_ms.store(10, SeqCst);
    let (first, second) = (authenticate(&auth, &limits, HERE, "one"), authenticate(&auth, &limits, HERE, "two"));
    let (first, second) = join(first, second).await;
    assert_eq!([first.is_ok(), second.is_ok()], [true, false], "the use is given back after a review");
}

/// Guessed tokens do not load the API server: after 60 in a minute it gets no further review for that address.
#[tokio::test(start_paused = true)]
async fn reviews_stop_after_sixty_unknown_tokens_from_one_address() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    for attempt in 0..200 {
        authenticate(&auth, &limits, HERE, &format!("guess{attempt}")).await.unwrap_err();
    }
    assert_eq!(cluster.review_count.load(SeqCst), 60);
    authenticate(&auth, &limits, THERE, "guess").await.unwrap_err();
    assert_eq!(cluster.review_count.load(SeqCst), 61);
    assert_eq!((auth.metrics.denied("unknown"), auth.metrics.denied("review_budget_exceeded")), (61, 140));
}

/// Many clients can share one address.
#[tokio::test(start_paused = true)]
async fn exhausted_guess_budget_still_admits_known_tokens() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    authenticate(&auth, &limits, HERE, "known").await.unwrap();
    // The cached outcome expires.
    tokio::time::advance(Duration::from_secs(3600)).await;
    for attempt in 0..200 {
        authenticate(&auth, &limits, HERE, &format!("guess{attempt}")).await.unwrap_err();
    }
    assert!(authenticate(&auth, &limits, HERE, "known").await.is_ok());
    assert_eq!(
        status_of(authenticate(&auth, &limits, HERE, "new").await.unwrap_err()),
        (429, Some("1".into())),
        "expected 429 for a token that was never reviewed"
    );
    assert!(authenticate(&auth, &limits, THERE, "new").await.is_ok());
    assert!(
        authenticate(&auth, &limits, HERE, "new").await.is_ok(),
        "expected acceptance after a review for another address"
    );
}

/// A repeated unknown token, whose outcome is cached, and a malformed signed token need no review and use no budget.
#[tokio::test(start_paused = true)]
async fn rejections_without_a_review_do_not_use_the_guess_budget() {
    let cluster = Arc::new(Cluster::default());
    let (auth, limits) = (auth(&cluster), limits());
    for _ in 0..100 {
        authenticate(&auth, &limits, HERE, "guess").await.unwrap_err();
        authenticate(&auth, &limits, HERE, "bbp1.not.signed").await.unwrap_err();
    }
    assert_eq!(status_of(authenticate(&auth, &limits, HERE, "guess").await.unwrap_err()).0, 429);
    assert_eq!(cluster.review_count.load(SeqCst), 1);
    assert!(authenticate(&auth, &limits, HERE, "new").await.is_ok());
}
