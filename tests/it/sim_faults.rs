//! Features of the simulated API that a real API server does not have: injected faults, metrics, and a clock that tests
//! control (docs/architecture.md#simulated-kubernetes-api).
//!
//! Guarantees: the clock is paused, so a long wait takes no time and its result is exact.

use std::time::Duration;

use boilerhouse_bridge::sim::fault::{Answer, ConnectionEnd, Fault, WatchFault};
use boilerhouse_bridge::sim::store::Store;
use boilerhouse_bridge::sim::{ApiResource, Sim, SimConfig, Verb};
use boilerhouse_bridge::test_support::{ClaimBuilder, PodBuilder};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::{Error, ResourceExt};
use serde_json::json;
use tokio::time::{Instant, timeout};

mod end_to_end;

const NAMESPACE: &str = "boilerhouse";
/// How long an expected event may take.
const EVENT_BOUND: Duration = Duration::from_secs(10);
/// A timeout of a watch in seconds, so short that the watch gets no bookmark.
const SHORT: u32 = 10;

fn sim() -> Sim {
    Sim::new(SimConfig::default())
}

fn pods(sim: &Sim) -> Api<Pod> {
    Api::default_namespaced(sim.client(NAMESPACE))
}

fn add(store: &mut Store, name: &str) {
    store.create(ApiResource::Pods, PodBuilder::new(name).namespace(NAMESPACE).json()).unwrap();
}

fn label(store: &mut Store, name: &str, value: &str) {
    store.patch(ApiResource::Pods, NAMESPACE, name, &json!({"metadata": {"labels": {"v": value}}})).unwrap();
}

/// The events of a watch, each as one word: a sign for its type and the name of the object, or `!` and the code of the
/// error.
type Events = futures::stream::BoxStream<'static, Result<String, Error>>;

async fn watch(pods: &Api<Pod>, from: u64, seconds: u32) -> Events {
    let params = WatchParams::default().timeout(seconds);
    let events = pods.watch(&params, &from.to_string()).await.unwrap();
    let word = |event: WatchEvent<Pod>| match event {
        WatchEvent::Added(pod) => format!("+{}", pod.name_any()),
        WatchEvent::Modified(pod) => format!("~{}", pod.name_any()),
        WatchEvent::Deleted(pod) => format!("-{}", pod.name_any()),
        WatchEvent::Bookmark(bookmark) => format!("@{}", bookmark.metadata.resource_version),
        WatchEvent::Error(status) => format!("!{}", status.code),
    };
    events.map_ok(word).boxed()
}

async fn next(events: &mut Events) -> Option<Result<String, Error>> {
    timeout(EVENT_BOUND, events.next()).await.expect("expected an event or the end within 10 s")
}

async fn next_event(events: &mut Events) -> String {
    next(events).await.expect("expected an event, found the end").unwrap()
}

/// Expects that the watch sends nothing for an hour of paused time and stays open.
async fn assert_silent(events: &mut Events) {
    let result = timeout(Duration::from_secs(3600), events.next()).await;
    assert!(result.is_err(), "expected no event, found {result:?}");
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> u16 {
    match result {
        Err(Error::Api(status)) => status.code,
        other => panic!("expected a Status, found {other:?}"),
    }
}

/// Lists the names of the Pods at exactly this version.
async fn exact(pods: &Api<Pod>, version: u64) -> Result<Vec<String>, Error> {
    let params = ListParams::default().at(&version.to_string()).matching(kube::api::VersionMatch::Exact);
    Ok(pods.list(&params).await?.iter().map(ResourceExt::name_any).collect())
}

#[tokio::test(start_paused = true)]
async fn cut_watch_ends_or_fails_and_can_resume() {
    let sim = sim();
    let pods = pods(&sim);
    let from = sim.store(|store| store.revision());
    let mut events = watch(&pods, from, 60).await;
    sim.store(|store| add(store, "a"));
    assert_eq!(next_event(&mut events).await, "+a");
    sim.cut_watches(ConnectionEnd::Eof);
    assert!(next(&mut events).await.is_none());
    let mut events = watch(&pods, from + 1, 60).await;
    sim.cut_watches(ConnectionEnd::Reset);
    assert!(matches!(next(&mut events).await, Some(Err(Error::ReadEvents(_)))));
    sim.store(|store| add(store, "b"));
    assert_eq!(next_event(&mut watch(&pods, from + 1, 60).await).await, "+b", "expected the watch history to survive");
}

#[tokio::test(start_paused = true)]
async fn armed_watch_fault_occurs_after_its_events() {
    let expectations: [(WatchFault, &[&str]); 4] = [
        (WatchFault::Cut(ConnectionEnd::Eof), &["+a", "end"]),
        (WatchFault::HalfLine, &["+a", "end"]),
        (WatchFault::Garbage, &["+a", "unparsable", "~a"]),
        (WatchFault::Expired, &["+a", "!410", "end"]),
    ];
    for (fault, expected) in expectations {
        let sim = sim();
        let from = sim.store(|store| store.revision());
        sim.arm(Fault::watch(1, fault).on(ApiResource::Pods));
        let mut events = watch(&pods(&sim), from, 60).await;
        sim.store(|store| {
            add(store, "a");
            add(store, "lost");
            label(store, "a", "1");
        });
        for expected in expected {
            let received = match next(&mut events).await {
                None => "end".to_owned(),
                Some(Ok(word)) => word,
                Some(Err(Error::SerdeError(_))) => "unparsable".to_owned(),
                Some(Err(error)) => panic!("{fault:?}: {error}"),
            };
            assert_eq!(received, *expected, "{fault:?}");
        }
        assert_eq!(sim.pending_faults(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn stalled_watch_sends_nothing_and_stays_open() {
    let sim = sim();
    let from = sim.store(|store| store.revision());
    sim.arm(Fault::watch(0, WatchFault::Stall));
    let mut armed = watch(&pods(&sim), from, 30).await;
    let mut live = watch(&pods(&sim), from, 30).await;
    sim.store(|store| add(store, "a"));
    assert_eq!(next_event(&mut live).await, "+a");
    sim.stall_watches();
    sim.store(|store| add(store, "b"));
    sim.cut_watches(ConnectionEnd::Reset);
    assert_silent(&mut armed).await;
    assert_silent(&mut live).await;
    assert_eq!(sim.metrics().open(), 2, "expected the server to count the stalled watches as open");
    assert_eq!(next_event(&mut watch(&pods(&sim), from, 30).await).await, "+a", "expected a new watch to work");
}

#[tokio::test(start_paused = true)]
async fn restart_loses_watch_history_but_keeps_exact_lists() {
    let sim = sim();
    let pods = pods(&sim);
    let old = sim.store(|store| {
        add(store, "a");
        store.revision()
    });
    let mut events = watch(&pods, old, 60).await;
    sim.store(|store| add(store, "b"));
    sim.restart();
    assert!(next(&mut events).await.unwrap().is_err(), "expected the unread event to be lost with the connection");
    assert_eq!(next_event(&mut watch(&pods, old, 60).await).await, "!410");
    assert_eq!(exact(&pods, old).await.unwrap(), ["a"]);
    let now = sim.store(|store| store.revision());
    let mut events = watch(&pods, now, 60).await;
    sim.store(|store| add(store, "c"));
    assert_eq!(next_event(&mut events).await, "+c", "expected a watch from the version of the restart to work");
    sim.store(|store| store.compact(store.revision()));
    assert_eq!(code(exact(&pods, old).await), 410);
}

#[tokio::test(start_paused = true)]
async fn restored_copy_decreases_versions() {
    let sim = sim();
    let pods = pods(&sim);
    let copy = sim.store(|store| {
        add(store, "a");
        store.clone()
    });
    sim.store(|store| add(store, "b"));
    let before = pods.list(&ListParams::default()).await.unwrap();
    let lost = sim.restore(copy);
    assert_eq!(lost.history().last().unwrap().name, "b");
    let after = pods.list(&ListParams::default()).await.unwrap();
    let number = |version: Option<String>| version.unwrap().parse::<u64>().unwrap();
    assert!(number(after.metadata.resource_version) < number(before.metadata.resource_version.clone()));
    assert_eq!(after.items.len(), 1);
    let future = number(before.metadata.resource_version);
    assert_eq!(
        code(exact(&pods, future).await),
        504,
        "expected a version from before the restore to be a future version"
    );
    let mut events = watch(&pods, future, SHORT).await;
    sim.store(|store| add(store, "c"));
    let result = timeout(Duration::from_secs(5), events.next()).await;
    assert!(result.is_err(), "expected no event of a watch at a future version, found {result:?}");
}

#[tokio::test(start_paused = true)]
async fn injected_errors_match_real_server_responses() {
    let sim = sim();
    let pods = pods(&sim);
    let table = [
        (Answer::TooManyRequests(7), 429),
        (Answer::Unauthorized, 401),
        (Answer::Forbidden, 403),
        (Answer::Gone, 410),
        (Answer::Internal, 500),
        (Answer::Unavailable, 503),
    ];
    for (answer, expected) in table {
        sim.arm(Fault::answer(answer).on_verb(Verb::List));
        assert_eq!(code(pods.list(&ListParams::default()).await), expected);
        assert!(pods.list(&ListParams::default()).await.is_ok(), "expected the fault to occur once");
    }
    sim.arm(Fault::answer(Answer::Gone).on_verb(Verb::Watch));
    assert_eq!(code(pods.watch(&WatchParams::default(), "1").await.map(|_| ())), 410);
    sim.arm(Fault::answer(Answer::TooManyRequests(7)));
    let request = http::Request::get("/api/v1/pods").body(kube::client::Body::empty()).unwrap();
    let response = sim.client(NAMESPACE).send(request).await.unwrap();
    assert_eq!(response.headers()["retry-after"], "7");
    sim.deny(Verb::Watch, ApiResource::Pods);
    let Err(Error::Api(status)) = pods.watch(&WatchParams::default(), "0").await.map(|_| ()) else {
        panic!("expected 403");
    };
    let user = SimConfig::default().user;
    let reason =
        format!("User {user:?} cannot watch resource \"pods\" in API group \"\" in the namespace \"boilerhouse\"");
    assert_eq!(status.message, format!("pods is forbidden: {reason}"));
    assert!(pods.list(&ListParams::default()).await.is_ok(), "expected only the denied verb to be forbidden");
    sim.allow_all();
    assert!(pods.watch(&WatchParams::default(), "0").await.is_ok());
    sim.set_unauthorized(true);
    assert_eq!(code(pods.list(&ListParams::default()).await), 401);
}

#[tokio::test(start_paused = true)]
async fn claims_are_404_without_their_crd() {
    let sim = sim();
    let path = "/apis/boilerhouse.dev/v1alpha1/namespaces/boilerhouse/boilerhouseclaims";
    let list = async || {
        let request = http::Request::get(path).body(kube::client::Body::empty()).unwrap();
        let response = sim.client(NAMESPACE).send(request).await.unwrap();
        (response.status().as_u16(), response.headers()["content-type"].to_str().unwrap().to_owned())
    };
    assert_eq!(list().await, (200, "application/json".to_owned()));
    sim.set_crd(false);
    assert_eq!(list().await, (404, "text/plain; charset=utf-8".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn stopped_server_refuses_and_black_hole_never_answers() {
    let sim = sim();
    let pods = pods(&sim);
    let from = sim.store(|store| store.revision());
    let mut events = watch(&pods, from, 60).await;
    sim.down();
    assert!(next(&mut events).await.unwrap().is_err());
    let error = pods.list(&ListParams::default()).await.unwrap_err();
    assert!(format!("{error:?}").contains("ConnectionRefused"), "{error:?}");
    sim.up();
    assert!(pods.list(&ListParams::default()).await.is_ok());
    let mut events = watch(&pods, from, 60).await;
    sim.black_hole();
    sim.store(|store| add(store, "a"));
    assert_silent(&mut events).await;
    assert!(timeout(Duration::from_secs(3600), pods.list(&ListParams::default())).await.is_err());
    sim.up();
    assert_silent(&mut events).await;
    assert_eq!(next_event(&mut watch(&pods, from, 60).await).await, "+a");
    sim.arm(Fault::refuse());
    assert!(pods.list(&ListParams::default()).await.is_err());
    sim.arm(Fault::hang());
    assert!(timeout(Duration::from_secs(3600), pods.list(&ListParams::default())).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn expired_page_can_be_continued_inconsistently() {
    let sim = sim();
    let pods = pods(&sim);
    sim.store(|store| ["a", "b", "c"].map(|name| add(store, name)));
    let first = pods.list(&ListParams::default().limit(1)).await.unwrap();
    let token = first.metadata.continue_.unwrap();
    sim.arm(Fault::expire_page());
    pods.list(&ListParams::default().limit(1)).await.unwrap();
    assert_eq!(sim.pending_faults(), 1, "expected the fault to stay pending at a first page");
    let page = |token: &str| ListParams::default().limit(5).continue_token(token);
    let Err(Error::Api(status)) = pods.list(&page(&token)).await else { panic!("expected 410") };
    assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
    sim.store(|store| {
        store.delete(ApiResource::Pods, NAMESPACE, "b").unwrap();
        add(store, "bb");
        store.compact(store.revision());
    });
    let Err(Error::Api(status)) = pods.list(&page(&token)).await else { panic!("expected 410 after the compaction") };
    let inconsistent = status.metadata.unwrap().continue_.unwrap();
    let rest = pods.list(&page(&inconsistent)).await.unwrap();
    assert_eq!(rest.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["bb", "c"]);
}

#[tokio::test(start_paused = true)]
async fn injected_change_occurs_between_list_and_watch() {
    let sim = sim();
    let pods = pods(&sim);
    sim.store(|store| ["a", "b"].map(|name| add(store, name)));
    sim.arm(Fault::with_concurrent_change(|store| label(store, "b", "changed")).on_verb(Verb::List));
    let first = pods.list(&ListParams::default().limit(1)).await.unwrap();
    let token = first.metadata.continue_.clone().unwrap();
    let second = pods.list(&ListParams::default().continue_token(&token)).await.unwrap();
    assert_eq!(second.items[0].labels().get("v"), None, "expected the state at the version of the list");
    let from = second.metadata.resource_version.unwrap().parse().unwrap();
    assert_eq!(next_event(&mut watch(&pods, from, 60).await).await, "~b");
}

#[tokio::test(start_paused = true)]
async fn bookmarks_arrive_once_a_minute_only_after_changes() {
    let sim = sim();
    let client = sim.client(NAMESPACE);
    let pods: Api<Pod> = Api::default_namespaced(client);
    let from = sim.store(|store| store.revision());
    let started = Instant::now();
    let mut events = watch(&pods, from, 290).await;
    let mut bookmarks = Vec::new();
    let writer = async {
        tokio::time::sleep(Duration::from_secs(90)).await;
        // A change of a claim also moves the version of the watch of Pods.
        let claim = ClaimBuilder::new("c").namespace(NAMESPACE).json();
        sim.store(|store| store.create(ApiResource::Claims, claim)).unwrap();
    };
    let reader = async {
        while let Some(event) = events.next().await {
            bookmarks.push((started.elapsed().as_secs(), event.unwrap()));
        }
    };
    tokio::join!(writer, reader);
    let version = format!("@{}", from + 1);
    assert_eq!(bookmarks, [120, 180, 240, 288].map(|second| (second, version.clone())));
    assert_eq!(started.elapsed().as_secs(), 290);
}

#[tokio::test(start_paused = true)]
async fn metrics_count_requests_and_open_watches() {
    let sim = sim();
    let pods = pods(&sim);
    pods.list(&ListParams::default()).await.unwrap();
    let first = watch(&pods, 0, 60).await;
    let second = watch(&pods, 0, 60).await;
    let metrics = sim.metrics();
    assert_eq!((metrics.count(Verb::List), metrics.count(Verb::Watch), metrics.open()), (1, 2, 2));
    drop(first);
    assert_eq!(sim.metrics().open(), 1);
    drop(second);
    assert_eq!((sim.metrics().open(), sim.metrics().count(Verb::Watch)), (0, 2));
}
