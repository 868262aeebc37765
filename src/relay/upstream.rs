//! The upstream: one connection that is opened again whenever it ends.
//!
//! Guarantees:
//! - At most one connection exists.
//! - Each failed try is in the history at once, as `matrix-down` with the time of the next try.
//! - While the rate limit of the upstream is used up, no try starts.

use std::{convert::Infallible, time::Duration};

use jiff::Timestamp;
use serde::Deserialize;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use super::{
    continuity::{Continuity, Verdict},
    entry::Entry,
    history::Writer,
};
use crate::client::{Backoff, Block, Client, Connection, Error, Part, RateLimit, random};

/// The longest hold for a rate limit: 1 h. A wrong `reset_at` must not stop the relay.
const MAX_RATE_HOLD: Duration = Duration::from_secs(3600);
/// Characters of a `reason` that comes from the upstream.
const MAX_REASON_CHARS: usize = 100;
/// Reasons of `matrix-down` that do not come from a `stream.closing` of the upstream.
const REASONS: [&str; 12] = [
    "no connection",
    "no credentials",
    "unauthorized",
    "forbidden",
    "too many requests",
    "error answer",
    "redirect",
    "no event stream",
    "stream ended",
    "connection cut",
    "silent",
    "event too large",
];
/// The label of a reason that comes from a `stream.closing` of the upstream.
const CLOSED: &str = "closed";

/// Times of the upstream.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// A connection without an event counts as up after this time, and a `stream.closing` that is not followed by the end of
    /// the stream is an event like any other. Default: 1 s, within which a bridge ends a stream.
    pub settle: Duration,
    /// A try starts at a random time within this time after a rate limit ends. Default: 1 s.
    pub rate_jitter: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config { settle: Duration::from_secs(1), rate_jitter: Duration::from_secs(1) }
    }
}

/// Time after which an outage that goes on is logged again.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// Reads the stream of `client` into the history until shutdown.
pub async fn run(client: Client, writer: Writer, config: Config) -> Infallible {
    writer.metrics().create_failures(&REASONS);
    writer.metrics().create_failures(&[CLOSED]);
    let mut upstream = Upstream {
        client,
        writer,
        config,
        backoff: Backoff::default(),
        continuity: Continuity::default(),
        rate_reset: None,
        is_down: false,
        reported: None,
    };
    loop {
        let failure = upstream.try_once().await;
        let delay = upstream.on_failure(&failure);
        sleep(delay).await;
    }
}

struct Upstream {
    client: Client,
    writer: Writer,
    config: Config,
    backoff: Backoff,
    continuity: Continuity,
    /// When the rate limit of the upstream starts again, if it is used up.
    rate_reset: Option<Timestamp>,
    /// `matrix-down` is the newest status.
    is_down: bool,
    /// The reason of the outage that was logged last, and when.
    reported: Option<(&'static str, Instant)>,
}

/// Why there is no stream.
#[derive(Debug)]
struct Failure {
    status: Option<u16>,
    reason: String,
    /// The reason as the label of a metric.
    label: &'static str,
    retry_after: Option<Duration>,
    /// For the log.
    detail: String,
}

/// A `stream.closing` of the upstream. It is an event only if the stream goes on.
struct Held {
    block: Block,
    closing: Closing,
    arrival: Instant,
    until: Instant,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Closing {
    r#type: String,
    #[serde(default)]
    reason: String,
    detail: Option<String>,
    retry_after_ms: Option<u64>,
}

impl Upstream {
    /// Connects and reads the stream to its end.
    async fn try_once(&mut self) -> Failure {
        let connection = match self.client.connect(self.continuity.cursor()).await {
            Ok(connection) => connection,
            Err(error) => return self.failure(&error),
        };
        self.writer.metrics().upstream_connections.inc();
        let may_miss_events = self.continuity.on_connected(Instant::now());
        self.read(connection, may_miss_events).await
    }

    async fn read(&mut self, mut connection: Connection, may_miss_events: bool) -> Failure {
        // `Some` until the connection counts as up. A bridge refuses some requests with a stream that ends at once.
        let mut settles = Some((Instant::now() + self.config.settle, may_miss_events));
        let mut held: Option<Held> = None;
        loop {
            let wake_at = settles.iter().map(|(at, _)| *at).chain(held.iter().map(|held| held.until)).min();
            let first = tokio::select! {
                biased;
                next = connection.next_part() => next,
                () = wait_until(wake_at) => {
                    let mut entries = Vec::new();
                    self.settle(&mut settles, &mut entries);
                    if let Some(held) = held.take_if(|held| Instant::now() >= held.until) {
                        self.accept_held(held, &mut entries);
                    }
                    self.writer.append(entries);
                    continue;
                }
            };
            let first = match first {
                Ok(first) => first,
                Err(error) => return self.end(&error, held),
            };
            let arrival = connection.arrival();
            let mut entries = Vec::new();
            for part in std::iter::once(first).chain(std::iter::from_fn(|| connection.next_received_part())) {
                let block = match part {
                    Part::Event(block) => block,
                    Part::Id(id) => {
                        self.advance(&id, &mut entries);
                        continue;
                    }
                };
                if let Some(held) = held.take() {
                    self.settle(&mut settles, &mut entries);
                    self.accept_held(held, &mut entries);
                }
                if let Some(closing) = closing(&block) {
                    // The next request resumes after it, also if it is no event.
                    if let Some(id) = &block.id {
                        self.advance(id, &mut entries);
                    }
                    held = Some(Held { block, closing, arrival, until: Instant::now() + self.config.settle });
                } else {
                    self.settle(&mut settles, &mut entries);
                    self.accept(block, arrival, &mut entries);
                }
            }
            self.writer.append(entries);
        }
    }

    /// Records that the connection is up.
    fn settle(&mut self, settles: &mut Option<(Instant, bool)>, entries: &mut Vec<Entry>) {
        let Some((_, may_miss_events)) = settles.take() else { return };
        self.continuity.on_streaming();
        self.writer.metrics().upstream_up.set(1);
        self.reported = None;
        if std::mem::take(&mut self.is_down) {
            entries.push(Entry::up());
        }
        info!(upstream = self.client.url(), "the upstream sends its stream");
        if may_miss_events {
            entries.push(self.upstream_gap("the upstream sends no ids, so events may be missing after a reconnect"));
        }
    }

    /// Adds an event that began to arrive at this time, unless clients have it.
    fn accept(&mut self, block: Block, arrival: Instant, entries: &mut Vec<Entry>) {
        let verdict = self.continuity.judge(&block, arrival, |id| self.writer.has_seen(id));
        self.add(block, verdict, entries);
    }

    fn accept_held(&mut self, held: Held, entries: &mut Vec<Entry>) {
        let verdict = self.continuity.judge_held(&held.block, held.arrival);
        self.add(held.block, verdict, entries);
    }

    fn add(&mut self, block: Block, verdict: Verdict, entries: &mut Vec<Entry>) {
        if let Some(limit) = RateLimit::parse(&block.data) {
            self.on_rate_limit(&limit);
        }
        if verdict == Verdict::Repeated {
            self.writer.metrics().repeated_events.inc();
            return;
        }
        self.report(verdict, entries);
        self.backoff.reset();
        entries.push(Entry::event(block));
    }

    /// Moves to an id that no event carries, or an event that is held back.
    fn advance(&mut self, id: &str, entries: &mut Vec<Entry>) {
        let verdict = self.continuity.advance(id, |id| self.writer.has_seen(id));
        self.report(verdict, entries);
    }

    /// Reports what may be missing before the next event.
    fn report(&self, verdict: Verdict, entries: &mut Vec<Entry>) {
        match verdict {
            Verdict::New | Verdict::Repeated => {}
            Verdict::Unclear => entries.push(self.upstream_gap(
                "the upstream repeats events for long after a reconnect, so new events that are equal may be missing",
            )),
            Verdict::StartedAgain => {
                entries.push(self.upstream_gap("the ids of the upstream start again, so events may be missing"));
            }
        }
    }

    fn upstream_gap(&self, message: &str) -> Entry {
        warn!(upstream = self.client.url(), "{message}");
        Entry::gap(super::entry::GapReason::Upstream)
    }

    fn on_rate_limit(&mut self, limit: &RateLimit) {
        self.rate_reset = limit.reset_at.as_deref().filter(|_| limit.is_used_up).and_then(timestamp);
    }

    /// Returns the failure for the end of a stream. What a `stream.closing` at its end says is the reason.
    fn end(&mut self, error: &Error, held: Option<Held>) -> Failure {
        let failure = self.failure(error);
        let Some(Held { closing, .. }) = held else { return failure };
        if !matches!(error, Error::Closed { .. } | Error::Lost(_)) {
            return failure;
        }
        let reason: String = closing.reason.chars().take(MAX_REASON_CHARS).collect();
        let reason = if reason.is_empty() { failure.reason } else { reason };
        let retry_after = closing.retry_after_ms.map(Duration::from_millis).or(failure.retry_after);
        let why: String = closing.detail.iter().flat_map(|detail| detail.chars()).take(MAX_REASON_CHARS).collect();
        let detail =
            format!("it closed the stream: {reason}{}", if why.is_empty() { why } else { format!(" ({why})") });
        Failure { reason, label: CLOSED, retry_after, detail, ..failure }
    }

    fn failure(&mut self, error: &Error) -> Failure {
        if let Error::Status { rate_limit: Some(limit), .. } = error {
            self.on_rate_limit(limit);
        }
        let label = match error {
            Error::Token { .. } => "no credentials",
            Error::Status { status: 401, .. } => "unauthorized",
            Error::Status { status: 403, .. } => "forbidden",
            Error::Status { status: 429, .. } => "too many requests",
            Error::Status { .. } => "error answer",
            Error::Redirect { .. } => "redirect",
            Error::NotAStream { .. } => "no event stream",
            Error::TooLarge(_) => "event too large",
            Error::Closed { .. } => "stream ended",
            Error::Lost(_) => "connection cut",
            Error::Silent(_) => "silent",
            // A raw connection parses no events, and its settings are checked at the start.
            Error::Connect { .. } | Error::Setting(_) | Error::Malformed { .. } | Error::CursorRejected(_) => {
                "no connection"
            }
        };
        let (status, retry_after) = (error.status(), error.retry_after());
        Failure { status, reason: label.to_owned(), label, retry_after, detail: error.to_string() }
    }

    /// Records a failure. Returns the delay before the next try.
    fn on_failure(&mut self, failure: &Failure) -> Duration {
        let now = Timestamp::now();
        let mut delay = self.backoff.next(failure.retry_after, random());
        let reset = self.rate_reset.and_then(|reset| Duration::try_from(reset.duration_since(now)).ok());
        if let Some(until_reset) = reset {
            let jitter = self.config.rate_jitter.mul_f64(random());
            delay = delay.max(until_reset.min(MAX_RATE_HOLD) + jitter);
        }
        let retry_at = now.checked_add(delay).unwrap_or(now);
        let Failure { status, reason, label, detail, .. } = failure;
        self.is_down = true;
        if self.reported.as_ref().is_none_or(|(reported, at)| reported != label || at.elapsed() >= REPORT_INTERVAL) {
            self.reported = Some((label, Instant::now()));
            warn!(
                upstream = self.client.url(),
                "the upstream is down: {detail}; next try in {:.1} s",
                delay.as_secs_f32()
            );
        }
        self.writer.metrics().upstream_up.set(0);
        self.writer.metrics().count_failure(label);
        self.writer.append([Entry::down(*status, reason, &format!("{retry_at:.3}"))]);
        delay
    }
}

/// Returns the content of a `stream.closing` event.
fn closing(block: &Block) -> Option<Closing> {
    let name = "stream.closing";
    // Most events have no such text: a search costs less than JSON.
    let closing: Closing = block.data.contains(name).then(|| serde_json::from_str(&block.data).ok())??;
    (closing.r#type == name).then_some(closing)
}

/// Parses `reset_at`: RFC 3339, or seconds or milliseconds since the Unix epoch.
fn timestamp(text: &str) -> Option<Timestamp> {
    /// From this number on, a time is in milliseconds: as seconds it would be after the year 5000.
    const MILLISECONDS: f64 = 1e11;
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time);
    }
    let number: f64 = text.parse().ok()?;
    let ms = if number >= MILLISECONDS { number } else { number * 1000.0 };
    Timestamp::from_millisecond(ms as i64).ok()
}

/// Waits until this time, or without end.
async fn wait_until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_times_are_read_in_every_form() {
        let expected: Timestamp = "2026-01-02T03:05:05Z".parse().unwrap();
        for text in ["2026-01-02T03:05:05.000Z", "2026-01-02T04:05:05+01:00", "1767323105", "1767323105000"] {
            assert_eq!(timestamp(text), Some(expected), "{text}");
        }
        assert_eq!(timestamp("soon"), None);
    }

    #[test]
    fn only_events_of_the_type_are_closing_events() {
        let is_closing = |data: &str| closing(&Block { data: data.to_owned(), ..Block::default() }).is_some();
        assert!(is_closing(r#"{"type":"stream.closing","reason":"draining","retryAfterMs":1500}"#));
        assert!(is_closing(r#"{"type":"stream.closing"}"#));
        assert!(!is_closing(r#"{"type":"other","reason":"stream.closing"}"#));
        assert!(!is_closing("stream.closing"));
    }
}
