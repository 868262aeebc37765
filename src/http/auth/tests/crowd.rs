//! A thousand users with streams, on a cluster that is slow, hangs, or knows nothing of some of them.

use futures::future::{join, join_all};
use tokio::time::sleep;

use super::*;

const CROWD: usize = 1_000;

/// Streams of these tokens, of which all are good now.
async fn streams(auth: &Auth, tokens: impl Iterator<Item = String>) -> Vec<Hold> {
    let limits = limits();
    join_all(tokens.map(async |token| {
        let principal = come(auth, &limits, HERE, &token).await.unwrap();
        let mut hold = auth.hold(&principal).unwrap();
        assert_eq!(hold.next().now_or_never().flatten(), Some(Standing::Good));
        hold
    }))
    .await
}

/// The seconds at which streams end, of those that do within so many; in order.
async fn ends(auth: &Auth, holds: &mut [Hold], within: Duration) -> Vec<i64> {
    let ends = join_all(holds.iter_mut().map(async |hold| {
        let end = timeout(within, hold.next()).await.ok()?;
        assert_eq!(end, Some(Standing::Ended(Close::AccessRevoked)));
        Some(clock().as_second() - START_S)
    }));
    let ends = tokio::select! {
        never = auth.run() => match never {},
        ends = ends => ends,
    };
    let mut ends: Vec<i64> = ends.into_iter().flatten().collect();
    ends.sort_unstable();
    ends
}

#[tokio::test(start_paused = true)]
async fn on_a_cluster_that_hangs_all_end_after_five_minutes() {
    let cluster = Arc::new(Cluster::default());
    let auth = auth(&cluster);
    let mut holds = streams(&auth, (0..CROWD).map(|n| format!("user-{n}"))).await;
    cluster.asked.store(0, SeqCst);
    cluster.down.store(true, SeqCst);
    cluster.takes_ms.store(5_000, SeqCst);
    let seconds = ends(&auth, &mut holds, Duration::from_secs(3_600)).await;
    assert_eq!(seconds.len(), CROWD);
    assert!(seconds[0] >= 300 && seconds[CROWD - 1] <= 321, "{} to {}", seconds[0], seconds[CROWD - 1]);
    // Every 20 s a few find out for all.
    let asked = cluster.asked.load(SeqCst);
    assert!(asked <= 17 * 16, "{asked}");
}

/// A pass takes 18.75 s: eight at a time, 150 ms each.
#[tokio::test(start_paused = true)]
async fn on_a_slow_cluster_rights_that_are_taken_end_all_streams_within_30_seconds() {
    let cluster = Arc::new(Cluster::default());
    let auth = auth(&cluster);
    let mut holds = streams(&auth, (0..CROWD).map(|n| format!("user-{n}"))).await;
    cluster.takes_ms.store(150, SeqCst);
    // Early in a pass: who has just been asked about is asked about again a whole pass later.
    let taken = sleep(Duration::from_secs(101)).map(|()| cluster.denied.store(true, SeqCst));
    let (seconds, ()) = join(ends(&auth, &mut holds, Duration::from_secs(3_600)), taken).await;
    assert_eq!(seconds.len(), CROWD);
    assert!(seconds[0] >= 101 && seconds[CROWD - 1] <= 131, "{} to {}", seconds[0], seconds[CROWD - 1]);
}

/// Those about whom nobody can be asked end, and hold nobody else up.
#[tokio::test(start_paused = true)]
async fn some_who_cannot_be_asked_about_are_no_outage() {
    const ODD: usize = 40;
    let cluster = Arc::new(Cluster::default());
    let auth = auth(&cluster);
    let names = (0..CROWD).map(|n| if n < ODD { format!("odd-{n}") } else { format!("user-{n}") });
    let mut holds = streams(&auth, names).await;
    cluster.odd.store(true, SeqCst);
    cluster.takes_ms.store(100, SeqCst);
    let seconds = ends(&auth, &mut holds, Duration::from_secs(400)).await;
    assert_eq!(seconds.len(), ODD);
    assert!(seconds[0] >= 300 && seconds[ODD - 1] <= 321, "{seconds:?}");
    cluster.denied.store(true, SeqCst);
    let seconds = ends(&auth, &mut holds[ODD..], Duration::from_secs(30)).await;
    assert_eq!(seconds.len(), CROWD - ODD);
}
