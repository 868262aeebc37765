//! `--stream-rate` through the binary: what each event says, and where a client's position stands when it pauses.
//! How windows follow each other is tested in simulated time (`http::rate`); the long form waits a real one out.

use std::net::SocketAddr;

use futures::future::join_all;
use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};

use crate::support::{
    bridge_process::BridgeProcess, http_client::WsClient, long_form, sim_cluster::SimCluster, sse_client::SseClient,
};

/// Rows of the full stream, both transports, with and without names.
const ROWS: [&str; 6] = ["/api/websocket", "/api/sse", "/api/events/stream", "/events/stream", "/events", "/events/ws"];

/// A client of a row, of either transport.
#[derive(Debug)]
enum Client {
    WebSocket(WsClient),
    Sse(SseClient),
}

impl Client {
    async fn open(address: SocketAddr, row: &str, query: &str) -> Client {
        let path = format!("{row}?types=instance.state&{query}");
        match row {
            "/api/websocket" | "/events/ws" => Client::WebSocket(WsClient::connect(address, &path).await),
            _ => Client::Sse(SseClient::open(address, &path, &[]).await),
        }
    }

    /// The next event; the fields of an SSE block must be those of its data.
    async fn next(&mut self) -> Value {
        match self {
            Client::WebSocket(listener) => listener.json().await,
            Client::Sse(events) => {
                let block = events.event().await;
                let json = block.json();
                assert_eq!(block.id.as_deref(), json["id"].as_str());
                assert!(block.event.is_none_or(|name| json["type"] == name.as_str()), "{json}");
                json
            }
        }
    }

    /// The next one about a Pod: its name, how many are left, and the whole.
    async fn pod(&mut self) -> (String, u64, Value) {
        loop {
            let event = self.next().await;
            let remaining = event["rate_limit"]["remaining"].as_u64().unwrap_or_else(|| panic!("no block: {event}"));
            match event["type"].as_str().unwrap() {
                "instance.state" => return (event["name"].as_str().unwrap().to_owned(), remaining, event),
                "state.initial" | "heartbeat" => {}
                _ => panic!("{event}"),
            }
        }
    }
}

async fn limited(cluster: &SimCluster) -> BridgeProcess {
    cluster.bridge(&["--stream-rate", "3"]).await
}

#[tokio::test]
async fn events_state_the_remaining_quota_and_a_pause_loses_nothing() {
    let cluster = SimCluster::new().await;
    let bridge = limited(&cluster).await;
    let mut clients = Vec::new();
    for row in ROWS {
        let mut client = Client::open(bridge.address, row, "snapshot=state").await;
        let first = client.next().await;
        assert_eq!(first["type"], "state.initial");
        assert_eq!((&first["rate_limit"]["limit"], &first["rate_limit"]["remaining"]), (&json!(3), &json!(3)), "{row}");
        clients.push((row, client));
    }
    let started = Timestamp::now();
    for name in ["a", "b", "c", "d", "e"] {
        cluster.create_pod(name);
    }
    for (row, client) in &mut clients {
        let (mut resets, mut last) = (Vec::new(), String::new());
        for (name, left) in [("a", 2), ("b", 1), ("c", 0)] {
            let (received, remaining, event) = client.pod().await;
            assert_eq!((received.as_str(), remaining), (name, left), "{row}");
            resets.push(event["rate_limit"]["reset_at"].as_str().unwrap().parse::<Timestamp>().unwrap());
            last = event["id"].as_str().unwrap().to_owned();
        }
        assert!(resets.iter().all(|reset| *reset == resets[0]), "one window: {resets:?}");
        let (earliest, latest) = (started + 60.seconds(), Timestamp::now() + 60.seconds());
        // What is told has milliseconds, the clock has more.
        assert!(earliest - 1.millisecond() <= resets[0] && resets[0] <= latest, "{resets:?} in {earliest} to {latest}");

        // Where it pauses is a place like any other: whoever goes on from there with a window of his own misses nothing.
        let mut other = Client::open(bridge.address, row, &format!("lastEventId={last}")).await;
        for (name, left) in [("d", 2), ("e", 1)] {
            let (received, remaining, _) = other.pod().await;
            assert_eq!((received.as_str(), remaining), (name, left), "{row}");
        }
    }
    if long_form() {
        // Heartbeats go on and stand where the stream does; when the window is over, so does the stream. All at once,
        // because who is not read does not answer pings.
        let waits = clients.iter_mut().map(|(row, client)| async move {
            let heartbeat = client.next().await;
            assert_eq!((&heartbeat["type"], &heartbeat["rate_limit"]["remaining"]), (&json!("heartbeat"), &json!(0)));
            for (name, left) in [("d", 2), ("e", 1)] {
                let (received, remaining, event) = client.pod().await;
                assert_eq!((received.as_str(), remaining), (name, left), "{row}: {event}");
            }
            assert!(Timestamp::now() >= started + 60.seconds() - 1.millisecond(), "{row} did not wait");
        });
        join_all(waits).await;
    }
}

#[tokio::test]
async fn rate_limit_is_absent_without_the_flag_and_on_ws() {
    let cluster = SimCluster::new().await;
    let (free, bound) = (cluster.bridge(&[]).await, limited(&cluster).await);
    let mut clients = Vec::new();
    for row in ROWS {
        clients.push(Client::open(free.address, row, "snapshot=state").await);
    }
    let mut boilerhouse = bound.listen("/ws?snapshot=none").await;
    // More than the limit.
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
