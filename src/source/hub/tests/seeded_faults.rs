//! Seeded histories of the simulated API: random writes and faults. Every event of the hub is compared with the history of
//! the store.

use std::{cell::RefCell, collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::{super::*, short_form};
use crate::{
    event::{ResourceVersion, View},
    sim::{
        ApiResource, Sim, SimConfig, Verb,
        fault::{Answer, ConnectionEnd, Fault, WatchFault},
        store::{Change, Store},
    },
    source::retry::Backoff,
    test_support::{ReplayCommand, SeededRng, seeds_to_run},
};

const NAMESPACE: &str = "boilerhouse";
/// The seeds that run without `BRIDGE_SEED`.
const SEEDS: std::ops::Range<u64> = 0..60;

thread_local! {
    /// The generator of the hub's jitter. A test and its hub run in one thread.
    static JITTER: RefCell<SeededRng> = const { RefCell::new(SeededRng(0)) };
}

/// An event of the hub, with the time since the start of the history and the version of the store at that time.
#[derive(Clone, Debug, PartialEq)]
struct Recorded {
    at: Duration,
    store_version: ResourceVersion,
    event: SourceEvent,
}

/// Makes one random write. It does nothing if the store rejects the write.
fn write(store: &mut Store, rng: &mut SeededRng) {
    let name = format!("n{}", rng.below(9));
    let resource = *rng.choose(&[ApiResource::Pods, ApiResource::Claims]);
    let managed = *rng.choose(&["true", "true", "true", "false"]);
    let labels = json!({"boilerhouse.dev/managed": managed, "boilerhouse.dev/workload": "web"});
    let phase = *rng.choose(&["Pending", "Active", "Running", "Released"]);
    let metadata = json!({"name": name, "namespace": NAMESPACE, "labels": labels});
    let _ = match rng.below(8) {
        0 | 1 => store.delete(resource, NAMESPACE, &name),
        2 => store.terminate(resource, NAMESPACE, &name, 30),
        3 => store.patch(resource, NAMESPACE, &name, &json!({"metadata": {"labels": labels}})),
        4 | 5 => store.patch(resource, NAMESPACE, &name, &json!({"status": {"phase": phase}})),
        // An object without a status, which `test_support` does not build.
        _ => store.create(resource, json!({"metadata": metadata, "spec": {"tenantId": "t", "workloadRef": "web"}})),
    };
}

/// Injects one random fault.
async fn inject_fault(sim: &Sim, rng: &mut SeededRng) {
    let end = *rng.choose(&[ConnectionEnd::Eof, ConnectionEnd::Reset]);
    let watch_fault = *rng.choose(&[
        WatchFault::Cut(end),
        WatchFault::HalfLine,
        WatchFault::Garbage,
        WatchFault::Stall,
        WatchFault::Expired,
    ]);
    let answer = *rng.choose(&[
        Answer::TooManyRequests(1),
        Answer::Unauthorized,
        Answer::Forbidden,
        Answer::Gone,
        Answer::Internal,
        Answer::Unavailable,
    ]);
    let resource = *rng.choose(&[ApiResource::Pods, ApiResource::Claims]);
    let verb = *rng.choose(&[Verb::List, Verb::Watch]);
    let outage = rng.duration_up_to(Duration::from_secs(45));
    match rng.below(11) {
        0 => sim.restart(),
        1 => sim.cut_watches(end),
        2 => sim.stall_watches(),
        3 => sim.arm(Fault::answer(answer).on_verb(verb).on(resource)),
        4 => sim.arm(Fault::refuse().on_verb(verb)),
        5 => sim.arm(Fault::hang().on_verb(verb)),
        6 => sim.arm(Fault::expire_page().on(resource)),
        7 => {
            let writes = Mutex::new(rng.clone());
            sim.arm(
                Fault::with_concurrent_change(move |store| write(store, &mut writes.lock().unwrap()))
                    .on_verb(Verb::List),
            );
        }
        8 | 9 => sim.arm(Fault::watch(usize::try_from(rng.below(3)).unwrap(), watch_fault).on(resource)),
        _ => {
            let start_outage = *rng.choose(&[Sim::down as fn(&Sim), Sim::black_hole]);
            start_outage(sim);
            for _ in 0..rng.below(4) {
                sim.store(|store| write(store, rng));
            }
            sleep(outage).await;
            sim.up();
        }
    }
}

/// Returns whether the hub's list and watch select the object.
fn is_selected(resource: Resource, object: Option<&Arc<Value>>) -> bool {
    object.is_some_and(|object| {
        resource == Resource::Claims || object["metadata"]["labels"]["boilerhouse.dev/managed"] == json!("true")
    })
}

/// A state of one resource: name, uid and version of each object.
type Objects = BTreeSet<(String, String, ResourceVersion)>;

fn identity_of_json(object: &Value) -> (String, String, ResourceVersion) {
    let text = |key: &str| object["metadata"][key].as_str().unwrap().to_owned();
    (text("name"), text("uid"), text("resourceVersion").parse().unwrap())
}

fn identity_of_view(view: &View) -> (String, String, ResourceVersion) {
    (view.name().to_owned(), view.uid().to_owned(), view.resource_version())
}

/// Returns the state of the store at this version, or its newest state.
fn expected_state(store: &Store, resource: Resource, at: Option<ResourceVersion>) -> Objects {
    let objects = store.list_at(api_resource(resource), Some(NAMESPACE), at.unwrap_or(store.revision())).unwrap();
    objects.iter().filter(|object| is_selected(resource, Some(object))).map(|object| identity_of_json(object)).collect()
}

fn api_resource(resource: Resource) -> ApiResource {
    match resource {
        Resource::Pods => ApiResource::Pods,
        Resource::Claims => ApiResource::Claims,
    }
}

/// Compares the events of one resource with the history of the store, and returns the state that they add up to.
fn validate(resource: Resource, events: &[Recorded], store: &Store) -> Objects {
    let is_relevant = |change: &&Change| {
        change.resource == api_resource(resource)
            && (is_selected(resource, change.before.as_ref()) || is_selected(resource, change.after.as_ref()))
    };
    let changes: Vec<&Change> = store.history().iter().filter(is_relevant).collect();
    let changes_between = |from: ResourceVersion, to: ResourceVersion| {
        changes.iter().filter(|change| change.revision > from && change.revision < to).count()
    };
    let change_at =
        |version: ResourceVersion| *changes.iter().find(|change| change.revision == version).expect("no such change");
    let quiet_period = Config::default().catch_up_quiet_period;
    let (mut last_version, mut state, mut is_down) = (0, Objects::new(), false);
    // A resumed watch must deliver the changes up to the version of the store when the first byte after the outage was
    // received, or of the list after the outage.
    let (mut last_byte_at, mut catch_up_version): (Option<Duration>, Option<ResourceVersion>) = (None, None);
    for Recorded { at, store_version, event } in events {
        match event {
            SourceEvent::BytesReceived(of) if *of == resource => {
                last_byte_at = Some(*at);
                catch_up_version = catch_up_version.or(Some(*store_version));
            }
            SourceEvent::Replace(of, views, version) if *of == resource => {
                assert!(*version >= last_version, "a list at version {version} after {last_version}");
                state = views.iter().map(identity_of_view).collect();
                assert_eq!(state, expected_state(store, resource, Some(*version)), "the list at version {version}");
                (last_version, catch_up_version) = (*version, Some(*version));
            }
            SourceEvent::Upsert(view) | SourceEvent::Remove(view) if view.resource() == resource => {
                let version = view.resource_version();
                assert!(version > last_version, "a change at version {version} after {last_version}");
                assert_eq!(changes_between(last_version, version), 0, "missing changes before version {version}");
                let before = state.len();
                if matches!(event, SourceEvent::Upsert(_)) {
                    let object = change_at(version).after.as_ref().unwrap();
                    assert_eq!(identity_of_view(view), identity_of_json(object), "the object at version {version}");
                    state.retain(|(name, ..)| name != view.name());
                    state.insert(identity_of_view(view));
                } else {
                    let after = change_at(version).after.as_ref();
                    assert!(!is_selected(resource, after), "the store has no deletion at version {version}");
                    state.retain(|(_, uid, _)| uid != view.uid());
                    assert_eq!(state.len() + 1, before, "the deletion at {version} must remove one object: {view:?}");
                }
                last_version = version;
            }
            SourceEvent::Bookmark(of, version) if *of == resource => {
                assert!(*version > last_version, "a bookmark at version {version} after {last_version}");
                assert_eq!(changes_between(last_version, version + 1), 0, "missing changes before bookmark {version}");
                last_version = *version;
            }
            SourceEvent::Health(of, health) if *of == resource => {
                if *health == Health::Live && is_down {
                    // Kubernetes does not mark the end of the missed changes, so the hub treats `catch_up_quiet_period`
                    // of silence as the end. A resumed watch that stalls at once is silent as well.
                    let is_quiet = last_byte_at.is_some_and(|last_byte_at| *at >= last_byte_at + quiet_period);
                    let caught_up = catch_up_version.unwrap_or(*store_version);
                    assert!(
                        is_quiet || changes_between(last_version, caught_up + 1) == 0,
                        "live at version {last_version}, before all missed changes up to {caught_up}"
                    );
                }
                is_down = matches!(health, Health::Down { .. });
                if is_down {
                    catch_up_version = None;
                }
            }
            _ => (),
        }
    }
    state
}

/// Runs the history of a seed, validates the events of the hub, and returns them.
async fn run_history(seed: u64) -> Vec<Recorded> {
    JITTER.set(SeededRng(seed));
    let rng = &mut SeededRng(seed);
    let sim = Sim::new(SimConfig { seed, ..SimConfig::default() });
    for _ in 0..rng.below(20) {
        sim.store(|store| write(store, rng));
    }
    let config = Config {
        namespace: NAMESPACE.into(),
        page_objects: 3,
        backoff: Backoff { jitter: |_| JITTER.with_borrow_mut(SeededRng::next_u64), ..Backoff::default() },
        ..Config::default()
    };
    let (client, metrics, events) = (sim.client(NAMESPACE), Metrics::default(), Mutex::new(Vec::new()));
    let (observed, start) = (sim.clone(), Instant::now());
    let sink = Mutex::new(|event| {
        let store_version = observed.store(|store| store.revision());
        events.lock().unwrap().push(Recorded { at: start.elapsed(), store_version, event });
    });
    let has_converged = |sim: &Sim| {
        let events = events.lock().unwrap();
        let is_current =
            |store: &mut Store, resource| validate(resource, &events, store) == expected_state(store, resource, None);
        sim.store(|store| Resource::ALL.map(|resource| is_current(store, resource)) == [true; 2])
    };
    let test = async {
        for _ in 0..120 {
            match rng.below(10) {
                0 => inject_fault(&sim, rng).await,
                1..=3 => sleep(rng.duration_up_to(Duration::from_secs(9))).await,
                _ => {
                    sim.store(|store| write(store, rng));
                    // With a delay of 1 ms the hub runs between two writes; without one, both arrive together.
                    sleep(rng.duration_up_to(Duration::from_millis(2))).await;
                }
            }
        }
        // An armed fault may still occur, and a stalled connection is given up after 35 s.
        timeout(Duration::from_secs(600), async {
            while !has_converged(&sim) {
                sleep(Duration::from_millis(500)).await;
            }
        })
        .await
        .expect("the hub must reach the state of the store within 600 s");
    };
    let (pods, claims) = (ResourceApi::new(&client, &config, &metrics), ResourceApi::new(&client, &config, &metrics));
    tokio::select! {
        // A fixed order of polling, so that a seed repeats the same history.
        biased;
        never = watch_all(&pods, &claims, &sink) => match never {},
        () = test => (),
    }
    events.lock().unwrap().clone()
}

#[tokio::test(start_paused = true)]
async fn hub_events_match_store_history_for_every_seed() {
    for seed in seeds_to_run(SEEDS) {
        let _hint = ReplayCommand::on_panic(crate::test_name!(), seed);
        run_history(seed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_seed_repeats_the_same_events() {
    for seed in seeds_to_run(0..5) {
        let _hint = ReplayCommand::on_panic(crate::test_name!(), seed);
        // Only the creation timestamps differ, because the simulated API takes them from the wall clock.
        let short = |recorded: Recorded| (recorded.at, recorded.store_version, short_form(&[recorded.event]));
        let [first, second] = [run_history(seed).await, run_history(seed).await];
        assert_eq!(first.len(), second.len(), "the number of events of two runs");
        for (first, second) in first.into_iter().map(short).zip(second.into_iter().map(short)) {
            assert_eq!(first, second, "an event of two runs");
        }
    }
}
