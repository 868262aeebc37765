//! The script of a seeded history: random writes, and every fault of the simulated API.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::event::Resource;
use boilerhouse_bridge::sim::fault::{Answer, ConnectionEnd, Fault, WatchFault};
use boilerhouse_bridge::sim::store::Store;
use boilerhouse_bridge::sim::{ApiResource, Verb};
use boilerhouse_bridge::test_support::SeededRng;
use serde_json::{Value, json};

use super::cluster::Cluster;
use crate::oracle::history::NAMESPACE;

/// A fault. The tests assert that each of `InjectedFault::ALL` was injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum InjectedFault {
    CutEof,
    CutReset,
    BreakEof,
    BreakReset,
    HalfLine,
    Garbage,
    StallAll,
    StallOne,
    BlackHole,
    Restored,
    ExpiredLine,
    ExpiredStatus,
    ExpiredPage,
    ChangedBetweenPages,
    HalfList,
    Restart,
    Compaction,
    TooMany,
    ForbiddenOnce,
    ForbiddenForAWhile,
    UnauthorizedForAWhile,
    Internal,
    Unavailable,
    RefusedOnce,
    Hangs,
    Down,
    UnreachableForLong,
}

impl InjectedFault {
    pub(crate) const ALL: [InjectedFault; 27] = {
        use InjectedFault::*;
        [
            CutEof,
            CutReset,
            BreakEof,
            BreakReset,
            HalfLine,
            Garbage,
            StallAll,
            StallOne,
            BlackHole,
            Restored,
            ExpiredLine,
            ExpiredStatus,
            ExpiredPage,
            ChangedBetweenPages,
            HalfList,
            Restart,
            Compaction,
            TooMany,
            ForbiddenOnce,
            ForbiddenForAWhile,
            UnauthorizedForAWhile,
            Internal,
            Unavailable,
            RefusedOnce,
            Hangs,
            Down,
            UnreachableForLong,
        ]
    };

    /// Whether it lasts long in simulated time. These are injected less often.
    fn lasts(self) -> bool {
        use InjectedFault::*;
        matches!(self, Down | BlackHole | UnreachableForLong | ForbiddenForAWhile | UnauthorizedForAWhile)
    }

    /// Whether the API server still has the complete watch history.
    pub(crate) fn retains_history(self) -> bool {
        use InjectedFault::*;
        !matches!(
            self,
            Garbage
                | Restored
                | ExpiredLine
                | ExpiredStatus
                | ExpiredPage
                | ChangedBetweenPages
                | HalfList
                | Restart
                | Compaction
        )
    }
}

/// How often each fault was injected.
pub(crate) type FaultCounts = BTreeMap<InjectedFault, u64>;

/// One random write. A write that the store rejects changes nothing. Each write leaves a mark of its own in the object,
/// so that every version is different.
pub(crate) fn write(store: &mut Store, rng: &mut SeededRng) {
    let mark = store.revision();
    let namespace = if rng.below(20) == 0 { "elsewhere" } else { NAMESPACE };
    if rng.below(5) < 3 { pod(store, rng, namespace, mark) } else { claim(store, rng, namespace, mark) }
}

/// Creates and deletes an object that no list contains. Sometimes a write that the bridge does not watch follows.
pub(crate) fn transient(store: &mut Store, rng: &mut SeededRng) {
    let labels = json!({"metadata": {"labels": {"boilerhouse.dev/managed": "true"}}});
    let spec = json!({"spec": {"tenantId": "alice", "workloadRef": "web"}});
    let (resource, body) = if rng.below(2) == 0 { (ApiResource::Pods, &labels) } else { (ApiResource::Claims, &spec) };
    let _ = create(store, resource, NAMESPACE, "transient", body);
    let _ = store.delete(resource, NAMESPACE, "transient");
    if rng.below(2) == 0 {
        let mark = store.revision();
        pod(store, rng, "elsewhere", mark);
    }
}

fn pod(store: &mut Store, rng: &mut SeededRng, namespace: &str, mark: u64) {
    let name = format!("p{}", rng.below(6));
    let managed = *rng.choose(&["true", "true", "true", "true", "true", "false"]);
    let status = *rng.choose(&[Some("warming"), Some("ready"), Some("ready"), Some("acquired"), None]);
    let tenant = *rng.choose(&[None, None, Some("alice"), Some("bob")]);
    let labels = json!({
        "boilerhouse.dev/managed": managed, "boilerhouse.dev/workload": format!("w{mark}"),
        "boilerhouse.dev/pool-status": status, "boilerhouse.dev/tenant": tenant,
    });
    let phase = *rng.choose(&["Pending", "Running", "Succeeded", "Failed", ""]);
    let ip = format!("10.0.0.{}", mark % 5);
    let change = json!({"metadata": {"labels": labels}, "status": {"phase": phase, "podIP": ip}});
    let _ = match rng.below(10) {
        0 => store.terminate(ApiResource::Pods, namespace, &name, 30),
        1 => store.delete(ApiResource::Pods, namespace, &name),
        2 => {
            let _ = store.delete(ApiResource::Pods, namespace, &name);
            create(store, ApiResource::Pods, namespace, &name, &change)
        }
        _ if store.get(ApiResource::Pods, namespace, &name).is_none() => {
            create(store, ApiResource::Pods, namespace, &name, &change)
        }
        _ => store.patch(ApiResource::Pods, namespace, &name, &change),
    };
}

fn claim(store: &mut Store, rng: &mut SeededRng, namespace: &str, mark: u64) {
    let name = format!("c{}", rng.below(4));
    let spec = json!({"tenantId": format!("t{mark}"), "workloadRef": format!("w{mark}")});
    let phase =
        *rng.choose(&["Pending", "Active", "Active", "Releasing", "Released", "Released", "ReleaseFailed", "Error"]);
    let source = *rng.choose(&[Some("pool"), Some("cold+data"), None]);
    let status = json!({"phase": phase, "source": source});
    let both = json!({"spec": spec, "status": status});
    let _ = match rng.below(10) {
        0 | 1 => store.delete(ApiResource::Claims, namespace, &name),
        2 => {
            let _ = store.delete(ApiResource::Claims, namespace, &name);
            create(store, ApiResource::Claims, namespace, &name, &both)
        }
        _ if store.get(ApiResource::Claims, namespace, &name).is_none() => {
            create(store, ApiResource::Claims, namespace, &name, &json!({ "spec": spec }))
        }
        // A change that no view shows.
        3 if mark.is_multiple_of(2) => {
            let hidden = json!({"metadata": {"annotations": {"boilerhouse.dev/last-activity": format!("{mark}")}}});
            store.patch(ApiResource::Claims, namespace, &name, &hidden)
        }
        3 => store.patch(ApiResource::Claims, namespace, &name, &json!({ "spec": spec })),
        _ => store.patch(ApiResource::Claims, namespace, &name, &both),
    };
}

type Written = Result<Arc<Value>, boilerhouse_bridge::sim::store::StoreError>;

fn create(store: &mut Store, resource: ApiResource, namespace: &str, name: &str, rest: &Value) -> Written {
    let mut object = rest.clone();
    // A merge patch removes a label whose value is null. A new object must not have one.
    if let Some(labels) = object["metadata"]["labels"].as_object_mut() {
        labels.retain(|_, value| !value.is_null());
    }
    object["metadata"]["name"] = json!(name);
    object["metadata"]["namespace"] = json!(namespace);
    store.create(resource, object)
}

/// Injects one random fault, from its start to its end, or arms it for a later request.
pub(crate) async fn fault(cluster: &Cluster, rng: &mut SeededRng, among: &[InjectedFault]) -> InjectedFault {
    let mut fault = *rng.choose(among);
    if fault.lasts() && rng.below(3) > 0 {
        fault = *rng.choose(among);
    }
    let sim = &cluster.sim;
    let resource = *rng.choose(&[ApiResource::Pods, ApiResource::Claims]);
    let verb = *rng.choose(&[Verb::List, Verb::Watch, Verb::Watch]);
    let after = usize::try_from(rng.below(3)).unwrap();
    let watch = |then| sim.arm(Fault::watch(after, then).on(resource));
    let answer = |answer| sim.arm(Fault::answer(answer).on_verb(verb).on(resource));
    match fault {
        InjectedFault::CutEof => sim.cut_watches(ConnectionEnd::Eof),
        InjectedFault::CutReset => sim.cut_watches(ConnectionEnd::Reset),
        InjectedFault::BreakEof => watch(WatchFault::Cut(ConnectionEnd::Eof)),
        InjectedFault::BreakReset => watch(WatchFault::Cut(ConnectionEnd::Reset)),
        InjectedFault::HalfLine => watch(WatchFault::HalfLine),
        InjectedFault::Garbage => watch(WatchFault::Garbage),
        InjectedFault::StallAll => sim.stall_watches(),
        InjectedFault::StallOne => watch(WatchFault::Stall),
        InjectedFault::BlackHole => unreachable_for_a_while(cluster, rng, true, Duration::ZERO).await,
        InjectedFault::Down => unreachable_for_a_while(cluster, rng, false, Duration::ZERO).await,
        InjectedFault::UnreachableForLong => {
            let is_black_hole = rng.below(2) == 0;
            unreachable_for_a_while(cluster, rng, is_black_hole, Duration::from_secs(70)).await;
        }
        InjectedFault::Restored => restore_older_copy(cluster, rng).await,
        InjectedFault::ExpiredLine => watch(WatchFault::Expired),
        InjectedFault::ExpiredStatus => sim.arm(Fault::answer(Answer::Gone).on_verb(Verb::Watch).on(resource)),
        InjectedFault::ExpiredPage => {
            sim.arm(Fault::expire_page().on(resource));
            watch(WatchFault::Expired);
        }
        InjectedFault::ChangedBetweenPages => {
            sim.arm(concurrent_change(rng).on_verb(Verb::List).on(resource));
            watch(WatchFault::Expired);
        }
        InjectedFault::HalfList => {
            let lists = if resource == ApiResource::Claims { Resource::Claims } else { Resource::Pods };
            cluster.recorder.half_lists[lists].fetch_add(1, Ordering::Relaxed);
            watch(WatchFault::Expired);
        }
        InjectedFault::Restart => sim.restart(),
        InjectedFault::Compaction => sim.store(|store| {
            store.compact(store.revision());
            store.lose_watch_history();
        }),
        InjectedFault::TooMany => answer(Answer::TooManyRequests(*rng.choose(&[1, 7, 40]))),
        InjectedFault::ForbiddenOnce => answer(Answer::Forbidden),
        InjectedFault::ForbiddenForAWhile => {
            sim.deny(verb, resource);
            sim.cut_watches(*rng.choose(&[ConnectionEnd::Eof, ConnectionEnd::Reset]));
            writes_meanwhile(cluster, rng, Duration::from_secs(60)).await;
            sim.allow_all();
        }
        InjectedFault::UnauthorizedForAWhile => {
            sim.set_unauthorized(true);
            sim.cut_watches(*rng.choose(&[ConnectionEnd::Eof, ConnectionEnd::Reset]));
            writes_meanwhile(cluster, rng, Duration::from_secs(60)).await;
            sim.set_unauthorized(false);
        }
        InjectedFault::Internal => answer(Answer::Internal),
        InjectedFault::Unavailable => answer(Answer::Unavailable),
        InjectedFault::RefusedOnce => sim.arm(Fault::refuse().on_verb(verb).on(resource)),
        InjectedFault::Hangs => sim.arm(Fault::hang().on_verb(verb).on(resource)),
    }
    fault
}

/// A write right after a response. In half of the cases the store is compacted with it, so that the next page expires.
fn concurrent_change(rng: &mut SeededRng) -> Fault {
    let (rng, compacts) = (Mutex::new(rng.fork()), rng.below(2) == 0);
    Fault::with_concurrent_change(move |store| {
        write(store, &mut rng.lock().unwrap());
        if compacts {
            store.compact(store.revision());
        }
    })
}

async fn unreachable_for_a_while(cluster: &Cluster, rng: &mut SeededRng, is_black_hole: bool, min: Duration) {
    if is_black_hole {
        cluster.sim.black_hole()
    } else {
        cluster.sim.down()
    }
    cluster.sleep_slot(min).await;
    writes_meanwhile(cluster, rng, Duration::from_secs(59)).await;
    cluster.sim.up();
}

/// A few writes during a fault, within `max`.
async fn writes_meanwhile(cluster: &Cluster, rng: &mut SeededRng, max: Duration) {
    for _ in 0..rng.below(5) {
        cluster.sleep_slot(rng.duration_up_to(max / 5)).await;
        cluster.write(|store| write(store, rng));
    }
    cluster.sleep_slot(rng.duration_up_to(max / 5)).await;
}

/// Restores an older copy of etcd. All watchers have received what is lost with it. Until the hub detects the restore
/// (15 s after the last byte), fewer versions are written than were lost. A history that has grown past the versions
/// that a watcher received is a stated limit (docs/guarantees.md#stated-limits).
async fn restore_older_copy(cluster: &Cluster, rng: &mut SeededRng) {
    if cluster.sim.pending_faults() > 0 {
        return;
    }
    // Stalled watches are given up after 35 s.
    cluster.sleep_slot(Duration::from_secs(60)).await;
    label(cluster, "before");
    let older = cluster.sim.store(|store| store.clone());
    // The same version of the same uid has another content in each of the two epochs.
    label(cluster, "lost");
    for _ in 0..=rng.below(6) {
        cluster.write(|store| write(store, rng));
        cluster.sleep_slot(rng.duration_up_to(Duration::from_secs(2))).await;
    }
    // The last two writes show that both resources have been received up to here.
    cluster.write(|store| {
        let mark = store.revision();
        for (resource, name) in [(ApiResource::Pods, "p0"), (ApiResource::Claims, "c0")] {
            let _ = store.delete(resource, NAMESPACE, name);
            let labels = json!({"boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": format!("w{mark}")});
            let rest = json!({"metadata": {"labels": labels}, "spec": {"tenantId": format!("t{mark}")}});
            create(store, resource, NAMESPACE, name, &rest).unwrap();
        }
    });
    let lost = cluster.sim.store(|store| store.revision());
    cluster.sleep_slot(Duration::from_millis(1)).await;
    // A write makes at most two revisions, and the last two belong to the claim.
    if !cluster.is_delivered(lost - 2).await {
        return;
    }
    cluster.restore(older);
    label(cluster, "found");
    for _ in 0..rng.below(6) {
        cluster.write(|store| {
            if store.revision() + 2 < lost - 2 {
                write(store, rng);
            }
        });
        cluster.sleep_slot(rng.duration_up_to(Duration::from_secs(2))).await;
    }
    cluster.sleep_slot(Duration::from_secs(60)).await;
}

/// Gives the Pod `p5` this workload.
fn label(cluster: &Cluster, workload: &str) {
    let labels = json!({"boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": workload});
    let change = json!({"metadata": {"labels": labels}});
    cluster.write(|store| {
        if store.patch(ApiResource::Pods, NAMESPACE, "p5", &change).is_err() {
            create(store, ApiResource::Pods, NAMESPACE, "p5", &change).unwrap();
        }
    });
}
