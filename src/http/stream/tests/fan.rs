//! Streams that writers tell: the same promises, whoever sends.

use serde_json::Value;

use super::*;
use crate::{
    event::{
        Home, Instance, Resource, View,
        projection::{Filter, Format, Lens},
    },
    feed::{Feed, Framing, From, Health, Subscription, Writer},
};

fn feed() -> (Writer, Feed) {
    let (mut writer, feed) = Feed::new(feed::Config::default());
    writer.home(Home::of("a namespace"));
    for kind in Resource::ALL {
        writer.replace(kind, Vec::new(), 1);
        writer.health(kind, Health::Live);
    }
    (writer, feed)
}

fn pod(name: &str, phase: &str, rv: u64) -> View {
    let (name, phase) = (name.to_owned(), phase.to_owned());
    View::Instance(Instance { uid: format!("uid-{name}"), name, phase, rv, ..Instance::default() }.into())
}

/// Streams with all their writers.
fn written(feed: &Feed) -> Arc<Streams> {
    let streams = shared(Config::default());
    for writer in 0..streams.fan.writers() {
        let (streams, feed) = (streams.clone(), feed.clone());
        drop(start(async move { match streams.fan.run(writer, feed).await {} }));
    }
    streams
}

fn subscription(feed: &Feed, format: Format, params: &str) -> Subscription {
    let filter = Filter::parse(params).unwrap();
    let lens = feed.lens(Lens { filter, ..Lens::all(format) }, Framing::WEBSOCKET);
    feed.subscribe(lens, From::Now).unwrap()
}

/// A stream through a pipe of `room` bytes, past its head and what it opens with, and waiting for its writer.
async fn stream(
    out: impl Outbound + 'static,
    streams: &Arc<Streams>,
    room: usize,
) -> (JoinHandle<Closed>, WebSocketStream<DuplexStream>) {
    let (mut client, server) = tokio::io::duplex(room);
    let stream = start(websocket(out, socket(Conn::Duplex(server), b""), place(streams)));
    past_head(&mut client).await;
    tokio::task::yield_now().await;
    (stream, frames(client).await)
}

async fn event(client: &mut WebSocketStream<DuplexStream>) -> Value {
    loop {
        match next(client).await {
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
async fn everybody_is_told_everything_once_whoever_sends() {
    let (mut writer, feed) = feed();
    let streams = written(&feed);
    let mut clients = Vec::new();
    for room in [1 << 20, 1 << 20, 700, 1 << 20, 300] {
        clients.push(stream(subscription(&feed, Format::Full, "{}"), &streams, room).await);
    }
    let want: Vec<String> = (0..3000).map(|number| format!("phase-{number}")).collect();
    for (number, phase) in (2..).zip(&want) {
        writer.upsert(pod("p", phase, number));
        // One at a time, some at a time, and more than a lens keeps.
        if number < 50 || number % 7 == 0 && number < 1000 {
            tokio::task::yield_now().await;
        }
    }
    for (_, client) in &mut clients {
        assert_eq!(phases(client, want.len()).await, want);
    }
}

#[tokio::test(start_paused = true)]
async fn what_passes_a_filter_by_keeps_its_cursor_fresh() {
    let (mut writer, feed) = feed();
    let streams = written(&feed);
    let out = subscription(&feed, Format::Full, r#"{"instances":{"name":"mine"}}"#);
    let (_stream, mut client) = stream(out, &streams, 1 << 16).await;
    let opening = event(&mut client).await;
    for rv in 2..3000 {
        writer.upsert(pod("other", &format!("{rv}"), rv));
        tokio::task::yield_now().await;
    }
    let heartbeat = event(&mut client).await;
    assert_eq!((&opening["type"], &heartbeat["type"]), (&"heartbeat".into(), &"heartbeat".into()));
    let mut fresh = subscription(&feed, Format::Full, r#"{"instances":{"name":"mine"}}"#);
    assert_eq!(heartbeat["id"].as_str(), fresh.cursor().as_deref());
    writer.upsert(pod("mine", "Running", 3000));
    assert_eq!(phases(&mut client, 1).await, ["Running"]);
}

#[tokio::test(start_paused = true)]
async fn a_dead_upstream_ends_ws_though_nobody_is_shown_anything() {
    let (mut writer, feed) = feed();
    let streams = written(&feed);
    let (stream, mut client) = stream(subscription(&feed, Format::Boilerhouse, "{}"), &streams, 1 << 16).await;
    writer.upsert(pod("p", "Running", 2));
    assert_eq!(phases(&mut client, 1).await, ["Running"]);
    writer.health(Resource::Claim, Health::Down { since: Instant::now(), reason: "gone".into() });
    let began = Instant::now();
    let closed = loop {
        if let Message::Close(Some(frame)) = next(&mut client).await {
            break frame;
        }
    };
    assert_eq!(closed.reason.as_str(), Close::UpstreamUnavailable.reason());
    assert!((60..=61).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    drop(client);
    assert_eq!(end(stream).await, Closed::Bridge(Close::UpstreamUnavailable));
}

/// A subscription that panics when it is shown something.
struct Fragile(Subscription);

impl Outbound for Fragile {
    fn read(&mut self, max_bytes: usize) -> Read {
        self.0.read(max_bytes)
    }

    fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll_changed(cx)
    }

    fn audience(&mut self) -> Option<Audience> {
        self.0.audience()
    }

    fn take(&mut self, _: &Shown) -> bool {
        panic!("in a writer")
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_writer_ends_its_stream_and_no_other() {
    let (mut writer, feed) = feed();
    let streams = written(&feed);
    let fragile = Fragile(subscription(&feed, Format::Boilerhouse, "{}"));
    let (broken, mut apology) = stream(fragile, &streams, 1 << 16).await;
    let (_stream, mut client) = stream(subscription(&feed, Format::Boilerhouse, "{}"), &streams, 1 << 16).await;
    for (rv, phase) in [(2, "Pending"), (3, "Running")] {
        writer.upsert(pod("p", phase, rv));
        assert_eq!(phases(&mut client, 1).await, [phase]);
    }
    let Message::Close(Some(frame)) = next(&mut apology).await else { panic!("no close frame") };
    assert_eq!(u16::from(frame.code), 1011);
    drop(apology);
    assert_eq!(end(broken).await, Closed::Bridge(Close::Internal));
}
