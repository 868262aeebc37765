//! From a message of the broker to an event: the bounded queue, the rate, JSON, validation.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use bytes::Bytes;
use rumqttc::v5::mqttbytes::v5::Publish;
use tokio::{
    sync::mpsc,
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};

use super::status::{Outcome, Status};
use crate::{
    event::MqttMessage,
    validate::{Validator, parse_json},
};

/// Maximum bytes of a payload: 64 KiB. Its JSON, which NATS carries between replicas, has at most twice as many.
const MAX_PAYLOAD_BYTES: usize = 64 << 10;
/// Messages that wait for the publisher: with payloads of the maximum size and short topics they are 16 MiB.
pub(super) const QUEUE: usize = 256;
/// Unused publications that add up to a burst: those of 1 s.
const BURST: Duration = Duration::from_secs(1);
/// Interval of the log entry about messages that were not published.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// Publishes an accepted message. It must not wait.
pub type PublishMessage = Box<dyn Fn(MqttMessage) + Send + Sync>;

/// A message as the broker sent it.
#[derive(Debug)]
pub(super) struct RawMessage {
    topic: Bytes,
    payload: Bytes,
}

/// Takes a message of the broker without waiting.
pub(super) fn enqueue(publish: &Publish, queue: &mpsc::Sender<RawMessage>, status: &Status) {
    if publish.payload.len() > MAX_PAYLOAD_BYTES {
        return status.count(Outcome::TooLarge);
    }
    let Ok(place) = queue.try_reserve() else { return status.count(Outcome::Dropped) };
    // Copied: a part of the read buffer would keep all of it.
    let [topic, payload] = [&publish.topic, &publish.payload].map(|bytes| Bytes::copy_from_slice(bytes));
    place.send(RawMessage { topic, payload });
}

/// Publishes the messages of the queue, and reports those that were not published. It never ends.
pub(super) async fn publish(
    mut queue: mpsc::Receiver<RawMessage>,
    rate: NonZeroU32,
    publish_message: &PublishMessage,
    validator: &Arc<Validator>,
    status: &Status,
) {
    let mut pace = Pace::new(rate, Instant::now());
    let mut reports = interval_at(Instant::now() + REPORT_INTERVAL, REPORT_INTERVAL);
    reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reported = status.counts();
    loop {
        tokio::select! {
            _ = reports.tick() => reported = status.report(reported),
            Some(message) = queue.recv() => {
                sleep_until(pace.next(Instant::now())).await;
                let outcome = match accept(message, validator).await {
                    Err(outcome) => outcome,
                    Ok(message) => {
                        publish_message(message);
                        Outcome::Published
                    }
                };
                status.count(outcome);
            }
        }
    }
}

/// Parses and validates a message.
async fn accept(message: RawMessage, validator: &Arc<Validator>) -> Result<MqttMessage, Outcome> {
    let (payload, repeated) = parse_json(&message.payload).map_err(|_| Outcome::NotJson)?;
    // Clients, the schema pack and the module could each take another one of the values.
    if !repeated.is_empty() {
        return Err(Outcome::Refused);
    }
    let topic = String::from_utf8_lossy(&message.topic).into_owned();
    let event = MqttMessage { topic, payload };
    let mut violations = validator.check_fields(None, &event.payload);
    if violations.is_empty() {
        violations = if validator.may_block() {
            let validator = validator.clone();
            spawn_blocking(move || validator.examine(&message.payload)).await.map_err(|_| Outcome::Refused)?
        } else {
            validator.examine(&message.payload)
        };
    }
    if violations.is_empty() { Ok(event) } else { Err(Outcome::Refused) }
}

/// A rate with a burst.
#[derive(Debug)]
struct Pace {
    interval: Duration,
    next: Instant,
}

impl Pace {
    fn new(rate: NonZeroU32, now: Instant) -> Pace {
        Pace { interval: Duration::from_secs(1) / rate.get(), next: now }
    }

    /// Returns when the next message may be published, which may be in the past.
    fn next(&mut self, now: Instant) -> Instant {
        let due = self.next.max(now.checked_sub(BURST).unwrap_or(now));
        self.next = due + self.interval;
        due
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use rumqttc::v5::mqttbytes::QoS;
    use serde_json::{Value, json};
    use tokio::time::timeout;

    use super::*;
    use crate::source::mqtt::Metrics;

    fn publication(topic: &str, payload: &[u8]) -> Publish {
        Publish::new(topic, QoS::AtMostOnce, payload.to_vec(), None)
    }

    #[test]
    fn pace_allows_one_second_of_unused_publications_at_once() {
        let start = Instant::now() + Duration::from_secs(10);
        let mut pace = Pace::new(NonZeroU32::new(4).unwrap(), start);
        let later = start + Duration::from_secs(60);
        let due: Vec<_> = (0..7).map(|_| pace.next(later)).collect();
        assert_eq!(due.iter().filter(|due| **due <= later).count(), 5, "those of one second, and the one of now");
        assert_eq!(due[6] - due[5], Duration::from_millis(250));
    }

    #[tokio::test(start_paused = true)]
    async fn full_queue_drops_and_only_json_that_is_valid_is_published() {
        let status = Status::new(Metrics::default());
        let (sender, receiver) = mpsc::channel(9);
        let published = Arc::<Mutex<Vec<(String, Value)>>>::default();
        let publish_message: PublishMessage = {
            let published = published.clone();
            Box::new(move |message| published.lock().unwrap().push((message.topic, message.payload)))
        };
        let large = [b"\"".as_slice(), &vec![b'x'; MAX_PAYLOAD_BYTES], b"\""].concat();
        for (topic, payload) in [
            ("a", br#"{"x": 1}"#.as_slice()),
            ("b", b"[1, null]"),
            ("binary", b"\xff\x00"),
            ("cleared", b""),
            ("deep", "[".repeat(200).as_bytes()),
            ("task", br#"{"type": "task", "title": "t"}"#),
            ("repeated", br#"{"a": [{"b": 1, "b": 2}]}"#),
            ("number", b"0"),
            ("large", &large),
            ("c", b"1"),
            ("dropped", b"1"),
        ] {
            enqueue(&publication(topic, payload), &sender, &status);
        }
        let validator = Arc::default();
        let rate = NonZeroU32::new(10).unwrap();
        let run = publish(receiver, rate, &publish_message, &validator, &status);
        drop(timeout(Duration::from_secs(5), run).await);
        let expected: [(String, Value); 4] = [
            ("a".into(), json!({"x": 1})),
            ("b".into(), json!([1, null])),
            ("number".into(), json!(0)),
            ("c".into(), json!(1)),
        ];
        assert_eq!(*published.lock().unwrap(), expected);
        let counts = status.counts().map(|(_, count)| count);
        assert_eq!(counts, [1, 1, 3, 2], "dropped, too large, not JSON, refused");
        assert_eq!(status.line(), "mqtt: connecting; 1 messages dropped, 6 not accepted");
    }
}
