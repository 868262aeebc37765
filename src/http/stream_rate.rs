//! `--stream-rate`: a maximum number of events per minute for each stream (`docs/protocol.md#stream-endpoints`, "Rate").
//!
//! The subscription is read one log entry at a time as JSON lines. This module adds `rate_limit` to each event and frames
//! it for the client. Windows have a fixed length and start with the first counted event.
//!
//! Guarantees: no event is dropped. While a window is used up, the subscription is not read and keeps its position. A
//! stream that falls behind the log gets `state.initial` with the reason `lagged`, as every slow stream.
//!
//! Must not import: event types. It compares the type only to find events that are not counted.

#[cfg(test)]
mod tests;
mod window;

use std::{
    num::NonZeroU32,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use serde::Deserialize;
use tokio::time::{Instant, Sleep, sleep_until};

use self::window::RateWindow;
use super::stream::{Outbound, control};
use crate::{
    feed::{FrameFormat, Framing, ReadResult, Subscription},
    wire::CloseReason,
};

/// The rate of a stream.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Events per window; `None`: no limit.
    pub limit: Option<NonZeroU32>,
    /// Length of a window (docs/protocol.md#stream-endpoints: one minute).
    pub window: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config { limit: None, window: Duration::from_secs(60) }
    }
}

/// A subscription whose client receives a maximum number of events per window. Each event carries `rate_limit`.
#[derive(Debug)]
pub struct RateLimited {
    /// Its projection cache frames with [`FrameFormat::JsonLines`].
    subscription: Subscription,
    /// The framing for the client.
    framing: Framing,
    window: RateWindow,
    /// The sleep until the window resets, while it is used up.
    pause: Option<Pin<Box<Sleep>>>,
}

impl RateLimited {
    /// Limits `subscription` to `limit` events per `window`. Its projection cache must frame JSON lines; `framing` is the
    /// framing for the client.
    #[must_use]
    pub fn new(subscription: Subscription, framing: Framing, limit: NonZeroU32, window: Duration) -> RateLimited {
        RateLimited { subscription, framing, window: RateWindow::new(limit, window), pause: None }
    }

    /// Counts the events in `lines` and frames them for the client.
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
        // One log entry: the events of one change set are not split, so they may exceed what the window has left.
        match self.subscription.read(1) {
            ReadResult::Batch(frames) => ReadResult::Batch(frames.iter().map(|lines| self.frame(lines)).collect()),
            ReadResult::Idle => ReadResult::Idle,
            ReadResult::End(close) => ReadResult::End(close),
        }
    }

    fn prepare_read(&mut self) -> bool {
        self.window.blocked_until().is_none() && self.subscription.prepare_read()
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

    fn control_event(&mut self, _name: &'static str, json: &dyn Fn(u64) -> String) -> Option<Bytes> {
        let now_ms = self.subscription.now_ms();
        self.window.advance(Instant::now(), now_ms);
        Some(self.frame(json(now_ms).as_bytes()))
    }

    fn closing_event(&mut self, close: CloseReason, retry: Duration) -> Option<Bytes> {
        let line =
            control::closing_event(Framing { format: FrameFormat::JsonLines, ..self.framing }, close.text(), retry);
        let event = self.frame(&line);
        Some([control::retry_field(self.framing, retry), event.into()].concat().into())
    }
}

/// The keys of an event that its framing needs.
#[derive(Deserialize)]
struct EventHeader<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    id: Option<&'a str>,
}

/// Returns whether an event is not counted: it is about the stream itself, or it is the initial state.
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
