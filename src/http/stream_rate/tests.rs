//! The budget of a stream: what counts, when it pauses, and what its client receives.

use serde_json::{Value, json};
use tokio::time::{advance, timeout};

use super::*;
use crate::{
    event::{
        NamespaceId, PerResource, Resource, View,
        projection::{EventFormat, Projection},
    },
    feed::{self, Feed, Health, SnapshotReason, StartAt, Writer},
    test_support::PodBuilder,
};

const JSON_LINES: Framing = Framing { format: FrameFormat::JsonLines, edgeplane_names: false };
const MINUTE: Duration = Duration::from_secs(60);
/// 2026-01-02T03:04:05Z. The wall clock does not advance in these tests, only the monotonic clock does.
const NOW_MS: u64 = 1_767_323_045_000;

fn feed() -> (Writer, Feed) {
    let config = feed::Config { wall_clock_ms: || NOW_MS, ..feed::Config::default() };
    let (mut writer, feed) = Feed::new(config);
    writer.set_namespace(NamespaceId::from_uid("a namespace"));
    writer.replace(Resource::Pods, Vec::new(), 1);
    writer.replace(Resource::Claims, Vec::new(), 1);
    (writer, feed)
}

fn rate_limited(feed: &Feed, limit: u32, framing: Framing, start_at: StartAt) -> RateLimited {
    let cache = feed.projection_cache(
        Projection::everything(EventFormat::Full),
        Framing { format: FrameFormat::JsonLines, ..framing },
    );
    RateLimited::new(feed.subscribe(cache, start_at).unwrap(), framing, NonZeroU32::new(limit).unwrap(), MINUTE)
}

fn pod(name: &str, version: u64) -> View {
    PodBuilder::new(name).version(version).view()
}

fn ready_pod(name: &str, version: u64) -> View {
    PodBuilder::new(name).pool("ready").version(version).view()
}

fn connect() -> StartAt {
    StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: PerResource::default() }
}

/// Reads all available events as JSON. The stream must be framed as JSON lines.
fn read(rate_limited: &mut RateLimited) -> Vec<Value> {
    let mut events = Vec::new();
    loop {
        match rate_limited.read(1 << 16) {
            ReadResult::Batch(frames) => events.extend(frames.iter().flat_map(|frame| parse(frame))),
            ReadResult::Idle => return events,
            ReadResult::End(close) => panic!("{close:?}"),
        }
    }
}

fn parse(lines: &[u8]) -> Vec<Value> {
    lines.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()).collect()
}

fn names(events: &[Value]) -> Vec<String> {
    events.iter().map(|e| format!("{} {}", e["type"].as_str().unwrap(), e["name"].as_str().unwrap_or("-"))).collect()
}

/// Returns the value of `rate_limit` with this reset time, minutes and seconds after 03:00.
fn quota(limit: u32, remaining: u32, reset_at: &str) -> Value {
    json!({"limit": limit, "remaining": remaining, "reset_at": format!("2026-01-02T03:{reset_at}.000Z")})
}

fn quotas(events: &[Value]) -> Vec<Value> {
    events.iter().map(|event| event["rate_limit"].clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn stream_pauses_at_zero_until_the_window_resets() {
    let (mut writer, feed) = feed();
    let mut client = rate_limited(&feed, 2, JSON_LINES, connect());
    let first = read(&mut client);
    assert_eq!(names(&first), ["state.initial -"]);
    assert_eq!(quotas(&first), [quota(2, 2, "04:05")], "rate_limit before the first counted event");
    for version in 2..=6 {
        writer.upsert(pod(&format!("p{version}"), version));
    }
    let events = read(&mut client);
    assert_eq!(names(&events), ["instance.state p2", "instance.state p3"]);
    assert_eq!(quotas(&events), [quota(2, 1, "05:05"), quota(2, 0, "05:05")]);

    // Neither a new event nor a time shorter than the window wakes the stream. A heartbeat is sent; its cursor is the
    // position of this client.
    writer.upsert(pod("p7", 7));
    let almost = MINUTE - Duration::from_millis(1);
    assert!(timeout(almost, client.readable()).await.is_err(), "the stream must pause");
    assert!(read(&mut client).is_empty());
    let heartbeat = parse(&client.heartbeat().unwrap());
    assert_eq!(heartbeat[0]["id"], events[1]["id"]);
    assert_eq!(quotas(&heartbeat), [quota(2, 0, "05:05")]);

    let woken = Instant::now();
    timeout(MINUTE, client.readable()).await.unwrap();
    assert!(woken.elapsed() <= Duration::from_millis(2), "{:?}", woken.elapsed());
    assert_eq!(names(&read(&mut client)), ["instance.state p4", "instance.state p5"]);
    // The window started with its first event, not at the end of the previous window.
    advance(MINUTE * 10).await;
    timeout(Duration::ZERO, client.readable()).await.unwrap();
    assert_eq!(names(&read(&mut client)), ["instance.state p6", "instance.state p7"]);
    assert_eq!(client.subscription.cursor().unwrap(), feed_cursor(&feed), "the cursor after all events");
}

fn feed_cursor(feed: &Feed) -> String {
    let cache = feed.projection_cache(Projection::everything(EventFormat::Full), Framing::WEBSOCKET);
    feed.subscribe(cache, StartAt::Live).unwrap().cursor().unwrap()
}

#[tokio::test(start_paused = true)]
async fn events_of_one_version_stay_together_and_charge_the_next_window() {
    let (mut writer, feed) = feed();
    let mut client = rate_limited(&feed, 3, JSON_LINES, connect());
    read(&mut client);
    // Each Pod causes two events.
    for version in 2..=5 {
        writer.upsert(ready_pod(&format!("p{version}"), version));
    }
    let events = read(&mut client);
    let both = |name: &str| [format!("instance.state {name}"), format!("pool.instance.ready {name}")];
    assert_eq!(names(&events), [both("p2"), both("p3")].concat());
    let remaining: Vec<_> = events.iter().map(|e| e["rate_limit"]["remaining"].as_u64().unwrap()).collect();
    assert_eq!(remaining, [2, 1, 0, 0]);
    assert!(events[3]["id"].is_string(), "the last event of a change set has an id");
    timeout(MINUTE, client.readable()).await.unwrap();
    // The previous change set used one of the three events of this window. The next change set uses the other two.
    assert_eq!(names(&read(&mut client)), both("p4"));
    timeout(MINUTE, client.readable()).await.unwrap();
    assert_eq!(names(&read(&mut client)), both("p5"));
}

#[tokio::test(start_paused = true)]
async fn large_diff_costs_one_extra_window() {
    let (mut writer, feed) = feed();
    let mut client = rate_limited(&feed, 3, JSON_LINES, connect());
    read(&mut client);
    writer.replace(Resource::Pods, (2..102).map(|version| pod(&format!("p{version}"), version)).collect(), 200);
    writer.upsert(pod("after", 201));
    let events = read(&mut client);
    assert_eq!(events.len(), 100);
    assert_eq!(events[99]["rate_limit"], quota(3, 0, "06:05"), "rate_limit after two used-up windows");
    assert!(timeout(MINUTE * 2 - Duration::from_millis(1), client.readable()).await.is_err());
    timeout(MINUTE, client.readable()).await.unwrap();
    assert_eq!(names(&read(&mut client)), ["instance.state after"]);
}

#[tokio::test(start_paused = true)]
async fn control_events_do_not_use_quota() {
    let (mut writer, feed) = feed();
    let mut client = rate_limited(&feed, 1, JSON_LINES, StartAt::Live);
    assert_eq!(names(&read(&mut client)), ["heartbeat -"]);
    for _ in 0..3 {
        writer.set_health(Resource::Pods, Health::Down { since: Instant::now(), reason: "gone".into() });
        writer.set_health(Resource::Pods, Health::Live);
    }
    let events = read(&mut client);
    assert_eq!(events.len(), 6, "{events:?}");
    assert!(events.iter().all(|event| event["rate_limit"]["remaining"] == 1), "{events:?}");
    writer.upsert(pod("p", 2));
    assert_eq!(names(&read(&mut client)), ["instance.state p"]);
}

/// On every transport, the events are those of a stream without the limit, with `rate_limit` added.
#[tokio::test(start_paused = true)]
async fn rate_limited_frames_equal_unlimited_frames_plus_quota() {
    let sse = |named| FrameFormat::Sse { named, chunked: false };
    for (format, edgeplane_names) in [(FrameFormat::WebSocket, false), (sse(true), false), (sse(false), true)] {
        let (mut writer, feed) = feed();
        let framing = Framing { format, edgeplane_names };
        let mut limited = rate_limited(&feed, 9, framing, connect());
        let mut unlimited = feed
            .subscribe(feed.projection_cache(Projection::everything(EventFormat::Full), framing), connect())
            .unwrap();
        let mut received = String::new();
        for version in 2..=6 {
            let ReadResult::Batch(frames) = limited.read(1) else { panic!("no batch with the limit") };
            let ReadResult::Batch(expected) = unlimited.read(1) else { panic!("no batch without the limit") };
            let without_limit =
                |frames: &[Bytes]| frames.iter().map(|frame| without_rate_limit(format, frame)).collect::<Vec<_>>();
            assert_eq!(without_limit(&frames), without_limit(&expected));
            received.extend(frames.iter().map(|frame| text(frame)));
            assert!(frames.iter().all(|frame| text(frame).contains(r#","rate_limit":{"limit":9,"#)));
            writer.upsert(ready_pod(&format!("p{version}\" }} ü"), version));
            writer.set_health(Resource::Pods, Health::Down { since: Instant::now(), reason: "gone".into() });
        }
        let names = [
            "state.initial",
            "instance.state",
            "pool.instance.ready",
            if edgeplane_names { "matrix-down" } else { "upstream.down" },
        ];
        assert!(names.iter().all(|name| received.contains(&format!(r#""type":"{name}""#))), "{received}");
    }
}

fn text(frame: &[u8]) -> String {
    String::from_utf8_lossy(frame).into_owned()
}

/// Removes `rate_limit` from a frame. Of WebSocket frames it returns the texts only, because their length fields differ.
fn without_rate_limit(format: FrameFormat, frame: &[u8]) -> String {
    let mut bytes = Vec::new();
    let mut rest = frame;
    while format == FrameFormat::WebSocket && !rest.is_empty() {
        let (header, len) = match rest[1] {
            126 => (4, usize::from(u16::from_be_bytes([rest[2], rest[3]]))),
            len => (2, usize::from(len)),
        };
        assert_eq!(rest[0], 0x81, "first byte of a complete text message");
        bytes.extend_from_slice(&rest[header..header + len]);
        bytes.push(b'\n');
        rest = &rest[header + len..];
    }
    let mut text = if bytes.is_empty() { text(frame) } else { text(&bytes) };
    while let Some(at) = text.find(r#","rate_limit":{"#) {
        let end = at + text[at..].find('}').unwrap();
        text.replace_range(at..=end, "");
    }
    text
}
