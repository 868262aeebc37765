//! Streams that a shard serves. They give the same guarantees as streams whose own task writes.

use serde_json::Value;

use super::*;
use crate::{
    event::{
        NamespaceId, Resource,
        projection::{EventFormat, Filter, Projection},
    },
    feed::{self, Feed, Framing, Health, StartAt, Subscription, Writer},
    test_support::PodBuilder,
};

fn synced_feed() -> (Writer, Feed) {
    let (mut writer, feed) = Feed::new(feed::Config::default());
    writer.set_namespace(NamespaceId::from_uid("a namespace"));
    for resource in Resource::ALL {
        writer.replace(resource, Vec::new(), 1);
        writer.set_health(resource, Health::Live);
    }
    (writer, feed)
}

/// Returns a context whose shards all run.
fn context_with_shards(feed: &Feed) -> Arc<StreamContext> {
    let streams = stream_context(Config::default());
    for shard in 0..streams.fan_out.writer_count() {
        let (streams, feed) = (streams.clone(), feed.clone());
        drop(spawn_stream(async move { match streams.fan_out.run(shard, Log::Feed(feed)).await {} }));
    }
    streams
}

fn subscription(feed: &Feed, format: EventFormat, params: &str) -> Subscription {
    let filter = Filter::parse(params).unwrap();
    let projection_cache =
        feed.projection_cache(Projection { filter, ..Projection::everything(format) }, Framing::WEBSOCKET);
    feed.subscribe(projection_cache, StartAt::Live).unwrap()
}

/// Starts a stream over a pipe of `capacity` bytes. It has sent its head and its first frames, and has joined its
/// group.
async fn stream(
    out: impl Outbound + 'static,
    streams: &Arc<StreamContext>,
    capacity: usize,
) -> (JoinHandle<StreamEnd>, WebSocketStream<DuplexStream>) {
    let (mut client, server) = tokio::io::duplex(capacity);
    let stream = spawn_stream(websocket(out, socket(Conn::Duplex(server), b""), acquire_permit(streams)));
    read_head(&mut client).await;
    tokio::task::yield_now().await;
    (stream, websocket_client(client).await)
}

async fn event(client: &mut WebSocketStream<DuplexStream>) -> Value {
    loop {
        match next_message(client).await {
            Message::Text(text) => return serde_json::from_str(&text).unwrap(),
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn phases(client: &mut WebSocketStream<DuplexStream>, count: usize) -> Vec<String> {
    let mut phases = Vec::new();
    while phases.len() < count {
        let event = event(client).await;
        if event["type"] == "instance.state" {
            phases.push(event["phase"].as_str().unwrap().to_owned());
        }
    }
    phases
}

#[tokio::test(start_paused = true)]
async fn fan_out_delivers_every_event_exactly_once() {
    let (mut writer, feed) = synced_feed();
    let streams = context_with_shards(&feed);
    let mut clients = Vec::new();
    for capacity in [1 << 20, 1 << 20, 700, 1 << 20, 300] {
        clients.push(stream(subscription(&feed, EventFormat::Full, "{}"), &streams, capacity).await);
    }
    let expected: Vec<String> = (0..3000).map(|number| format!("phase-{number}")).collect();
    for (number, phase) in (2..).zip(&expected) {
        writer.upsert(PodBuilder::new("p").phase(phase).version(number).view());
        // Deliveries of one entry, of a few entries, and of more entries than a projection cache holds.
        if number < 50 || number % 7 == 0 && number < 1000 {
            tokio::task::yield_now().await;
        }
    }
    for (_, client) in &mut clients {
        assert_eq!(phases(client, expected.len()).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn filtered_stream_heartbeat_advances_its_cursor() {
    let (mut writer, feed) = synced_feed();
    let streams = context_with_shards(&feed);
    let out = subscription(&feed, EventFormat::Full, r#"{"instances":{"name":"mine"}}"#);
    let (_stream, mut client) = stream(out, &streams, 1 << 16).await;
    let first_heartbeat = event(&mut client).await;
    for rv in 2..3000 {
        writer.upsert(PodBuilder::new("other").phase(&rv.to_string()).version(rv).view());
        tokio::task::yield_now().await;
    }
    let heartbeat = event(&mut client).await;
    assert_eq!((&first_heartbeat["type"], &heartbeat["type"]), (&"heartbeat".into(), &"heartbeat".into()));
    let mut new_subscription = subscription(&feed, EventFormat::Full, r#"{"instances":{"name":"mine"}}"#);
    assert_eq!(heartbeat["id"].as_str(), new_subscription.cursor().as_deref());
    writer.upsert(PodBuilder::new("mine").version(3000).view());
    assert_eq!(phases(&mut client, 1).await, ["Running"]);
}

#[tokio::test(start_paused = true)]
async fn ws_closes_when_upstream_is_down_without_new_entries() {
    let (mut writer, feed) = synced_feed();
    let streams = context_with_shards(&feed);
    let (stream, mut client) = stream(subscription(&feed, EventFormat::Boilerhouse, "{}"), &streams, 1 << 16).await;
    writer.upsert(PodBuilder::new("p").version(2).view());
    assert_eq!(phases(&mut client, 1).await, ["Running"]);
    writer.set_health(Resource::Claims, Health::Down { since: Instant::now(), reason: "unreachable".into() });
    let started = Instant::now();
    let closed = loop {
        if let Message::Close(Some(frame)) = next_message(&mut client).await {
            break frame;
        }
    };
    assert_eq!(closed.reason.as_str(), CloseReason::UpstreamUnavailable.text());
    assert!((60..=61).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    drop(client);
    assert_eq!(stream_end(stream).await, StreamEnd::ByBridge(CloseReason::UpstreamUnavailable));
}

/// A subscription that panics when it receives a shared batch.
struct PanickingOutbound(Subscription);

impl Outbound for PanickingOutbound {
    fn read(&mut self, max_bytes: usize) -> ReadResult {
        self.0.read(max_bytes)
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll_readable(cx)
    }

    fn group(&mut self) -> Option<Group> {
        self.0.join_group().map(Group::Feed)
    }

    fn accept_batch(&mut self, _: &SharedBatch) -> bool {
        panic!("in the task of the shard")
    }
}

#[tokio::test(start_paused = true)]
async fn panic_in_a_shard_closes_only_its_own_stream() {
    let (mut writer, feed) = synced_feed();
    let streams = context_with_shards(&feed);
    let panicking = PanickingOutbound(subscription(&feed, EventFormat::Boilerhouse, "{}"));
    let (panicked_stream, mut panicked_client) = stream(panicking, &streams, 1 << 16).await;
    let (_stream, mut client) = stream(subscription(&feed, EventFormat::Boilerhouse, "{}"), &streams, 1 << 16).await;
    for (rv, phase) in [(2, "Pending"), (3, "Running")] {
        writer.upsert(PodBuilder::new("p").phase(phase).version(rv).view());
        assert_eq!(phases(&mut client, 1).await, [phase]);
    }
    let Message::Close(Some(frame)) = next_message(&mut panicked_client).await else {
        panic!("a close frame is expected")
    };
    assert_eq!(u16::from(frame.code), 1011);
    drop(panicked_client);
    assert_eq!(stream_end(panicked_stream).await, StreamEnd::ByBridge(CloseReason::Internal));
}
