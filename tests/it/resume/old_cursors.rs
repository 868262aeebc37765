//! Cursors older than the log: an old or invented one changes nothing for the clients that resume beside it
//! (docs/architecture.md#feed-contract, item 5).

use std::time::Duration;

use boilerhouse_bridge::{
    event::{Cursor, PerResource, Resource, ResourceVersion},
    feed,
    ring::Limits,
    sim::{ApiResource, Sim, SimConfig, Verb},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{BOUND, Replica, create, delete, has_coalesced, has_type, is, last_id, names, read_until};
use crate::support::sim_cluster::NAMESPACE;

/// Creates a Pod and a claim for each name. Returns the cursor after both, for each name.
async fn create_all(sim: &Sim, replica: &Replica, all: &[&'static str]) -> Vec<String> {
    let mut client = replica.subscribe(feed::StartAt::Live);
    let mut cursors = Vec::new();
    for name in all {
        create(sim, name);
        create_claim(sim, name);
        let mut received = Vec::new();
        while !(received.iter().any(is(name, "Unknown")) && received.iter().any(is(name, "Pending"))) {
            received.extend(read_until(&mut client, |event| event["name"] == *name).await);
        }
        cursors.push(last_id(&received));
    }
    cursors
}

fn create_claim(sim: &Sim, name: &str) {
    let claim =
        json!({"metadata": {"name": name, "namespace": NAMESPACE}, "spec": {"tenantId": "t", "workloadRef": "w"}});
    sim.store(|store| store.create(ApiResource::Claims, claim)).unwrap();
}

fn decode(id: &str) -> Cursor {
    Cursor::decode(id).unwrap()
}

/// The cursor with these versions instead.
fn with_versions(id: &str, pods: ResourceVersion, claims: ResourceVersion) -> String {
    Cursor { versions: PerResource::new(pods, claims), ..decode(id) }.encode()
}

fn is_initial(event: &Value) -> bool {
    event["type"] == "state.initial"
}

/// Resumes after all cursors at once, so that one backfill round answers them. Reads each until the claim `last`, or until
/// its initial state.
async fn resume_all(replica: &Replica, cursors: &[String], last: &'static str) -> Vec<Vec<Value>> {
    let clients: Vec<_> = cursors.iter().map(|id| replica.resume(id)).collect();
    let mut all = Vec::new();
    for mut client in clients {
        let mut received: Vec<Value> = Vec::new();
        while !(received.iter().any(is_initial)
            || [is(last, "Unknown"), is(last, "Pending")].iter().all(|is_last| received.iter().any(is_last)))
        {
            received.extend(read_until(&mut client, |_| true).await);
        }
        all.push(received);
    }
    all
}

#[track_caller]
fn assert_exact(received: &[Value], expected: &[&str]) {
    let expected: Vec<String> = expected.iter().map(|name| format!("{name} Unknown")).collect();
    assert_eq!(names(received), expected);
    assert!(!has_type(received, "state.initial") && !has_coalesced(received), "{received:#?}");
}

#[track_caller]
fn assert_expired(received: &[Value]) {
    let initial =
        received.iter().find(|event| is_initial(event)).unwrap_or_else(|| panic!("no initial state: {received:#?}"));
    assert_eq!(initial["reason"], "expired");
}

#[tokio::test(start_paused = true)]
async fn compacted_and_invented_cursors_expire_alone_and_cost_no_second_request() {
    let sim = Sim::new(SimConfig::default());
    let first = Replica::start(&sim).await;
    let cursors = create_all(&sim, &first, &["a", "b", "c", "d"]).await;
    drop(first);
    create(&sim, "e");
    create_claim(&sim, "e");
    sim.store(|store| store.compact(decode(&cursors[1]).versions[Resource::Claims] + 1));
    let second = Replica::start(&sim).await;
    let invented: Vec<String> = [0, 1, 7, 1000].map(|version| with_versions(&cursors[0], version, version)).into();
    let all: Vec<String> = invented.iter().chain(&cursors).cloned().collect();
    let received = resume_all(&second, &all, "e").await;
    received[..6].iter().for_each(|received| assert_expired(received));
    assert_exact(&received[6], &["d", "e"]);
    assert_exact(&received[7], &["e"]);

    // What the API server no longer has is known now.
    let (started, requests) = (Instant::now(), sim.metrics());
    let received = resume_all(&second, &all[..6], "e").await;
    received.iter().for_each(|received| assert_expired(received));
    assert_eq!((started.elapsed(), sim.metrics()), (Duration::ZERO, requests));
}

#[tokio::test(start_paused = true)]
async fn cursor_before_the_watch_history_does_not_take_it_from_newer_ones() {
    let sim = Sim::new(SimConfig::default());
    let first = Replica::start(&sim).await;
    let mut cursors = create_all(&sim, &first, &["a", "b"]).await;
    sim.store(|store| store.lose_watch_history());
    cursors.extend(create_all(&sim, &first, &["c", "d"]).await);
    drop(first);
    create(&sim, "e");
    create_claim(&sim, "e");
    let second = Replica::start(&sim).await;
    let received = resume_all(&second, &cursors, "e").await;
    // The difference from `a` to the oldest version that can be watched, then the exact history.
    assert_eq!(names(&received[0]), ["b Unknown", "c Unknown", "d Unknown", "e Unknown"]);
    assert!(has_coalesced(&received[0]) && !has_type(&received[0], "state.initial"), "{:#?}", received[0]);
    assert_expired(&received[1]);
    assert_exact(&received[2], &["d", "e"]);
    assert_exact(&received[3], &["e"]);
}

#[tokio::test(start_paused = true)]
async fn without_watch_history_the_newest_cursors_get_a_difference_of_their_own() {
    let sim = Sim::new(SimConfig::default());
    let first = Replica::start(&sim).await;
    let cursors = create_all(&sim, &first, &["a", "b", "c", "d", "e"]).await;
    drop(first);
    create(&sim, "f");
    create_claim(&sim, "f");
    sim.restart();
    let second = Replica::start(&sim).await;
    let received = resume_all(&second, &cursors, "f").await;
    // Four lists: at the oldest cursor and at the three newest.
    assert_expired(&received[1]);
    for (of, expected) in [(0, &["b", "c", "d", "e", "f"][..]), (2, &["d", "e", "f"]), (3, &["e", "f"]), (4, &["f"])] {
        let expected: Vec<String> = expected.iter().map(|name| format!("{name} Unknown")).collect();
        assert_eq!(names(&received[of]), expected);
        assert!(has_coalesced(&received[of]) && !has_type(&received[of], "state.initial"), "{:#?}", received[of]);
    }
}

#[tokio::test(start_paused = true)]
async fn history_longer_than_the_log_expires_only_the_cursors_that_do_not_fit() {
    let sim = Sim::new(SimConfig::default());
    let first = Replica::start(&sim).await;
    let old = create_all(&sim, &first, &["a"]).await.remove(0);
    for n in 0..100 {
        let labels = json!({"metadata": {"labels": {"n": n.to_string()}}});
        sim.store(|store| store.patch(ApiResource::Pods, NAMESPACE, "a", &labels)).unwrap();
    }
    let newer = create_all(&sim, &first, &["b", "c"]).await;
    drop(first);
    create(&sim, "d");
    create_claim(&sim, "d");
    let log = Limits { items: 20, ..Limits::default() };
    let second = Replica::with(&sim, feed::Config { log, ..feed::Config::default() }).await;
    let received = resume_all(&second, &[old, newer[0].clone(), newer[1].clone()], "d").await;
    assert_expired(&received[0]);
    assert_exact(&received[1], &["c", "d"]);
    assert_exact(&received[2], &["d"]);
}

/// Each invented cursor needs a round of its own, because it is older than the ones before.
#[tokio::test(start_paused = true)]
async fn invented_cursors_delay_a_resume_and_do_not_expire_it() {
    let sim = Sim::new(SimConfig::default());
    let first = Replica::start(&sim).await;
    let valid = create_all(&sim, &first, &["a"]).await.remove(0);
    for n in 0..100 {
        let labels = json!({"metadata": {"labels": {"n": n.to_string()}}});
        sim.store(|store| store.patch(ApiResource::Pods, NAMESPACE, "a", &labels)).unwrap();
    }
    drop(first);
    let second = Replica::start(&sim).await;
    let newest = sim.store(|store| store.revision());
    let (started, lists) = (Instant::now(), sim.metrics().count(Verb::List));
    let flood = async {
        for older in 1.. {
            let invented = second.resume(&with_versions(&valid, newest - older, newest - older));
            sleep(Duration::from_millis(1500)).await;
            drop(invented);
        }
    };
    let resume = async {
        // Six rounds have started by then if nothing limits them.
        sleep(Duration::from_secs(20)).await;
        let mut client = second.resume(&valid);
        let waiting = Instant::now();
        let received = timeout(
            BOUND,
            read_until(&mut client, |event| is_initial(event) || event["instance"]["labels"]["n"] == "99"),
        )
        .await
        .expect("the client receives the last event");
        assert_eq!(names(&received).len(), 100);
        assert!(!has_type(&received, "state.initial") && !has_coalesced(&received), "{received:#?}");
        assert!(waiting.elapsed() < Duration::from_secs(30), "{:?}", waiting.elapsed());
    };
    tokio::select! {
        () = flood => {}
        () = resume => {}
    }
    // At most six rounds start within a minute, and each lists both resources at most once. The hub also sends a probe
    // after 15 s of silence.
    let lists = sim.metrics().count(Verb::List) - lists;
    let minutes = started.elapsed().as_secs() / 60 + 1;
    assert!(lists <= 2 * (6 * minutes + started.elapsed().as_secs() / 15 + 1), "{lists} lists in {minutes} minutes");
}

#[tokio::test(start_paused = true)]
async fn backfill_reads_both_resources_at_the_same_time() {
    let sim = Sim::new(SimConfig::default());
    let first = Replica::start(&sim).await;
    let cursor = create_all(&sim, &first, &["a"]).await.remove(0);
    drop(first);
    create(&sim, "b");
    create_claim(&sim, "b");
    // A change of another object, so that no watch of a backfill shows the version at which the log starts.
    let other = json!({"metadata": {"name": "other"}});
    sim.store(|store| store.create(ApiResource::Namespaces, other)).unwrap();
    let second = Replica::start(&sim).await;
    let started = Instant::now();
    let received = resume_all(&second, &[cursor], "b").await;
    assert_exact(&received[0], &["b"]);
    // The protocol promises 500 ms from the request on.
    assert!(started.elapsed() <= Duration::from_millis(500), "{:?}", started.elapsed());
}

/// The version check answers a client whose cursor is really ahead, however many cursors are invented.
#[tokio::test(start_paused = true)]
async fn invented_cursors_ahead_delay_a_version_check_and_do_not_fail_it() {
    use boilerhouse_bridge::sim::fault::{Fault, WatchFault};

    let sim = Sim::new(SimConfig::default());
    let leading = Replica::start(&sim).await;
    // The lagging replica receives nothing until its watch of Pods is given up, after 35 s.
    sim.arm(Fault::watch(0, WatchFault::Stall).on(ApiResource::Pods));
    let lagging = Replica::start(&sim).await;
    let mut client = leading.subscribe(feed::StartAt::Live);
    let heartbeat = last_id(&read_until(&mut client, |event| event["type"] == "heartbeat").await);
    create(&sim, "a");
    let ahead = last_id(&read_until(&mut client, is("a", "Unknown")).await);
    create(&sim, "b");
    let newest = sim.store(|store| store.revision());
    let flood = async {
        let mut invented = Vec::new();
        for n in 1.. {
            invented.push(lagging.resume(&with_versions(&heartbeat, newest + 1000 + n, newest + 1000)));
            for client in &mut invented {
                // A stream reads whenever it wakes. The read requests the version check.
                let _ = client.read(1 << 16);
            }
            sleep(Duration::from_millis(200)).await;
        }
    };
    let resume = async {
        sleep(Duration::from_secs(15)).await;
        let received = read_until(&mut lagging.resume(&ahead), |event| is_initial(event) || event["name"] == "b").await;
        assert_exact(&received, &["b"]);
    };
    tokio::select! {
        () = flood => {}
        () = resume => {}
    }
}

#[tokio::test(start_paused = true)]
async fn cursor_ahead_waits_while_the_api_server_fails() {
    let sim = Sim::new(SimConfig::default());
    let replica = Replica::start(&sim).await;
    let mut client = replica.subscribe(feed::StartAt::Live);
    let id = last_id(&read_until(&mut client, |event| event["type"] == "heartbeat").await);
    let newest = sim.store(|store| store.revision());
    sim.down();
    let mut resumed = replica.resume(&with_versions(&id, newest + 5, newest));
    // Longer than 2 s for a replica that lags by milliseconds, and the 30 s of one check.
    tokio::select! {
        received = read_until(&mut resumed, is_initial) => panic!("nothing is known about the cursor: {received:?}"),
        () = sleep(Duration::from_secs(10)) => {}
    }
    // A check is running. This client waits for the next one.
    let mut second = replica.resume(&with_versions(&id, newest + 6, newest));
    for subscription in [&mut resumed, &mut second] {
        tokio::select! {
            received = read_until(subscription, is_initial) => panic!("nothing is known about the cursor: {received:?}"),
            () = sleep(Duration::from_secs(15)) => {}
        }
    }
    sim.up();
    for subscription in [&mut second, &mut resumed] {
        let received = read_until(subscription, is_initial).await;
        assert_eq!(received.last().unwrap()["reason"], "foreign");
    }
}

/// Clients of a quiet stream have cursors at different bookmarks. The first one to reconnect gets what it missed at once; a
/// resource without a change must not cost the others their resume.
#[tokio::test(start_paused = true)]
async fn later_clients_with_newer_bookmarks_resume_exactly() {
    let sim = Sim::new(SimConfig::default());
    let first = Replica::start(&sim).await;
    let id = create_all(&sim, &first, &["a"]).await.remove(0);
    drop(first);
    let write_elsewhere = |name: &str| {
        let other = json!({"metadata": {"name": name}});
        sim.store(|store| store.create(ApiResource::Namespaces, other)).unwrap();
        sim.store(|store| store.revision())
    };
    let mut cursors = vec![id.clone()];
    for n in 0..5 {
        let bookmark = write_elsewhere(&format!("other-{n}"));
        cursors.push(with_versions(&id, bookmark, bookmark));
    }
    create(&sim, "b");
    write_elsewhere("last");
    let second = Replica::start(&sim).await;
    let mut clients = Vec::new();
    for cursor in &cursors {
        clients.push(second.resume(cursor));
        sleep(Duration::from_millis(120)).await;
    }
    for mut client in clients {
        let started = Instant::now();
        let received = read_until(&mut client, |event| is_initial(event) || event["name"] == "b").await;
        assert_exact(&received, &["b"]);
        assert!(started.elapsed() <= Duration::from_secs(3), "{:?}", started.elapsed());
    }
}

/// The rest of a round that ended early contains an object that a client inside the rest holds.
#[tokio::test(start_paused = true)]
async fn client_inside_a_rest_that_cannot_be_proven_gets_the_state() {
    use boilerhouse_bridge::sim::fault::{Fault, WatchFault};

    let sim = Sim::new(SimConfig::default());
    let first = Replica::start(&sim).await;
    let old = create_all(&sim, &first, &["a"]).await.remove(0);
    create(&sim, "b");
    create(&sim, "held");
    let mut client = first.resume(&old);
    let inside = last_id(&read_until(&mut client, is("held", "Unknown")).await);
    drop((client, first));
    delete(&sim, "held");
    let other = json!({"metadata": {"name": "other"}});
    sim.store(|store| store.create(ApiResource::Namespaces, other)).unwrap();
    let second = Replica::start(&sim).await;
    // The watch of the round delivers `b` and stalls: the creation and the deletion of `held` are missing.
    sim.arm(Fault::watch(1, WatchFault::Stall).on(ApiResource::Pods));
    let (mut before, mut inside) = (second.resume(&old), second.resume(&inside));
    let received = read_until(&mut before, |event| event["coalesced"] == true).await;
    assert_exact(&received, &["b"]);
    let received = read_until(&mut inside, is_initial).await;
    assert_expired(&received);
}
