//! Long times and silence: an hour of watches that end every 30 s, and a black hole.

use std::time::Duration;

use boilerhouse_bridge::feed::Health;
use boilerhouse_bridge::ring::Limits;
use boilerhouse_bridge::sim::{ApiResource, Verb};
use boilerhouse_bridge::wire::Close;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::validator::{End, Engine};
use super::world::{FOR_EVER, Reader, World};
use super::{Record, rest, script};
use crate::support::dice::Dice;

/// One reader on each engine, from the beginning to the end.
const READERS: [Reader; 2] = [reader(Engine::Hub), reader(Engine::Own)];
/// A black hole is known so soon after the last byte (quality.md, G10).
const KNOWN: Duration = Duration::from_secs(40);
/// So long after that, `/ws` clients are sent away (protocol.md section 2).
const SENT_AWAY: Duration = Duration::from_secs(60);

const fn reader(engine: Engine) -> Reader {
    Reader { engine, burst: true, comes: Duration::ZERO, stays: FOR_EVER, dawdles: Duration::ZERO, bite: 1 << 16 }
}

/// An hour in which something is written every second and, at every half minute, `expire` happens.
async fn hour(expire: fn(&World)) -> Vec<Record> {
    let (mut dice, mut tasks) = (Dice(7), JoinSet::new());
    let world = World::new(7, Limits::default(), &mut tasks, |_| {});
    for (who, reader) in READERS.into_iter().enumerate() {
        tasks.spawn(world.clone().read(who, reader, dice.fork()));
    }
    let mut held = Vec::new();
    for second in 1..=3600 {
        sleep(Duration::from_secs(1)).await;
        world.write(|store| script::write(store, &mut dice));
        if second % 30 == 0 {
            expire(&world);
        }
        // The log goes back ten minutes: after that nothing may grow.
        if second % 600 == 599 {
            held.push(world.held());
            let open = world.sim.metrics().open_watches;
            assert!(open.values().all(|open| *open == 2), "the hub's and one own watch of each resource: {open:?}");
        }
    }
    let [first, .., last] = held[2..] else { panic!("an hour has six tens of minutes") };
    assert!(last < first + first / 20, "it grows: {held:?}");
    let (_, records) = rest(&world, READERS.len(), 7).await;
    println!("held after each ten minutes: {held:?}; {} messages", records.iter().map(|r| r.told.len()).sum::<usize>());
    let requests = world.sim.metrics();
    println!("{} lists, {} watches", requests.count(Verb::List), requests.count(Verb::Watch));
    records
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_watches_that_end_every_30_s_loses_and_holds_nothing() {
    // They end by themselves: 30 s is what they are asked for.
    let records = hour(|_| {}).await;
    assert!(records.iter().all(|record| record.told.len() > 2000));
    assert!(records.iter().all(|record| record.heard.iter().flatten().filter(|heard| heard.is_list()).count() == 2));
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_histories_lost_every_30_s_loses_and_holds_nothing() {
    let records = hour(|world| world.sim.restart()).await;
    assert!(records.iter().all(|record| record.told.len() > 2000));
    assert!(records.iter().all(|record| record.heard.iter().flatten().filter(|heard| heard.is_list()).count() > 100));
}

/// A black hole so long after the watches have begun, in a cluster where something is written every second, or nothing.
async fn black_hole(after: Duration, busy: bool) {
    let (mut dice, mut tasks) = (Dice(3), JoinSet::new());
    let world = World::new(3, Limits::default(), &mut tasks, |_| {});
    for (who, reader) in READERS.into_iter().enumerate() {
        tasks.spawn(world.clone().read(who, reader, dice.fork()));
    }
    for _ in 0..20 {
        sleep(Duration::from_secs(1)).await;
        world.write(|store| script::write(store, &mut dice));
    }
    let begun = Instant::now();
    while begun.elapsed() < after {
        sleep(Duration::from_secs(1)).await;
        if busy {
            world.write(|store| script::write(store, &mut dice));
        }
    }
    world.sim.black_hole();
    let mut health = world.feed.health();
    let is_down =
        |all: &[Health; 2]| all.iter().map(|health| matches!(health, Health::Down { .. })).collect::<Vec<_>>();
    let first = {
        timeout(KNOWN, health.wait_for(|all| is_down(all).contains(&true))).await.expect("known within 40 s").unwrap();
        Instant::now()
    };
    timeout(KNOWN, health.wait_for(|all| !is_down(all).contains(&false))).await.expect("of both").unwrap();
    let last_byte = world.hub_log.lock().unwrap().last_byte.map(Option::unwrap);
    let known = last_byte.map(|byte| byte.elapsed());
    assert!(known.iter().all(|known| *known <= KNOWN), "{after:?} {busy}: known only after {known:?}");
    let ended = async {
        loop {
            let ends: Vec<End> = world.records().iter().take(2).map(|record| record.end).collect();
            if !ends.contains(&End::Open) {
                return ends;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    let ends = timeout(2 * SENT_AWAY, ended).await.expect("both are sent away");
    assert_eq!(ends, [End::Closed(Close::UpstreamUnavailable); 2]);
    let waited = first.elapsed();
    assert!(
        waited >= SENT_AWAY && waited < SENT_AWAY + Duration::from_millis(100),
        "{after:?} {busy}: after {waited:?}"
    );
    world.sim.up();
    rest(&world, READERS.len(), 3).await;
    assert_eq!(world.sim.metrics().open_watches.get(&ApiResource::Pods), Some(&2), "nothing is left in the hole");
}

#[tokio::test(start_paused = true)]
async fn a_black_hole_is_known_in_40_s_and_sends_everybody_away_60_s_later() {
    for busy in [false, true] {
        for after in [0, 1, 9, 14, 15, 16, 28, 29, 30, 31, 44] {
            black_hole(Duration::from_secs(after), busy).await;
        }
    }
}
