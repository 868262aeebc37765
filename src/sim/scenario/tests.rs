//! What may be relied upon, whatever the seed.

use jiff::{Timestamp, ToSpan};

use super::*;

fn lived(seed: u64, steps: i64) -> Store {
    lived_through(seed, steps).0
}

/// The store after so many steps, and its revision after each of them.
fn lived_through(seed: u64, steps: i64) -> (Store, Vec<u64>) {
    let mut store = Store::new(seed, 1, Timestamp::UNIX_EPOCH);
    store.create(ApiResource::Namespaces, json!({"metadata": {"name": "boilerhouse"}})).unwrap();
    let mut scenario = Scenario::new(seed, ScenarioConfig::default());
    scenario.populate(&mut store);
    let mut revisions = vec![store.revision()];
    for step in 1..=steps {
        store.set_time(Timestamp::UNIX_EPOCH + step.seconds());
        scenario.step(&mut store);
        revisions.push(store.revision());
        if step % 500 == 0 {
            assert!(store.list(ApiResource::Pods, None).len() < 25, "seed {seed}: the cluster does not grow for ever");
        }
    }
    (store, revisions)
}

#[test]
fn scenario_starts_with_eight_pods_and_three_claims() {
    let store = lived(1, 0);
    let pods = store.list(ApiResource::Pods, None);
    let managed: Vec<_> = pods.iter().filter(|pod| label(pod, LABEL_MANAGED) == "true").collect();
    assert_eq!(managed.len(), 8);
    assert_eq!(pods.len(), managed.len() + 1);
    let claims = store.list(ApiResource::Claims, None);
    assert_eq!(claims.iter().filter(|claim| claim["status"]["phase"] == "Active").count(), 3);
    for pod in pods {
        let bytes = serde_json::to_vec(&*pod).unwrap().len();
        assert!((5_000..14_500).contains(&bytes), "{} has {bytes} bytes", pod["metadata"]["name"]);
    }
}

#[test]
fn equal_seeds_produce_equal_histories() {
    let history = |seed| lived(seed, 300).history().iter().map(|c| c.after.clone()).collect::<Vec<_>>();
    assert_eq!(history(7), history(7));
    assert_ne!(history(7), history(8));
}

#[test]
fn each_goal_recurs_within_20_s_for_every_seed() {
    for seed in 0..6 {
        let (mut last, mut seen) = ([0; 3], [0; 3]);
        let (store, revisions) = lived_through(seed, 600);
        for change in store.history() {
            let second = revisions.partition_point(|revision| *revision < change.revision);
            let mut goals = |goal: Goal| {
                let index = goal as usize;
                assert!(second - last[index] <= 17, "seed {seed}: no {goal:?} from {} to {second}", last[index]);
                last[index] = second;
                seen[index] += 1;
            };
            let Some(after) = &change.after else { continue };
            let was = |pointer: &str| change.before.as_ref().and_then(|before| before.pointer(pointer)).cloned();
            let is = |pointer: &str| after.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
            let (status, phase) = ("/metadata/labels/boilerhouse.dev~1pool-status", "/status/phase");
            let turned = |pointer, to: &str| is(pointer).as_deref() == Some(to) && was(pointer) != Some(json!(to));
            match change.resource {
                ApiResource::Pods if turned(status, "ready") => goals(Goal::Ready),
                ApiResource::Claims if turned(phase, "Active") => goals(Goal::Active),
                ApiResource::Claims if turned(phase, "Released") => goals(Goal::Released),
                _ => {}
            }
        }
        assert!(seen.iter().all(|count| *count > 30), "seed {seed}: {seen:?}");
    }
}

#[test]
fn every_claim_source_and_phase_occurs() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..2 {
        for change in lived(seed, 1500).history() {
            let Some(after) = &change.after else { continue };
            for field in ["phase", "source"] {
                seen.extend(after["status"][field].as_str().map(str::to_owned));
            }
        }
    }
    let expected = ["Pending", "Running", "Failed", "Active", "Releasing", "Released", "Error"];
    for word in expected.iter().chain(&["existing", "cold", "cold+data", "pool", "pool+data"]) {
        assert!(seen.contains(*word), "{word} never happened: {seen:?}");
    }
}
