//! Properties of the scenario that hold for every seed.

use jiff::{Timestamp, ToSpan};

use super::*;

/// Returns the store after this number of steps.
fn store_after(seed: u64, steps: i64) -> Store {
    run_steps(seed, steps).0
}

/// Returns the store after this number of steps, and its revision after each step.
fn run_steps(seed: u64, steps: i64) -> (Store, Vec<u64>) {
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
            let pods = store.list(ApiResource::Pods, None).len();
            assert!(pods < 25, "seed {seed}: the number of Pods must stay below 25, found {pods}");
        }
    }
    (store, revisions)
}

#[test]
fn scenario_starts_with_eight_pods_and_three_claims() {
    let store = store_after(1, 0);
    let pods = store.list(ApiResource::Pods, None);
    let managed: Vec<_> = pods.iter().filter(|pod| label(pod, LABEL_MANAGED) == "true").collect();
    assert_eq!(managed.len(), 8);
    assert_eq!(pods.len(), managed.len() + 1);
    let claims = store.list(ApiResource::Claims, None);
    assert_eq!(claims.iter().filter(|claim| claim["status"]["phase"] == "Active").count(), 3);
    for pod in pods {
        let bytes = serde_json::to_vec(&*pod).unwrap().len();
        assert!((5_000..14_500).contains(&bytes), "size of {}: {bytes} bytes", pod["metadata"]["name"]);
    }
}

#[test]
fn equal_seeds_produce_equal_histories() {
    let history = |seed| store_after(seed, 300).history().iter().map(|c| c.after.clone()).collect::<Vec<_>>();
    assert_eq!(history(7), history(7));
    assert_ne!(history(7), history(8));
}

#[test]
fn each_goal_recurs_within_20_s_for_every_seed() {
    for seed in 0..6 {
        let (mut last, mut counts) = ([0; 3], [0; 3]);
        let (store, revisions) = run_steps(seed, 600);
        for change in store.history() {
            let second = revisions.partition_point(|revision| *revision < change.revision);
            let mut record = |goal: Goal| {
                let index = goal as usize;
                assert!(second - last[index] <= 17, "seed {seed}: no {goal:?} from {} s to {second} s", last[index]);
                last[index] = second;
                counts[index] += 1;
            };
            let Some(after) = &change.after else { continue };
            let old = |pointer: &str| change.before.as_ref().and_then(|before| before.pointer(pointer)).cloned();
            let new = |pointer: &str| after.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
            let (status, phase) = ("/metadata/labels/boilerhouse.dev~1pool-status", "/status/phase");
            let became = |pointer, to: &str| new(pointer).as_deref() == Some(to) && old(pointer) != Some(json!(to));
            match change.resource {
                ApiResource::Pods if became(status, "ready") => record(Goal::Ready),
                ApiResource::Claims if became(phase, "Active") => record(Goal::Active),
                ApiResource::Claims if became(phase, "Released") => record(Goal::Released),
                _ => {}
            }
        }
        assert!(counts.iter().all(|count| *count > 30), "seed {seed}: more than 30 of each goal expected: {counts:?}");
    }
}

#[test]
fn every_claim_source_and_phase_occurs() {
    let mut found = std::collections::BTreeSet::new();
    for seed in 0..2 {
        for change in store_after(seed, 1500).history() {
            let Some(after) = &change.after else { continue };
            for field in ["phase", "source"] {
                found.extend(after["status"][field].as_str().map(str::to_owned));
            }
        }
    }
    let expected = ["Pending", "Running", "Failed", "Active", "Releasing", "Released", "Error"];
    for word in expected.iter().chain(&["existing", "cold", "cold+data", "pool", "pool+data"]) {
        assert!(found.contains(*word), "{word} must occur, found {found:?}");
    }
}
