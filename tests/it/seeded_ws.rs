//! Seeded histories of `/ws` (docs/development.md#test-layers): a simulated cluster with random writes and faults,
//! readers on the hub and on dedicated watchers, and the oracle, which compares every message of every reader with the
//! store's history.
//!
//! Everything runs in one process on a paused clock: an hour takes a second, and a seed repeats the same history.
//! `BRIDGE_SEED=<n>` runs one seed, `BRIDGE_TESTS=full` runs 2,000.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::event::Resource;
use boilerhouse_bridge::ring::Limits;
use boilerhouse_bridge::test_support::{ReplayCommand, SeededRng, seeds_to_run};
use boilerhouse_bridge::wire::CloseReason;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::oracle::fold::validate_ws_fold;
use crate::oracle::history::History;
use crate::oracle::mutations::ws as mutations;
use crate::oracle::recording::RecordedResponse;
use crate::oracle::ws::{End, Record, Start, WatchMode, WsEvent, validate};
use crate::support::long_form;
use deployment::{NO_LIMIT, Reader, SimulatedDeployment};
use script::{FaultCounts, InjectedFault};

pub(crate) mod api_recorder;
pub(crate) mod cluster;
mod deployment;
pub(crate) mod latency;
mod long_runs;
pub(crate) mod script;

/// The number of seeds of the short form and of the long form.
const SEEDS: [u64; 2] = [80, 2_000];
/// The same for faults that retain the watch history.
const RETAINED_SEEDS: [u64; 2] = [20, 200];
/// Seeds whose records are mutated.
const MUTATED_SEEDS: u64 = 40;
/// The minimum number of times that each mutation must have been applied.
const MIN_APPLIED: u64 = 20;
/// Threads that share the seeds, one for each core of the CI machines.
pub(crate) const THREADS: u64 = 2;
/// Steps of a history: writes, pauses and faults.
const STEPS: u64 = 70;
/// How long armed faults may delay the end, in simulated time. Each stalls for at most 35 s.
const MAX_SETTLE_TIME: Duration = Duration::from_secs(900);

/// What the histories contained, so that the tests can assert that they tested something.
#[derive(Debug, Default)]
struct Coverage {
    faults: FaultCounts,
    connections: u64,
    messages: u64,
    /// Lists after the first one of a connection.
    lists: u64,
    lagged: u64,
    closed_upstream_down: u64,
}

impl Coverage {
    fn add(&mut self, other: &Coverage) {
        for (fault, count) in &other.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
        self.connections += other.connections;
        self.messages += other.messages;
        self.lists += other.lists;
        self.lagged += other.lagged;
        self.closed_upstream_down += other.closed_upstream_down;
    }

    fn count(&mut self, records: &[Record]) {
        for record in records {
            self.connections += 1;
            self.messages += record.received.len() as u64;
            self.lagged += u64::from(record.end == End::Closed(CloseReason::Lagged));
            self.closed_upstream_down += u64::from(record.end == End::Closed(CloseReason::UpstreamUnavailable));
            for resource in Resource::ALL {
                let responses = &record.responses[resource];
                let later = responses.iter().skip(record.start.received()[resource]);
                self.lists += later.filter(|response| RecordedResponse::is_list(response)).count() as u64;
            }
        }
    }
}

/// Runs one history to its end.
fn run_seed(seed: u64, faults: &[InjectedFault]) -> (History, Vec<Record>, Coverage) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut rng = SeededRng(seed);
        let mut tasks = JoinSet::new();
        // A log that is too small for slow readers, or one that is not.
        let log = Limits { items: *rng.choose(&[8, 1 << 16]), ..Limits::default() };
        let initial_writes = rng.below(20);
        let mut fill_rng = rng.fork();
        let deployment = SimulatedDeployment::new(seed, log, &mut tasks, |store| {
            (0..initial_writes).for_each(|_| script::write(store, &mut fill_rng));
        });
        let readers = readers(&mut rng);
        let count = readers.len();
        for (index, reader) in readers.into_iter().enumerate() {
            tasks.spawn(deployment.clone().read(index, reader, rng.fork()));
        }
        let mut coverage = Coverage::default();
        for _ in 0..STEPS {
            match rng.below(10) {
                0 => {
                    let fault = script::fault(&deployment, &mut rng, faults).await;
                    *coverage.faults.entry(fault).or_default() += 1;
                }
                1..=3 => sleep(rng.duration_up_to(Duration::from_secs(9))).await,
                _ => {
                    deployment.write(|store| script::write(store, &mut rng));
                    // In half of the cases all tasks run between two writes.
                    sleep(Duration::from_millis(rng.below(2))).await;
                }
            }
        }
        let (history, records) = settle(&deployment, count, seed).await;
        coverage.count(&records);
        (history, records, coverage)
    })
}

/// For each watch mode three readers: one that is always connected, one that connects later and may have no burst, and
/// a slow one.
fn readers(rng: &mut SeededRng) -> Vec<Reader> {
    let mut readers = Vec::new();
    for mode in [WatchMode::Shared, WatchMode::Dedicated] {
        let steady = Reader {
            mode,
            initial_events: true,
            starts_after: Duration::ZERO,
            max_session: NO_LIMIT,
            max_pause: Duration::ZERO,
            batch_bytes: 1 << 16,
        };
        let late = rng.duration_up_to(Duration::from_secs(200));
        let batch_bytes = *rng.choose(&[1, 100, 1 << 16]);
        readers.push(steady);
        readers.push(Reader {
            starts_after: late,
            max_session: Duration::from_secs(120),
            initial_events: rng.below(2) == 0,
            batch_bytes,
            ..steady
        });
        readers.push(Reader {
            max_pause: Duration::from_secs(40),
            initial_events: rng.below(2) == 0,
            batch_bytes: 1,
            ..steady
        });
    }
    readers
}

/// Waits until every reader has received everything, and validates all connections.
async fn settle(deployment: &Arc<SimulatedDeployment>, readers: usize, seed: u64) -> (History, Vec<Record>) {
    deployment.settling.store(true, Ordering::Relaxed);
    let started = Instant::now();
    loop {
        sleep(Duration::from_secs(5)).await;
        // An armed fault may have written something since the last round.
        let (history, records) = (deployment.history(), deployment.records());
        let outcome = records.iter().try_for_each(|record| {
            let is_open = record.end == End::Open;
            validate(&history, record, is_open)
                .map_err(|violation| violation.at(format!("{:?} {:?}", record.mode, record.start)))?;
            if is_open && matches!(record.start, Start::Burst(_)) {
                validate_ws_fold(&history, &record.received)
            } else {
                Ok(())
            }
        });
        let connected = records.iter().filter(|record| record.end == End::Open).count();
        match outcome {
            Ok(()) if connected == readers => {
                let violations = deployment.violations.lock().unwrap();
                assert!(violations.is_empty(), "seed {seed}: {violations:?}");
                return (history, records);
            }
            _ if started.elapsed() < MAX_SETTLE_TIME => {}
            Ok(()) => panic!("seed {seed}: only {connected} of {readers} readers are connected"),
            Err(violation) => panic!("{}", violation.at(format!("seed {seed}"))),
        }
    }
}

fn run(test: &'static str, seeds: impl Iterator<Item = u64>, faults: &[InjectedFault]) -> Coverage {
    let mut all = Coverage::default();
    for seed in seeds {
        let _replay = ReplayCommand::on_panic(test, seed);
        all.add(&run_seed(seed, faults).2);
    }
    all
}

#[test]
fn every_client_receives_exactly_the_store_history() {
    let (started, seeds) = (std::time::Instant::now(), seeds_to_run(0..SEEDS[usize::from(long_form())]));
    let all = Mutex::new(Coverage::default());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (all, own) = (&all, seeds.iter().copied().filter(move |seed| seed % THREADS == thread));
            scope.spawn(move || {
                let coverage = run(boilerhouse_bridge::test_name!(), own, &InjectedFault::ALL);
                all.lock().unwrap().add(&coverage);
            });
        }
    });
    let all = all.into_inner().unwrap();
    let count = u64::try_from(seeds.len()).unwrap();
    println!("{count} histories in {:?}: {all:?}", started.elapsed());
    if count > 1 {
        for fault in InjectedFault::ALL {
            let times = all.faults.get(&fault).copied().unwrap_or_default();
            assert!(times >= count / 40, "{fault:?} was injected only {times} times");
        }
        assert!(all.messages > 100 * count && all.lists > 3 * count, "too little was tested: {all:?}");
        assert!(all.lagged > count / 10 && all.closed_upstream_down > count / 10, "too little was tested: {all:?}");
    }
}

/// While the API server has the history, no change is replaced by a difference: no list after the first one of a
/// connection.
///
/// For dedicated watchers this holds if kube-runtime resumes at the version that it has: after the end of a watch, a
/// break, half a line, silence, 401, 403, 429, 5xx and an outage. After a line that cannot be parsed kube-runtime would
/// continue without that change, and after a 410 it would request the same version until shutdown. In these two cases
/// the dedicated watcher is restarted and lists.
#[test]
fn retained_history_is_sent_version_by_version_without_relists() {
    let faults: Vec<InjectedFault> = InjectedFault::ALL.into_iter().filter(|fault| fault.retains_history()).collect();
    // Other seeds than those of the test above.
    let seeds = seeds_to_run(1 << 32..(1 << 32) + RETAINED_SEEDS[usize::from(long_form())]);
    let count = u64::try_from(seeds.len()).unwrap();
    let coverage = run(boilerhouse_bridge::test_name!(), seeds.into_iter(), &faults);
    assert_eq!(coverage.lists, 0, "a watcher listed again: {coverage:?}");
    assert!(count == 1 || coverage.messages > 100 * count, "too little was tested: {coverage:?}");
}

/// Messages about pods and messages about claims may be interleaved differently: that depends on which of two tasks
/// wakes first at the same time.
#[test]
fn equal_seeds_produce_equal_records() {
    let of = |records: &[Record], resource: Resource| -> Vec<Vec<WsEvent>> {
        let own = |record: &Record| {
            record.received.iter().filter(|event| event.r#type.resource() == resource).cloned().collect()
        };
        records.iter().map(own).collect()
    };
    for seed in seeds_to_run(0..5) {
        let _replay = ReplayCommand::on_panic(boilerhouse_bridge::test_name!(), seed);
        let run = || run_seed(seed, &InjectedFault::ALL).1;
        let (first, second) = (run(), run());
        for resource in Resource::ALL {
            assert!(of(&first, resource) == of(&second, resource), "seed {seed}: {} differ", resource.plural());
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
        let mut rng = SeededRng(seed);
        let (history, records, _) = run_seed(seed, &InjectedFault::ALL);
        for record in records.iter().filter(|record| record.end == End::Open) {
            mutations::reject_all(&history, record, &mut rng, &mut applied);
        }
    }
    applied.assert_each_at_least(if count == 1 { 0 } else { MIN_APPLIED });
}
