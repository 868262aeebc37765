//! Seeded histories against the simulated API: random writes and faults, and every fact held against the store's history.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::super::*;
use crate::sim::{
    ApiResource, Sim, SimConfig, Verb,
    fault::{Answer, ConnectionEnd, Fault, WatchFault},
    store::{Change, Store},
};

const NAMESPACE: &str = "boilerhouse";
/// What `BRIDGE_SEED` does not override.
const SEEDS: std::ops::Range<u64> = 0..60;

/// SplitMix64: reproducible, and nothing here needs more.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(end).unwrap()).unwrap()
    }

    fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }
}

/// Whatever the store refuses is no write.
fn write(store: &mut Store, random: &mut Random) {
    let name = format!("n{}", random.below(9));
    let kind = random.of(&[ApiResource::Pods, ApiResource::Claims]);
    let managed = random.of(&["true", "true", "true", "false"]);
    let labels = json!({"boilerhouse.dev/managed": managed, "boilerhouse.dev/workload": "web"});
    let phase = random.of(&["Pending", "Active", "Running", "Released"]);
    let metadata = json!({"name": name, "namespace": NAMESPACE, "labels": labels});
    let _ = match random.below(8) {
        0 | 1 => store.delete(kind, NAMESPACE, &name),
        2 => store.terminate(kind, NAMESPACE, &name, 30),
        3 => store.patch(kind, NAMESPACE, &name, &json!({"metadata": {"labels": labels}})),
        4 | 5 => store.patch(kind, NAMESPACE, &name, &json!({"status": {"phase": phase}})),
        _ => store.create(kind, json!({"metadata": metadata, "spec": {"tenantId": "t", "workloadRef": "web"}})),
    };
}

async fn fault(sim: &Sim, random: &mut Random) {
    let cut = random.of(&[ConnectionEnd::Eof, ConnectionEnd::Reset]);
    let then = random.of(&[
        WatchFault::Cut(cut),
        WatchFault::HalfLine,
        WatchFault::Garbage,
        WatchFault::Stall,
        WatchFault::Expired,
    ]);
    let answer = random.of(&[
        Answer::TooManyRequests(1),
        Answer::Unauthorized,
        Answer::Forbidden,
        Answer::Gone,
        Answer::Internal,
        Answer::Unavailable,
    ]);
    let resource = random.of(&[ApiResource::Pods, ApiResource::Claims]);
    let verb = random.of(&[Verb::List, Verb::Watch]);
    let pause = Duration::from_millis(u64::try_from(random.below(45_000)).unwrap());
    match random.below(11) {
        0 => sim.restart(),
        1 => sim.cut_watches(cut),
        2 => sim.stall_watches(),
        3 => sim.arm(Fault::answer(answer).on_verb(verb).on(resource)),
        4 => sim.arm(Fault::refuse().on_verb(verb)),
        5 => sim.arm(Fault::hang().on_verb(verb)),
        6 => sim.arm(Fault::expire_page().on(resource)),
        7 => {
            let seed = Mutex::new(Random(random.0));
            sim.arm(
                Fault::with_concurrent_change(move |store| write(store, &mut seed.lock().unwrap())).on_verb(Verb::List),
            );
        }
        8 | 9 => sim.arm(Fault::watch(random.below(3), then).on(resource)),
        _ => {
            let gone: fn(&Sim) = random.of(&[Sim::down as fn(&Sim), Sim::black_hole]);
            gone(sim);
            for _ in 0..random.below(4) {
                sim.store(|store| write(store, random));
            }
            sleep(pause).await;
            sim.up();
        }
    }
}

fn matches(kind: Resource, object: Option<&Arc<Value>>) -> bool {
    object.is_some_and(|object| {
        kind == Resource::Claims || object["metadata"]["labels"]["boilerhouse.dev/managed"] == json!("true")
    })
}

type Lives = BTreeSet<(String, String, ResourceVersion)>;

fn identity(object: &Value) -> (String, String, ResourceVersion) {
    let text = |key: &str| object["metadata"][key].as_str().unwrap().to_owned();
    (text("name"), text("uid"), text("resourceVersion").parse().unwrap())
}

fn truth(store: &Store, kind: Resource, at: Option<ResourceVersion>) -> Lives {
    let objects = store.list_at(resource(kind), Some(NAMESPACE), at.unwrap_or(store.revision())).unwrap();
    objects.iter().filter(|object| matches(kind, Some(object))).map(|object| identity(object)).collect()
}

fn resource(kind: Resource) -> ApiResource {
    match kind {
        Resource::Pods => ApiResource::Pods,
        Resource::Claims => ApiResource::Claims,
    }
}

/// Holds the facts about one resource against the history; gives back the state that they add up to.
fn check(kind: Resource, facts: &[(Instant, ResourceVersion, SourceEvent)], store: &Store) -> Lives {
    let mine = |change: &&Change| {
        change.resource == resource(kind)
            && (matches(kind, change.before.as_ref()) || matches(kind, change.after.as_ref()))
    };
    let changes: Vec<&Change> = store.history().iter().filter(mine).collect();
    let between = |from: ResourceVersion, to: ResourceVersion| {
        changes.iter().filter(|c| c.revision > from && c.revision < to).count()
    };
    let at = |rv: ResourceVersion| *changes.iter().find(|change| change.revision == rv).unwrap();
    let life = |view: &View| (view.name().to_owned(), view.uid().to_owned(), view.resource_version());
    let (mut known, mut lives, mut down) = (0, Lives::new(), false);
    let settle = Config::default().catch_up_quiet_period;
    // What was missed is what there was when the API server was first heard again, or when it made its list.
    let (mut heard, mut missed): (Option<Instant>, Option<ResourceVersion>) = (None, None);
    for (at_time, revision, fact) in facts {
        match fact {
            SourceEvent::BytesReceived(k) if *k == kind => {
                heard = Some(*at_time);
                missed = missed.or(Some(*revision));
            }
            SourceEvent::Replace(k, views, rv) if *k == kind => {
                assert!(*rv >= known, "a list at {rv} after {known}");
                lives = views.iter().map(life).collect();
                assert_eq!(lives, truth(store, kind, Some(*rv)), "the list at {rv}");
                (known, missed) = (*rv, Some(*rv));
            }
            SourceEvent::Upsert(view) if view.resource() == kind => {
                assert!(view.resource_version() > known, "{} after {known}", view.resource_version());
                assert_eq!(between(known, view.resource_version()), 0, "a gap before {}", view.resource_version());
                assert_eq!(life(view), identity(at(view.resource_version()).after.as_ref().unwrap()));
                lives.retain(|(name, ..)| name != view.name());
                lives.insert(life(view));
                known = view.resource_version();
            }
            SourceEvent::Remove(view) if view.resource() == kind => {
                assert!(view.resource_version() > known, "{} after {known}", view.resource_version());
                assert_eq!(between(known, view.resource_version()), 0, "a gap before {}", view.resource_version());
                assert!(
                    !matches(kind, at(view.resource_version()).after.as_ref()),
                    "an invented deletion at {}",
                    view.resource_version()
                );
                let before = lives.len();
                lives.retain(|(_, uid, _)| uid != view.uid());
                assert_eq!(lives.len() + 1, before, "a deletion of what was not there");
                known = view.resource_version();
            }
            SourceEvent::Bookmark(k, rv) if *k == kind => {
                assert!(*rv > known);
                assert_eq!(between(known, rv + 1), 0, "a bookmark beyond a change");
                known = *rv;
            }
            SourceEvent::Health(k, health) if *k == kind => {
                if *health == Health::Live && down {
                    // Kubernetes marks no end of what was missed: a second of silence counts as one (`Config::settle`), which
                    // a watch that stalls as soon as it is taken up again can feign.
                    let silent = heard.is_some_and(|heard| *at_time >= heard + settle);
                    let missed = missed.unwrap_or(*revision);
                    assert!(silent || between(known, missed + 1) == 0, "live before all that was missed came");
                }
                down = matches!(health, Health::Down { .. });
                if down {
                    missed = None;
                }
            }
            _ => (),
        }
    }
    lives
}

async fn history(seed: u64) {
    let random = &mut Random(seed);
    let sim = Sim::new(SimConfig { seed, ..SimConfig::default() });
    for _ in 0..random.below(20) {
        sim.store(|store| write(store, random));
    }
    let config = Config { namespace: NAMESPACE.into(), page_objects: 3, ..Config::default() };
    let (client, metrics, facts) = (sim.client(NAMESPACE), Metrics::default(), Mutex::new(Vec::new()));
    let seen = sim.clone();
    let out = Mutex::new(|fact| {
        let revision = seen.store(|store| store.revision());
        facts.lock().unwrap().push((Instant::now(), revision, fact));
    });
    let all = |sim: &Sim| {
        let facts = facts.lock().unwrap();
        sim.store(|store| Resource::ALL.map(|kind| check(kind, &facts, store) == truth(store, kind, None)))
    };
    let test = async {
        for _ in 0..120 {
            match random.below(10) {
                0 => fault(&sim, random).await,
                1..=3 => sleep(Duration::from_millis(u64::try_from(random.below(9000)).unwrap())).await,
                _ => {
                    sim.store(|store| write(store, random));
                    // Lets the hub have its turn, so that it is not always handed everything at once.
                    sleep(Duration::from_millis(u64::try_from(random.below(2)).unwrap())).await;
                }
            }
        }
        // What was armed and not yet met may still strike; a connection that stalls is given up after 35 s.
        timeout(Duration::from_secs(600), async {
            while all(&sim) != [true; 2] {
                sleep(Duration::from_millis(500)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("seed {seed} did not converge"));
    };
    tokio::select! {
        never = watch_all(&client, &config, &metrics, &out) => match never {},
        () = test => (),
    }
}

#[tokio::test(start_paused = true)]
async fn hub_events_match_store_history_for_every_seed() {
    let seeds = match std::env::var("BRIDGE_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => SEEDS.collect(),
    };
    for seed in seeds {
        // Printed with a failure only.
        println!("seed {seed}");
        history(seed).await;
    }
}
