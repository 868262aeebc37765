//! Seeded histories of the full stream (docs/development.md#test-layers): two replicas of a bridge on a cluster with
//! random writes and faults, clients that disconnect and resume on either replica, and the oracle, which compares every
//! event of every client with the store's history. The client library reads too, over SSE and over WebSocket, and its own
//! results are compared with what it was sent ([`library`]).
//!
//! Everything runs in one process on a paused clock. A seed repeats the same history to the last line.
//! `BRIDGE_SEED=<n>` runs one seed, `BRIDGE_TESTS=full` runs 2,000.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::sim::fault::ConnectionEnd;
use boilerhouse_bridge::test_support::{ReplayCommand, SeededRng, seeds_to_run};
use tokio::task::JoinSet;

use crate::oracle::full_stream::{Coverage, Entry, ProjectedHistory, Start, StreamValidator};
use crate::oracle::mutations::full_stream as mutations;
use crate::oracle::violation::{Guarantee, Violation};
use crate::seeded_ws::THREADS;
use crate::seeded_ws::script::{self, FaultCounts, InjectedFault};
use crate::support::long_form;
use client::Client;
use deployment::SimulatedDeployment;
use library::{LibraryCoverage, LibraryReader};
use projections::PROJECTIONS;
use session::ClientBehavior;

mod client;
mod deployment;
mod library;
mod library_server;
pub(crate) mod projections;
mod session;
mod wire;

/// The number of seeds of the short form and of the long form.
const SEEDS: [u64; 2] = [40, 2_000];
/// How many of them the replay test runs twice.
const REPLAYED_SEEDS: [u64; 2] = [6, 200];
/// Seeds whose records are mutated.
const MUTATED_SEEDS: u64 = 32;
/// The minimum number of times that each mutation must have been applied.
const MIN_APPLIED: u64 = 5;
/// The maximum number of times that each mutation is applied, each time to another record.
const MAX_APPLIED: u64 = 12;
/// Steps of a history: writes, pauses, faults and restarts.
const STEPS: u64 = 70;
/// Checks, one every 30 s of simulated time, before a history counts as never at rest. Faults stall for at most 35 s,
/// one after another.
const MAX_SETTLE_CHECKS: u32 = 40;
/// Every client has received a change within this time (docs/guarantees.md#guarantees, G9). The second one holds if a
/// replica lags, because it receives the change late.
const CONVERGED_WITHIN: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(32)];

/// One history after its end.
#[derive(Debug)]
struct CompletedRun {
    validated: ValidatedRun,
    faults: FaultCounts,
    restarts: u64,
}

/// The records of all clients, and what the validator found in them.
#[derive(Debug)]
struct ValidatedRun {
    validator: StreamValidator,
    records: Vec<Vec<Entry>>,
    coverage: Vec<Coverage>,
    libraries: Vec<LibraryCoverage>,
}

/// Runs one history to its end.
fn run_seed(seed: u64) -> CompletedRun {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut rng = SeededRng(seed);
        let mut tasks = JoinSet::new();
        let (initial_writes, mut fill_rng) = (rng.below(20), rng.fork());
        let deployment = SimulatedDeployment::new(seed, &mut rng, |store| {
            (0..initial_writes).for_each(|_| script::write(store, &mut fill_rng));
        });
        for behavior in clients(&mut rng) {
            tasks.spawn(Client::new(&deployment, behavior, rng.fork()).run());
        }
        let libraries = LibraryReader::start_all(&deployment, seed, &mut tasks);
        let (mut faults, mut restarts) = (FaultCounts::default(), 0);
        for _ in 0..STEPS {
            match rng.below(24) {
                0 | 1 => {
                    let fault = script::fault(&deployment.cluster, &mut rng, &InjectedFault::ALL).await;
                    *faults.entry(fault).or_default() += 1;
                }
                2 => {
                    // What a backfill of the next replica may leave out.
                    if rng.below(2) == 0 {
                        deployment.cluster.write(|store| script::transient(store, &mut rng));
                    }
                    deployment.restart(rng.below(2) as usize, &mut rng);
                    restarts += 1;
                }
                3..=9 => deployment.cluster.sleep_slot(rng.duration_up_to(Duration::from_secs(9))).await,
                _ => {
                    deployment.cluster.write(|store| script::write(store, &mut rng));
                    // In half of the cases all tasks run between two writes.
                    if rng.below(2) == 0 {
                        deployment.cluster.sleep_slot(Duration::ZERO).await;
                    }
                }
            }
        }
        let validated = settle(&deployment, &libraries, &mut rng, seed).await;
        CompletedRun { validated, faults, restarts }
    })
}

/// Five clients that read feeds directly: one that stays connected, one that reconnects often, a slow one, one without a snapshot, and one with
/// random connection times.
fn clients(rng: &mut SeededRng) -> Vec<ClientBehavior> {
    let any = |rng: &mut SeededRng| rng.below(PROJECTIONS.len() as u64) as usize;
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

/// Waits until every client has received everything. Then it makes a few more writes, and validates the records when
/// the time for them is over.
async fn settle(
    deployment: &Arc<SimulatedDeployment>,
    libraries: &[LibraryReader],
    rng: &mut SeededRng,
    seed: u64,
) -> ValidatedRun {
    deployment.settling.store(true, Ordering::Relaxed);
    let mut outcome = Err(Violation::new(Guarantee::Convergent, "a replica did not become ready"));
    for _ in 0..MAX_SETTLE_CHECKS {
        deployment.cluster.sleep_slot(Duration::from_secs(30)).await;
        // An armed fault may have written something: this adds the time of the newest revision.
        deployment.cluster.write(|_| {});
        if deployment.is_live() {
            outcome = validate(deployment, libraries);
            if outcome.is_ok() {
                break;
            }
        }
    }
    let validated = outcome.unwrap_or_else(|violation| panic!("{}", violation.at(format!("seed {seed}"))));
    // Armed faults wait for requests. Faults that were injected may still be in open watches.
    deployment.cluster.sim.cut_watches(ConnectionEnd::Eof);
    deployment.cluster.sleep_slot(Duration::from_secs(5)).await;
    if deployment.cluster.sim.pending_faults() > 0 {
        return validated;
    }
    deployment.cluster.sim.cut_watches(ConnectionEnd::Eof);
    // A stalled watch does not see the cut. It is given up by then.
    deployment.cluster.sleep_slot(Duration::from_secs(45)).await;
    (0..3).for_each(|_| deployment.cluster.write(|store| script::write(store, rng)));
    let bound = CONVERGED_WITHIN[usize::from(deployment.lags())];
    deployment.cluster.sleep_slot(bound).await;
    validate(deployment, libraries)
        .unwrap_or_else(|violation| panic!("{}", violation.at(format!("seed {seed}, after {bound:?}"))))
}

fn validate(deployment: &SimulatedDeployment, libraries: &[LibraryReader]) -> Result<ValidatedRun, Violation> {
    let records = deployment.records.lock().unwrap().clone();
    let resume = |entry: &Entry| match entry {
        Entry::Connect { at, replica, start: Start::Resume { .. }, .. } => Some((*at, *replica)),
        _ => None,
    };
    let resumes = records.iter().flatten().filter_map(resume).collect();
    let expected = ProjectedHistory::new(deployment.history(), PROJECTIONS.to_vec());
    let validator = StreamValidator { expected, replicas: deployment.replicas(), resumes };
    let coverage = records
        .iter()
        .enumerate()
        .map(|(index, record)| validator.validate(record).map_err(|violation| violation.at(format!("client {index}"))));
    let coverage = coverage.collect::<Result<_, _>>()?;
    let libraries = libraries.iter().map(|library| library.validate(&validator.expected)).collect::<Result<_, _>>()?;
    Ok(ValidatedRun { validator, records, coverage, libraries })
}

/// What all histories contained, so that the test can assert that it tested something.
#[derive(Debug, Default)]
struct All {
    coverage: Vec<Coverage>,
    libraries: Vec<LibraryCoverage>,
    faults: FaultCounts,
    restarts: u64,
}

impl All {
    fn add(&mut self, run: CompletedRun) {
        self.coverage.extend(run.validated.coverage);
        self.libraries.extend(run.validated.libraries);
        run.faults.iter().for_each(|(fault, count)| *self.faults.entry(*fault).or_default() += count);
        self.restarts += run.restarts;
    }

    fn sum(&self, of: fn(&Coverage) -> u64) -> u64 {
        self.coverage.iter().map(of).sum()
    }

    fn libraries(&self, of: fn(&LibraryCoverage) -> u64) -> u64 {
        self.libraries.iter().map(of).sum()
    }

    fn initials(&self, reason: &str) -> u64 {
        self.coverage.iter().filter_map(|coverage| coverage.initials.get(reason)).sum()
    }
}

fn run(test: &'static str, seeds: impl Iterator<Item = u64>, all: &Mutex<All>) {
    for seed in seeds {
        let _replay = ReplayCommand::on_panic(test, seed);
        let run = run_seed(seed);
        all.lock().unwrap().add(run);
    }
}

#[test]
fn every_client_receives_every_event_once_on_any_replica() {
    let (started, seeds) = (std::time::Instant::now(), seeds_to_run(0..SEEDS[usize::from(long_form())]));
    let all = Mutex::new(All::default());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (all, own) = (&all, seeds.iter().copied().filter(move |seed| seed % THREADS == thread));
            scope.spawn(move || run(boilerhouse_bridge::test_name!(), own, all));
        }
    });
    let all = all.into_inner().unwrap();
    let count = u64::try_from(seeds.len()).unwrap();
    let numbers = [
        ("events", all.sum(|coverage| coverage.events), 50),
        ("ids", all.sum(|coverage| coverage.ids), 75),
        ("connections", all.sum(|coverage| coverage.connections), 10),
        ("resumed without a snapshot", all.sum(|coverage| coverage.resumed), 6),
        ("of them with a backfill", all.sum(|coverage| coverage.backfilled), 2),
        ("of them ahead of the replica", all.sum(|coverage| coverage.ahead), 0),
        ("differences", all.sum(|coverage| coverage.differences), 0),
        ("empty differences", all.sum(|coverage| coverage.empty_differences), 0),
        ("parts of snapshots", all.sum(|coverage| coverage.parts), 5),
        ("upstream.down", all.sum(|coverage| coverage.downs), 2),
        ("restarts", all.restarts, 2),
        ("events of the library", all.libraries(|library| library.events), 30),
        ("others that a cut left without an id", all.libraries(|library| library.forgotten), 0),
        ("cuts", all.libraries(|library| library.cuts), 5),
        ("silences", all.libraries(|library| library.silences), 0),
        ("refused connections", all.libraries(|library| library.refusals), 0),
        ("rejected cursors", all.libraries(|library| library.rejected_cursors), 0),
        ("states of the library", all.libraries(|library| library.states), 1),
    ];
    let reasons = ["connect", "expired", "foreign", "filter", "lagged"].map(|reason| (reason, all.initials(reason)));
    let received = numbers.map(|(name, number, _)| format!("{number} {name}")).join(", ");
    println!("{count} histories in {:?}: {received}; {reasons:?}; {:?}", started.elapsed(), all.faults);
    if count > 1 {
        for (name, number, min) in numbers {
            assert!(number > 0 && number >= min * count, "too little was tested: only {number} {name}");
        }
        for (reason, number) in reasons {
            assert!(number > 0, "no snapshot had the reason {reason}");
        }
        let times = |fault| all.faults.get(&fault).copied().unwrap_or_default();
        // The rarest one is injected once in twelve histories.
        let rare: Vec<_> = InjectedFault::ALL.into_iter().filter(|fault| times(*fault) < count / 100).collect();
        assert!(rare.is_empty(), "too few injections of {rare:?}");
    }
}

#[test]
fn equal_seeds_produce_equal_lines() {
    for seed in seeds_to_run(0..REPLAYED_SEEDS[usize::from(long_form())]) {
        let _replay = ReplayCommand::on_panic(boilerhouse_bridge::test_name!(), seed);
        let (first, second) = (run_seed(seed).validated.records, run_seed(seed).validated.records);
        for (index, (one, other)) in first.iter().zip(&second).enumerate() {
            let differs = one.iter().zip(other).find(|(one, other)| one != other);
            assert!(one == other, "seed {seed}, client {index}: {differs:#?}, {} {}", one.len(), other.len());
        }
    }
}

#[test]
fn validator_rejects_every_mutation() {
    let mut applied = mutations::none_applied();
    let seeds = seeds_to_run(0..MUTATED_SEEDS);
    let count = seeds.len();
    for seed in seeds {
        let _replay = ReplayCommand::on_panic(boilerhouse_bridge::test_name!(), seed);
        let mut generators = mutations::Generators::new(seed);
        let run = run_seed(seed).validated;
        for record in &run.records {
            mutations::reject_all(&run.validator, record, &mut generators, MAX_APPLIED, &mut applied);
        }
    }
    applied.assert_each_at_least(if count == 1 { 0 } else { MIN_APPLIED });
}
