//! Seeded histories of the full stream (docs/development.md#test-layers): two replicas of a bridge on a cluster that lives and breaks,
//! clients that leave and resume on either, and a validator that holds every line of each against the store's history.
//!
//! One process, a paused clock: `BRIDGE_SEED=n` runs one, a failing one is printed, and it replays the same to the last line.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::sim::fault::ConnectionEnd;
use tokio::task::JoinSet;

use crate::seeded_ws::THREADS;
use crate::seeded_ws::script::{self, FaultCounts, InjectedFault};
use crate::support::long_form;
use crate::support::rng::SeededRng;
use crate::support::seeds::{ReplayCommand, seeds, test_name};
use client::{Client, ClientBehavior};
use deployment::SimulatedDeployment;
use record::{Entry, Start};
use validator::{Coverage, StreamValidator};

mod client;
mod deployment;
mod expected_history;
mod mutations;
mod projections;
mod record;
mod replica_timeline;
mod validator;

/// How many seeds the ordinary run takes, and the full one.
const SEEDS: [u64; 2] = [60, 2_000];
/// How many of them are run twice.
const REPLAYED: [u64; 2] = [10, 200];
/// Steps of a history: writes, pauses, troubles and restarts.
const STEPS: u64 = 70;
/// How often everybody is looked at before it counts as never at rest: faults stall for 35 s at most, each after another.
const MAX_SETTLE_CHECKS: u32 = 40;
/// Everybody has been told of a change by then (G9); where one replica lags, it first has to hear of it.
const CONVERGED: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(32)];

/// All of a history, ended.
#[derive(Debug)]
struct Done {
    validated: ValidatedRun,
    faults: FaultCounts,
    restarts: u64,
}

/// The records of all clients, held against the truth.
#[derive(Debug)]
struct ValidatedRun {
    validator: StreamValidator,
    records: Vec<Vec<Entry>>,
    coverage: Vec<Coverage>,
}

/// Runs one history to its end.
fn run_seed(seed: u64) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut rng = SeededRng(seed);
        let mut tasks = JoinSet::new();
        let (begin, mut filling) = (rng.below(20), rng.fork());
        let deployment = SimulatedDeployment::new(seed, &mut rng, |store| {
            (0..begin).for_each(|_| script::write(store, &mut filling))
        });
        for behavior in clients(&mut rng) {
            tasks.spawn(Client::new(&deployment, behavior, rng.fork()).run());
        }
        let (mut faults, mut restarts) = (FaultCounts::default(), 0);
        for _ in 0..STEPS {
            match rng.below(24) {
                0 | 1 => {
                    let fault = script::fault(&deployment.cluster, &mut rng, &InjectedFault::ALL).await;
                    *faults.entry(fault).or_default() += 1;
                }
                2 => {
                    deployment.restart(rng.below(2) as usize, &mut rng);
                    restarts += 1;
                }
                3..=9 => deployment.cluster.sleep_slot(rng.duration_up_to(Duration::from_secs(9))).await,
                _ => {
                    deployment.cluster.write(|store| script::write(store, &mut rng));
                    // Now and then everybody has a turn between two writes.
                    if rng.below(2) == 0 {
                        deployment.cluster.sleep_slot(Duration::ZERO).await;
                    }
                }
            }
        }
        let validated = settle(&deployment, &mut rng, seed).await;
        Done { validated, faults, restarts }
    })
}

/// One that is always there, one that comes and goes, one that is slow, one that wants transitions only, one at random.
fn clients(rng: &mut SeededRng) -> Vec<ClientBehavior> {
    let any = |rng: &mut SeededRng| rng.below(projections::PROJECTIONS.len() as u64) as usize;
    let hour = Duration::from_secs(3600);
    let mut steady = || ClientBehavior {
        projection: [any(rng), any(rng)],
        snapshot: true,
        starts_after: rng.duration_up_to(Duration::from_secs(20)),
        max_session: hour,
        max_pause: Duration::ZERO,
        batch_bytes: 1 << 16,
        joins_group: rng.below(2) == 0,
    };
    let [first, second, third, fourth, fifth] = std::array::from_fn(|_| steady());
    let max_session = rng.duration_up_to(Duration::from_secs(60));
    vec![
        ClientBehavior { projection: [0, first.projection[1]], ..first },
        ClientBehavior { max_session: Duration::from_secs(15), batch_bytes: *rng.choose(&[1, 300, 1 << 16]), ..second },
        ClientBehavior {
            max_pause: Duration::from_secs(30),
            max_session: Duration::from_secs(120),
            batch_bytes: 1,
            ..third
        },
        ClientBehavior { snapshot: false, max_session: Duration::from_secs(40), ..fourth },
        ClientBehavior { max_session, max_pause: Duration::from_secs(2), ..fifth },
    ]
}

/// Waits until everybody has been told everything, then has a few more things happen and gives them their time.
async fn settle(deployment: &Arc<SimulatedDeployment>, rng: &mut SeededRng, seed: u64) -> ValidatedRun {
    deployment.settling.store(true, Ordering::Relaxed);
    let mut outcome = Err("a replica never came to life".to_owned());
    for _ in 0..MAX_SETTLE_CHECKS {
        deployment.cluster.sleep_slot(Duration::from_secs(30)).await;
        // An armed fault may have written something.
        deployment.cluster.write(|_| {});
        if deployment.is_live() {
            outcome = validate(deployment);
            if outcome.is_ok() {
                break;
            }
        }
    }
    let validated = outcome.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    // What is armed waits for requests, what was met sits in open watches.
    deployment.cluster.sim.cut_watches(ConnectionEnd::Eof);
    deployment.cluster.sleep_slot(Duration::from_secs(5)).await;
    if deployment.cluster.sim.pending_faults() > 0 {
        return validated;
    }
    deployment.cluster.sim.cut_watches(ConnectionEnd::Eof);
    // One that has stalled hears of no cut, and is given up by then.
    deployment.cluster.sleep_slot(Duration::from_secs(45)).await;
    (0..3).for_each(|_| deployment.cluster.write(|store| script::write(store, rng)));
    let bound = CONVERGED[usize::from(deployment.lags())];
    deployment.cluster.sleep_slot(bound).await;
    validate(deployment).unwrap_or_else(|why| panic!("seed {seed}, within {bound:?}: {why}"))
}

fn validate(deployment: &SimulatedDeployment) -> Result<ValidatedRun, String> {
    let records = deployment.records.lock().unwrap().clone();
    let resume = |entry: &Entry| match entry {
        Entry::Connect { at, replica, start: Start::Resume { .. }, .. } => Some((*at, *replica)),
        _ => None,
    };
    let resumes = records.iter().flatten().filter_map(resume).collect();
    let validator = StreamValidator { history: deployment.history(), timelines: deployment.timelines(), resumes };
    let validated = records.iter().enumerate();
    let validated =
        validated.map(|(index, record)| validator.validate(record).map_err(|why| format!("client {index}: {why}")));
    let coverage = validated.collect::<Result<_, _>>()?;
    Ok(ValidatedRun { validator, records, coverage })
}

/// What all histories were, so that the test can tell that it tested something.
#[derive(Debug, Default)]
struct All {
    coverage: Vec<Coverage>,
    faults: FaultCounts,
    restarts: u64,
}

impl All {
    fn add(&mut self, done: Done) {
        self.coverage.extend(done.validated.coverage);
        done.faults.iter().for_each(|(fault, count)| *self.faults.entry(*fault).or_default() += count);
        self.restarts += done.restarts;
    }

    fn sum(&self, of: fn(&Coverage) -> u64) -> u64 {
        self.coverage.iter().map(of).sum()
    }

    fn initials(&self, reason: &str) -> u64 {
        self.coverage.iter().filter_map(|coverage| coverage.initials.get(reason)).sum()
    }
}

fn run(test: &'static str, seeds: impl Iterator<Item = u64>, all: &Mutex<All>) {
    for seed in seeds {
        let _replay = ReplayCommand::on_panic(test, seed);
        let done = run_seed(seed);
        all.lock().unwrap().add(done);
    }
}

#[test]
fn every_client_receives_every_event_once_on_any_replica() {
    let (started, seeds) = (std::time::Instant::now(), seeds(0..SEEDS[usize::from(long_form())]));
    let all = Mutex::new(All::default());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (all, mine) = (&all, seeds.iter().copied().filter(move |seed| seed % THREADS == thread));
            scope.spawn(move || run(test_name!(), mine, all));
        }
    });
    let all = all.into_inner().unwrap();
    let count = u64::try_from(seeds.len()).unwrap();
    let numbers = [
        ("events", all.sum(|coverage| coverage.events), 50),
        ("ids", all.sum(|coverage| coverage.ids), 75),
        ("connections", all.sum(|coverage| coverage.connections), 10),
        ("resumed without a snapshot", all.sum(|coverage| coverage.resumed), 6),
        ("of them from before their replica", all.sum(|coverage| coverage.backfilled), 2),
        ("of them ahead of it", all.sum(|coverage| coverage.ahead), 0),
        ("differences", all.sum(|coverage| coverage.differences), 0),
        ("empty ones", all.sum(|coverage| coverage.empty_differences), 0),
        ("parts", all.sum(|coverage| coverage.parts), 5),
        ("upstream.down", all.sum(|coverage| coverage.downs), 2),
        ("restarts", all.restarts, 2),
    ];
    let reasons = ["connect", "expired", "foreign", "filter", "lagged"].map(|reason| (reason, all.initials(reason)));
    let received = numbers.map(|(name, number, _)| format!("{number} {name}")).join(", ");
    println!("{count} histories in {:?}: {received}; {reasons:?}; {:?}", started.elapsed(), all.faults);
    if count > 1 {
        for (name, number, least) in numbers {
            assert!(number > 0 && number >= least * count, "{name} only {number} times");
        }
        for (reason, number) in reasons {
            assert!(number > 0, "nobody was told {reason}");
        }
        let met = |fault| all.faults.get(&fault).copied().unwrap_or_default();
        // The rarest come once in twelve histories.
        let rare: Vec<_> = InjectedFault::ALL.into_iter().filter(|fault| met(*fault) < count / 100).collect();
        assert!(rare.is_empty(), "{rare:?} hardly ever");
    }
}

#[test]
fn equal_seeds_produce_equal_lines() {
    for seed in seeds(0..REPLAYED[usize::from(long_form())]) {
        let _replay = ReplayCommand::on_panic(test_name!(), seed);
        let (once, again) = (run_seed(seed).validated.records, run_seed(seed).validated.records);
        for (index, (one, other)) in once.iter().zip(&again).enumerate() {
            let differs = one.iter().zip(other).find(|(one, other)| one != other);
            assert!(one == other, "seed {seed}, client {index}: {differs:#?}, {} {}", one.len(), other.len());
        }
    }
}
