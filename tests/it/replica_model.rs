//! The random model of two replicas (docs/architecture.md, "Before any I/O is written").
//!
//! One history of objects; two feeds that interleave its pods and claims differently, one lagging behind or ahead of
//! the other, each now and then losing its watch, dropping its log or being restarted, and extending its log backwards
//! for those who come with older cursors; clients with random lenses that read a little,
//! break off and resume on either. Every id that a client receives is held against the history: the fold must be the
//! filtered state at exactly that id, no key may come twice, no id may move back in either component, and between two
//! ids exactly the events that the history holds must have been told. The rules for all this are written here once
//! more, by hand: using the product's own would blind the model.

mod client;
mod history;
mod mutations;
mod replica;

use boilerhouse_bridge::{
    event::{Cursor, PerResource, Resource},
    feed::Subscription,
};

use self::{client::Client, history::ObjectHistory, mutations::Mutation, replica::Replica};
use crate::support::{
    long_form,
    rng::SeededRng,
    seeds::{ReplayCommand, seeds, test_name},
};

/// How many histories the ordinary run takes, and the full one.
const HISTORIES: [u64; 2] = [1_000, 5_000];

/// What a run did, so that the test can tell that it tested something.
#[derive(Default)]
struct Coverage {
    resumes: u64,
    ahead: u64,
    backfills: u64,
    ids: u64,
}

fn run_seed(seed: u64, coverage: &mut Coverage, mutation: Option<Mutation>) {
    let mut rng = SeededRng(seed);
    let mut history = ObjectHistory::default();
    for _ in 0..rng.below(8) {
        history.step(&mut rng);
    }
    let items = *rng.choose(&[4, 16, 1 << 16]);
    // Of those with a long log, half keep their watches, too.
    let calm = items > 16 && seed.is_multiple_of(2);
    let mut replicas = [Replica::start(&history, items), Replica::start(&history, items)];
    let laggard = rng.below(3) as usize;
    let mut clients: Vec<Client> = (0..3).map(|_| Client::new(&mut rng, calm, mutation)).collect();
    for _ in 0..160 {
        let which = rng.below(2) as usize;
        let kind = *rng.choose(&Resource::ALL);
        let client = rng.below(3) as usize;
        match rng.below(20) {
            0..5 => history.step(&mut rng),
            5..12 if which == laggard && rng.below(4) != 0 => {}
            5..12 => replicas[which].watch(&history, kind),
            12 => replicas[which].bookmark(&history, kind),
            13 | 14 if calm => {}
            13 if rng.below(6) == 0 => replicas[which].relist(&history, kind),
            13 if rng.below(12) == 0 => {
                for client in &mut clients {
                    client.disconnect(&mut rng, &history);
                }
                replicas[which] = Replica::start(&history, items);
            }
            13 | 14 => coverage.backfills += u64::from(replicas[which].backfill(&history, &mut rng)),
            15..18 => drop(clients[client].read(&mut rng, &history)),
            _ if clients[client].on.is_some() => clients[client].disconnect(&mut rng, &history),
            _ => {
                clients[client].connect(&replicas[which]);
                let ahead = |cursor: Cursor| {
                    Resource::ALL.into_iter().any(|r| cursor.versions[r] > replicas[which].at[r as usize])
                };
                coverage.ahead += u64::from(clients[client].cursor.is_some_and(ahead));
            }
        }
    }
    // Everything comes to rest: every client that is there, or comes back, ends with the truth.
    for replica in &mut replicas {
        for kind in Resource::ALL {
            for _ in 0..history.changes.len() {
                replica.watch(&history, kind);
            }
            replica.bookmark(&history, kind);
        }
    }
    for client in &mut clients {
        if client.on.is_none() {
            client.connect(rng.choose(&replicas));
        }
        while client.read(&mut rng, &history) {}
        for replica in &mut replicas {
            // One that is under way, and then one for whoever came meanwhile.
            for _ in 0..4 {
                coverage.backfills += u64::from(replica.backfill(&history, &mut rng));
            }
        }
        while client.read(&mut rng, &history) {}
        let end = client.on.as_mut().and_then(Subscription::cursor).expect("a whole picture at rest");
        client.reach(&end, &history);
        assert_eq!(client.fold, client.state_at(PerResource::from_fn(|_| history.rv()), &history), "at rest");
        coverage.resumes += client.resumes;
        coverage.ids += client.keys.len() as u64;
    }
}

#[test]
fn two_replicas_send_no_duplicate_no_gap_and_no_decreasing_id() {
    let seeds = seeds(0..HISTORIES[usize::from(long_form())]);
    let count = u64::try_from(seeds.len()).unwrap();
    let mut coverage = Coverage::default();
    for seed in seeds {
        let _replay = ReplayCommand::on_panic(test_name!(), seed);
        run_seed(seed, &mut coverage, None);
    }
    if count > 1 {
        let Coverage { resumes, ahead, backfills, ids } = coverage;
        println!("{resumes} resumes, {ahead} of them ahead of the replica, {backfills} backfills, {ids} events");
        assert!(resumes > 2 * count && ahead > count / 10 && backfills > count / 5, "the model tests what it says");
        assert!(ids > 20 * count, "the model tests what it says");
    }
}

/// Seeds within which each planted defect must show.
const CAUGHT_WITHIN: u64 = 2_000;

#[test]
fn every_mutation_is_rejected_and_seeds_replay_equally() {
    for mutation in Mutation::ALL {
        let run = |seed| {
            let run = std::panic::AssertUnwindSafe(|| run_seed(seed, &mut Coverage::default(), Some(mutation)));
            let message = |panic: Box<dyn std::any::Any + Send>| panic.downcast_ref::<String>().cloned();
            std::panic::catch_unwind(run).map_err(message)
        };
        let seeds = seeds(0..CAUGHT_WITHIN);
        let count = seeds.len();
        let caught = seeds.into_iter().find_map(|seed| run(seed).err().map(|message| (seed, message)));
        let Some((seed, message)) = caught else {
            assert!(count == 1, "{mutation:?} is not caught within {CAUGHT_WITHIN} seeds");
            continue;
        };
        println!("{mutation:?}: seed {seed}");
        let _replay = ReplayCommand::on_panic(test_name!(), seed);
        assert_eq!(run(seed), Err(message), "{mutation:?}: seed {seed} replays the same");
    }
}
