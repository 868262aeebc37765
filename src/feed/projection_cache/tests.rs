use serde_json::{Value, json};

use super::*;
use crate::{
    event::{Instance, PerResource, Resource, View, projection::Filter},
    feed::{Config, Feed, FrameFormat, ReadResult, SnapshotReason, StartAt, Subscription, Writer},
};

const LINES: Framing = Framing { format: FrameFormat::JsonLines, edgeplane_names: false };

fn ready(config: Config) -> (Writer, Feed) {
    let (mut writer, feed) = Feed::new(config);
    writer.set_namespace(NamespaceId::from_uid("u"));
    for resource in Resource::ALL {
        writer.replace(resource, Vec::new(), 1);
    }
    (writer, feed)
}

/// A Pod whose frame has some 3 KB and says its version.
fn large(rv: ResourceVersion) -> View {
    let (name, ip) = ("a".to_owned(), Some(format!("{rv:0>3000}")));
    View::Instance(Arc::new(Instance { name, uid: "a".into(), ip, resource_version: rv, ..Instance::default() }))
}

fn small(rv: ResourceVersion) -> View {
    View::Instance(Arc::new(Instance {
        name: "b".into(),
        uid: "b".into(),
        resource_version: rv,
        ..Instance::default()
    }))
}

/// A lens that shows every Pod, and that nobody else has.
fn of_its_own(feed: &Feed, number: usize) -> Arc<ProjectionCache> {
    let filter = Filter::parse(&json!({"claims": {"name": format!("claim-{number}")}}).to_string()).unwrap();
    feed.projection_cache(Projection { filter, ..Projection::everything(EventFormat::Full) }, LINES)
}

/// Reads all there is.
fn told(reader: &mut Subscription, max_bytes: usize) -> Vec<Value> {
    let mut told = Vec::new();
    while let ReadResult::Batch(batch) = reader.read(max_bytes) {
        let batch = batch.concat();
        let lines = batch.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        told.extend(lines.map(|line| serde_json::from_slice::<Value>(line).unwrap()));
    }
    told
}

fn versions(told: &[Value]) -> Vec<u64> {
    told.iter().filter_map(|event| event["instance"]["ip"].as_str()).map(|ip| ip.parse().unwrap()).collect()
}

#[test]
fn reader_receives_frames_evicted_from_the_cache() {
    let (mut writer, feed) = ready(Config::default());
    let cache = feed.projection_cache(Projection::everything(EventFormat::Full), LINES);
    let mut reader = feed.subscribe(cache.clone(), StartAt::Live).unwrap();
    let mut first = feed.subscribe(cache, StartAt::Live).unwrap();
    // What is kept is less than what is rendered at once.
    for rv in 2..=400 {
        writer.upsert(large(rv));
        if rv == 60 {
            told(&mut first, 1 << 20);
        }
    }
    assert_eq!(versions(&told(&mut reader, 8 << 10)), (2..=400).collect::<Vec<_>>(), "no silent gap");
}

#[test]
fn projection_caches_stay_within_the_budget_and_deliver_all_events() {
    const BUDGET: usize = 1 << 20;
    let (mut writer, feed) = ready(Config { projection_cache_bytes: BUDGET, ..Config::default() });
    writer.upsert(large(2));
    let mut most = 0;
    let mut look = || {
        let kept = usize::try_from(feed.metrics().projection_cache_bytes.get()).unwrap();
        assert!(kept <= BUDGET, "{kept}");
        most = most.max(kept);
    };
    let from = StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: PerResource::default() };
    let mut readers: Vec<_> = (0..400).map(|n| feed.subscribe(of_its_own(&feed, n), from).unwrap()).collect();
    for reader in &mut readers {
        let first = told(reader, 1 << 20);
        assert!(first.len() == 1 && first[0]["instances"][0]["name"] == "a", "{first:?}");
        look();
    }
    for rv in 3..=20 {
        writer.upsert(large(rv));
        for reader in &mut readers {
            assert_eq!(versions(&told(reader, 1 << 20)), [rv]);
            look();
        }
    }
    assert!(most > BUDGET / 2, "it is made use of");
    drop(readers);
    assert_eq!(feed.metrics().projection_cache_bytes.get(), 0, "what is charged goes with its lens");
}

#[test]
fn initial_state_in_use_is_shared_without_cache_budget() {
    let (mut writer, feed) = ready(Config { projection_cache_bytes: 0, ..Config::default() });
    writer.upsert(large(2));
    let cache = of_its_own(&feed, 0);
    let state =
        || feed.inner.initial(&cache, SnapshotReason::Connect, PerResource::default()).expect("there is a state");
    let (first, second) = (state(), state());
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(feed.metrics().projection_cache_bytes.get(), 0);
    drop((first, second));
    state();
    assert_eq!(feed.metrics().snapshots.get(), 2, "nobody held it any more");
}

#[tokio::test(start_paused = true)]
async fn cached_initial_state_is_dropped_after_a_change() {
    let (mut writer, feed) = ready(Config::default());
    writer.upsert(large(2));
    let from = StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: PerResource::default() };
    let mut reader = feed.subscribe(of_its_own(&feed, 0), from).unwrap();
    told(&mut reader, 1 << 20);
    assert!(feed.metrics().projection_cache_bytes.get() > 3000, "the state");
    tokio::time::advance(std::time::Duration::from_secs(2)).await;
    writer.upsert(small(3));
    assert_eq!(told(&mut reader, 1 << 20).len(), 1);
    assert!(feed.metrics().projection_cache_bytes.get() < 3000, "a small frame");
}

#[test]
fn unmatched_entries_cost_one_frame_and_readers_continue() {
    let (mut writer, feed) = ready(Config::default());
    let filter = Filter::parse(r#"{"instances": {"name": "b"}}"#).unwrap();
    let cache = feed.projection_cache(Projection { filter, ..Projection::everything(EventFormat::Full) }, LINES);
    let mut readers = Vec::new();
    for rv in 2..=100 {
        readers.push(feed.subscribe(cache.clone(), StartAt::Live).unwrap());
        writer.upsert(large(rv));
        told(&mut readers[0], 1 << 20);
    }
    assert_eq!(usize::try_from(feed.metrics().projection_cache_bytes.get()), Ok(2 * size_of::<Frame>()));
    writer.upsert(small(101));
    for reader in &mut readers {
        let mut told = told(reader, 1 << 20);
        told.retain(|event| event["type"] != "heartbeat");
        assert_eq!((told.len(), told[0]["key"].as_str()), (1, Some("b.101.instance.state")));
        assert_eq!(reader.cursor().as_deref(), told[0]["id"].as_str());
    }
}
