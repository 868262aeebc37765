//! Long times and silence: an hour of watches that end every 30 s, and a black hole.

use std::time::Duration;

use boilerhouse_bridge::event::PerResource;
use boilerhouse_bridge::feed::Health;
use boilerhouse_bridge::ring::Limits;
use boilerhouse_bridge::sim::{ApiResource, Verb};
use boilerhouse_bridge::wire::CloseReason;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::deployment::{NO_LIMIT, Reader, SimulatedDeployment};
use super::validator::{End, WatchMode};
use super::{Record, script, settle};
use crate::support::rng::SeededRng;

/// One reader on each engine, from the beginning to the end.
const READERS: [Reader; 2] = [reader(WatchMode::Shared), reader(WatchMode::Dedicated)];
/// A black hole is known so soon after the last byte (docs/guarantees.md, G10).
const DETECTED_WITHIN: Duration = Duration::from_secs(40);
/// So long after that, `/ws` clients are sent away (docs/protocol.md#boilerhouse-stream).
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

/// An hour in which something is written every second and, at every half minute, `expire` happens.
async fn hour(expire: fn(&SimulatedDeployment)) -> Vec<Record> {
    let (mut rng, mut tasks) = (SeededRng(7), JoinSet::new());
    let deployment = SimulatedDeployment::new(7, Limits::default(), &mut tasks, |_| {});
    for (index, reader) in READERS.into_iter().enumerate() {
        tasks.spawn(deployment.clone().read(index, reader, rng.fork()));
    }
    let mut held = Vec::new();
    for second in 1..=3600 {
        sleep(Duration::from_secs(1)).await;
        deployment.write(|store| script::write(store, &mut rng));
        if second % 30 == 0 {
            expire(&deployment);
        }
        // The log goes back ten minutes: after that nothing may grow.
        if second % 600 == 599 {
            held.push(deployment.held());
            let open = deployment.sim.metrics().open_watches;
            assert!(open.values().all(|open| *open == 2), "the hub's and one own watch of each resource: {open:?}");
        }
    }
    let [first, .., last] = held[2..] else { panic!("an hour has six tens of minutes") };
    assert!(last < first + first / 20, "it grows: {held:?}");
    let (_, records) = settle(&deployment, READERS.len(), 7).await;
    println!(
        "held after each ten minutes: {held:?}; {} messages",
        records.iter().map(|r| r.received.len()).sum::<usize>()
    );
    let requests = deployment.sim.metrics();
    println!("{} lists, {} watches", requests.count(Verb::List), requests.count(Verb::Watch));
    records
}

#[tokio::test(start_paused = true)]
async fn hour_of_watches_ending_every_30_s_loses_and_leaks_nothing() {
    // They end by themselves: 30 s is what they are asked for.
    let records = hour(|_| {}).await;
    assert!(records.iter().all(|record| record.received.len() > 2000));
    assert!(
        records
            .iter()
            .all(|record| record.responses.iter().flatten().filter(|response| response.is_list()).count() == 2)
    );
}

#[tokio::test(start_paused = true)]
async fn hour_of_history_loss_every_30_s_loses_and_leaks_nothing() {
    let records = hour(|deployment| deployment.sim.restart()).await;
    assert!(records.iter().all(|record| record.received.len() > 2000));
    assert!(
        records
            .iter()
            .all(|record| record.responses.iter().flatten().filter(|response| response.is_list()).count() > 100)
    );
}

/// A black hole so long after the watches have begun, in a cluster where something is written every second, or nothing.
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
    let is_down =
        |all: &PerResource<Health>| all.iter().map(|health| matches!(health, Health::Down { .. })).collect::<Vec<_>>();
    let first = {
        timeout(DETECTED_WITHIN, health.wait_for(|all| is_down(all).contains(&true)))
            .await
            .expect("known within 40 s")
            .unwrap();
        Instant::now()
    };
    timeout(DETECTED_WITHIN, health.wait_for(|all| !is_down(all).contains(&false))).await.expect("of both").unwrap();
    let last_byte = deployment.hub_log.lock().unwrap().last_byte.map(Option::unwrap);
    let known = last_byte.map(|byte| byte.elapsed());
    assert!(known.iter().all(|known| *known <= DETECTED_WITHIN), "{after:?} {busy}: known only after {known:?}");
    let ended = async {
        loop {
            let ends: Vec<End> = deployment.records().iter().take(2).map(|record| record.end).collect();
            if !ends.contains(&End::Open) {
                return ends;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    let ends = timeout(2 * CLOSED_AFTER, ended).await.expect("both are sent away");
    assert_eq!(ends, [End::Closed(CloseReason::UpstreamUnavailable); 2]);
    let waited = first.elapsed();
    assert!(
        waited >= CLOSED_AFTER && waited < CLOSED_AFTER + Duration::from_millis(100),
        "{after:?} {busy}: after {waited:?}"
    );
    deployment.sim.up();
    settle(&deployment, READERS.len(), 3).await;
    assert_eq!(deployment.sim.metrics().open_watches.get(&ApiResource::Pods), Some(&2), "nothing is left in the hole");
}

#[tokio::test(start_paused = true)]
async fn black_hole_is_detected_in_40_s_and_closes_streams_60_s_later() {
    for busy in [false, true] {
        for after in [0, 1, 9, 14, 15, 16, 28, 29, 30, 31, 44] {
            black_hole(Duration::from_secs(after), busy).await;
        }
    }
}
