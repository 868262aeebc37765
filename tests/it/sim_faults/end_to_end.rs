//! End-to-end tests of the simulated API: a kube-runtime watcher during every fault, a watch of a complete scenario,
//! and the API over TCP.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::sim::fault::{Answer, ConnectionEnd, Fault, WatchFault};
use boilerhouse_bridge::sim::scenario::{Scenario, ScenarioConfig};
use boilerhouse_bridge::sim::{ApiResource, Sim};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::runtime::watcher;
use kube::{Client, Config, ResourceExt};
use tokio::time::{Instant, timeout};

use super::{NAMESPACE, add, label, next, next_event, pods, sim, watch};
use crate::support::http_client::TEST_TIMEOUT;

/// Waits until the names that a watcher has collected are those of the store.
async fn settle(sim: &Sim, names: &Arc<Mutex<Vec<String>>>) {
    let end = Instant::now() + Duration::from_secs(300);
    loop {
        let pods = sim.store(|store| store.list(ApiResource::Pods, None));
        let expected: Vec<String> =
            pods.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect();
        if *names.lock().unwrap() == expected {
            return;
        }
        assert!(Instant::now() < end, "expected {expected:?}, found {:?}", names.lock().unwrap());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn kube_runtime_watcher_survives_every_fault() {
    let sim = sim();
    let names = Arc::new(Mutex::new(Vec::new()));
    let follow = async {
        let mut events = watcher::watcher(pods(&sim), watcher::Config::default().timeout(20)).boxed();
        let mut listed = Vec::new();
        loop {
            // The watcher has no backoff and retries an error at once. The sleep moves the paused clock.
            let Some(Ok(event)) = events.next().await else {
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            };
            let mut names = names.lock().unwrap();
            match event {
                watcher::Event::Init => listed.clear(),
                watcher::Event::InitApply(pod) => listed.push(pod.name_any()),
                watcher::Event::InitDone => names.clone_from(&listed),
                watcher::Event::Apply(pod) if !names.contains(&pod.name_any()) => names.push(pod.name_any()),
                watcher::Event::Apply(_) => {}
                watcher::Event::Delete(pod) => names.retain(|name| *name != pod.name_any()),
            }
            names.sort();
        }
    };
    let inject = async {
        for round in 0..20_u32 {
            sim.store(|store| add(store, &format!("pod-{round:02}")));
            match round % 5 {
                0 => sim.restart(),
                1 => sim.cut_watches(ConnectionEnd::Eof),
                2 => sim.down(),
                3 => sim.arm(Fault::answer(Answer::Unavailable)),
                _ => sim.arm(Fault::watch(0, WatchFault::HalfLine)),
            }
            sim.store(|store| drop(store.delete(ApiResource::Pods, NAMESPACE, &format!("pod-{:02}", round / 2))));
            sim.up();
            settle(&sim, &names).await;
        }
    };
    tokio::select! {
        () = follow => {}
        () = inject => {}
    }
}

#[tokio::test(start_paused = true)]
async fn watch_delivers_a_complete_scenario() {
    let sim = sim();
    let from = sim.store(|store| store.revision());
    let params = WatchParams::default().timeout(120);
    let pods = pods(&sim);
    let events = pods.watch(&params, &from.to_string()).await.unwrap();
    let version = |pod: Pod| pod.metadata.resource_version.unwrap().parse::<u64>().unwrap();
    let versions = events.map_ok(|event| match event {
        WatchEvent::Added(pod) | WatchEvent::Modified(pod) | WatchEvent::Deleted(pod) => Some(version(pod)),
        WatchEvent::Bookmark(_) => None,
        WatchEvent::Error(status) => panic!("{status}"),
    });
    let mut scenario = Scenario::new(3, ScenarioConfig::default());
    sim.store(|store| scenario.populate(store));
    let stop = tokio::time::sleep(Duration::from_secs(119));
    let (received, ()) = tokio::join!(versions.try_collect::<Vec<_>>(), scenario.run(&sim, 10.0, stop));
    let expected = sim.store(|store| {
        let changes = store.history().iter().filter(|change| change.resource == ApiResource::Pods);
        changes.map(|change| change.revision).collect::<Vec<_>>()
    });
    let received: Vec<u64> = received.unwrap().into_iter().flatten().collect();
    let (count, retained) = (received.len(), expected.len());
    assert!(
        count > 500 && received.ends_with(&expected),
        "{count} events received, {retained} in the retained history"
    );
    assert!(sim.store(|store| store.history().len()) < 2000, "expected a bounded history");
}

#[tokio::test]
async fn simulated_api_is_served_over_tcp() {
    let sim = sim();
    sim.store(|store| add(store, "a"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut config = Config::new(url.parse().unwrap());
    config.default_namespace = NAMESPACE.to_owned();
    config.default_retry = false;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let client = async {
        // rustls requires a provider even for plain HTTP. Another test may have installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::try_from(config).unwrap();
        assert_eq!(client.apiserver_version().await.unwrap().minor, "36");
        let pods: Api<Pod> = Api::default_namespaced(client);
        let list = pods.list(&ListParams::default()).await.unwrap();
        assert_eq!(list.items[0].name_any(), "a");
        let from = list.metadata.resource_version.unwrap().parse().unwrap();
        let mut events = watch(&pods, from, 60).await;
        sim.store(|store| label(store, "a", "1"));
        assert_eq!(next_event(&mut events).await, "~a");
        sim.cut_watches(ConnectionEnd::Reset);
        assert!(!matches!(next(&mut events).await, Some(Ok(_))), "expected a broken connection");
        sim.down();
        assert!(pods.list(&ListParams::default()).await.is_err());
        sim.up();
        assert!(pods.list(&ListParams::default()).await.is_ok());
        stop.send(()).unwrap();
    };
    let serve = sim.serve(listener, async { stopped.await.unwrap_or_default() });
    timeout(TEST_TIMEOUT, async { tokio::join!(serve, client) }).await.expect("the server does not stop in time");
}
