//! Resumes against the simulated cluster: what a restarted replica does for those who come back, and what it costs.

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

/// Longer than anything here takes, in paused time.
const BOUND: Duration = Duration::from_secs(120);

/// A bridge without sockets.
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

    fn listen(&self, from: StartAt) -> Subscription {
        let lens = self.feed.projection_cache(
            Projection::everything(EventFormat::Full),
            Framing { format: FrameFormat::JsonLines, edgeplane_names: false },
        );
        self.feed.subscribe(lens, from).unwrap()
    }

    fn resume(&self, id: &str) -> Subscription {
        self.listen(StartAt::Cursor(Cursor::decode(id).unwrap()))
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.hub.abort();
    }
}

/// Events up to one that is wanted.
async fn read_until(on: &mut Subscription, is: impl Fn(&Value) -> bool) -> Vec<Value> {
    let mut received: Vec<Value> = Vec::new();
    let reading = async {
        loop {
            match on.read(1 << 16) {
                ReadResult::Batch(batch) => {
                    let bytes = batch.concat();
                    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
                    received.extend(lines.map(|line| serde_json::from_slice::<Value>(line).unwrap()));
                    if received.iter().any(&is) {
                        return;
                    }
                }
                ReadResult::Idle => on.readable().await,
                ReadResult::End(close) => panic!("{close:?}"),
            }
        }
    };
    let found = timeout(BOUND, reading).await.is_ok();
    assert!(found, "not told: {received:#?}");
    received
}

fn create(sim: &Sim, name: &str) {
    let labels = json!({"boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": "web"});
    let pod = json!({"metadata": {"name": name, "namespace": NAMESPACE, "labels": labels}});
    sim.store(|store| store.create(ApiResource::Pods, pod)).unwrap();
}

fn delete(sim: &Sim, name: &str) {
    sim.store(|store| store.delete(ApiResource::Pods, NAMESPACE, name)).unwrap();
}

fn names(received: &[Value]) -> Vec<String> {
    let states = received.iter().filter(|event| event["type"] == "instance.state");
    states.map(|event| format!("{} {}", event["name"].as_str().unwrap(), event["phase"].as_str().unwrap())).collect()
}

fn is(name: &'static str, phase: &'static str) -> impl Fn(&Value) -> bool {
    move |event| event["name"] == name && event["phase"] == phase
}

/// The newest id.
fn id(received: &[Value]) -> String {
    received.iter().rev().find_map(|event| event["id"].as_str()).unwrap().to_owned()
}

fn has(received: &[Value], kind: &str) -> bool {
    received.iter().any(|event| event["type"] == kind)
}

fn coalesced(received: &[Value]) -> bool {
    received.iter().any(|event| event["coalesced"] == true)
}

#[tokio::test(start_paused = true)]
async fn thousand_resumes_after_a_restart_use_one_list_and_one_watch() {
    let sim = Sim::new(SimConfig::default());
    let first = Replica::start(&sim).await;
    let mut on = first.listen(StartAt::Live);
    let before = id(&read_until(&mut on, |event| event["type"] == "heartbeat").await);
    create(&sim, "a");
    create(&sim, "b");
    let later = id(&read_until(&mut on, is("b", "Unknown")).await);
    drop((on, first));
    // While nobody watches: one comes and goes, which no list will show.
    create(&sim, "transient");
    delete(&sim, "transient");
    delete(&sim, "a");
    let second = Replica::start(&sim).await;
    let (lists, watches) = (sim.metrics().count(Verb::List), sim.metrics().count(Verb::Watch));
    let clients = (0..1000).map(|n| (n, second.resume(if n % 2 == 0 { &before } else { &later })));
    for (n, mut on) in clients.collect::<Vec<_>>() {
        let received = read_until(&mut on, is("a", "Deleted")).await;
        let all = ["a Unknown", "b Unknown", "transient Unknown", "transient Deleted", "a Deleted"];
        assert_eq!(names(&received), all[if n % 2 == 0 { 0 } else { 2 }..]);
        assert!(!has(&received, "state.initial") && !coalesced(&received), "{received:#?}");
    }
    let (more_lists, more_watches) =
        (sim.metrics().count(Verb::List) - lists, sim.metrics().count(Verb::Watch) - watches);
    assert!(more_lists <= 2 && more_watches <= 2, "{more_lists} lists, {more_watches} watches");
}

#[tokio::test(start_paused = true)]
async fn lost_watch_history_sends_a_diff_and_lost_list_sends_the_state() {
    let sim = Sim::new(SimConfig::default());
    let first = Replica::start(&sim).await;
    let mut on = first.listen(StartAt::Live);
    create(&sim, "a");
    let cursor = id(&read_until(&mut on, is("a", "Unknown")).await);
    drop((on, first));
    create(&sim, "b");
    delete(&sim, "a");
    // A restarted API server has the exact list still, but no history to watch.
    sim.restart();
    let second = Replica::start(&sim).await;
    let received = read_until(&mut second.resume(&cursor), is("b", "Unknown")).await;
    assert_eq!(names(&received), ["a Deleted", "b Unknown"]);
    assert!(coalesced(&received) && !has(&received, "state.initial"), "{received:#?}");
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
    let mut on = replica.listen(StartAt::Live);
    let cursor = Cursor::decode(&id(&read_until(&mut on, |event| event["type"] == "heartbeat").await)).unwrap();
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
        for mut on in forged.map(|cursor| replica.listen(StartAt::Cursor(cursor))).collect::<Vec<_>>() {
            let received = read_until(&mut on, |event| event["type"] == "state.initial").await;
            assert_eq!(received.last().unwrap()["reason"], "foreign");
        }
    }
    let minutes = started.elapsed().as_secs() / 60 + 1;
    let probes = started.elapsed().as_secs() / 15 + 1;
    let more = sim.metrics().count(Verb::List) - lists;
    // Two resources each; the hub asks by itself, too, when nothing has come for 15 s.
    assert!(more <= 2 * (12 * minutes + probes), "{more} lists in {minutes} minutes");
    // Too old: each costs a round, of which six may begin within a minute.
    let lists = sim.metrics().count(Verb::List);
    let started = tokio::time::Instant::now();
    for n in 0..100 {
        let forged = Cursor { versions: PerResource::new(1 + n % cursor.versions[Resource::Pods], 1), ..cursor };
        read_until(&mut replica.listen(StartAt::Cursor(forged)), |event| {
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
    let [leads, lags] = [Replica::start(&sim).await, Replica::start(&sim).await];
    let mut on = leads.listen(StartAt::Live);
    create(&sim, "a");
    let cursor = id(&read_until(&mut on, is("a", "Unknown")).await);
    let mut on = lags.resume(&cursor);
    create(&sim, "b");
    let received = read_until(&mut on, is("b", "Unknown")).await;
    assert_eq!(names(&received), ["b Unknown"]);
    assert!(!has(&received, "state.initial") && !coalesced(&received), "{received:#?}");
}

#[tokio::test(start_paused = true)]
async fn cursor_stays_valid_after_half_an_hour_without_changes() {
    let sim = Sim::new(SimConfig::default());
    let replica = Replica::start(&sim).await;
    let mut quiet = replica.listen(StartAt::Live);
    let lens = Projection { filter: match_nothing(), ..Projection::everything(EventFormat::Full) };
    let lens = replica.feed.projection_cache(lens, Framing { format: FrameFormat::JsonLines, edgeplane_names: false });
    let mut unmatched = replica.feed.subscribe(lens.clone(), StartAt::Live).unwrap();
    for on in [&mut quiet, &mut unmatched] {
        read_until(on, |event| event["type"] == "heartbeat").await;
    }
    // A first second, cut: what it was greeted with is enough.
    let mut short = replica.listen(StartAt::Live);
    let greeted = id(&read_until(&mut short, |event| event["type"] == "heartbeat").await);
    drop(short);
    create(&sim, "meanwhile");
    let received = read_until(&mut replica.resume(&greeted), is("meanwhile", "Unknown")).await;
    assert!(!has(&received, "state.initial"), "{received:#?}");
    // Half an hour: other objects of the cluster move the API server's version on, ours do not change.
    for minute in 0..30 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        let other = json!({"metadata": {"name": format!("other-{minute}"), "namespace": NAMESPACE}});
        sim.store(|store| store.create(ApiResource::Pods, other)).unwrap();
        if minute == 28 {
            sim.store(|store| store.compact(store.revision()));
        }
        for on in [&mut quiet, &mut unmatched] {
            while let ReadResult::Batch(_) = on.read(1 << 16) {}
            on.heartbeat().expect("a heartbeat");
        }
    }
    let [quiet, unmatched] = [quiet, unmatched].map(|mut on| on.cursor().unwrap());
    // Gone from etcd but for the last minutes: only a fresh cursor can be resumed.
    drop(replica);
    let replica = Replica::start(&sim).await;
    create(&sim, "news");
    let received = read_until(&mut replica.resume(&quiet), is("news", "Unknown")).await;
    assert_eq!(names(&received), ["news Unknown"]);
    assert!(!has(&received, "state.initial"), "{received:#?}");
    let cursor = Cursor::decode(&unmatched).unwrap();
    let mut on = replica
        .feed
        .subscribe(
            replica.feed.projection_cache(
                Projection { filter: match_nothing(), ..Projection::everything(EventFormat::Full) },
                Framing { format: FrameFormat::JsonLines, edgeplane_names: false },
            ),
            StartAt::Cursor(cursor),
        )
        .unwrap();
    let labels = json!({"boilerhouse.dev/managed": "true", "boilerhouse.dev/tenant": "nobody"});
    let pod = json!({"metadata": {"name": "match", "namespace": NAMESPACE, "labels": labels}});
    sim.store(|store| store.create(ApiResource::Pods, pod)).unwrap();
    let received = read_until(&mut on, is("match", "Unknown")).await;
    assert!(!has(&received, "state.initial") && !coalesced(&received), "{received:#?}");
}

/// A filter that nothing matches for a long time.
fn match_nothing() -> boilerhouse_bridge::event::projection::Filter {
    use boilerhouse_bridge::event::projection::{Filter, ObjectFilter};
    let match_nothing = || ObjectFilter { tenant_id: Some("nobody".into()), ..ObjectFilter::default() };
    Filter { instances: match_nothing(), claims: match_nothing() }
}
