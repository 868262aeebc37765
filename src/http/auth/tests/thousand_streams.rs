//! Tests of the watchdog with 1000 users that have open streams, on a cluster that is slow, hangs, or fails for some
//! users.

use futures::future::{join, join_all};
use tokio::time::sleep;

use super::*;

const STREAMS: usize = 1_000;

/// Opens a stream for each of these valid tokens.
async fn open_streams(auth: &Authenticator, tokens: impl Iterator<Item = String>) -> Vec<CredentialWatch> {
    let limits = limits();
    join_all(tokens.map(async |token| {
        let principal = authenticate(auth, &limits, HERE, &token).await.unwrap();
        let mut watch = auth.watch(&principal).unwrap();
        assert_eq!(watch.next().now_or_never().flatten(), Some(CredentialStatus::Valid));
        watch
    }))
    .await
}

/// Runs the watchdog for at most `within`. Returns the sorted times, in seconds since the start, at which streams end.
async fn end_times(auth: &Authenticator, watches: &mut [CredentialWatch], within: Duration) -> Vec<i64> {
    let ended = join_all(watches.iter_mut().map(async |watch| {
        let status = timeout(within, watch.next()).await.ok()?;
        assert_eq!(status, Some(CredentialStatus::Ended(CloseReason::AccessRevoked)));
        Some(clock().as_second() - START_S)
    }));
    let times = tokio::select! {
        never = auth.run_watchdog() => match never {},
        times = ended => times,
    };
    let mut times: Vec<i64> = times.into_iter().flatten().collect();
    times.sort_unstable();
    times
}

/// Asserts that all these end times are between `min` and `max` seconds.
fn assert_within(seconds: &[i64], min: i64, max: i64) {
    let (first, last) = (seconds[0], seconds[seconds.len() - 1]);
    assert!(first >= min && last <= max, "expected ends from {min} to {max} s, found {first} to {last} s");
}

#[tokio::test(start_paused = true)]
async fn hanging_cluster_ends_all_streams_after_five_minutes() {
    let cluster = Arc::new(Cluster::default());
    let auth = auth(&cluster);
    let mut watches = open_streams(&auth, (0..STREAMS).map(|n| format!("user-{n}"))).await;
    cluster.review_count.store(0, SeqCst);
    cluster.is_down.store(true, SeqCst);
    cluster.review_ms.store(5_000, SeqCst);
    let seconds = end_times(&auth, &mut watches, Duration::from_secs(3_600)).await;
    assert_eq!(seconds.len(), STREAMS);
    assert_within(&seconds, 300, 321);
    // Each pass stops after 8 consecutive failures, when at most 8 more reviews have started. 17 passes fit into 321 s.
    let review_count = cluster.review_count.load(SeqCst);
    assert!(review_count <= 17 * 16, "expected at most 17 * 16 reviews, found {review_count}");
}

/// A pass over 1000 users takes 18.75 s: 150 ms for each review, 8 concurrently.
#[tokio::test(start_paused = true)]
async fn slow_cluster_ends_all_revoked_streams_within_30_s() {
    let cluster = Arc::new(Cluster::default());
    let auth = auth(&cluster);
    let mut watches = open_streams(&auth, (0..STREAMS).map(|n| format!("user-{n}"))).await;
    cluster.review_ms.store(150, SeqCst);
    // The access is revoked early in a pass, because the users that it has just reviewed wait for a complete further
    // pass.
    let revocation = sleep(Duration::from_secs(101)).map(|()| cluster.is_denied.store(true, SeqCst));
    let (seconds, ()) = join(end_times(&auth, &mut watches, Duration::from_secs(3_600)), revocation).await;
    assert_eq!(seconds.len(), STREAMS);
    assert_within(&seconds, 101, 131);
}

/// The streams of users whose reviews fail end after the grace. They do not delay the reviews of other users.
#[tokio::test(start_paused = true)]
async fn failing_reviews_of_some_users_do_not_end_other_streams() {
    const FAILING: usize = 40;
    let cluster = Arc::new(Cluster::default());
    let auth = auth(&cluster);
    let names = (0..STREAMS).map(|n| if n < FAILING { format!("failing-{n}") } else { format!("user-{n}") });
    let mut watches = open_streams(&auth, names).await;
    cluster.has_failing_tokens.store(true, SeqCst);
    cluster.review_ms.store(100, SeqCst);
    let seconds = end_times(&auth, &mut watches, Duration::from_secs(400)).await;
    assert_eq!(seconds.len(), FAILING);
    assert_within(&seconds, 300, 321);
    cluster.is_denied.store(true, SeqCst);
    let seconds = end_times(&auth, &mut watches[FAILING..], Duration::from_secs(30)).await;
    assert_eq!(seconds.len(), STREAMS - FAILING);
}
