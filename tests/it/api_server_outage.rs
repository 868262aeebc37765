//! The API server gone, under open sockets (docs/protocol.md#boilerhouse-stream), and what sockets cost it while it is there.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use boilerhouse_bridge::{
    feed::{self, Feed},
    http::{
        self, App, ConnectionInfo,
        browser_guard::GuardConfig,
        conn,
        forwarded::TrustedProxies,
        rate_limit::{self, RateLimits},
        stream,
    },
    sim::{ApiResource, Sim, SimConfig},
    source::hub,
    tasks::{self, Tasks},
};
use futures::future::join_all;
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet, time::Instant};

use crate::support::{
    self,
    cluster::Cluster,
    http_client::{self, TEST_TIMEOUT, WsClient},
    in_process::anonymous_auth,
    ws_matrix::{Listeners, WatchMode, WsMatrix},
};

/// Open sockets under which the API server is killed.
const SOCKETS: usize = 20;
/// How long `/ws` outlives the API server (docs/protocol.md#boilerhouse-stream).
const UPSTREAM_LIMIT: Duration = Duration::from_secs(60);
/// An upgrade, for clients that want to read the refusal.
const UPGRADE: [(&str, &str); 4] = [
    ("Connection", "close, Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// Three times, with the changes made in three ways: after the restart and before any bridge looks; before the kill,
/// while the bridges look away; and while they try to come back.
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

    furnish(matrix.cluster, "a").await;
    furnish(matrix.cluster, "b").await;
    furnish(matrix.cluster, "c").await;
    matrix.received(&mut sockets).await;

    matrix.while_disconnected(async |cluster| change(cluster, "a").await).await;
    expect_change(&mut matrix, &mut sockets, "a").await;

    matrix.pause().await;
    change(matrix.cluster, "b").await;
    matrix.cluster.down().await;
    matrix.cluster.up().await;
    matrix.resume().await;
    expect_change(&mut matrix, &mut sockets, "b").await;

    matrix.cluster.down().await;
    matrix.cluster.up().await;
    change(matrix.cluster, "c").await;
    expect_change(&mut matrix, &mut sockets, "c").await;
}

/// Objects to be changed, by the names of their fates.
async fn furnish(cluster: &Cluster, round: &str) {
    for fate in ["fails", "goes", "again", "readied"] {
        cluster.create_pod(&format!("{fate}-{round}"), "pool-status=warming").await;
    }
    for fate in ["released", "deleted", "revived"] {
        let name = format!("{fate}-{round}");
        cluster.create_claim(&name, "alice").await;
        cluster.claim_phase(&name, "Active").await;
    }
    cluster.create_claim(&format!("claimed-{round}"), "bob").await;
}

/// Each object changes once, so that the difference is the history, but for the last version of what is deleted.
async fn change(cluster: &Cluster, round: &str) {
    let name = |fate: &str| format!("{fate}-{round}");
    cluster.pod_phase(&name("fails"), "Failed").await;
    cluster.delete_pod(&name("goes")).await;
    cluster.delete_pod(&name("again")).await;
    cluster.create_pod(&name("again"), "pool-status=ready").await;
    cluster.create_pod(&name("new"), "tenant=nina").await;
    cluster.label_pod(&name("readied"), "pool-status=ready").await;
    cluster.claim_phase(&name("released"), "Released").await;
    cluster.delete_claim(&name("deleted")).await;
    cluster.claim_phase(&name("claimed"), "Active").await;
    cluster.delete_claim(&name("revived")).await;
    cluster.create_claim(&name("revived"), "heir").await;
    cluster.claim_phase(&name("revived"), "Active").await;
}

/// Everybody has been told exactly what became of each object, in its order. That a Pod is about to go is told where the
/// API server had told it before it died, and not where only a list could tell.
async fn expect_change(matrix: &mut WsMatrix<'_>, sockets: &mut Listeners, round: &str) {
    let expected = [
        ("fails", vec!["instance.state fails-? Failed"]),
        ("goes", vec!["instance.state goes-? Deleted"]),
        (
            "again",
            vec!["instance.state again-? Deleted", "instance.state again-? Pending", "pool.instance.ready again-?"],
        ),
        ("new", vec!["instance.state new-? Pending tenantId=nina"]),
        ("readied", vec!["instance.state readied-? Pending", "pool.instance.ready readied-?"]),
        ("released", vec!["tenant.released released-? tenantId=alice"]),
        ("deleted", vec!["tenant.released deleted-? tenantId=alice"]),
        ("claimed", vec!["tenant.claimed claimed-? tenantId=bob workloadRef=web"]),
        (
            "revived",
            vec!["tenant.released revived-? tenantId=alice", "tenant.claimed revived-? tenantId=heir workloadRef=web"],
        ),
    ];
    let fill = |text: &str| text.replace('?', round);
    let expected: BTreeMap<_, Vec<_>> = expected
        .into_iter()
        .map(|(fate, lines)| (format!("{fate}-{round}"), lines.into_iter().map(fill).collect()))
        .collect();
    let about_to_go = ["goes", "again"].map(|fate| format!("instance.state {fate}-{round} Pending"));
    for (mode, received) in matrix.received(sockets).await {
        let mut by_name: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in received {
            let name = line.split(' ').nth(1).unwrap().to_owned();
            let lines = by_name.entry(name).or_default();
            if !(lines.is_empty() && about_to_go.contains(&line)) {
                lines.push(line);
            }
        }
        assert_eq!(by_name, expected, "{mode:?}");
    }
}

/// For over a minute: 1013 to everybody, and nobody new until it is back. The long form takes that minute, on the real
/// API server and from the binary.
#[tokio::test]
async fn long_outage_closes_ws_clients_with_1013() {
    sent_away_in_short().await;
    if support::long_form() {
        sent_away_after_a_minute().await;
    }
}

async fn sent_away_in_short() {
    let limit = Duration::from_secs(1);
    let sim = Sim::new(SimConfig::default());
    let pod = json!({"metadata": {"name": "a", "namespace": "boilerhouse",
        "labels": {"boilerhouse.dev/managed": "true"}}});
    sim.store(|store| store.create(ApiResource::Pods, pod)).unwrap();
    let (writer, feed) = Feed::new(feed::Config { max_upstream_downtime: limit, ..feed::Config::default() });
    let config = hub::Config {
        catch_up_quiet_period: Duration::from_millis(50),
        backoff_max: Duration::from_millis(100),
        ..hub::Config::default()
    };
    let watch = hub::run(sim.client("boilerhouse"), config, writer, Arc::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { match watch.await {} });
    let impatient = site(&mut tasks, &feed, Duration::from_millis(300)).await;
    let patient = site(&mut tasks, &feed, TEST_TIMEOUT).await;
    feed.wait_synced().await;
    let mut listeners = Vec::new();
    for _ in 0..SOCKETS {
        listeners.push(WsClient::connect(impatient, "/ws").await);
    }
    for listener in &mut listeners {
        assert_eq!(listener.json().await["name"], "a");
    }

    let down = Instant::now();
    sim.down();
    for close in join_all(listeners.iter_mut().map(|listener| listener.closed(TEST_TIMEOUT))).await {
        assert_eq!(close, (0, Some((1013, "upstream unavailable".to_owned()))));
        assert!(down.elapsed() >= limit, "already after {:?}", down.elapsed());
    }
    refused(impatient).await;
    let newcomer = WsClient::connect(patient, "/ws");
    let back = async {
        // The newcomer is waiting by then, or comes later: it must be served in both cases.
        tokio::task::yield_now().await;
        sim.up();
    };
    let (mut newcomer, ()) = tokio::join!(newcomer, back);
    assert_eq!(newcomer.json().await["name"], "a");
    drop(newcomer);
    let mut late = WsClient::connect(impatient, "/ws").await;
    assert_eq!(late.json().await["name"], "a");
}

/// A site that serves this feed. A newcomer waits this long.
async fn site(tasks: &mut JoinSet<()>, feed: &Feed, ready_wait: Duration) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Tasks::new(tasks::Config::default());
    let stop = connections.stop().clone();
    let site = App {
        feed: feed.clone(),
        dedicated_feeds: Box::new(|| None),
        streams: stream::StreamContext::new(stream::Config::default(), stream::Metrics::default(), stop),
        connection: ConnectionInfo { name: "test".into(), namespace: "test".into() },
        registry: Registry::default(),
        metrics: http::Metrics::default(),
        guard: GuardConfig::default(),
        auth: anonymous_auth(),
        rate_limits: RateLimits::new(&rate_limit::Config::default()),
        trusted_proxies: TrustedProxies::default(),
        readiness_details: Box::new(Vec::new),
        config: http::Config { sync_timeout: ready_wait, ..http::Config::default() },
    };
    let service = http::service(Arc::new(site));
    let serve = conn::serve(listener, service, conn::Config::default(), conn::Metrics::default(), connections);
    tasks.spawn(async move { match serve.await {} });
    address
}

async fn refused(address: SocketAddr) {
    let answer = http_client::request(address, "GET", "/ws", &UPGRADE).await;
    assert_eq!((answer.status, &answer.json()["code"]), (503, &"NOT_READY".into()));
    assert_eq!(answer.header("retry-after"), Some("1"));
}

async fn sent_away_after_a_minute() {
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
    let closes = sockets.clients.iter_mut().map(async |(mode, listener)| {
        let close = listener.closed(UPSTREAM_LIMIT + TEST_TIMEOUT).await;
        assert_eq!(close, (0, Some((1013, "upstream unavailable".to_owned()))), "{mode:?}");
        assert!(down.elapsed() >= UPSTREAM_LIMIT, "{mode:?}: already after {:?}", down.elapsed());
    });
    join_all(closes).await;
    for (_, bridge) in matrix.bridges().await {
        refused(bridge.address).await;
    }
    matrix.cluster.up().await;
    matrix.cluster.create_pod("b", "").await;
    let (mut newcomers, line) = (matrix.listen("/ws").await, "instance.state a Pending");
    matrix.expect(&mut newcomers, &[line, "instance.state b Pending"], &[]).await;
}

/// Held against the API server's own count of the watches it serves and of the requests it has answered.
#[tokio::test]
async fn hundred_sockets_use_two_watches_and_gets_use_no_request() {
    let mut cluster = Cluster::real().await;
    let [pods, _] = watches_without_bridges(&cluster).await;
    let mut matrix = WsMatrix::of(&mut cluster, &[WatchMode::Shared]);
    matrix.cluster.create_pod("a", "workload=web").await;
    matrix.cluster.create_claim("x", "alice").await;
    let mut sockets = matrix.listen("/ws").await;
    for _ in 1..100 {
        sockets.join(matrix.listen("/ws").await);
    }
    matrix.expect(&mut sockets, &["instance.state a Pending workloadRef=web"], &[]).await;
    watches_become(matrix.cluster, [pods + 1, 1]).await;

    let bridge = matrix.bridges().await[0].1.address;
    let paths = ["instances", "instances/a", "tenants", "tenants/alice", "pools", "stats"];
    // The hub lists one object when a watch has been silent for 15 s, so it has to be quick: on a machine that has a
    // bad moment, at another try.
    for patience in (0..5).rev() {
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
        assert!(slow && patience > 0, "100 GETs cost requests: {before:?}, then {after:?}");
    }
    drop(matrix);
    watches_become(&cluster, [pods, 0]).await;
}

/// The watches that the API server keeps on itself: what is left when the bridges of other tests are gone. None of claims.
async fn watches_without_bridges(cluster: &Cluster) -> [u64; 2] {
    let end = Instant::now() + TEST_TIMEOUT;
    loop {
        let first = watches(cluster).await;
        let second = watches(cluster).await;
        if first == second && first[1] == 0 {
            return first;
        }
        assert!(Instant::now() < end, "watches of bridges that are gone: {second:?}");
    }
}

/// Waits until the API server serves so many watches of Pods and of claims. A watch that has its time is followed by
/// another, so that there may be one too few or one too many for a moment.
async fn watches_become(cluster: &Cluster, wanted: [u64; 2]) {
    let end = Instant::now() + TEST_TIMEOUT;
    loop {
        let watches = watches(cluster).await;
        if watches == wanted {
            return;
        }
        assert!(Instant::now() < end, "{watches:?} watches of Pods and claims, and not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn watches(cluster: &Cluster) -> [u64; 2] {
    let plane = cluster.plane();
    [plane.watches("pods").await, plane.watches("boilerhouseclaims").await]
}

/// Gets and lists of Pods and claims, by the API server's own count.
async fn reads(cluster: &Cluster) -> Vec<String> {
    let metrics = cluster.plane().metrics().await;
    let read = |line: &&str| {
        line.starts_with("apiserver_request_total{")
            && ["pods", "boilerhouseclaims"].iter().any(|resource| line.contains(&format!("resource=\"{resource}\"")))
            && ["GET", "LIST"].iter().any(|verb| line.contains(&format!("verb=\"{verb}\"")))
    };
    metrics.lines().filter(read).map(str::to_owned).collect()
}
