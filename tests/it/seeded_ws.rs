//! Seeded histories (docs/development.md#test-layers): a simulated cluster that lives and breaks, both engines, many readers, and one
//! validator that holds every message of every reader against the store's history.
//!
//! Everything runs in one process on a paused clock, so an hour takes a second and a seed replays the same: `BRIDGE_SEED=n`
//! runs one, a failing one is printed. `BRIDGE_TESTS=full` runs as many as issue 4 asks for.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::event::Resource;
use boilerhouse_bridge::ring::Limits;
use boilerhouse_bridge::wire::CloseReason;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::support::long_form;
use crate::support::rng::SeededRng;
use crate::support::seeds::{ReplayCommand, seeds, test_name};
use deployment::{NO_LIMIT, Reader, SimulatedDeployment};
use history::{History, WsEvent};
use script::{FaultCounts, InjectedFault};
use validator::{End, Record, Start, WatchMode, fold, validate};

pub(crate) mod api_recorder;
pub(crate) mod cluster;
mod deployment;
pub(crate) mod history;
pub(crate) mod latency;
mod long_runs;
mod mutations;
pub(crate) mod script;
mod validator;

/// How many seeds the ordinary run takes, and the full one.
const SEEDS: [u64; 2] = [160, 2_000];
/// The same, of those with troubles that keep the history.
const RETAINED_SEEDS: [u64; 2] = [40, 200];
/// Threads that share them: the machines this runs on have two cores.
pub(crate) const THREADS: u64 = 2;
/// Steps of a history: writes, pauses and troubles.
const STEPS: u64 = 70;
/// What armed faults may still cost after the last step, in simulated time: each stalls for 35 s at most.
const REST: Duration = Duration::from_secs(900);

/// What a history did, so that the test can tell that it tested something.
#[derive(Debug, Default)]
struct Done {
    faults: FaultCounts,
    connections: u64,
    messages: u64,
    /// Lists after the first of a connection.
    lists: u64,
    lagged: u64,
    closed_upstream_down: u64,
}

impl Done {
    fn add(&mut self, other: &Done) {
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
            let (Start::Live(at) | Start::Burst(at)) = record.start;
            for (responses, at) in record.responses.iter().zip(at) {
                let later = &responses[at.min(responses.len())..];
                self.lists += later.iter().filter(|response| response.is_list()).count() as u64;
            }
        }
    }
}

/// Runs one history to its end.
fn run_seed(seed: u64, among: &[InjectedFault]) -> (History, Vec<Record>, Done) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut rng = SeededRng(seed);
        let mut tasks = JoinSet::new();
        // A log that slow readers fall off, or one that they do not.
        let log = Limits { items: *rng.choose(&[8, 1 << 16]), ..Limits::default() };
        let begin = rng.below(20);
        let mut filling = rng.fork();
        let deployment = SimulatedDeployment::new(seed, log, &mut tasks, |store| {
            (0..begin).for_each(|_| script::write(store, &mut filling))
        });
        let all = readers(&mut rng);
        let readers = all.len();
        for (index, reader) in all.into_iter().enumerate() {
            tasks.spawn(deployment.clone().read(index, reader, rng.fork()));
        }
        let mut done = Done::default();
        for _ in 0..STEPS {
            match rng.below(10) {
                0 => {
                    let fault = script::fault(&deployment, &mut rng, among).await;
                    *done.faults.entry(fault).or_default() += 1;
                }
                1..=3 => sleep(rng.duration_up_to(Duration::from_secs(9))).await,
                _ => {
                    deployment.write(|store| script::write(store, &mut rng));
                    // Now and then everybody has a turn between two writes.
                    sleep(Duration::from_millis(rng.below(2))).await;
                }
            }
        }
        let (history, records) = settle(&deployment, readers, seed).await;
        done.count(&records);
        (history, records, done)
    })
}

/// On each engine: one from the start, one that comes late, one without a burst, and one that is slow.
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

/// Waits until everybody has been told everything, and holds all connections against the truth.
async fn settle(deployment: &Arc<SimulatedDeployment>, readers: usize, seed: u64) -> (History, Vec<Record>) {
    deployment.settling.store(true, Ordering::Relaxed);
    let started = Instant::now();
    loop {
        sleep(Duration::from_secs(5)).await;
        // An armed fault may have written something.
        let (history, records) = (deployment.history(), deployment.records());
        let outcome = records.iter().try_for_each(|record| {
            let complete = record.end == End::Open;
            validate(&history, record, complete)
                .map_err(|why| format!("{:?} {:?}: {why}", record.mode, record.start))?;
            if complete && matches!(record.start, Start::Burst(_)) { fold(&history, &record.received) } else { Ok(()) }
        });
        let there = records.iter().filter(|record| record.end == End::Open).count();
        match outcome {
            Ok(()) if there == readers => {
                let wrong = deployment.wrong.lock().unwrap();
                assert!(wrong.is_empty(), "seed {seed}: {wrong:?}");
                return (history, records);
            }
            _ if started.elapsed() < REST => {}
            Ok(()) => panic!("seed {seed}: only {there} readers are connected"),
            Err(why) => panic!("seed {seed}: {why}"),
        }
    }
}

fn run(test: &'static str, seeds: impl Iterator<Item = u64>, among: &[InjectedFault]) -> Done {
    let mut all = Done::default();
    for seed in seeds {
        let _replay = ReplayCommand::on_panic(test, seed);
        all.add(&run_seed(seed, among).2);
    }
    all
}

#[test]
fn every_client_receives_exactly_the_store_history() {
    let (started, seeds) = (std::time::Instant::now(), seeds(0..SEEDS[usize::from(long_form())]));
    let all = Mutex::new(Done::default());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (all, mine) = (&all, seeds.iter().copied().filter(move |seed| seed % THREADS == thread));
            scope.spawn(move || {
                let done = run(test_name!(), mine, &InjectedFault::ALL);
                all.lock().unwrap().add(&done);
            });
        }
    });
    let all = all.into_inner().unwrap();
    let count = u64::try_from(seeds.len()).unwrap();
    println!("{count} histories in {:?}: {all:?}", started.elapsed());
    if count > 1 {
        for fault in InjectedFault::ALL {
            let met = all.faults.get(&fault).copied().unwrap_or_default();
            assert!(met >= count / 40, "{fault:?} only {met} times");
        }
        assert!(all.messages > 100 * count && all.lists > 3 * count, "it tests what it says: {all:?}");
        assert!(all.lagged > count / 10 && all.closed_upstream_down > count / 10, "{all:?}");
    }
}

/// What the API server could still tell is never made good by a difference: no list after a connection's first.
///
/// For own watchers this holds where kube-runtime goes on from the version it knows: after an end, a break, half a line,
/// silence, 401, 403, 429, 5xx and an outage. After a line that does not parse it would go on without that change, and
/// after an HTTP 410 it would ask for the same version for ever: then it is built anew, and lists.
#[test]
fn retained_history_is_sent_version_by_version_without_relists() {
    let kept: Vec<InjectedFault> = InjectedFault::ALL.into_iter().filter(|fault| fault.keeps_history()).collect();
    // Other seeds than above.
    let seeds = seeds(1 << 32..(1 << 32) + RETAINED_SEEDS[usize::from(long_form())]);
    let count = u64::try_from(seeds.len()).unwrap();
    let done = run(test_name!(), seeds.into_iter(), &kept);
    assert_eq!(done.lists, 0, "{done:?}");
    assert!(count == 1 || done.messages > 100 * count, "{done:?}");
}

/// But for how pods and claims are interleaved, which depends on who is woken first at one and the same moment.
#[test]
fn equal_seeds_produce_equal_records() {
    let of = |records: &[Record], kind: Resource| -> Vec<Vec<WsEvent>> {
        let mine =
            |record: &Record| record.received.iter().filter(|event| event.r#type.kind() == kind).cloned().collect();
        records.iter().map(mine).collect()
    };
    for seed in seeds(0..5) {
        let _replay = ReplayCommand::on_panic(test_name!(), seed);
        let run = || run_seed(seed, &InjectedFault::ALL).1;
        let (once, again) = (run(), run());
        for kind in Resource::ALL {
            assert!(of(&once, kind) == of(&again, kind), "seed {seed}, {}", kind.plural());
        }
    }
}
