//! The random model of two replicas (docs/development.md#test-layers): feeds without I/O.
//!
//! One history of objects is written to two feeds. They interleave pods and claims differently, one may lag, and each
//! may list again, lose its log, restart, notice a Namespace that was created again, and extend its log backwards for
//! older cursors. Clients with random projections read a little, disconnect, and resume on either feed. The oracle compares each record with the history:
//! the fold is the filtered state at every id, no event comes twice, no id goes back, and between two ids come exactly
//! the events of the history.
//!
//! One decision of a feed depends on the time: whether it sends a rendered snapshot again. The test of the model runs
//! in real time, so that both happen; the test of the mutations runs on a paused clock, so that a seed repeats exactly.

mod client;
mod history;
mod replica;

use boilerhouse_bridge::event::{Cursor, Resource};
use boilerhouse_bridge::test_support::{ReplayCommand, SeededRng, seeds_to_run};

use self::{client::Client, history::ObjectHistory, replica::Replica};
use crate::oracle::full_stream::{ProjectedHistory, ReplicaKnowledge, StreamValidator};
use crate::oracle::mutations::delivery::Mutation;
use crate::support::long_form;

/// The number of seeds of the short form and of the long form.
const SEEDS: [u64; 2] = [400, 5_000];
/// Each mutation must be rejected within this number of seeds.
const REJECTED_WITHIN: u64 = 2_000;
/// Steps of a history: changes, watch lines, reads, connections.
const STEPS: u64 = 160;

/// What the histories contained, so that the test can assert that it tested something.
#[derive(Default)]
struct Coverage {
    resumes: u64,
    ahead: u64,
    backfills: u64,
    events: u64,
    recreations: u64,
}

fn run_seed(seed: u64, coverage: &mut Coverage, mutation: Option<Mutation>) {
    let mut rng = SeededRng(seed);
    let mut history = ObjectHistory::default();
    for _ in 0..rng.below(8) {
        history.step(&mut rng);
    }
    let items = *rng.choose(&[4, 16, 1 << 16]);
    // Half of the histories with a large log also keep their watches: no client may receive a difference or a second
    // snapshot.
    let is_undisturbed = items > 16 && seed.is_multiple_of(2);
    let mut replicas = [Replica::start(&history, items), Replica::start(&history, items)];
    let laggard = rng.below(3) as usize;
    let mut clients: Vec<Client> = (0..3).map(|_| Client::new(&mut rng, mutation)).collect();
    for _ in 0..STEPS {
        let which = rng.below(2) as usize;
        let resource = *rng.choose(&Resource::ALL);
        let client = rng.below(3) as usize;
        match rng.below(20) {
            0..5 => history.step(&mut rng),
            5..12 if which == laggard && rng.below(4) != 0 => {}
            5..12 => replicas[which].watch(&history, resource),
            12 => replicas[which].bookmark(&history, resource),
            13 | 14 if is_undisturbed => {}
            13 if rng.below(6) == 0 => replicas[which].relist(&history, resource),
            13 if rng.below(60) == 0 => history.recreate_namespace(),
            14 if rng.below(3) == 0 => replicas[which].check_namespace(&history),
            13 if rng.below(8) == 0 => {
                clients.iter_mut().for_each(|client| client.disconnect(&mut rng));
                replicas[which] = Replica::start(&history, items);
            }
            13 | 14 => coverage.backfills += u64::from(replicas[which].backfill(&history, &mut rng)),
            15..18 => drop(clients[client].read(&mut rng)),
            _ if clients[client].subscription.is_some() => clients[client].disconnect(&mut rng),
            _ => {
                clients[client].connect(which, &replicas[which]);
                let at = replicas[which].at;
                let is_ahead =
                    |cursor: Cursor| Resource::ALL.into_iter().any(|resource| cursor.versions[resource] > at[resource]);
                coverage.ahead += u64::from(clients[client].cursor().is_some_and(is_ahead));
            }
        }
    }
    coverage.recreations += history.recreations;
    // At rest, every client must have received everything.
    for replica in &mut replicas {
        replica.check_namespace(&history);
        for resource in Resource::ALL {
            for _ in 0..history.changes.len() {
                replica.watch(&history, resource);
            }
            replica.bookmark(&history, resource);
        }
    }
    let expected = ProjectedHistory::new(history.expected(), client::projections());
    let knowledge = || if is_undisturbed { ReplicaKnowledge::Undisturbed } else { ReplicaKnowledge::Unknown };
    let validator = StreamValidator { expected, replicas: vec![knowledge(), knowledge()], resumes: Vec::new() };
    for (index, client) in clients.iter_mut().enumerate() {
        if client.subscription.is_none() {
            let which = rng.below(2) as usize;
            client.connect(which, &replicas[which]);
        }
        while client.read(&mut rng) {}
        for replica in &mut replicas {
            // The one that has started, and one for requests since then.
            for _ in 0..4 {
                coverage.backfills += u64::from(replica.backfill(&history, &mut rng));
            }
        }
        while client.read(&mut rng) {}
        assert!(client.heartbeat(), "seed {seed}, client {index}: no snapshot at rest");
        if let Err(violation) = validator.validate(&client.record) {
            panic!("{}", violation.at(format!("client {index}")).at(format!("seed {seed}")));
        }
        coverage.resumes += client.resumes;
        coverage.events += client.events;
    }
}

#[test]
fn two_replicas_send_no_duplicate_no_gap_and_no_decreasing_id() {
    let seeds = seeds_to_run(0..SEEDS[usize::from(long_form())]);
    let count = u64::try_from(seeds.len()).unwrap();
    let mut coverage = Coverage::default();
    for seed in seeds {
        let _replay = ReplayCommand::on_panic(boilerhouse_bridge::test_name!(), seed);
        run_seed(seed, &mut coverage, None);
    }
    let Coverage { resumes, ahead, backfills, events, recreations } = coverage;
    println!(
        "{resumes} resumes, {ahead} of them ahead of the replica, {backfills} backfills, {events} events, \
         {recreations} new Namespaces"
    );
    if count > 1 {
        assert!(resumes > 2 * count && ahead > count / 10 && backfills > count / 5, "too little was tested");
        assert!(events > 20 * count && recreations > count / 50, "too little was tested");
    }
}

#[test]
fn every_mutation_is_rejected_and_seeds_replay_equally() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let _paused_clock = runtime.enter();
    println!("{} mutations", Mutation::ALL.len());
    for mutation in Mutation::ALL {
        let run = |seed| {
            let run = std::panic::AssertUnwindSafe(|| run_seed(seed, &mut Coverage::default(), Some(mutation)));
            let message = |panic: Box<dyn std::any::Any + Send>| panic.downcast_ref::<String>().cloned();
            std::panic::catch_unwind(run).map_err(message)
        };
        let seeds = seeds_to_run(0..REJECTED_WITHIN);
        let count = seeds.len();
        let rejected = seeds.into_iter().find_map(|seed| run(seed).err().map(|message| (seed, message)));
        let Some((seed, message)) = rejected else {
            assert!(count == 1, "{mutation:?} is not rejected within {REJECTED_WITHIN} seeds");
            continue;
        };
        println!("{mutation:?}: seed {seed}");
        let _replay = ReplayCommand::on_panic(boilerhouse_bridge::test_name!(), seed);
        assert_eq!(run(seed), Err(message), "{mutation:?}: seed {seed} does not repeat the same violation");
    }
}
