//! Unit tests of the store.

use super::*;

fn store() -> Store {
    let mut store = Store::new(1, 100, Timestamp::UNIX_EPOCH);
    store.create(ApiResource::Namespaces, json!({"metadata": {"name": "n"}})).unwrap();
    store
}

/// A Pod with a `spec` for patches. [`crate::test_support::PodBuilder`] has no such field.
fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "n"}, "spec": {"a": 1}})
}

fn names(list: &[Arc<Value>]) -> Vec<&str> {
    list.iter().map(|object| object["metadata"]["name"].as_str().unwrap()).collect()
}

#[test]
fn each_write_creates_one_revision_and_one_change() {
    let mut store = store();
    let created = store.create(ApiResource::Pods, pod("a")).unwrap();
    assert_eq!(created["metadata"]["resourceVersion"], "102");
    assert_eq!(created["metadata"]["creationTimestamp"], "1970-01-01T00:00:00Z");
    assert_eq!(store.create(ApiResource::Pods, pod("a")), Err(StoreError::Exists));
    let patched = store.patch(ApiResource::Pods, "n", "a", &json!({"spec": {"a": null, "b": 2}})).unwrap();
    assert_eq!(patched["spec"], json!({"b": 2}));
    assert_eq!(patched["metadata"]["generation"], 2);
    let same = store.patch(ApiResource::Pods, "n", "a", &json!({"spec": {"b": 2}})).unwrap();
    assert_eq!(same["metadata"]["resourceVersion"], "103", "a patch without a change must create no revision");
    store.terminate(ApiResource::Pods, "n", "a", 30).unwrap();
    store.delete(ApiResource::Pods, "n", "a").unwrap();
    let changes: Vec<_> = store.since(101).iter().map(|c| (c.before.is_some(), c.after.is_some())).collect();
    assert_eq!(changes, [(false, true), (true, true), (true, true), (true, false)]);
    let again = store.create(ApiResource::Pods, pod("a")).unwrap();
    assert_ne!(again["metadata"]["uid"], created["metadata"]["uid"]);
}

#[test]
fn write_with_a_stale_version_is_a_conflict() {
    let mut store = store();
    store.create(ApiResource::Pods, pod("a")).unwrap();
    let stale = json!({"metadata": {"resourceVersion": "7"}, "spec": {"a": 5}});
    assert_eq!(store.patch(ApiResource::Pods, "n", "a", &stale), Err(StoreError::Conflict));
    assert_eq!(store.patch(ApiResource::Pods, "n", "b", &json!({})), Err(StoreError::NotFound));
    let other_namespace = json!({"metadata": {"name": "a", "namespace": "m"}});
    assert_eq!(store.create(ApiResource::Pods, other_namespace), Err(StoreError::NoNamespace("m".into())));
}

#[test]
fn past_versions_can_be_listed_until_compaction() {
    let mut store = store();
    for name in ["b", "a", "c"] {
        store.create(ApiResource::Pods, pod(name)).unwrap();
    }
    store.delete(ApiResource::Pods, "n", "b").unwrap();
    assert_eq!(names(&store.list(ApiResource::Pods, Some("n"))), ["a", "c"]);
    assert_eq!(names(&store.list_at(ApiResource::Pods, None, 103).unwrap()), ["a", "b"]);
    store.lose_watch_history();
    assert_eq!((store.watch_window(), store.compacted()), (105, 100));
    store.compact(104);
    assert_eq!(store.list_at(ApiResource::Pods, None, 103), Err(StoreError::Compacted(103)));
    assert_eq!(names(&store.list_at(ApiResource::Pods, None, 104).unwrap()), ["a", "b", "c"]);
    assert_eq!(store.history().len(), 5, "compaction must keep the list of changes");
}

#[test]
fn discard_before_frees_history_and_keeps_current_objects() {
    let mut store = store();
    for name in ["a", "b"] {
        store.create(ApiResource::Pods, pod(name)).unwrap();
    }
    store.delete(ApiResource::Pods, "n", "a").unwrap();
    for count in 2..50 {
        store.patch(ApiResource::Pods, "n", "b", &json!({"spec": {"a": count}})).unwrap();
    }
    store.discard_before(store.revision());
    assert!(store.history().is_empty());
    assert_eq!(store.versions.values().map(Vec::len).sum::<usize>(), 2, "only the namespace and Pod b are left");
    assert_eq!(store.get(ApiResource::Pods, "n", "b").unwrap()["spec"]["a"], 49);
}

#[test]
fn restored_copy_reuses_revisions_but_not_uids() {
    let mut store = store();
    let older = store.clone();
    let lost = store.create(ApiResource::Pods, pod("a")).unwrap();
    let branch = store.restore(older);
    assert_eq!((store.revision(), branch.revision()), (101, 102));
    let again = store.create(ApiResource::Pods, pod("a")).unwrap();
    assert_eq!(again["metadata"]["resourceVersion"], lost["metadata"]["resourceVersion"]);
    assert_ne!(again["metadata"]["uid"], lost["metadata"]["uid"]);
}
