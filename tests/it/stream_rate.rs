//! `--stream-rate` of the binary: the `rate_limit` member of each event, and the position of a paused stream.
//!
//! Unit tests of `http::stream_rate` test the sequence of windows in simulated time. The long form waits for a real
//! window.

use std::net::SocketAddr;

use futures::future::join_all;
use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};

use crate::support::{
    bridge_process::BridgeProcess, http_client::WsClient, long_form, sim_cluster::SimCluster, sse_client::SseClient,
};

/// Endpoints of the full stream: both transports, with and without event names.
const ENDPOINTS: [&str; 6] =
    ["/api/websocket", "/api/sse", "/api/events/stream", "/events/stream", "/events", "/events/ws"];

/// A client of an endpoint, of either transport.
#[derive(Debug)]
enum Client {
    WebSocket(WsClient),
    Sse(SseClient),
}

impl Client {
    async fn open(address: SocketAddr, endpoint: &str, query: &str) -> Client {
        let path = format!("{endpoint}?types=instance.state&{query}");
        match endpoint {
            "/api/websocket" | "/events/ws" => Client::WebSocket(WsClient::connect(address, &path).await),
            _ => Client::Sse(SseClient::open(address, &path, &[]).await),
        }
    }

    /// Returns the next event. The fields of an SSE block must equal the members of its data.
    async fn next(&mut self) -> Value {
        match self {
            Client::WebSocket(client) => client.json().await,
            Client::Sse(events) => {
                let block = events.event().await;
                let json = block.json();
                assert_eq!(block.id.as_deref(), json["id"].as_str());
                assert!(block.event.is_none_or(|name| json["type"] == name.as_str()), "{json}");
                json
            }
        }
    }

    /// Returns the next event about a Pod: its name, the remaining quota, and the event.
    async fn pod(&mut self) -> (String, u64, Value) {
        loop {
            let event = self.next().await;
            let remaining =
                event["rate_limit"]["remaining"].as_u64().unwrap_or_else(|| panic!("no rate_limit: {event}"));
            match event["type"].as_str().unwrap() {
                "instance.state" => return (event["name"].as_str().unwrap().to_owned(), remaining, event),
                "state.initial" | "heartbeat" => {}
                _ => panic!("{event}"),
            }
        }
    }
}

/// Starts a bridge that limits each client to 3 events in a window of 60 s.
async fn limited_bridge(cluster: &SimCluster) -> BridgeProcess {
    cluster.bridge(&["--stream-rate", "3"]).await
}

#[tokio::test]
async fn events_state_the_remaining_quota_and_a_pause_loses_nothing() {
    let cluster = SimCluster::new().await;
    let bridge = limited_bridge(&cluster).await;
    let mut clients = Vec::new();
    for endpoint in ENDPOINTS {
        let mut client = Client::open(bridge.address, endpoint, "snapshot=state").await;
        let first = client.next().await;
        assert_eq!(first["type"], "state.initial");
        assert_eq!(
            (&first["rate_limit"]["limit"], &first["rate_limit"]["remaining"]),
            (&json!(3), &json!(3)),
            "{endpoint}"
        );
        clients.push((endpoint, client));
    }
    let started = Timestamp::now();
    for name in ["a", "b", "c", "d", "e"] {
        cluster.create_pod(name);
    }
    for (endpoint, client) in &mut clients {
        let (mut resets, mut last_id) = (Vec::new(), String::new());
        for (name, expected) in [("a", 2), ("b", 1), ("c", 0)] {
            let (received, remaining, event) = client.pod().await;
            assert_eq!((received.as_str(), remaining), (name, expected), "{endpoint}");
            resets.push(event["rate_limit"]["reset_at"].as_str().unwrap().parse::<Timestamp>().unwrap());
            last_id = event["id"].as_str().unwrap().to_owned();
        }
        assert!(resets.iter().all(|reset| *reset == resets[0]), "reset times of one window: {resets:?}");
        let (earliest, latest) = (started + 60.seconds(), Timestamp::now() + 60.seconds());
        // The times of events are rounded to milliseconds.
        assert!(
            earliest - 1.millisecond() <= resets[0] && resets[0] <= latest,
            "reset at {resets:?}, expected {earliest} to {latest}"
        );

        // The last cursor before the pause can be resumed. The new stream has a window of its own and loses no event.
        let mut other = Client::open(bridge.address, endpoint, &format!("lastEventId={last_id}")).await;
        for (name, expected) in [("d", 2), ("e", 1)] {
            let (received, remaining, _) = other.pod().await;
            assert_eq!((received.as_str(), remaining), (name, expected), "{endpoint}");
        }
    }
    if long_form() {
        // Heartbeats continue during the pause. When the window ends, the stream continues. All clients read
        // concurrently, because a client that is not read does not answer pings.
        let waits = clients.iter_mut().map(|(endpoint, client)| async move {
            let heartbeat = client.next().await;
            assert_eq!((&heartbeat["type"], &heartbeat["rate_limit"]["remaining"]), (&json!("heartbeat"), &json!(0)));
            for (name, expected) in [("d", 2), ("e", 1)] {
                let (received, remaining, event) = client.pod().await;
                assert_eq!((received.as_str(), remaining), (name, expected), "{endpoint}: {event}");
            }
            assert!(
                Timestamp::now() >= started + 60.seconds() - 1.millisecond(),
                "{endpoint}: the pause ended before the window"
            );
        });
        join_all(waits).await;
    }
}

#[tokio::test]
async fn rate_limit_is_absent_without_the_flag_and_on_ws() {
    let cluster = SimCluster::new().await;
    let (unlimited, limited) = (cluster.bridge(&[]).await, limited_bridge(&cluster).await);
    let mut clients = Vec::new();
    for endpoint in ENDPOINTS {
        clients.push(Client::open(unlimited.address, endpoint, "snapshot=state").await);
    }
    let mut boilerhouse = limited.listen("/ws?snapshot=none").await;
    // More events than the limit.
    for at in 0..10 {
        cluster.create_pod(&format!("p{at}"));
    }
    let mut texts = boilerhouse.until(|event| event["name"] == "p9").await;
    assert_eq!(texts.len(), 10);
    for client in &mut clients {
        loop {
            let event = client.next().await;
            texts.push(event.to_string());
            if event["name"] == "p9" {
                break;
            }
        }
    }
    assert!(texts.iter().all(|text| !text.contains("rate_limit")), "{texts:#?}");
}
