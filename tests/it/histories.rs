//! Seeded histories (quality.md, layer 2): a simulated cluster that lives and breaks, both engines, many readers, and one
//! validator that holds every message of every reader against the store's history.
//!
//! Everything runs in one process on a paused clock, so an hour takes a second and a seed replays the same: `SEED=n` runs
//! one, a failing one is printed. `BRIDGE_TESTS=full` runs as many as issue 4 asks for.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::event::Resource;
use boilerhouse_bridge::ring::Limits;
use boilerhouse_bridge::wire::Close;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::support::dice::Dice;
use script::{Tally, Trouble};
use truth::{Said, Truth};
use validator::{End, Engine, Record, Start, fold, judge};
use world::{FOR_EVER, Reader, World};

mod cluster;
mod full;
mod hour;
mod pace;
mod planted;
mod script;
mod truth;
mod validator;
mod witness;
mod world;

/// How many seeds the ordinary run takes, and the full one.
const SEEDS: [u64; 2] = [160, 2_000];
/// The same, of those with troubles that keep the history.
const KEPT_SEEDS: [u64; 2] = [40, 200];
/// Threads that share them: the machines this runs on have two cores.
const THREADS: u64 = 2;
/// Steps of a history: writes, pauses and troubles.
const STEPS: u64 = 70;
/// What armed faults may still cost after the last step, in simulated time: each stalls for 35 s at most.
const REST: Duration = Duration::from_secs(900);

/// What a history did, so that the test can tell that it tested something.
#[derive(Debug, Default)]
struct Done {
    troubles: Tally,
    connections: u64,
    messages: u64,
    /// Lists after the first of a connection.
    lists: u64,
    lagged: u64,
    sent_away: u64,
}

impl Done {
    fn add(&mut self, other: &Done) {
        for (trouble, count) in &other.troubles {
            *self.troubles.entry(*trouble).or_default() += count;
        }
        self.connections += other.connections;
        self.messages += other.messages;
        self.lists += other.lists;
        self.lagged += other.lagged;
        self.sent_away += other.sent_away;
    }

    fn count(&mut self, records: &[Record]) {
        for record in records {
            self.connections += 1;
            self.messages += record.told.len() as u64;
            self.lagged += u64::from(record.end == End::Closed(Close::Lagged));
            self.sent_away += u64::from(record.end == End::Closed(Close::UpstreamUnavailable));
            let (Start::Now(at) | Start::Burst(at)) = record.start;
            for (heard, at) in record.heard.iter().zip(at) {
                let later = &heard[at.min(heard.len())..];
                self.lists += later.iter().filter(|heard| heard.is_list()).count() as u64;
            }
        }
    }
}

/// Runs one history to its end.
fn history(seed: u64, among: &[Trouble]) -> (Truth, Vec<Record>, Done) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut dice = Dice(seed);
        let mut tasks = JoinSet::new();
        // A log that slow readers fall off, or one that they do not.
        let log = Limits { items: *dice.pick(&[8, 1 << 16]), ..Limits::default() };
        let begin = dice.roll(20);
        let mut filling = dice.fork();
        let world =
            World::new(seed, log, &mut tasks, |store| (0..begin).for_each(|_| script::write(store, &mut filling)));
        let all = readers(&mut dice);
        let readers = all.len();
        for (who, reader) in all.into_iter().enumerate() {
            tasks.spawn(world.clone().read(who, reader, dice.fork()));
        }
        let mut done = Done::default();
        for _ in 0..STEPS {
            match dice.roll(10) {
                0 => {
                    let trouble = script::trouble(&world, &mut dice, among).await;
                    *done.troubles.entry(trouble).or_default() += 1;
                }
                1..=3 => sleep(dice.up_to(Duration::from_secs(9))).await,
                _ => {
                    world.write(|store| script::write(store, &mut dice));
                    // Now and then everybody has a turn between two writes.
                    sleep(Duration::from_millis(dice.roll(2))).await;
                }
            }
        }
        let (truth, records) = rest(&world, readers, seed).await;
        done.count(&records);
        (truth, records, done)
    })
}

/// On each engine: one from the start, one that comes late, one without a burst, and one that is slow.
fn readers(dice: &mut Dice) -> Vec<Reader> {
    let mut readers = Vec::new();
    for engine in [Engine::Hub, Engine::Own] {
        let steady = Reader {
            engine,
            burst: true,
            comes: Duration::ZERO,
            stays: FOR_EVER,
            dawdles: Duration::ZERO,
            bite: 1 << 16,
        };
        let late = dice.up_to(Duration::from_secs(200));
        let bite = *dice.pick(&[1, 100, 1 << 16]);
        readers.push(steady);
        readers.push(Reader { comes: late, stays: Duration::from_secs(120), burst: dice.roll(2) == 0, bite, ..steady });
        readers.push(Reader { dawdles: Duration::from_secs(40), burst: dice.roll(2) == 0, bite: 1, ..steady });
    }
    readers
}

/// Waits until everybody has been told everything, and holds all connections against the truth.
async fn rest(world: &Arc<World>, readers: usize, seed: u64) -> (Truth, Vec<Record>) {
    world.rest.store(true, Ordering::Relaxed);
    let began = Instant::now();
    loop {
        sleep(Duration::from_secs(5)).await;
        // An armed fault may have written something.
        let (truth, records) = (world.truth(), world.records());
        let verdict = records.iter().try_for_each(|record| {
            let complete = record.end == End::Open;
            judge(&truth, record, complete).map_err(|why| format!("{:?} {:?}: {why}", record.engine, record.start))?;
            if complete && matches!(record.start, Start::Burst(_)) { fold(&truth, &record.told) } else { Ok(()) }
        });
        let there = records.iter().filter(|record| record.end == End::Open).count();
        match verdict {
            Ok(()) if there == readers => {
                let wrong = world.wrong.lock().unwrap();
                assert!(wrong.is_empty(), "seed {seed}: {wrong:?}");
                return (truth, records);
            }
            _ if began.elapsed() < REST => {}
            Ok(()) => panic!("seed {seed}: only {there} readers are connected"),
            Err(why) => panic!("seed {seed}: {why}"),
        }
    }
}

/// The seeds that this run is to try, of so many in the ordinary and the full one.
fn seeds_of([ordinary, full]: [u64; 2]) -> std::ops::Range<u64> {
    match std::env::var("SEED") {
        Ok(seed) => seed.parse().map(|seed| seed..seed + 1).unwrap(),
        Err(_) => 0..if crate::support::full() { full } else { ordinary },
    }
}

fn run(seeds: impl Iterator<Item = u64>, among: &[Trouble]) -> Done {
    let mut all = Done::default();
    for seed in seeds {
        match catch_unwind(AssertUnwindSafe(|| history(seed, among))) {
            Ok((_, _, done)) => all.add(&done),
            Err(panic) => {
                println!("SEED={seed} fails; it replays the same");
                resume_unwind(panic);
            }
        }
    }
    all
}

#[test]
fn every_reader_is_told_what_happened_and_nothing_else() {
    let (began, seeds) = (std::time::Instant::now(), seeds_of(SEEDS));
    let all = Mutex::new(Done::default());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (all, mine) = (&all, seeds.clone().filter(move |seed| seed % THREADS == thread));
            scope.spawn(move || {
                let done = run(mine, &Trouble::ALL);
                all.lock().unwrap().add(&done);
            });
        }
    });
    let all = all.into_inner().unwrap();
    let count = u64::try_from(seeds.count()).unwrap();
    println!("{count} histories in {:?}: {all:?}", began.elapsed());
    if count > 1 {
        for trouble in Trouble::ALL {
            let met = all.troubles.get(&trouble).copied().unwrap_or_default();
            assert!(met >= count / 40, "{trouble:?} only {met} times");
        }
        assert!(all.messages > 100 * count && all.lists > 3 * count, "it tests what it says: {all:?}");
        assert!(all.lagged > count / 10 && all.sent_away > count / 10, "{all:?}");
    }
}

/// What the API server could still tell is never made good by a difference: no list after a connection's first.
///
/// For own watchers this holds where kube-runtime goes on from the version it knows: after an end, a break, half a line,
/// silence, 401, 403, 429, 5xx and an outage. After a line that does not parse it would go on without that change, and
/// after an HTTP 410 it would ask for the same version for ever: then it is built anew, and lists.
#[test]
fn what_can_still_be_told_is_told_version_by_version() {
    let kept: Vec<Trouble> = Trouble::ALL.into_iter().filter(|trouble| trouble.keeps_history()).collect();
    let count = KEPT_SEEDS[usize::from(crate::support::full())];
    // Other seeds than above.
    let done = run((0..count).map(|seed| seed + (1 << 32)), &kept);
    assert_eq!(done.lists, 0, "{done:?}");
    assert!(done.messages > 100 * count, "{done:?}");
}

/// But for how pods and claims are interleaved, which depends on who is woken first at one and the same moment.
#[test]
fn a_seed_replays_the_same() {
    let of = |records: &[Record], kind: Resource| -> Vec<Vec<Said>> {
        let mine = |record: &Record| record.told.iter().filter(|said| said.r#type.kind() == kind).cloned().collect();
        records.iter().map(mine).collect()
    };
    for seed in 0..5 {
        let run = || history(seed, &Trouble::ALL).1;
        let (once, again) = (run(), run());
        for kind in Resource::ALL {
            assert!(of(&once, kind) == of(&again, kind), "seed {seed}, {}", kind.resource());
        }
    }
}
