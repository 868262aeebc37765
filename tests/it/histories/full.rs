//! Seeded histories of the full stream (quality.md, layer 2): two replicas of a bridge on a cluster that lives and breaks,
//! clients that leave and resume on either, and a validator that holds every line of each against the store's history.
//!
//! One process, a paused clock: `SEED=n` runs one, a failing one is printed, and it replays the same to the last line.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::sim::fault::Cut;
use tokio::task::JoinSet;

use super::script::{self, Tally, Trouble};
use super::{THREADS, seeds_of};
use crate::support::dice::Dice;
use client::{Client, Habits};
use record::{Entry, Start};
use validator::{Court, Found};
use world::World;

mod chronicle;
mod client;
mod journey;
mod looks;
mod planted;
mod record;
mod validator;
mod world;

/// How many seeds the ordinary run takes, and the full one.
const SEEDS: [u64; 2] = [60, 2_000];
/// How many of them are run twice.
const REPLAYED: [u64; 2] = [10, 200];
/// Steps of a history: writes, pauses, troubles and restarts.
const STEPS: u64 = 70;
/// How often everybody is looked at before it counts as never at rest: faults stall for 35 s at most, each after another.
const LOOKS_AT_REST: u32 = 40;
/// Everybody has been told of a change by then (G9); where one replica lags, it first has to hear of it.
const CONVERGED: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(32)];

/// All of a history, ended.
#[derive(Debug)]
struct Done {
    judged: Judged,
    troubles: Tally,
    restarts: u64,
}

/// The records of all clients, held against the truth.
#[derive(Debug)]
struct Judged {
    court: Court,
    records: Vec<Vec<Entry>>,
    found: Vec<Found>,
}

/// Runs one history to its end.
fn history(seed: u64) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut dice = Dice(seed);
        let mut tasks = JoinSet::new();
        let (begin, mut filling) = (dice.roll(20), dice.fork());
        let world = World::new(seed, &mut dice, |store| (0..begin).for_each(|_| script::write(store, &mut filling)));
        for habits in clients(&mut dice) {
            tasks.spawn(Client::new(&world, habits, dice.fork()).run());
        }
        let (mut troubles, mut restarts) = (Tally::default(), 0);
        for _ in 0..STEPS {
            match dice.roll(24) {
                0 | 1 => {
                    let trouble = script::trouble(&world.cluster, &mut dice, &Trouble::ALL).await;
                    *troubles.entry(trouble).or_default() += 1;
                }
                2 => {
                    world.restart(dice.roll(2) as usize, &mut dice);
                    restarts += 1;
                }
                3..=9 => world.cluster.nap(dice.up_to(Duration::from_secs(9))).await,
                _ => {
                    world.cluster.write(|store| script::write(store, &mut dice));
                    // Now and then everybody has a turn between two writes.
                    if dice.roll(2) == 0 {
                        world.cluster.nap(Duration::ZERO).await;
                    }
                }
            }
        }
        let judged = rest(&world, &mut dice, seed).await;
        Done { judged, troubles, restarts }
    })
}

/// One that is always there, one that comes and goes, one that is slow, one that wants transitions only, one at random.
fn clients(dice: &mut Dice) -> Vec<Habits> {
    let any = |dice: &mut Dice| dice.roll(looks::LOOKS.len() as u64) as usize;
    let hour = Duration::from_secs(3600);
    let mut steady = || Habits {
        looks: [any(dice), any(dice)],
        snapshot: true,
        comes: dice.up_to(Duration::from_secs(20)),
        stays: hour,
        dawdles: Duration::ZERO,
        bite: 1 << 16,
        sits: dice.roll(2) == 0,
    };
    let [first, second, third, fourth, fifth] = std::array::from_fn(|_| steady());
    let stays = dice.up_to(Duration::from_secs(60));
    vec![
        Habits { looks: [0, first.looks[1]], ..first },
        Habits { stays: Duration::from_secs(15), bite: *dice.pick(&[1, 300, 1 << 16]), ..second },
        Habits { dawdles: Duration::from_secs(30), stays: Duration::from_secs(120), bite: 1, ..third },
        Habits { snapshot: false, stays: Duration::from_secs(40), ..fourth },
        Habits { stays, dawdles: Duration::from_secs(2), ..fifth },
    ]
}

/// Waits until everybody has been told everything, then has a few more things happen and gives them their time.
async fn rest(world: &Arc<World>, dice: &mut Dice, seed: u64) -> Judged {
    world.rest.store(true, Ordering::Relaxed);
    let mut verdict = Err("a replica never came to life".to_owned());
    for _ in 0..LOOKS_AT_REST {
        world.cluster.nap(Duration::from_secs(30)).await;
        // An armed fault may have written something.
        world.cluster.write(|_| {});
        if world.is_live() {
            verdict = judge(world);
            if verdict.is_ok() {
                break;
            }
        }
    }
    let judged = verdict.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    // What is armed waits for requests, what was met sits in open watches.
    world.cluster.sim.cut_watches(Cut::Eof);
    world.cluster.nap(Duration::from_secs(5)).await;
    if world.cluster.sim.armed() > 0 {
        return judged;
    }
    world.cluster.sim.cut_watches(Cut::Eof);
    // One that has stalled hears of no cut, and is given up by then.
    world.cluster.nap(Duration::from_secs(45)).await;
    (0..3).for_each(|_| world.cluster.write(|store| script::write(store, dice)));
    let bound = CONVERGED[usize::from(world.lags())];
    world.cluster.nap(bound).await;
    judge(world).unwrap_or_else(|why| panic!("seed {seed}, within {bound:?}: {why}"))
}

fn judge(world: &World) -> Result<Judged, String> {
    let records = world.records.lock().unwrap().clone();
    let resume = |entry: &Entry| match entry {
        Entry::Connect { at, replica, start: Start::Resume { .. }, .. } => Some((*at, *replica)),
        _ => None,
    };
    let resumes = records.iter().flatten().filter_map(resume).collect();
    let court = Court { chronicle: world.chronicle(), journeys: world.journeys(), resumes };
    let judged = records.iter().enumerate();
    let judged = judged.map(|(who, record)| court.judge(record).map_err(|why| format!("client {who}: {why}")));
    let found = judged.collect::<Result<_, _>>()?;
    Ok(Judged { court, records, found })
}

/// What all histories were, so that the test can tell that it tested something.
#[derive(Debug, Default)]
struct All {
    found: Vec<Found>,
    troubles: Tally,
    restarts: u64,
}

impl All {
    fn add(&mut self, done: Done) {
        self.found.extend(done.judged.found);
        done.troubles.iter().for_each(|(trouble, count)| *self.troubles.entry(*trouble).or_default() += count);
        self.restarts += done.restarts;
    }

    fn sum(&self, of: fn(&Found) -> u64) -> u64 {
        self.found.iter().map(of).sum()
    }

    fn initials(&self, reason: &str) -> u64 {
        self.found.iter().filter_map(|found| found.initials.get(reason)).sum()
    }
}

fn run(seeds: impl Iterator<Item = u64>, all: &Mutex<All>) {
    for seed in seeds {
        match catch_unwind(AssertUnwindSafe(|| history(seed))) {
            Ok(done) => all.lock().unwrap().add(done),
            Err(panic) => {
                println!("SEED={seed} fails; it replays the same");
                resume_unwind(panic);
            }
        }
    }
}

#[test]
fn every_client_is_told_everything_once_on_whatever_replica() {
    let (began, seeds) = (std::time::Instant::now(), seeds_of(SEEDS));
    let all = Mutex::new(All::default());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (all, mine) = (&all, seeds.clone().filter(move |seed| seed % THREADS == thread));
            scope.spawn(move || run(mine, all));
        }
    });
    let all = all.into_inner().unwrap();
    let count = u64::try_from(seeds.count()).unwrap();
    let numbers = [
        ("events", all.sum(|found| found.events), 50),
        ("ids", all.sum(|found| found.ids), 75),
        ("connections", all.sum(|found| found.connections), 10),
        ("resumed without a snapshot", all.sum(|found| found.resumed), 6),
        ("of them from before their replica", all.sum(|found| found.backfilled), 2),
        ("of them ahead of it", all.sum(|found| found.ahead), 0),
        ("differences", all.sum(|found| found.differences), 0),
        ("empty ones", all.sum(|found| found.empty_differences), 0),
        ("parts", all.sum(|found| found.parts), 5),
        ("upstream.down", all.sum(|found| found.downs), 2),
        ("restarts", all.restarts, 2),
    ];
    let reasons = ["connect", "expired", "foreign", "filter", "lagged"].map(|reason| (reason, all.initials(reason)));
    let told = numbers.map(|(name, number, _)| format!("{number} {name}")).join(", ");
    println!("{count} histories in {:?}: {told}; {reasons:?}; {:?}", began.elapsed(), all.troubles);
    if count > 1 {
        for (name, number, least) in numbers {
            assert!(number > 0 && number >= least * count, "{name} only {number} times");
        }
        for (reason, number) in reasons {
            assert!(number > 0, "nobody was told {reason}");
        }
        let met = |trouble| all.troubles.get(&trouble).copied().unwrap_or_default();
        // The rarest come once in twelve histories.
        let rare: Vec<_> = Trouble::ALL.into_iter().filter(|trouble| met(*trouble) < count / 100).collect();
        assert!(rare.is_empty(), "{rare:?} hardly ever");
    }
}

#[test]
fn a_seed_replays_the_same_to_the_last_line() {
    for seed in seeds_of(REPLAYED) {
        let (once, again) = (history(seed).judged.records, history(seed).judged.records);
        for (who, (one, other)) in once.iter().zip(&again).enumerate() {
            let differs = one.iter().zip(other).find(|(one, other)| one != other);
            assert!(one == other, "seed {seed}, client {who}: {differs:#?}, {} {}", one.len(), other.len());
        }
    }
}
