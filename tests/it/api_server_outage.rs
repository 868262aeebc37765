//! Outages of the API server while `/ws` sockets are open (docs/protocol.md#boilerhouse-stream), and the load that
//! sockets put on the API server.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use boilerhouse_bridge::{
    feed::{self, Feed},
    http::{
        self, App, ConnectionInfo, Ingest, ServedFeed,
        browser_guard::{GuardConfig, RefusedOrigins},
        conn,
        filter_limit::{self, FilterLimit},
        forwarded::TrustedProxies,
        rate_limit::{self, RateLimits},
        response_budget::{self, ResponseBudget},
        stream,
    },
    sim::{ApiResource, Sim, SimConfig},
    source::{hub, retry::Backoff},
    tasks::{self, Tasks},
    test_support::PodBuilder,
    traces::Tracer,
};
use futures::future::join_all;
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, task::JoinSet, time::Instant};

use crate::support::{
    self,
    cluster::Cluster,
    http_client::{self, TEST_TIMEOUT, WsClient},
    in_process::anonymous_auth,
    sim_cluster::NAMESPACE,
    ws_matrix::{Listeners, WatchMode, WsMatrix},
};

/// Sockets that are open when the API server is killed.
const SOCKETS: usize = 20;
/// How long a `/ws` stream stays open without the API server (docs/protocol.md#boilerhouse-stream).
const MAX_UPSTREAM_DOWNTIME: Duration = Duration::from_secs(60);
/// Headers of an upgrade request whose rejection is read as an HTTP response.
const UPGRADE: [(&str, &str); 4] = [
    ("Connection", "close, Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// Three outages. The changes are made (a) after the restart, before any bridge reconnects, (b) before the kill, while
/// the bridges are paused, and (c) while the bridges reconnect.
#[tokio::test]
async fn sockets_survive_an_api_server_outage_and_receive_the_diff() {
    let mut cluster = Cluster::real().await;
    cluster.create_pod("untouched", "workload=web").await;
    let mut matrix = WsMatrix::new(&mut cluster);
    let mut sockets = matrix.listen("/ws").await;
    for _ in 1..SOCKETS {
        sockets.join(matrix.listen("/ws").await);
    }
    matrix.expect(&mut sockets, &["instance.state untouched Pending workloadRef=web"], &[]).await;

    create_objects(matrix.cluster, "a").await;
    create_objects(matrix.cluster, "b").await;
    create_objects(matrix.cluster, "c").await;
    matrix.received(&mut sockets).await;

    matrix.while_disconnected(async |cluster| change_objects(cluster, "a").await).await;
    expect_changes(&mut matrix, &mut sockets, "a").await;

    matrix.pause().await;
    change_objects(matrix.cluster, "b").await;
    matrix.cluster.down().await;
    matrix.cluster.up().await;
    matrix.resume().await;
    expect_changes(&mut matrix, &mut sockets, "b").await;

    matrix.cluster.down().await;
    matrix.cluster.up().await;
    change_objects(matrix.cluster, "c").await;
    expect_changes(&mut matrix, &mut sockets, "c").await;
}

/// Creates the objects of one round. Each name says how [`change_objects`] changes the object.
async fn create_objects(cluster: &Cluster, round: &str) {
    for name in ["fails", "removed", "recreated", "readied"] {
        cluster.create_pod(&format!("{name}-{round}"), "pool-status=warming").await;
    }
    for name in ["released", "deleted", "replaced"] {
        let name = format!("{name}-{round}");
        cluster.create_claim(&name, "alice").await;
        cluster.claim_phase(&name, "Active").await;
    }
    cluster.create_claim(&format!("claimed-{round}"), "bob").await;
}

/// Changes each object once. The difference of two lists then equals the history, except for the last version of a
/// deleted object.
async fn change_objects(cluster: &Cluster, round: &str) {
    let name = |name: &str| format!("{name}-{round}");
    cluster.pod_phase(&name("fails"), "Failed").await;
    cluster.delete_pod(&name("removed")).await;
    cluster.delete_pod(&name("recreated")).await;
    cluster.create_pod(&name("recreated"), "pool-status=ready").await;
    cluster.create_pod(&name("new"), "tenant=nina").await;
    cluster.label_pod(&name("readied"), "pool-status=ready").await;
    cluster.claim_phase(&name("released"), "Released").await;
    cluster.delete_claim(&name("deleted")).await;
    cluster.claim_phase(&name("claimed"), "Active").await;
    cluster.delete_claim(&name("replaced")).await;
    cluster.create_claim(&name("replaced"), "carol").await;
    cluster.claim_phase(&name("replaced"), "Active").await;
}

/// Asserts that every client received exactly the changes of each object, in order. A terminating Pod is an optional
/// extra event: the API server sends it before the deletion, but a list after the outage does not contain it.
async fn expect_changes(matrix: &mut WsMatrix<'_>, sockets: &mut Listeners, round: &str) {
    let expected = [
        ("fails", vec!["instance.state fails-? Failed"]),
        ("removed", vec!["instance.state removed-? Deleted"]),
        (
            "recreated",
            vec![
                "instance.state recreated-? Deleted",
                "instance.state recreated-? Pending",
                "pool.instance.ready recreated-?",
            ],
        ),
        ("new", vec!["instance.state new-? Pending tenantId=nina"]),
        ("readied", vec!["instance.state readied-? Pending", "pool.instance.ready readied-?"]),
        ("released", vec!["tenant.released released-? tenantId=alice"]),
        ("deleted", vec!["tenant.released deleted-? tenantId=alice"]),
        ("claimed", vec!["tenant.claimed claimed-? tenantId=bob workloadRef=web"]),
        (
            "replaced",
            vec![
                "tenant.released replaced-? tenantId=alice",
                "tenant.claimed replaced-? tenantId=carol workloadRef=web",
            ],
        ),
    ];
    let fill = |text: &str| text.replace('?', round);
    let expected: BTreeMap<_, Vec<_>> = expected
        .into_iter()
        .map(|(name, lines)| (format!("{name}-{round}"), lines.into_iter().map(fill).collect()))
        .collect();
    let terminating = ["removed", "recreated"].map(|name| format!("instance.state {name}-{round} Pending"));
    for (mode, received) in matrix.received(sockets).await {
        let mut by_name: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in received {
            let name = line.split(' ').nth(1).unwrap().to_owned();
            let lines = by_name.entry(name).or_default();
            if !(lines.is_empty() && terminating.contains(&line)) {
                lines.push(line);
            }
        }
        assert_eq!(by_name, expected, "events by object name, {mode:?}");
    }
}

/// After the maximum downtime every stream closes with 1013, and new streams are rejected until the API server is back.
/// The long form waits the real 60 s, with the binary and the real API server.
#[tokio::test]
async fn long_outage_closes_ws_clients_with_1013() {
    short_downtime_closes_ws_clients().await;
    if support::long_form() {
        one_minute_of_downtime_closes_ws_clients().await;
    }
}

async fn short_downtime_closes_ws_clients() {
    let limit = Duration::from_secs(1);
    let sim = Sim::new(SimConfig::default());
    let pod = PodBuilder::new("a").namespace(NAMESPACE).json();
    sim.store(|store| store.create(ApiResource::Pods, pod)).unwrap();
    let (writer, feed) = Feed::new(feed::Config { max_upstream_downtime: limit, ..feed::Config::default() });
    let config = hub::Config {
        catch_up_quiet_period: Duration::from_millis(50),
        backoff: Backoff { max: Duration::from_millis(100), ..Backoff::default() },
        ..hub::Config::default()
    };
    let watch = hub::run(sim.client(NAMESPACE), config, writer, Arc::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { match watch.await {} });
    let short_wait = serve_feed(&mut tasks, &feed, Duration::from_millis(300)).await;
    let long_wait = serve_feed(&mut tasks, &feed, TEST_TIMEOUT).await;
    feed.wait_synced().await;
    let mut clients = Vec::new();
    for _ in 0..SOCKETS {
        clients.push(WsClient::connect(short_wait, "/ws").await);
    }
    for client in &mut clients {
        assert_eq!(client.json().await["name"], "a");
    }

    let down = Instant::now();
    sim.down();
    for close in join_all(clients.iter_mut().map(|client| client.closed(TEST_TIMEOUT))).await {
        assert_eq!(close, (0, Some((1013, "upstream unavailable".to_owned()))));
        assert!(down.elapsed() >= limit, "closed after {:?}, earlier than {limit:?}", down.elapsed());
    }
    assert_not_ready(short_wait).await;
    let connect = WsClient::connect(long_wait, "/ws");
    let recover = async {
        // The new client waits by then, or connects later. It must be served in both cases.
        tokio::task::yield_now().await;
        sim.up();
    };
    let (mut waiting, ()) = tokio::join!(connect, recover);
    assert_eq!(waiting.json().await["name"], "a");
    drop(waiting);
    let mut late = WsClient::connect(short_wait, "/ws").await;
    assert_eq!(late.json().await["name"], "a");
}

/// Serves a feed on a listener of its own. A new stream waits at most `sync_timeout` for the upstream.
async fn serve_feed(tasks: &mut JoinSet<()>, feed: &Feed, sync_timeout: Duration) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Tasks::new(tasks::Config::default());
    let stop = connections.stop().clone();
    let content = ServedFeed {
        feed: feed.clone(),
        dedicated_feeds: Box::new(|| None),
        connection: ConnectionInfo { name: "test".into(), namespace: "test".into() },
        filters: FilterLimit::new(filter_limit::DEFAULT_MAX),
        ingest: Ingest::new(Arc::new(feed.clone()), Arc::default()),
        responses: ResponseBudget::new(response_budget::Config::default()),
        readiness_details: Box::new(Vec::new),
        config: http::Config { sync_timeout, ..http::Config::default() },
    };
    let app = App {
        content,
        streams: stream::StreamContext::new(stream::Config::default(), stream::Metrics::default(), stop),
        registry: Registry::default(),
        metrics: http::Metrics::default(),
        guard: GuardConfig::default(),
        refused_origins: RefusedOrigins::default(),
        auth: anonymous_auth(),
        rate_limits: RateLimits::new(&rate_limit::Config::default()),
        trusted_proxies: TrustedProxies::default(),
        tracer: Tracer::default(),
    };
    let service = http::service(Arc::new(app), http::Listener::Main);
    let serve = conn::serve(listener, service, conn::Config::default(), conn::Metrics::default(), connections);
    tasks.spawn(async move { match serve.await {} });
    address
}

/// Asserts that a new stream gets 503 `NOT_READY`.
async fn assert_not_ready(address: SocketAddr) {
    let response = http_client::request(address, "GET", "/ws", &UPGRADE).await;
    assert_eq!((response.status, &response.json()["code"]), (503, &"NOT_READY".into()));
    assert_eq!(response.header("retry-after"), Some("1"));
}

async fn one_minute_of_downtime_closes_ws_clients() {
    let mut cluster = Cluster::real().await;
    cluster.create_pod("a", "").await;
    let mut matrix = WsMatrix::new(&mut cluster);
    let mut sockets = matrix.listen("/ws").await;
    for _ in 1..SOCKETS {
        sockets.join(matrix.listen("/ws").await);
    }
    matrix.expect(&mut sockets, &["instance.state a Pending"], &[]).await;

    let down = Instant::now();
    matrix.cluster.down().await;
    let closes = sockets.clients.iter_mut().map(async |(mode, client)| {
        let close = client.closed(MAX_UPSTREAM_DOWNTIME + TEST_TIMEOUT).await;
        assert_eq!(close, (0, Some((1013, "upstream unavailable".to_owned()))), "{mode:?}");
        assert!(down.elapsed() >= MAX_UPSTREAM_DOWNTIME, "{mode:?}: closed after {:?}", down.elapsed());
    });
    join_all(closes).await;
    for (_, bridge) in matrix.bridges().await {
        assert_not_ready(bridge.address).await;
    }
    matrix.cluster.up().await;
    matrix.cluster.create_pod("b", "").await;
    let (mut late, line) = (matrix.listen("/ws").await, "instance.state a Pending");
    matrix.expect(&mut late, &[line, "instance.state b Pending"], &[]).await;
}

/// The API server's own metrics count the open watches and the answered requests.
#[tokio::test]
async fn hundred_sockets_use_two_watches_and_gets_use_no_request() {
    let mut cluster = Cluster::real().await;
    let [pods, _] = count_foreign_watches(&cluster).await;
    let mut matrix = WsMatrix::of(&mut cluster, &[WatchMode::Shared]);
    matrix.cluster.create_pod("a", "workload=web").await;
    matrix.cluster.create_claim("x", "alice").await;
    let mut sockets = matrix.listen("/ws").await;
    for _ in 1..100 {
        sockets.join(matrix.listen("/ws").await);
    }
    matrix.expect(&mut sockets, &["instance.state a Pending workloadRef=web"], &[]).await;
    wait_for_watches(matrix.cluster, [pods + 1, 1]).await;

    let bridge = matrix.bridges().await[0].1.address;
    let paths = ["instances", "instances/a", "tenants", "tenants/alice", "pools", "stats"];
    // The hub sends a probe after 15 s of silence. A probe during the GETs would be counted, so a slow round is
    // repeated.
    for remaining_attempts in (0..5).rev() {
        matrix.expect(&mut sockets, &[], &[]).await;
        let (started, before) = (Instant::now(), reads(matrix.cluster).await);
        for path in paths.iter().cycle().take(100) {
            assert_eq!(http_client::get(bridge, &format!("/api/v1/{path}")).await.status, 200, "{path}");
        }
        let after = reads(matrix.cluster).await;
        if before == after {
            break;
        }
        let slow = started.elapsed() > Duration::from_secs(10);
        assert!(
            slow && remaining_attempts > 0,
            "100 GETs caused requests to the API server: before {before:?}, after {after:?}"
        );
    }
    drop(matrix);
    wait_for_watches(&cluster, [pods, 0]).await;
}

/// Waits until the watches of other tests' bridges have ended, and returns the remaining ones: those that the API
/// server has on itself. None of them is a watch of claims.
async fn count_foreign_watches(cluster: &Cluster) -> [u64; 2] {
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        let first = watches(cluster).await;
        let second = watches(cluster).await;
        if first == second && first[1] == 0 {
            return first;
        }
        assert!(Instant::now() < deadline, "watches of Pods and claims did not settle without claims: {second:?}");
    }
}

/// Waits until the API server serves exactly `expected` watches of Pods and of claims. When a watch ends after its
/// duration, the next one starts, so the count can be off by one for a moment.
async fn wait_for_watches(cluster: &Cluster, expected: [u64; 2]) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        let watches = watches(cluster).await;
        if watches == expected {
            return;
        }
        assert!(Instant::now() < deadline, "watches of Pods and claims: {watches:?}, expected {expected:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Returns how many watches of Pods and of claims the API server serves.
async fn watches(cluster: &Cluster) -> [u64; 2] {
    let plane = cluster.plane();
    [plane.watches("pods").await, plane.watches("boilerhouseclaims").await]
}

/// Returns the API server's own counts of GETs and lists of Pods and claims.
async fn reads(cluster: &Cluster) -> Vec<String> {
    let metrics = cluster.plane().metrics().await;
    let is_read = |line: &&str| {
        line.starts_with("apiserver_request_total{")
            && ["pods", "boilerhouseclaims"].iter().any(|resource| line.contains(&format!("resource=\"{resource}\"")))
            && ["GET", "LIST"].iter().any(|verb| line.contains(&format!("verb=\"{verb}\"")))
    };
    metrics.lines().filter(is_read).map(str::to_owned).collect()
}
