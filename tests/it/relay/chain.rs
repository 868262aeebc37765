//! A relay of a relay in front of a bridge: the computation of the client library over its events gives the state of the
//! bridge, also after a restart of the bridge.

use std::{cell::Cell, collections::BTreeMap};

use boilerhouse_bridge::client::{Client, Events, Payload, State, Transport};
use tokio::time::timeout;

use super::{expect_down, local_sse, next, relay};
use crate::{
    support::{
        bridge_process::BridgeProcess,
        http_client::{self, TEST_TIMEOUT},
        sim_cluster::{NAMESPACE, SimCluster},
        sse_upstream::SseUpstream,
        tcp_proxy::TcpProxy,
    },
    tls::TlsFixture,
};

/// One client with its state and the types of its events.
struct Follower {
    events: Events,
    state: State,
    kinds: Vec<String>,
}

impl Follower {
    fn new(address: std::net::SocketAddr, path: &str, transport: Transport) -> Follower {
        let client = Client::builder(format!("http://{address}{path}")).transport(transport).build().unwrap();
        Follower { events: client.events(), state: State::default(), kinds: Vec::new() }
    }

    fn phases(&self) -> BTreeMap<String, String> {
        let instances = self.state.instances().values();
        instances.map(|instance| (instance.name.clone(), instance.phase.clone())).collect()
    }

    /// Reads until the state has these Pods.
    async fn until(&mut self, expected: &BTreeMap<String, String>) {
        let reading = timeout(2 * TEST_TIMEOUT, async {
            while !(self.state.is_complete() && self.phases() == *expected) {
                let event = self.events.next().await.unwrap().unwrap();
                self.state.apply(&event);
                self.kinds.push(event.kind.clone());
            }
        });
        assert!(reading.await.is_ok(), "{:?} is not {expected:?} after {:?}", self.phases(), self.kinds);
    }
}

/// The Pods of a bridge with their phases.
async fn phases(bridge: &BridgeProcess) -> BTreeMap<String, String> {
    let instances = http_client::get(bridge.address, "/api/v1/instances").await;
    let instances: Vec<serde_json::Value> = serde_json::from_str(&dechunk(&instances)).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    instances.iter().map(|instance| (text(&instance["name"]), text(&instance["phase"]))).collect()
}

/// The body without the framing of chunks.
fn dechunk(response: &http_client::HttpResponse) -> String {
    let start = response.body.find('[').unwrap();
    let end = response.body.rfind(']').unwrap();
    response.body[start..=end].to_owned()
}

#[tokio::test]
async fn state_behind_two_relays_is_that_of_the_bridge() {
    let cluster = SimCluster::new().await;
    for n in 0..5 {
        cluster.create_pod(&format!("pod-{n}"));
    }
    let bridge = cluster.bridge(&["--drain", "1"]).await;
    // The address of the bridge stays the same over its restart.
    let proxy = TcpProxy::new(None, 1).await;
    proxy.set_target(Some(bridge.address));
    let first = relay(&format!("http://{}", proxy.address), &[]).await;
    let second = relay(&format!("http://{}/events", first.address), &[]).await;
    let mut clients = [
        Follower::new(second.address, "/events", Transport::Sse),
        Follower::new(second.address, "/events/ws", Transport::WebSocket),
    ];
    let expected = phases(&bridge).await;
    assert_eq!(expected.len(), 5);
    for client in &mut clients {
        client.until(&expected).await;
        assert_eq!(client.kinds[0], "state.initial", "{:?}", client.kinds);
    }
    cluster.pod_phase("pod-1", "Running");
    // The bridge drains, and the cluster changes while there is none.
    bridge.signal("TERM").await;
    let mut bridge = bridge;
    assert_eq!(bridge.ended(TEST_TIMEOUT).await.code(), Some(0));
    cluster.pod_phase("pod-2", "Running");
    cluster.create_pod("pod-5");
    cluster.sim().store(|store| {
        store.delete(boilerhouse_bridge::sim::ApiResource::Pods, NAMESPACE, "pod-3").unwrap();
    });
    let bridge = cluster.bridge(&[]).await;
    proxy.set_target(Some(bridge.address));
    cluster.pod_phase("pod-4", "Failed");
    let expected = http_client::poll_until_async(async || {
        let phases = phases(&bridge).await;
        (phases.get("pod-4").map(String::as_str) == Some("Failed")).then_some(phases)
    })
    .await;
    for client in &mut clients {
        client.until(&expected).await;
        let count = |kind: &str| client.kinds.iter().filter(|found| *found == kind).count();
        assert_eq!(client.events.connections(), 1, "the client must not reconnect: {:?}", client.kinds);
        assert_eq!(count("stream.closing"), 0, "{:?}", client.kinds);
        assert!(count("matrix-down") >= 1 && count("matrix-up") == 1, "{:?}", client.kinds);
        assert_eq!(count("relay.gap"), 0, "{:?}", client.kinds);
        assert_eq!(count("state.initial"), 1, "the relay resumes: {:?}", client.kinds);
    }
    // A client that comes now finds the start of the stream in the history.
    let mut late = Follower::new(second.address, "/events", Transport::Sse);
    late.until(&expected).await;
    assert_eq!(late.kinds[0], "state.initial");
    assert!(!late.kinds.iter().any(|kind| kind == "relay.gap"), "{:?}", late.kinds);
}

/// A client that comes after the start of the stream was evicted learns that it lacks the state.
#[tokio::test]
async fn late_client_is_informed_that_it_lacks_the_state() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let relay = relay(&format!("http://{}", bridge.address), &["--history", "2"]).await;
    // The state, and events that push it out of the history. The state can contain the first Pods.
    let pods = Cell::new(0);
    let received = async || {
        cluster.create_pod(&format!("pod-{}", pods.replace(pods.get() + 1)));
        let metrics = http_client::get(relay.address, "/metrics").await.body;
        let events = metrics.lines().find_map(|line| line.strip_prefix("bridge_relay_events_total ")?.parse().ok());
        (events.unwrap_or(0) >= 4).then_some(())
    };
    http_client::poll_until_async(received).await;
    let mut late = Follower::new(relay.address, "/events", Transport::Sse);
    let gap = late.events.next().await.unwrap().unwrap();
    assert!(matches!(&gap.payload, Payload::RelayGap(gap) if gap.reason == "expired"), "{gap:?}");
    late.state.apply(&gap);
    let event = late.events.next().await.unwrap().unwrap();
    late.state.apply(&event);
    assert!(!late.state.is_complete());
}

/// Between two relays: TLS, a credential, and a file with the trusted certificate.
#[tokio::test]
async fn relays_serve_and_read_tls_with_a_credential() {
    const KEY: &str = "a-key-of-thirty-two-characters-x";
    let tls = TlsFixture::new();
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), KEY).unwrap();
    let mut upstream = SseUpstream::new().await;
    let (url, flags) = (upstream.url(), tls.flags());
    let mut args = vec!["relay", "--upstream", &url, "--listen", "127.0.0.1:0"];
    args.extend(flags.iter().map(String::as_str));
    let first = BridgeProcess::run_with(&args, &[("BOILERHOUSE_API_KEY", KEY)]).await;
    let mut connection = upstream.stream().await;
    connection.send("id: 1\nevent: tick\ndata: over TLS\n\n").await;
    let (ca, token) = (tls.file("tls.crt"), token.path().to_string_lossy().into_owned());
    let url = format!("https://{}/events", first.address);
    let second = relay(&url, &["--ca-file", &ca.to_string_lossy(), "--token-file", &token]).await;
    let mut client = local_sse(second.address, None).await;
    assert_eq!(next(&mut client).await, (Some("1".into()), Some("tick".into()), "over TLS".into()));
    // Without the file the certificate is not trusted.
    let third = relay(&url, &["--token-file", &token]).await;
    let mut client = local_sse(third.address, None).await;
    expect_down(&mut client, None, "no connection").await;
}
