//! A thousand users with streams, on a cluster that is slow, hangs, or knows nothing of some of them.

use futures::future::{join, join_all};
use tokio::time::sleep;

use super::*;

const STREAMS: usize = 1_000;

/// Streams of these tokens, of which all are good now.
async fn streams(auth: &Authenticator, tokens: impl Iterator<Item = String>) -> Vec<CredentialWatch> {
    let limits = limits();
    join_all(tokens.map(async |token| {
        let principal = authenticate(auth, &limits, HERE, &token).await.unwrap();
        let mut watch = auth.watch(&principal).unwrap();
        assert_eq!(watch.next().now_or_never().flatten(), Some(CredentialStatus::Valid));
        watch
    }))
    .await
}

/// The seconds at which streams end, of those that do within so many; in order.
async fn ends(auth: &Authenticator, watches: &mut [CredentialWatch], within: Duration) -> Vec<i64> {
    let ends = join_all(watches.iter_mut().map(async |watch| {
        let end = timeout(within, watch.next()).await.ok()?;
        assert_eq!(end, Some(CredentialStatus::Ended(CloseReason::AccessRevoked)));
        Some(clock().as_second() - START_S)
    }));
    let ends = tokio::select! {
        never = auth.run_watchdog() => match never {},
        ends = ends => ends,
    };
    let mut ends: Vec<i64> = ends.into_iter().flatten().collect();
    ends.sort_unstable();
    ends
}

#[tokio::test(start_paused = true)]
async fn hanging_cluster_ends_all_streams_after_five_minutes() {
    let cluster = Arc::new(Cluster::default());
    let auth = auth(&cluster);
    let mut watches = streams(&auth, (0..STREAMS).map(|n| format!("user-{n}"))).await;
    cluster.review_count.store(0, SeqCst);
    cluster.down.store(true, SeqCst);
    cluster.takes_ms.store(5_000, SeqCst);
    let seconds = ends(&auth, &mut watches, Duration::from_secs(3_600)).await;
    assert_eq!(seconds.len(), STREAMS);
    assert!(seconds[0] >= 300 && seconds[STREAMS - 1] <= 321, "{} to {}", seconds[0], seconds[STREAMS - 1]);
    // Every 20 s a few find out for all.
    let review_count = cluster.review_count.load(SeqCst);
    assert!(review_count <= 17 * 16, "{review_count}");
}

/// A pass takes 18.75 s: eight at a time, 150 ms each.
#[tokio::test(start_paused = true)]
async fn slow_cluster_ends_all_revoked_streams_within_30_s() {
    let cluster = Arc::new(Cluster::default());
    let auth = auth(&cluster);
    let mut watches = streams(&auth, (0..STREAMS).map(|n| format!("user-{n}"))).await;
    cluster.takes_ms.store(150, SeqCst);
    // Early in a pass: who has just been asked about is asked about again a whole pass later.
    let taken = sleep(Duration::from_secs(101)).map(|()| cluster.denied.store(true, SeqCst));
    let (seconds, ()) = join(ends(&auth, &mut watches, Duration::from_secs(3_600)), taken).await;
    assert_eq!(seconds.len(), STREAMS);
    assert!(seconds[0] >= 101 && seconds[STREAMS - 1] <= 131, "{} to {}", seconds[0], seconds[STREAMS - 1]);
}

/// Those about whom nobody can be asked end, and hold nobody else up.
#[tokio::test(start_paused = true)]
async fn failing_reviews_of_some_users_do_not_end_other_streams() {
    const FAILING: usize = 40;
    let cluster = Arc::new(Cluster::default());
    let auth = auth(&cluster);
    let names = (0..STREAMS).map(|n| if n < FAILING { format!("odd-{n}") } else { format!("user-{n}") });
    let mut watches = streams(&auth, names).await;
    cluster.fails_for_some.store(true, SeqCst);
    cluster.takes_ms.store(100, SeqCst);
    let seconds = ends(&auth, &mut watches, Duration::from_secs(400)).await;
    assert_eq!(seconds.len(), FAILING);
    assert!(seconds[0] >= 300 && seconds[FAILING - 1] <= 321, "{seconds:?}");
    cluster.denied.store(true, SeqCst);
    let seconds = ends(&auth, &mut watches[FAILING..], Duration::from_secs(30)).await;
    assert_eq!(seconds.len(), STREAMS - FAILING);
}
