use serde_json::{Value, json};

use super::*;
use crate::{
    event::{PerResource, Resource, View, projection::Filter},
    feed::{Config, Feed, FrameFormat, ReadResult, SnapshotReason, StartAt, Subscription, Writer},
    test_support::{ClaimBuilder, PodBuilder},
};

const LINES: Framing = Framing { format: FrameFormat::JsonLines, edgeplane_names: false };

/// A synced feed without objects, both resources at version 1.
fn synced_feed(config: Config) -> (Writer, Feed) {
    let (mut writer, feed) = Feed::new(config);
    writer.set_namespace(NamespaceId::from_uid("u"));
    for resource in Resource::ALL {
        writer.replace(resource, Vec::new(), 1);
    }
    (writer, feed)
}

/// Pod `a`, whose frame has about 3 KB. Its IP contains its version.
fn large_pod(version: ResourceVersion) -> View {
    let mut instance = PodBuilder::new("a").version(version).instance();
    Arc::make_mut(&mut instance).ip = Some(format!("{version:0>3000}"));
    View::Instance(instance)
}

/// Pod `b`, whose frame is small.
fn small_pod(version: ResourceVersion) -> View {
    PodBuilder::new("b").version(version).view()
}

/// The cache of a projection that includes every Pod, and is different for each number.
fn unique_projection(feed: &Feed, number: usize) -> Arc<ProjectionCache> {
    let filter = Filter::parse(&json!({"claims": {"name": format!("claim-{number}")}}).to_string()).unwrap();
    feed.projection_cache(Projection { filter, ..Projection::everything(EventFormat::Full) }, LINES)
}

/// Reads until there is nothing to read, and parses the events.
fn read_events(reader: &mut Subscription, max_bytes: usize) -> Vec<Value> {
    let mut events = Vec::new();
    while let ReadResult::Batch(batch) = reader.read(max_bytes) {
        let batch = batch.concat();
        let lines = batch.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        events.extend(lines.map(|line| serde_json::from_slice::<Value>(line).unwrap()));
    }
    events
}

/// The versions of Pod `a` in these events.
fn large_pod_versions(events: &[Value]) -> Vec<u64> {
    events.iter().filter_map(|event| event["instance"]["ip"].as_str()).map(|ip| ip.parse().unwrap()).collect()
}

#[test]
fn reader_receives_frames_evicted_from_the_cache() {
    let (mut writer, feed) = synced_feed(Config::default());
    let cache = feed.projection_cache(Projection::everything(EventFormat::Full), LINES);
    let mut reader = feed.subscribe(cache.clone(), StartAt::Live).unwrap();
    let mut first = feed.subscribe(cache, StartAt::Live).unwrap();
    // The cache holds less than one read renders.
    for version in 2..=400 {
        writer.upsert(large_pod(version));
        if version == 60 {
            read_events(&mut first, 1 << 20);
        }
    }
    assert_eq!(
        large_pod_versions(&read_events(&mut reader, 8 << 10)),
        (2..=400).collect::<Vec<_>>(),
        "no entry is missing"
    );
}

#[test]
fn projection_caches_stay_within_the_budget_and_deliver_all_events() {
    const BUDGET: usize = 1 << 20;
    let (mut writer, feed) = synced_feed(Config { projection_cache_bytes: BUDGET, ..Config::default() });
    writer.upsert(large_pod(2));
    let mut max_cached = 0;
    let mut check = || {
        let cached = usize::try_from(feed.inner.metrics.projection_cache_bytes.get()).unwrap();
        assert!(cached <= BUDGET, "{cached} bytes are cached");
        max_cached = max_cached.max(cached);
    };
    let from = StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: PerResource::default() };
    let mut readers: Vec<_> = (0..400).map(|n| feed.subscribe(unique_projection(&feed, n), from).unwrap()).collect();
    for reader in &mut readers {
        let first = read_events(reader, 1 << 20);
        assert!(first.len() == 1 && first[0]["instances"][0]["name"] == "a", "{first:?}");
        check();
    }
    for version in 3..=20 {
        writer.upsert(large_pod(version));
        for reader in &mut readers {
            assert_eq!(large_pod_versions(&read_events(reader, 1 << 20)), [version]);
            check();
        }
    }
    assert_eq!(feed.inner.metrics.projections.get(), 400);
    assert!(max_cached > BUDGET / 2, "the budget is used: {max_cached} bytes");
    drop(readers);
    assert_eq!(feed.inner.metrics.projection_cache_bytes.get(), 0, "no charge remains without a projection");
    assert_eq!(feed.inner.metrics.projections.get(), 0);
}

#[test]
fn parts_without_cache_budget_are_encoded_again() {
    let (mut writer, feed) = synced_feed(Config { projection_cache_bytes: 0, ..Config::default() });
    for number in 0..100 {
        let mut instance = PodBuilder::new(&format!("pod-{number:03}")).version(2 + number).instance();
        Arc::make_mut(&mut instance).ip = Some("1".repeat(3000));
        writer.upsert(View::Instance(instance));
    }
    let cache = unique_projection(&feed, 0);
    let state = || feed.inner.initial_state(&cache, SnapshotReason::Connect, PerResource::default(), 0).unwrap();
    let (first, second) = (state(), state());
    assert!(Arc::ptr_eq(&first, &second), "subscriptions that start at the same time share one initial state");
    let mut total = 0;
    while let Some(part) = feed.inner.initial_state_part(&cache, &first, total) {
        assert_eq!(feed.inner.metrics.projection_cache_bytes.get(), 0);
        assert_eq!(feed.inner.initial_state_part(&cache, &second, total), Some(part));
        total += 1;
    }
    assert!(total > 5, "{total} parts");
    assert_eq!(feed.inner.metrics.initial_states_encoded.get(), 1);
}

#[test]
fn parts_are_shared_and_charged_until_they_are_dropped() {
    let (mut writer, feed) = synced_feed(Config::default());
    writer.upsert(large_pod(2));
    let cache = unique_projection(&feed, 0);
    let state = || feed.inner.initial_state(&cache, SnapshotReason::Connect, PerResource::default(), 0).unwrap();
    let (first, second) = (state(), state());
    assert!(!first.has_part(0), "a part is encoded when it is read");
    let part = feed.inner.initial_state_part(&cache, &first, 0).unwrap();
    assert!(second.has_part(0) && second.has_part(1), "the end needs no encoding");
    let shared = feed.inner.initial_state_part(&cache, &second, 0).unwrap();
    assert_eq!((part.as_ptr(), part.len()), (shared.as_ptr(), shared.len()));
    assert_eq!(feed.inner.initial_state_part(&cache, &second, 1), None);
    assert_eq!(usize::try_from(feed.inner.metrics.projection_cache_bytes.get()), Ok(part.len()));
    cache.shrink_to(0);
    assert_eq!(feed.inner.metrics.projection_cache_bytes.get(), 0, "subscriptions still hold the initial state");
    assert_eq!(feed.inner.initial_state_part(&cache, &second, 0), Some(part));
}

#[test]
fn parts_stay_below_the_limit_and_hold_each_object_once() {
    const LIMIT: usize = 4096;
    let (mut writer, feed) = synced_feed(Config { initial_state_part_bytes: LIMIT, ..Config::default() });
    for number in 0..60 {
        writer.upsert(
            PodBuilder::new(&format!("pod-{number:02}")).version(2 + number).workload(&format!("w{number}")).view(),
        );
        writer.upsert(ClaimBuilder::new(&format!("claim-{number:02}")).version(2 + number).view());
    }
    // One object that is larger than a part, and text that JSON escapes.
    let mut instance = PodBuilder::new("pod-30-large").version(100).instance();
    Arc::make_mut(&mut instance).ip = Some("\u{1}".repeat(LIMIT));
    writer.upsert(View::Instance(instance));
    let cache = feed.projection_cache(Projection::everything(EventFormat::Full), LINES);
    let from = StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: PerResource::default() };
    let mut reader = feed.subscribe(cache, from).unwrap();
    let mut messages = Vec::new();
    while let ReadResult::Batch(batch) = reader.read(1 << 20) {
        messages.extend(batch);
        // A change while the state is sent belongs to no part.
        if messages.len() == 1 {
            writer.upsert(PodBuilder::new("pod-99-late").version(200).view());
        }
    }
    let events: Vec<Value> = messages.iter().map(|message| serde_json::from_slice(message).unwrap()).collect();
    let (late, parts) = events.split_last().unwrap();
    assert_eq!(late["instance"]["name"], "pod-99-late");
    for (part, message) in parts.iter().zip(&messages) {
        let objects = ["instances", "claims", "pools"].map(|key| part[key].as_array().unwrap().len());
        assert!(message.len() <= LIMIT || objects == [1, 0, 0], "{} bytes, objects {objects:?}", message.len());
    }
    let names = |key: &str, name: &str| -> Vec<String> {
        parts.iter().flat_map(|part| part[key].as_array().unwrap()).map(|o| o[name].as_str().unwrap().into()).collect()
    };
    let instances = names("instances", "name");
    assert_eq!((instances.len(), instances.is_sorted()), (61, true), "{instances:?}");
    assert_eq!(names("claims", "name").len(), 60);
    let pools: std::collections::BTreeSet<_> = names("pools", "workloadRef").into_iter().collect();
    assert!(pools.len() >= 60 && pools.len() == names("pools", "workloadRef").len(), "{pools:?}");
    let (last, others) = parts.split_last().unwrap();
    assert!(others.len() > 5 && others.iter().all(|part| part["more"] == true && part.get("id").is_none()));
    assert!(last["id"].is_string() && last.get("more").is_none());
}

#[tokio::test(start_paused = true)]
async fn cached_initial_state_is_dropped_after_a_change() {
    let (mut writer, feed) = synced_feed(Config::default());
    writer.upsert(large_pod(2));
    let from = StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: PerResource::default() };
    let mut reader = feed.subscribe(unique_projection(&feed, 0), from).unwrap();
    read_events(&mut reader, 1 << 20);
    assert!(feed.inner.metrics.projection_cache_bytes.get() > 3000, "the initial state is cached");
    tokio::time::advance(std::time::Duration::from_secs(2)).await;
    writer.upsert(small_pod(3));
    assert_eq!(read_events(&mut reader, 1 << 20).len(), 1);
    assert!(feed.inner.metrics.projection_cache_bytes.get() < 3000, "only a small frame is cached");
}

#[test]
fn unmatched_entries_cost_one_frame_and_readers_continue() {
    let (mut writer, feed) = synced_feed(Config::default());
    let filter = Filter::parse(r#"{"instances": {"name": "b"}}"#).unwrap();
    let cache = feed.projection_cache(Projection { filter, ..Projection::everything(EventFormat::Full) }, LINES);
    let mut readers = Vec::new();
    for version in 2..=100 {
        readers.push(feed.subscribe(cache.clone(), StartAt::Live).unwrap());
        writer.upsert(large_pod(version));
        read_events(&mut readers[0], 1 << 20);
    }
    assert_eq!(usize::try_from(feed.inner.metrics.projection_cache_bytes.get()), Ok(2 * size_of::<Frame>()));
    writer.upsert(small_pod(101));
    for reader in &mut readers {
        let mut events = read_events(reader, 1 << 20);
        events.retain(|event| event["type"] != "heartbeat");
        assert_eq!((events.len(), events[0]["key"].as_str()), (1, Some("uid-b.101.instance.state")));
        assert_eq!(reader.cursor().as_deref(), events[0]["id"].as_str());
    }
}
