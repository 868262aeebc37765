//! `--stream-rate`: so many events a minute for each client (docs/protocol.md#stream-endpoints, "Rate").
//!
//! A subscription is read one step at a time; each event gets its `rate_limit` and is framed for the client here. When a
//! window is used up the subscription is not read any further until the next one begins: the client's position
//! pauses, nothing is dropped, and what a client needs that falls behind too far is the feed's own business (`lagged`).
//! Windows are fixed, from the first event that counts. It knows no event but those that do not count.

use std::{
    num::NonZeroU32,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use serde::Deserialize;
use tokio::time::{Instant, Sleep, sleep_until};

use super::stream::{Outbound, control};
use crate::{
    event::render,
    feed::{FrameFormat, Framing, ReadResult, Subscription},
    wire::CloseReason,
};

/// How much a client gets.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Events a window; `None`: as many as there are.
    pub limit: Option<NonZeroU32>,
    /// How long a window lasts (docs/protocol.md#stream-endpoints: events a minute).
    pub window: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config { limit: None, window: Duration::from_secs(60) }
    }
}

/// A subscription whose client gets only so many events a window, and is told so with each.
#[derive(Debug)]
pub struct RateLimited {
    /// Its lens frames with [`crate::feed::FrameFormat::JsonLines`].
    subscription: Subscription,
    /// How the client is served.
    framing: Framing,
    window: RateWindow,
    /// While a window is used up.
    pause: Option<Pin<Box<Sleep>>>,
}

impl RateLimited {
    /// At most `limit` events each `window` long. The subscription yields lines, which are laid on the wire by `framing`.
    #[must_use]
    pub fn new(subscription: Subscription, framing: Framing, limit: NonZeroU32, window: Duration) -> RateLimited {
        RateLimited { subscription, framing, window: RateWindow::new(limit, window), pause: None }
    }

    /// Counts and frames the events of some lines.
    fn frame(&mut self, lines: &[u8]) -> Bytes {
        let lines = std::str::from_utf8(lines).expect("JSON is UTF-8");
        let (now, now_ms) = (Instant::now(), self.subscription.now_ms());
        let mut out = Vec::new();
        for line in lines.split_terminator('\n') {
            let header: EventHeader = serde_json::from_str(line).expect("events are objects with a type");
            if !is_control(header.kind) {
                self.window.count(now, now_ms);
            }
            let (members, _) = line.rsplit_once('}').expect("events are objects");
            let json = format!(r#"{members},"rate_limit":{}}}"#, self.window.to_json(now_ms));
            self.framing.append_frame(&mut out, header.kind, header.id, &json);
        }
        out.into()
    }
}

impl Outbound for RateLimited {
    fn read(&mut self, _max_bytes: usize) -> ReadResult {
        self.window.advance(Instant::now(), self.subscription.now_ms());
        if self.window.blocked_until().is_some() {
            return ReadResult::Idle;
        }
        // One step: the events of one version are never split, so it may be a few more than there is room for.
        match self.subscription.read(1) {
            ReadResult::Batch(frames) => ReadResult::Batch(frames.iter().map(|lines| self.frame(lines)).collect()),
            ReadResult::Idle => ReadResult::Idle,
            ReadResult::End(close) => ReadResult::End(close),
        }
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(reset) = self.window.blocked_until() else {
            self.pause = None;
            return self.subscription.poll_readable(cx);
        };
        let pause = self.pause.get_or_insert_with(|| Box::pin(sleep_until(reset)));
        if pause.deadline() != reset {
            pause.as_mut().reset(reset);
        }
        pause.as_mut().poll(cx)
    }

    fn heartbeat(&mut self) -> Option<Bytes> {
        self.window.advance(Instant::now(), self.subscription.now_ms());
        let line = self.subscription.heartbeat()?;
        Some(self.frame(&line))
    }

    fn control_event(&mut self, _name: &'static str, json: &str) -> Option<Bytes> {
        self.window.advance(Instant::now(), self.subscription.now_ms());
        Some(self.frame(json.as_bytes()))
    }

    fn closing_event(&mut self, close: CloseReason, retry: Duration) -> Option<Bytes> {
        let line =
            control::closing_event(Framing { format: FrameFormat::JsonLines, ..self.framing }, close.text(), retry);
        let event = self.frame(&line);
        Some([control::retry_field(self.framing, retry), event.into()].concat().into())
    }
}

/// What framing needs to know of an event.
#[derive(Deserialize)]
struct EventHeader<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    id: Option<&'a str>,
}

/// Whether an event is about the stream itself, or is where it starts: those do not count.
fn is_control(kind: &str) -> bool {
    matches!(
        kind,
        "state.initial"
            | "upstream.down"
            | "upstream.up"
            | "matrix-down"
            | "matrix-up"
            | "heartbeat"
            | "auth.expiring"
            | "stream.closing"
    )
}

/// How much of the current window is used.
#[derive(Debug)]
struct RateWindow {
    limit: u64,
    length: Duration,
    /// When it began, by the clock that runs evenly and by the one on the wall; `None` until an event counts.
    began: Option<(Instant, u64)>,
    /// More than `limit` is taken from the next window. No more than a whole one is: the difference that a re-list
    /// brings can be a thousand events, for which nobody is to be silent for an hour.
    used: u64,
}

impl RateWindow {
    fn new(limit: NonZeroU32, length: Duration) -> RateWindow {
        RateWindow { limit: u64::from(limit.get()), length, began: None, used: 0 }
    }

    /// Lets windows pass that are over.
    fn advance(&mut self, now: Instant, now_ms: u64) {
        while let Some((began, _)) = self.began
            && now >= began + self.length
        {
            let next = began + self.length;
            self.used = self.used.saturating_sub(self.limit);
            self.began = (self.used > 0).then(|| (next, now_ms.saturating_sub(millis(now - next))));
        }
    }

    fn count(&mut self, now: Instant, now_ms: u64) {
        self.began.get_or_insert((now, now_ms));
        self.used = (self.used + 1).min(2 * self.limit);
    }

    /// Windows until there is room again.
    fn windows_used(&self) -> u32 {
        // At most two, by how `used` is bounded.
        if self.used >= 2 * self.limit { 2 } else { 1 }
    }

    /// When there is room again, if there is none.
    fn blocked_until(&self) -> Option<Instant> {
        let (began, _) = self.began?;
        (self.used >= self.limit).then(|| began + self.length * self.windows_used())
    }

    /// `rate_limit` as JSON. Before anything has counted there is nothing to reset, and `reset_at` is now.
    fn to_json(&self, now_ms: u64) -> String {
        let RateWindow { limit, used, .. } = self;
        let reset_ms = self.began.map_or(now_ms, |(_, ms)| ms + millis(self.length * self.windows_used()));
        let reset_at = render::format_timestamp(reset_ms);
        let remaining = limit.saturating_sub(*used);
        format!(r#"{{"limit":{limit},"remaining":{remaining},"reset_at":"{reset_at}"}}"#)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::time::{advance, timeout};

    use super::*;
    use crate::{
        event::{
            Instance, NamespaceId, Resource, View,
            projection::{EventFormat, Projection},
        },
        feed::{self, Feed, Health, SnapshotReason, StartAt, Writer},
    };

    const JSON_LINES: Framing = Framing { format: FrameFormat::JsonLines, edgeplane_names: false };
    const MINUTE: Duration = Duration::from_secs(60);
    /// 2026-01-02T03:04:05Z: the wall clock stands still, so that what moves is the other one.
    const NOW_MS: u64 = 1_767_323_045_000;

    fn feed() -> (Writer, Feed) {
        let config = feed::Config { wall_clock_ms: || NOW_MS, ..feed::Config::default() };
        let (mut writer, feed) = Feed::new(config);
        writer.set_namespace(NamespaceId::from_uid("a namespace"));
        writer.replace(Resource::Pods, Vec::new(), 1);
        writer.replace(Resource::Claims, Vec::new(), 1);
        (writer, feed)
    }

    fn rate_limited(feed: &Feed, limit: u32, framing: Framing, from: StartAt) -> RateLimited {
        let cache = feed.projection_cache(
            Projection::everything(EventFormat::Full),
            Framing { format: FrameFormat::JsonLines, ..framing },
        );
        RateLimited::new(feed.subscribe(cache, from).unwrap(), framing, NonZeroU32::new(limit).unwrap(), MINUTE)
    }

    fn pod(name: &str, phase: &str, pool: Option<&str>, rv: u64) -> View {
        let (name, phase, pool_status) = (name.to_owned(), phase.to_owned(), pool.map(str::to_owned));
        View::Instance(
            Instance {
                uid: format!("uid-{name}"),
                name,
                phase,
                pool_status,
                resource_version: rv,
                ..Instance::default()
            }
            .into(),
        )
    }

    /// What there is to read now, as JSON (of a client that is served lines).
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
        events
            .iter()
            .map(|e| format!("{} {}", e["type"].as_str().unwrap(), e["name"].as_str().unwrap_or("-")))
            .collect()
    }

    fn block(limit: u32, remaining: u32, reset_at: &str) -> Value {
        json!({"limit": limit, "remaining": remaining, "reset_at": format!("2026-01-02T03:{reset_at}.000Z")})
    }

    fn blocks(events: &[Value]) -> Vec<Value> {
        events.iter().map(|event| event["rate_limit"].clone()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn stream_pauses_at_zero_until_the_window_resets() {
        let (mut writer, feed) = feed();
        let mut client = rate_limited(
            &feed,
            2,
            JSON_LINES,
            StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: Default::default() },
        );
        let first = read(&mut client);
        assert_eq!(names(&first), ["state.initial -"]);
        assert_eq!(blocks(&first), [block(2, 2, "04:05")], "nothing has counted yet");
        for rv in 2..=6 {
            writer.upsert(pod(&format!("p{rv}"), "Running", None, rv));
        }
        let events = read(&mut client);
        assert_eq!(names(&events), ["instance.state p2", "instance.state p3"]);
        assert_eq!(blocks(&events), [block(2, 1, "05:05"), block(2, 0, "05:05")]);

        // Neither new events nor time short of the window wake it; a heartbeat goes on, and tells how far this client is.
        writer.upsert(pod("p7", "Running", None, 7));
        let almost = MINUTE - Duration::from_millis(1);
        assert!(timeout(almost, client.readable()).await.is_err(), "it pauses");
        assert!(read(&mut client).is_empty());
        let heartbeat = parse(&client.heartbeat().unwrap());
        assert_eq!(heartbeat[0]["id"], events[1]["id"]);
        assert_eq!(blocks(&heartbeat), [block(2, 0, "05:05")]);

        let woken = Instant::now();
        timeout(MINUTE, client.readable()).await.unwrap();
        assert!(woken.elapsed() <= Duration::from_millis(2), "{:?}", woken.elapsed());
        assert_eq!(names(&read(&mut client)), ["instance.state p4", "instance.state p5"]);
        // The window began with its first event, not when the last one ended.
        advance(MINUTE * 10).await;
        timeout(Duration::ZERO, client.readable()).await.unwrap();
        assert_eq!(names(&read(&mut client)), ["instance.state p6", "instance.state p7"]);
        assert_eq!(client.subscription.cursor().unwrap(), feed_cursor(&feed), "nothing is missing");
    }

    fn feed_cursor(feed: &Feed) -> String {
        let cache = feed.projection_cache(Projection::everything(EventFormat::Full), Framing::WEBSOCKET);
        feed.subscribe(cache, StartAt::Live).unwrap().cursor().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn events_of_one_version_stay_together_and_charge_the_next_window() {
        let (mut writer, feed) = feed();
        let mut client = rate_limited(
            &feed,
            3,
            JSON_LINES,
            StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: Default::default() },
        );
        read(&mut client);
        // Two events each.
        for rv in 2..=5 {
            writer.upsert(pod(&format!("p{rv}"), "Running", Some("ready"), rv));
        }
        let events = read(&mut client);
        let both = |name: &str| [format!("instance.state {name}"), format!("pool.instance.ready {name}")];
        assert_eq!(names(&events), [both("p2"), both("p3")].concat());
        let remaining: Vec<_> = events.iter().map(|e| e["rate_limit"]["remaining"].as_u64().unwrap()).collect();
        assert_eq!(remaining, [2, 1, 0, 0]);
        assert!(events[3]["id"].is_string(), "the version is whole");
        timeout(MINUTE, client.readable()).await.unwrap();
        // Of three, one was taken: the next version fills it exactly.
        assert_eq!(names(&read(&mut client)), both("p4"));
        timeout(MINUTE, client.readable()).await.unwrap();
        assert_eq!(names(&read(&mut client)), both("p5"));
    }

    #[tokio::test(start_paused = true)]
    async fn large_diff_costs_one_extra_window() {
        let (mut writer, feed) = feed();
        let mut client = rate_limited(
            &feed,
            3,
            JSON_LINES,
            StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: Default::default() },
        );
        read(&mut client);
        writer.replace(Resource::Pods, (2..102).map(|rv| pod(&format!("p{rv}"), "Running", None, rv)).collect(), 200);
        writer.upsert(pod("after", "Running", None, 201));
        let events = read(&mut client);
        assert_eq!(events.len(), 100);
        assert_eq!(events[99]["rate_limit"], block(3, 0, "06:05"), "two windows");
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
        writer.upsert(pod("p", "Running", None, 2));
        assert_eq!(names(&read(&mut client)), ["instance.state p"]);
    }

    /// Whatever carries it, a client gets what it would get without the limit, and the block.
    #[tokio::test(start_paused = true)]
    async fn rate_limited_frames_equal_unlimited_frames_plus_quota() {
        let sse = |named| FrameFormat::Sse { named };
        for (format, edgeplane_names) in [(FrameFormat::WebSocket, false), (sse(true), false), (sse(false), true)] {
            let (mut writer, feed) = feed();
            let (framing, start) = (
                Framing { format, edgeplane_names },
                StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: Default::default() },
            );
            let mut limited = rate_limited(&feed, 9, framing, start);
            let mut free = feed
                .subscribe(feed.projection_cache(Projection::everything(EventFormat::Full), framing), start)
                .unwrap();
            let mut received = String::new();
            for rv in 2..=6 {
                let ReadResult::Batch(frames) = limited.read(1) else { panic!("nothing comes") };
                let ReadResult::Batch(wanted) = free.read(1) else { panic!("nothing comes") };
                let bare = |frames: &[Bytes]| frames.iter().map(|f| without_blocks(format, f)).collect::<Vec<_>>();
                assert_eq!(bare(&frames), bare(&wanted));
                received.extend(frames.iter().map(|frame| text(frame)));
                assert!(frames.iter().all(|frame| text(frame).contains(r#","rate_limit":{"limit":9,"#)));
                writer.upsert(pod(&format!("p{rv}\" }} ü"), "Running", Some("ready"), rv));
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

    /// Without its blocks, and, of WebSocket frames, whose length differs then, only the texts.
    fn without_blocks(format: FrameFormat, frame: &[u8]) -> String {
        let mut bytes = Vec::new();
        let mut rest = frame;
        while format == FrameFormat::WebSocket && !rest.is_empty() {
            let (header, len) = match rest[1] {
                126 => (4, usize::from(u16::from_be_bytes([rest[2], rest[3]]))),
                len => (2, usize::from(len)),
            };
            assert_eq!(rest[0], 0x81, "one whole text message");
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
}
