//! Long runs and silence: an hour of watches that end every 30 s, and an API server that accepts and never answers.

use std::time::Duration;

use boilerhouse_bridge::event::{PerResource, Resource};
use boilerhouse_bridge::feed::Health;
use boilerhouse_bridge::ring::Limits;
use boilerhouse_bridge::sim::{ApiResource, Verb};
use boilerhouse_bridge::test_support::SeededRng;
use boilerhouse_bridge::wire::CloseReason;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::deployment::{NO_LIMIT, Reader, SimulatedDeployment};
use super::{script, settle};
use crate::oracle::recording::RecordedResponse;
use crate::oracle::ws::{End, Record, WatchMode};

/// One reader for each watch mode, connected from the start to the end.
const READERS: [Reader; 2] = [reader(WatchMode::Shared), reader(WatchMode::Dedicated)];
/// A black hole is detected within this time after the last byte (docs/guarantees.md#guarantees, G10).
const DETECTED_WITHIN: Duration = Duration::from_secs(40);
/// `/ws` connections are closed this time after that (docs/protocol.md#boilerhouse-stream).
const CLOSED_AFTER: Duration = Duration::from_secs(60);

const fn reader(mode: WatchMode) -> Reader {
    Reader {
        mode,
        initial_events: true,
        starts_after: Duration::ZERO,
        max_session: NO_LIMIT,
        max_pause: Duration::ZERO,
        batch_bytes: 1 << 16,
    }
}

/// The number of lists in a record.
fn lists(record: &Record) -> usize {
    record.responses.iter().flatten().filter(|response| RecordedResponse::is_list(response)).count()
}

/// An hour with a write every second and a call of `expire` every 30 s.
async fn hour(expire: fn(&SimulatedDeployment)) -> Vec<Record> {
    let (mut rng, mut tasks) = (SeededRng(7), JoinSet::new());
    let deployment = SimulatedDeployment::new(7, Limits::default(), &mut tasks, |_| {});
    for (index, reader) in READERS.into_iter().enumerate() {
        tasks.spawn(deployment.clone().read(index, reader, rng.fork()));
    }
    let mut sizes = Vec::new();
    for second in 1..=3600 {
        sleep(Duration::from_secs(1)).await;
        deployment.write(|store| script::write(store, &mut rng));
        if second % 30 == 0 {
            expire(&deployment);
        }
        // The log holds ten minutes. After that nothing may grow.
        if second % 600 == 599 {
            sizes.push(deployment.debug_size());
            let open = deployment.sim.metrics().open_watches;
            assert!(open.values().all(|open| *open == 2), "each resource has two watches, hub and dedicated: {open:?}");
        }
    }
    let [first, .., last] = sizes[2..] else { panic!("an hour has six times ten minutes") };
    assert!(last < first + first / 20, "the feeds grow: {sizes:?}");
    let (_, records) = settle(&deployment, READERS.len(), 7).await;
    let messages: usize = records.iter().map(|record| record.received.len()).sum();
    println!("size of the feeds every ten minutes: {sizes:?}; {messages} messages");
    let requests = deployment.sim.metrics();
    println!("{} lists, {} watches", requests.count(Verb::List), requests.count(Verb::Watch));
    records
}

#[tokio::test(start_paused = true)]
async fn hour_of_watches_ending_every_30_s_loses_and_leaks_nothing() {
    // Each watch is requested for 30 s and ends by itself.
    let records = hour(|_| {}).await;
    assert!(records.iter().all(|record| record.received.len() > 2000));
    assert!(records.iter().all(|record| lists(record) == 2));
}

#[tokio::test(start_paused = true)]
async fn hour_of_history_loss_every_30_s_loses_and_leaks_nothing() {
    let records = hour(|deployment| deployment.sim.restart()).await;
    assert!(records.iter().all(|record| record.received.len() > 2000));
    assert!(records.iter().all(|record| lists(record) > 100));
}

/// A black hole this time after the watches started. In a busy cluster there is a write every second.
async fn black_hole(after: Duration, busy: bool) {
    let (mut rng, mut tasks) = (SeededRng(3), JoinSet::new());
    let deployment = SimulatedDeployment::new(3, Limits::default(), &mut tasks, |_| {});
    for (index, reader) in READERS.into_iter().enumerate() {
        tasks.spawn(deployment.clone().read(index, reader, rng.fork()));
    }
    for _ in 0..20 {
        sleep(Duration::from_secs(1)).await;
        deployment.write(|store| script::write(store, &mut rng));
    }
    let started = Instant::now();
    while started.elapsed() < after {
        sleep(Duration::from_secs(1)).await;
        if busy {
            deployment.write(|store| script::write(store, &mut rng));
        }
    }
    deployment.sim.black_hole();
    let mut health = deployment.feed.health();
    let is_down = |health: &Health| matches!(health, Health::Down { .. });
    let any_down = |all: &PerResource<Health>| all.iter().any(is_down);
    let all_down = |all: &PerResource<Health>| all.iter().all(is_down);
    timeout(DETECTED_WITHIN, health.wait_for(any_down)).await.expect("not detected within 40 s").unwrap();
    let first = Instant::now();
    timeout(DETECTED_WITHIN, health.wait_for(all_down)).await.expect("one of two detected").unwrap();
    let detected_after = {
        let log = deployment.hub_log.lock().unwrap();
        PerResource::from_fn(|resource: Resource| log.last_byte_at(resource).unwrap().elapsed())
    };
    let is_in_time = detected_after.iter().all(|after| *after <= DETECTED_WITHIN);
    assert!(is_in_time, "{after:?}, busy {busy}: detected only after {detected_after:?}");
    let ended = async {
        loop {
            let ends: Vec<End> = deployment.records().iter().take(2).map(|record| record.end).collect();
            if !ends.contains(&End::Open) {
                return ends;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    let ends = timeout(2 * CLOSED_AFTER, ended).await.expect("a connection is still open");
    assert_eq!(ends, [End::Closed(CloseReason::UpstreamUnavailable); 2]);
    let waited = first.elapsed();
    assert!(
        waited >= CLOSED_AFTER && waited < CLOSED_AFTER + Duration::from_millis(100),
        "{after:?}, busy {busy}: closed after {waited:?}"
    );
    deployment.sim.up();
    settle(&deployment, READERS.len(), 3).await;
    let open = deployment.sim.metrics().open_watches;
    assert_eq!(open.get(&ApiResource::Pods), Some(&2), "watches from before the black hole are still open");
}

#[tokio::test(start_paused = true)]
async fn black_hole_is_detected_in_40_s_and_closes_streams_60_s_later() {
    for busy in [false, true] {
        for after in [0, 1, 9, 14, 15, 16, 28, 29, 30, 31, 44] {
            black_hole(Duration::from_secs(after), busy).await;
        }
    }
}
