use serde_json::{Value, json};

use super::*;
use crate::{
    event::{PerResource, Resource, View, projection::Filter},
    feed::{Config, Feed, FrameFormat, ReadResult, SnapshotReason, StartAt, Subscription, Writer},
    test_support::PodBuilder,
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
fn initial_state_in_use_is_shared_without_cache_budget() {
    let (mut writer, feed) = synced_feed(Config { projection_cache_bytes: 0, ..Config::default() });
    writer.upsert(large_pod(2));
    let cache = unique_projection(&feed, 0);
    let state = || {
        feed.inner
            .initial_state(&cache, SnapshotReason::Connect, PerResource::default())
            .expect("the state is complete")
    };
    let (first, second) = (state(), state());
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(feed.inner.metrics.projection_cache_bytes.get(), 0);
    drop((first, second));
    state();
    assert_eq!(feed.inner.metrics.initial_states_encoded.get(), 2, "the first one was dropped with its last user");
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
