//! Resumes on a restarted replica, on the simulator: the events that clients receive, and the number of requests to the
//! API server.

mod old_cursors;

use std::{sync::Arc, time::Duration};

use boilerhouse_bridge::{
    event::{
        Cursor, PerResource, Resource,
        projection::{EventFormat, Projection},
    },
    feed::{self, Feed, FrameFormat, Framing, ReadResult, StartAt, Subscription},
    sim::{ApiResource, Sim, SimConfig, Verb},
    source::hub,
};
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::timeout};

use crate::support::sim_cluster::NAMESPACE;

/// Bound on every wait, in paused time.
const BOUND: Duration = Duration::from_secs(120);

/// The hub and the feed of a bridge, without sockets.
struct Replica {
    feed: Feed,
    hub: JoinHandle<()>,
}

impl Replica {
    async fn start(sim: &Sim) -> Replica {
        Replica::with(sim, feed::Config::default()).await
    }

    async fn with(sim: &Sim, config: feed::Config) -> Replica {
        let (writer, feed) = Feed::new(config);
        let config = hub::Config { namespace: NAMESPACE.into(), ..hub::Config::default() };
        let run = hub::run(sim.client(NAMESPACE), config, writer, Arc::default());
        let hub = tokio::spawn(async move { match run.await {} });
        timeout(BOUND, feed.wait_synced()).await.expect("synced");
        Replica { feed, hub }
    }

    fn subscribe(&self, from: StartAt) -> Subscription {
        let cache = self.feed.projection_cache(
            Projection::everything(EventFormat::Full),
            Framing { format: FrameFormat::JsonLines, edgeplane_names: false },
        );
        self.feed.subscribe(cache, from).unwrap()
    }

    fn resume(&self, id: &str) -> Subscription {
        self.subscribe(StartAt::Cursor(Cursor::decode(id).unwrap()))
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.hub.abort();
    }
}

/// Reads events up to and including the first one that satisfies `is_last`.
async fn read_until(subscription: &mut Subscription, is_last: impl Fn(&Value) -> bool) -> Vec<Value> {
    let mut received: Vec<Value> = Vec::new();
    let reading = async {
        loop {
            match subscription.read(1 << 16) {
                ReadResult::Batch(batch) => {
                    let bytes = batch.concat();
                    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
                    received.extend(lines.map(|line| serde_json::from_slice::<Value>(line).unwrap()));
                    if received.iter().any(&is_last) {
                        return;
                    }
                }
                ReadResult::Idle => subscription.readable().await,
                ReadResult::End(close) => panic!("{close:?}"),
            }
        }
    };
    let found = timeout(BOUND, reading).await.is_ok();
    assert!(found, "the event was not delivered: {received:#?}");
    received
}

/// Creates a Pod without a status, so that its phase is `Unknown`. `PodBuilder` always sets a phase.
fn create(sim: &Sim, name: &str) {
    let labels = json!({"boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": "web"});
    let pod = json!({"metadata": {"name": name, "namespace": NAMESPACE, "labels": labels}});
    sim.store(|store| store.create(ApiResource::Pods, pod)).unwrap();
}

fn delete(sim: &Sim, name: &str) {
    sim.store(|store| store.delete(ApiResource::Pods, NAMESPACE, name)).unwrap();
}

/// Returns `name phase` of each `instance.state`, in order.
fn names(received: &[Value]) -> Vec<String> {
    let states = received.iter().filter(|event| event["type"] == "instance.state");
    states.map(|event| format!("{} {}", event["name"].as_str().unwrap(), event["phase"].as_str().unwrap())).collect()
}

fn is(name: &'static str, phase: &'static str) -> impl Fn(&Value) -> bool {
    move |event| event["name"] == name && event["phase"] == phase
}

/// Returns the newest id.
fn last_id(received: &[Value]) -> String {
    received.iter().rev().find_map(|event| event["id"].as_str()).unwrap().to_owned()
}

fn has_type(received: &[Value], kind: &str) -> bool {
    received.iter().any(|event| event["type"] == kind)
}

/// Returns whether an event about an object comes from a difference. The rest of a backfill after its last change can be an
/// empty difference, which is a heartbeat.
fn has_coalesced(received: &[Value]) -> bool {
    received.iter().any(|event| event["coalesced"] == true && event["type"] != "heartbeat")
}

#[tokio::test(start_paused = true)]
async fn thousand_resumes_after_a_restart_use_one_list_and_one_watch() {
    let sim = Sim::new(SimConfig::default());
    let first = Replica::start(&sim).await;
    let mut client = first.subscribe(StartAt::Live);
    let before = last_id(&read_until(&mut client, |event| event["type"] == "heartbeat").await);
    create(&sim, "a");
    create(&sim, "b");
    let later = last_id(&read_until(&mut client, is("b", "Unknown")).await);
    drop((client, first));
    // Changes while no replica runs. A list does not contain `transient`.
    create(&sim, "transient");
    delete(&sim, "transient");
    delete(&sim, "a");
    let second = Replica::start(&sim).await;
    let (lists, watches) = (sim.metrics().count(Verb::List), sim.metrics().count(Verb::Watch));
    let clients = (0..1000).map(|n| (n, second.resume(if n % 2 == 0 { &before } else { &later })));
    for (n, mut client) in clients.collect::<Vec<_>>() {
        let received = read_until(&mut client, is("a", "Deleted")).await;
        let all = ["a Unknown", "b Unknown", "transient Unknown", "transient Deleted", "a Deleted"];
        assert_eq!(names(&received), all[if n % 2 == 0 { 0 } else { 2 }..]);
        assert!(!has_type(&received, "state.initial") && !has_coalesced(&received), "{received:#?}");
    }
    let (more_lists, more_watches) =
        (sim.metrics().count(Verb::List) - lists, sim.metrics().count(Verb::Watch) - watches);
    assert!(more_lists <= 2 && more_watches <= 2, "{more_lists} lists, {more_watches} watches");
}

#[tokio::test(start_paused = true)]
async fn lost_watch_history_sends_a_diff_and_lost_list_sends_the_state() {
    let sim = Sim::new(SimConfig::default());
    let first = Replica::start(&sim).await;
    let mut client = first.subscribe(StartAt::Live);
    create(&sim, "a");
    let cursor = last_id(&read_until(&mut client, is("a", "Unknown")).await);
    drop((client, first));
    create(&sim, "b");
    delete(&sim, "a");
    // A restarted API server still answers exact lists, but has lost the history of its watches.
    sim.restart();
    let second = Replica::start(&sim).await;
    let received = read_until(&mut second.resume(&cursor), is("b", "Unknown")).await;
    assert_eq!(names(&received), ["a Deleted", "b Unknown"]);
    assert!(has_coalesced(&received) && !has_type(&received, "state.initial"), "{received:#?}");
    drop(second);
    sim.store(|store| store.compact(store.revision()));
    let third = Replica::start(&sim).await;
    let received = read_until(&mut third.resume(&cursor), |event| event["type"] == "state.initial").await;
    assert_eq!(received.last().unwrap()["reason"], "expired");
}

#[tokio::test(start_paused = true)]
async fn forged_cursor_is_foreign_and_costs_a_bounded_number_of_lists() {
    let sim = Sim::new(SimConfig::default());
    let replica = Replica::start(&sim).await;
    let mut client = replica.subscribe(StartAt::Live);
    let cursor =
        Cursor::decode(&last_id(&read_until(&mut client, |event| event["type"] == "heartbeat").await)).unwrap();
    let lists = sim.metrics().count(Verb::List);
    let started = tokio::time::Instant::now();
    for round in 0..40 {
        let forged = (0..10).map(|n| Cursor {
            versions: PerResource::new(
                cursor.versions[Resource::Pods] + 1000 + round * 10 + n,
                cursor.versions[Resource::Claims],
            ),
            ..cursor
        });
        for mut client in forged.map(|cursor| replica.subscribe(StartAt::Cursor(cursor))).collect::<Vec<_>>() {
            let received = read_until(&mut client, |event| event["type"] == "state.initial").await;
            assert_eq!(received.last().unwrap()["reason"], "foreign");
        }
    }
    let minutes = started.elapsed().as_secs() / 60 + 1;
    let probes = started.elapsed().as_secs() / 15 + 1;
    let more = sim.metrics().count(Verb::List) - lists;
    // A version check lists two resources, at most twelve times a minute. The hub also sends a probe after 15 s of
    // silence.
    assert!(more <= 2 * (12 * minutes + probes), "{more} lists in {minutes} minutes");
    // Old cursors: at most six backfill rounds start within a minute.
    let lists = sim.metrics().count(Verb::List);
    let started = tokio::time::Instant::now();
    for n in 0..100 {
        let forged = Cursor { versions: PerResource::new(1 + n % cursor.versions[Resource::Pods], 1), ..cursor };
        read_until(&mut replica.subscribe(StartAt::Cursor(forged)), |event| {
            event["type"] == "state.initial" || event["coalesced"] == true
        })
        .await;
    }
    let minutes = started.elapsed().as_secs() / 60 + 1;
    let probes = started.elapsed().as_secs() / 15 + 1;
    let more = sim.metrics().count(Verb::List) - lists;
    assert!(more <= 2 * (6 * minutes + probes), "{more} lists in {minutes} minutes");
}

#[tokio::test(start_paused = true)]
async fn lagging_replica_accepts_a_cursor_of_a_leading_replica() {
    let sim = Sim::new(SimConfig::default());
    let [leading, lagging] = [Replica::start(&sim).await, Replica::start(&sim).await];
    let mut client = leading.subscribe(StartAt::Live);
    create(&sim, "a");
    let cursor = last_id(&read_until(&mut client, is("a", "Unknown")).await);
    let mut client = lagging.resume(&cursor);
    create(&sim, "b");
    let received = read_until(&mut client, is("b", "Unknown")).await;
    assert_eq!(names(&received), ["b Unknown"]);
    assert!(!has_type(&received, "state.initial") && !has_coalesced(&received), "{received:#?}");
}

#[tokio::test(start_paused = true)]
async fn cursor_stays_valid_after_half_an_hour_without_changes() {
    let sim = Sim::new(SimConfig::default());
    let replica = Replica::start(&sim).await;
    let mut idle = replica.subscribe(StartAt::Live);
    let projection = Projection { filter: match_nothing(), ..Projection::everything(EventFormat::Full) };
    let framing = Framing { format: FrameFormat::JsonLines, edgeplane_names: false };
    let cache = replica.feed.projection_cache(projection, framing);
    let mut unmatched = replica.feed.subscribe(cache.clone(), StartAt::Live).unwrap();
    for subscription in [&mut idle, &mut unmatched] {
        read_until(subscription, |event| event["type"] == "heartbeat").await;
    }
    // A stream that is cut after its first heartbeat: the cursor of this heartbeat can be resumed.
    let mut short = replica.subscribe(StartAt::Live);
    let first_cursor = last_id(&read_until(&mut short, |event| event["type"] == "heartbeat").await);
    drop(short);
    create(&sim, "meanwhile");
    let received = read_until(&mut replica.resume(&first_cursor), is("meanwhile", "Unknown")).await;
    assert!(!has_type(&received, "state.initial"), "{received:#?}");
    // For half an hour only objects that the bridge does not publish change. They move the resourceVersion.
    for minute in 0..30 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        let other = json!({"metadata": {"name": format!("other-{minute}"), "namespace": NAMESPACE}});
        sim.store(|store| store.create(ApiResource::Pods, other)).unwrap();
        if minute == 28 {
            sim.store(|store| store.compact(store.revision()));
        }
        for subscription in [&mut idle, &mut unmatched] {
            while let ReadResult::Batch(_) = subscription.read(1 << 16) {}
            subscription.heartbeat().expect("a heartbeat");
        }
    }
    let [idle, unmatched] = [idle, unmatched].map(|mut subscription| subscription.cursor().unwrap());
    // etcd is compacted up to the last minutes, so that only a fresh cursor can be resumed.
    drop(replica);
    let replica = Replica::start(&sim).await;
    create(&sim, "last");
    let received = read_until(&mut replica.resume(&idle), is("last", "Unknown")).await;
    assert_eq!(names(&received), ["last Unknown"]);
    assert!(!has_type(&received, "state.initial"), "{received:#?}");
    let cursor = Cursor::decode(&unmatched).unwrap();
    let mut client = replica
        .feed
        .subscribe(
            replica.feed.projection_cache(
                Projection { filter: match_nothing(), ..Projection::everything(EventFormat::Full) },
                Framing { format: FrameFormat::JsonLines, edgeplane_names: false },
            ),
            StartAt::Cursor(cursor),
        )
        .unwrap();
    let labels = json!({"boilerhouse.dev/managed": "true", "boilerhouse.dev/tenant": "absent"});
    let pod = json!({"metadata": {"name": "match", "namespace": NAMESPACE, "labels": labels}});
    sim.store(|store| store.create(ApiResource::Pods, pod)).unwrap();
    let received = read_until(&mut client, is("match", "Unknown")).await;
    assert!(!has_type(&received, "state.initial") && !has_coalesced(&received), "{received:#?}");
}

/// Returns a filter that matches no object before the last one of the test.
fn match_nothing() -> boilerhouse_bridge::event::projection::Filter {
    use boilerhouse_bridge::event::projection::{Filter, ObjectFilter};
    let match_nothing = || ObjectFilter { tenant_id: Some("absent".into()), ..ObjectFilter::default() };
    Filter { instances: match_nothing(), claims: match_nothing() }
}
