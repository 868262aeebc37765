//! What happens in a history: random writes, and every fault that the simulated API knows.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::sim::fault::{Answer, Break, Cut, Fault};
use boilerhouse_bridge::sim::store::Store;
use boilerhouse_bridge::sim::{ApiResource, Verb};
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::truth::NAMESPACE;
use crate::support::dice::Dice;

/// What can go wrong; `Trouble::ALL` is what the tally is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trouble {
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
    OutOfReachForLong,
}

impl Trouble {
    pub(super) const ALL: [Trouble; 27] = {
        use Trouble::*;
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
            OutOfReachForLong,
        ]
    };

    /// Whether it keeps everybody asking for a long time: a few of these go a long way.
    fn lasts(self) -> bool {
        use Trouble::*;
        matches!(self, Down | BlackHole | OutOfReachForLong | ForbiddenForAWhile | UnauthorizedForAWhile)
    }

    /// Whether the watch history is as good as before.
    pub(super) fn keeps_history(self) -> bool {
        use Trouble::*;
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

pub(super) type Tally = BTreeMap<Trouble, u64>;

/// One random write; what the store refuses is none. Each write leaves a mark of its own in the object, so that every
/// version says something else.
pub(super) fn write(store: &mut Store, dice: &mut Dice) {
    let mark = store.revision();
    let namespace = if dice.roll(20) == 0 { "elsewhere" } else { NAMESPACE };
    if dice.roll(5) < 3 { pod(store, dice, namespace, mark) } else { claim(store, dice, namespace, mark) }
}

fn pod(store: &mut Store, dice: &mut Dice, namespace: &str, mark: u64) {
    let name = format!("p{}", dice.roll(6));
    let managed = *dice.pick(&["true", "true", "true", "true", "true", "false"]);
    let status = *dice.pick(&[Some("warming"), Some("ready"), Some("ready"), Some("acquired"), None]);
    let tenant = *dice.pick(&[None, None, Some("alice"), Some("bob")]);
    let labels = json!({
        "boilerhouse.dev/managed": managed, "boilerhouse.dev/workload": format!("w{mark}"),
        "boilerhouse.dev/pool-status": status, "boilerhouse.dev/tenant": tenant,
    });
    let phase = *dice.pick(&["Pending", "Running", "Succeeded", "Failed", ""]);
    let ip = format!("10.0.0.{}", mark % 5);
    let change = json!({"metadata": {"labels": labels}, "status": {"phase": phase, "podIP": ip}});
    let _ = match dice.roll(10) {
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

fn claim(store: &mut Store, dice: &mut Dice, namespace: &str, mark: u64) {
    let name = format!("c{}", dice.roll(4));
    let spec = json!({"tenantId": format!("t{mark}"), "workloadRef": format!("w{mark}")});
    let phase =
        *dice.pick(&["Pending", "Active", "Active", "Releasing", "Released", "Released", "ReleaseFailed", "Error"]);
    let source = *dice.pick(&[Some("pool"), Some("cold+data"), None]);
    let status = json!({"phase": phase, "source": source});
    let both = json!({"spec": spec, "status": status});
    let _ = match dice.roll(10) {
        0 | 1 => store.delete(ApiResource::Claims, namespace, &name),
        2 => {
            let _ = store.delete(ApiResource::Claims, namespace, &name);
            create(store, ApiResource::Claims, namespace, &name, &both)
        }
        _ if store.get(ApiResource::Claims, namespace, &name).is_none() => {
            create(store, ApiResource::Claims, namespace, &name, &json!({ "spec": spec }))
        }
        // Nobody sees it.
        3 if mark.is_multiple_of(2) => {
            let unseen = json!({"metadata": {"annotations": {"boilerhouse.dev/last-activity": format!("{mark}")}}});
            store.patch(ApiResource::Claims, namespace, &name, &unseen)
        }
        3 => store.patch(ApiResource::Claims, namespace, &name, &json!({ "spec": spec })),
        _ => store.patch(ApiResource::Claims, namespace, &name, &both),
    };
}

type Written = Result<Arc<Value>, boilerhouse_bridge::sim::store::Refused>;

fn create(store: &mut Store, resource: ApiResource, namespace: &str, name: &str, rest: &Value) -> Written {
    let mut object = rest.clone();
    // A label without a value is none: a merge patch takes it away, a new object must not have it.
    if let Some(labels) = object["metadata"]["labels"].as_object_mut() {
        labels.retain(|_, value| !value.is_null());
    }
    object["metadata"]["name"] = json!(name);
    object["metadata"]["namespace"] = json!(namespace);
    store.create(resource, object)
}

/// One random trouble, from its beginning to its end, or armed for a request to come.
pub(super) async fn trouble(cluster: &Cluster, dice: &mut Dice, among: &[Trouble]) -> Trouble {
    let mut trouble = *dice.pick(among);
    if trouble.lasts() && dice.roll(3) > 0 {
        trouble = *dice.pick(among);
    }
    let sim = &cluster.sim;
    let resource = *dice.pick(&[ApiResource::Pods, ApiResource::Claims]);
    let verb = *dice.pick(&[Verb::List, Verb::Watch, Verb::Watch]);
    let after = usize::try_from(dice.roll(3)).unwrap();
    let watch = |then| sim.arm(Fault::watch(after, then).on(resource));
    let answer = |answer| sim.arm(Fault::answer(answer).on_verb(verb).on(resource));
    match trouble {
        Trouble::CutEof => sim.cut_watches(Cut::Eof),
        Trouble::CutReset => sim.cut_watches(Cut::Reset),
        Trouble::BreakEof => watch(Break::Cut(Cut::Eof)),
        Trouble::BreakReset => watch(Break::Cut(Cut::Reset)),
        Trouble::HalfLine => watch(Break::HalfLine),
        Trouble::Garbage => watch(Break::Garbage),
        Trouble::StallAll => sim.stall_watches(),
        Trouble::StallOne => watch(Break::Stall),
        Trouble::BlackHole => out_of_reach(cluster, dice, true, Duration::ZERO).await,
        Trouble::Down => out_of_reach(cluster, dice, false, Duration::ZERO).await,
        Trouble::OutOfReachForLong => {
            let swallows = dice.roll(2) == 0;
            out_of_reach(cluster, dice, swallows, Duration::from_secs(70)).await;
        }
        Trouble::Restored => restored(cluster, dice).await,
        Trouble::ExpiredLine => watch(Break::Expired),
        Trouble::ExpiredStatus => sim.arm(Fault::answer(Answer::Gone).on_verb(Verb::Watch).on(resource)),
        Trouble::ExpiredPage => {
            sim.arm(Fault::expire_page().on(resource));
            watch(Break::Expired);
        }
        Trouble::ChangedBetweenPages => {
            sim.arm(changed(dice).on_verb(Verb::List).on(resource));
            watch(Break::Expired);
        }
        Trouble::HalfList => {
            cluster.witness.half_lists[usize::from(resource == ApiResource::Claims)].fetch_add(1, Ordering::Relaxed);
            watch(Break::Expired);
        }
        Trouble::Restart => sim.restart(),
        Trouble::Compaction => sim.store(|store| {
            store.compact(store.revision());
            store.lose_watch_history();
        }),
        Trouble::TooMany => answer(Answer::TooManyRequests(*dice.pick(&[1, 7, 40]))),
        Trouble::ForbiddenOnce => answer(Answer::Forbidden),
        Trouble::ForbiddenForAWhile => {
            sim.deny(verb, resource);
            sim.cut_watches(*dice.pick(&[Cut::Eof, Cut::Reset]));
            while_it_lasts(cluster, dice, Duration::from_secs(60)).await;
            sim.allow_all();
        }
        Trouble::UnauthorizedForAWhile => {
            sim.set_unauthorized(true);
            sim.cut_watches(*dice.pick(&[Cut::Eof, Cut::Reset]));
            while_it_lasts(cluster, dice, Duration::from_secs(60)).await;
            sim.set_unauthorized(false);
        }
        Trouble::Internal => answer(Answer::Internal),
        Trouble::Unavailable => answer(Answer::Unavailable),
        Trouble::RefusedOnce => sim.arm(Fault::refuse().on_verb(verb).on(resource)),
        Trouble::Hangs => sim.arm(Fault::hang().on_verb(verb).on(resource)),
    }
    trouble
}

/// Something is written right after an answer; now and then history is compacted with it, so that the next page expires.
fn changed(dice: &mut Dice) -> Fault {
    let (seed, compacts) = (Mutex::new(dice.fork()), dice.roll(2) == 0);
    Fault::meanwhile(move |store| {
        write(store, &mut seed.lock().unwrap());
        if compacts {
            store.compact(store.revision());
        }
    })
}

async fn out_of_reach(cluster: &Cluster, dice: &mut Dice, swallows: bool, least: Duration) {
    if swallows {
        cluster.sim.black_hole()
    } else {
        cluster.sim.down()
    }
    cluster.nap(least).await;
    while_it_lasts(cluster, dice, Duration::from_secs(59)).await;
    cluster.sim.up();
}

/// Life goes on, unseen.
async fn while_it_lasts(cluster: &Cluster, dice: &mut Dice, most: Duration) {
    for _ in 0..dice.roll(5) {
        cluster.nap(dice.up_to(most / 5)).await;
        cluster.write(|store| write(store, dice));
    }
    cluster.nap(dice.up_to(most / 5)).await;
}

/// etcd is put back. Everybody has heard of what is lost with it, and as long as the hub has not looked (15 s into the
/// silence) less is written than was lost: a history that has grown past what was heard is the stated limit (quality.md,
/// G5).
async fn restored(cluster: &Cluster, dice: &mut Dice) {
    if cluster.sim.armed() > 0 {
        return;
    }
    // What stalled is known to be dead after 35 s.
    cluster.nap(Duration::from_secs(60)).await;
    label(cluster, "before");
    let older = cluster.sim.store(|store| store.clone());
    // The same version of the same life says one thing in this history and another in the next.
    label(cluster, "lost");
    for _ in 0..=dice.roll(6) {
        cluster.write(|store| write(store, dice));
        cluster.nap(dice.up_to(Duration::from_secs(2))).await;
    }
    // The last two, so that both resources' versions are known to have come this far.
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
    cluster.nap(Duration::from_millis(1)).await;
    // One write is two revisions at most; pods were heard of up to one before the last.
    if !cluster.is_heard(lost - 2).await {
        return;
    }
    cluster.restore(older);
    label(cluster, "found");
    for _ in 0..dice.roll(6) {
        cluster.write(|store| {
            if store.revision() + 2 < lost - 2 {
                write(store, dice);
            }
        });
        cluster.nap(dice.up_to(Duration::from_secs(2))).await;
    }
    cluster.nap(Duration::from_secs(60)).await;
}

fn label(cluster: &Cluster, workload: &str) {
    let labels = json!({"boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": workload});
    let change = json!({"metadata": {"labels": labels}});
    cluster.write(|store| {
        if store.patch(ApiResource::Pods, NAMESPACE, "p5", &change).is_err() {
            create(store, ApiResource::Pods, NAMESPACE, "p5", &change).unwrap();
        }
    });
}
