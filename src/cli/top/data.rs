//! What the stream has said: the fold, the last events, the depth of each pool, and how fresh all of it is.
//!
//! A function of the events and of the times that are passed in.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    cli::event_text::{Tone, clock as time_of_day, describe},
    client::{Event, Payload, Pool, State},
};

/// The last events that are kept.
pub(super) const MAX_EVENTS: usize = 1000;
/// Bytes of the text and of the JSON of one kept event.
pub(super) const MAX_EVENT_BYTES: usize = 4096;
/// Samples of the depth of each pool, one for each second.
pub(super) const POOL_SAMPLES: usize = 120;
/// The interval of the samples.
const SAMPLE: Duration = Duration::from_secs(1);
/// Samples over which the rate of events is averaged.
const RATE_SAMPLES: usize = 5;

/// The time, from both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    pub(super) now: Instant,
    pub(super) wall: jiff::Timestamp,
}

impl Clock {
    /// Reads the clocks of the system.
    pub(super) fn read() -> Clock {
        Clock { now: Instant::now(), wall: jiff::Timestamp::now() }
    }
}

/// A kept event.
#[derive(Clone, Debug)]
pub(super) struct Logged {
    /// Its number, from 1.
    pub(super) number: u64,
    /// The time of day, in UTC.
    pub(super) time: String,
    pub(super) kind: String,
    pub(super) text: String,
    pub(super) tone: Tone,
    pub(super) json: String,
}

/// The counts of a pool, and how many instances were ready.
#[derive(Clone, Debug, Default)]
pub(super) struct Depth {
    pub(super) counts: Pool,
    /// One number for each second, the newest last.
    pub(super) ready: VecDeque<u64>,
}

/// What a heartbeat, or an event about the upstream, has said last.
#[derive(Clone, Debug)]
pub(super) struct Upstream {
    pub(super) state: String,
    /// The age of the last byte from the API server, at that time.
    pub(super) age: Option<Duration>,
    pub(super) at: Instant,
}

/// Whether the fold has all pools. It has none of them at the end of a connection, and a resumed stream sends all of them first
/// (docs/protocol.md#resume).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Completeness {
    Complete,
    /// There is no connection, or nothing of it has arrived.
    Missing,
    /// Events of a connection arrive since this time.
    Arriving(Instant),
}

/// Everything that the views show.
#[derive(Clone, Debug)]
pub(super) struct Data {
    pub(super) clock: Clock,
    state: State,
    log: VecDeque<Logged>,
    pools: BTreeMap<String, Depth>,
    completeness: Completeness,
    upstream: Option<Upstream>,
    last_event: Option<Instant>,
    logged: u64,
    /// Events since the last sample, and in the samples before.
    count: u64,
    counts: VecDeque<u64>,
    sampled_at: Instant,
}

impl Data {
    pub(super) fn new(clock: Clock) -> Data {
        Data {
            clock,
            state: State::default(),
            log: VecDeque::new(),
            pools: BTreeMap::new(),
            completeness: Completeness::Complete,
            upstream: None,
            last_event: None,
            logged: 0,
            count: 0,
            counts: VecDeque::new(),
            sampled_at: clock.now,
        }
    }

    /// Applies an event.
    pub(super) fn apply(&mut self, event: &Event, clock: Clock) {
        self.state.apply(event);
        self.completeness = match (&event.payload, self.completeness) {
            (Payload::StateInitial(part), _) if part.more => Completeness::Missing,
            (Payload::StateInitial(_), _) => Completeness::Complete,
            (_, Completeness::Missing) => Completeness::Arriving(clock.now),
            (_, other) => other,
        };
        match &event.payload {
            Payload::Heartbeat(heartbeat) => {
                let age = Some(Duration::from_millis(heartbeat.upstream_age_ms));
                self.upstream = Some(Upstream { state: heartbeat.upstream.clone(), age, at: clock.now });
                // The header shows what a heartbeat says.
                return;
            }
            // The cluster is still watched.
            Payload::UpstreamDown(event) | Payload::UpstreamUp(event) if event.resource == "nats" => {}
            Payload::UpstreamDown(_) => {
                self.upstream = Some(Upstream { state: "down".to_owned(), age: None, at: clock.now });
            }
            Payload::UpstreamUp(_) => {
                self.upstream = Some(Upstream { state: "live".to_owned(), age: None, at: clock.now });
            }
            // The last part stands for all of them.
            Payload::StateInitial(part) if part.more => return,
            Payload::StateInitial(_) | Payload::PoolDepth(_) => self.update_pools(),
            _ => {}
        }
        self.last_event = Some(clock.now);
        self.count += 1;
        self.log(event, clock);
    }

    /// Takes the samples of the seconds that have passed.
    pub(super) fn tick(&mut self, clock: Clock) {
        self.clock = clock;
        let mut passed = 0;
        while clock.now.saturating_duration_since(self.sampled_at) >= SAMPLE {
            self.sampled_at += SAMPLE;
            passed += 1;
            // After a stop of the process only the last samples count.
            if passed > POOL_SAMPLES {
                self.sampled_at = clock.now;
                break;
            }
            push(&mut self.counts, std::mem::take(&mut self.count), RATE_SAMPLES);
            for depth in self.pools.values_mut() {
                push(&mut depth.ready, depth.counts.ready, POOL_SAMPLES);
            }
        }
        if let Completeness::Arriving(since) = self.completeness
            && clock.now.saturating_duration_since(since) >= SAMPLE
        {
            self.completeness = Completeness::Complete;
            self.update_pools();
        }
        if passed > 0 && self.completeness == Completeness::Complete {
            // A pool whose counts are all 0 has left the fold.
            self.pools.retain(|workload, depth| {
                self.state.pools().contains_key(workload) || depth.ready.iter().any(|ready| *ready > 0)
            });
        }
    }

    /// Forgets the parts of a state that is not complete. The pools are shown with their last counts until the next connection
    /// has sent its own.
    pub(super) fn connection_ended(&mut self) {
        self.state.connection_ended();
        self.completeness = Completeness::Missing;
    }

    fn update_pools(&mut self) {
        for (workload, depth) in &mut self.pools {
            if self.completeness == Completeness::Complete && !self.state.pools().contains_key(workload) {
                depth.counts = Pool::default();
            }
        }
        for (workload, counts) in self.state.pools() {
            match self.pools.get_mut(workload) {
                Some(depth) => depth.counts.clone_from(counts),
                None => {
                    let depth = Depth { counts: counts.clone(), ready: VecDeque::new() };
                    self.pools.insert(workload.clone(), depth);
                }
            }
        }
    }

    fn log(&mut self, event: &Event, clock: Clock) {
        let described = describe(event);
        let text = match &event.payload {
            Payload::StateInitial(state) => format!(
                "{}: {} instances, {} claims, {} pools",
                state.reason,
                self.state.instances().len(),
                self.state.claims().len(),
                self.state.pools().len()
            ),
            _ => described.text,
        };
        self.logged += 1;
        let logged = Logged {
            number: self.logged,
            time: time_of_day(described.time.as_deref(), clock.wall),
            kind: cut(&event.kind),
            text: cut(&text),
            tone: described.tone,
            json: cut(event.json.get()),
        };
        push(&mut self.log, logged, MAX_EVENTS);
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// Returns the last events, the oldest first.
    pub(super) fn events(&self) -> &VecDeque<Logged> {
        &self.log
    }

    /// Returns the pools by workload.
    pub(super) fn pools(&self) -> &BTreeMap<String, Depth> {
        &self.pools
    }

    pub(super) fn upstream(&self) -> Option<&Upstream> {
        self.upstream.as_ref()
    }

    /// Returns the time since the last event that is no heartbeat.
    pub(super) fn last_event_age(&self) -> Option<Duration> {
        self.last_event.map(|at| self.clock.now.saturating_duration_since(at))
    }

    /// Returns the events a second, averaged over the last seconds.
    pub(super) fn rate(&self) -> f64 {
        let (sum, samples) = self.counts.iter().fold((0.0, 0.0_f64), |(sum, samples), count| {
            (sum + f64::from(u32::try_from(*count).unwrap_or(u32::MAX)), samples + 1.0)
        });
        sum / samples.max(1.0)
    }
}

/// Appends an item and removes the oldest one above the maximum.
fn push<T>(items: &mut VecDeque<T>, item: T, max: usize) {
    if items.len() >= max {
        items.pop_front();
    }
    items.push_back(item);
}

/// Returns the start of a text, at most [`MAX_EVENT_BYTES`].
fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_EVENT_BYTES)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(json: &str) -> Event {
        Event::from_json(json).unwrap()
    }

    fn later(clock: Clock, seconds: u64) -> Clock {
        Clock { now: clock.now + Duration::from_secs(seconds), ..clock }
    }

    #[test]
    fn parts_of_a_state_are_one_event_and_heartbeats_are_none() {
        let clock = Clock::read();
        let mut data = Data::new(clock);
        data.apply(
            &event(r#"{"type":"state.initial","reason":"connect","more":true,"instances":[{"uid":"a"}]}"#),
            clock,
        );
        data.apply(&event(r#"{"type":"state.initial","reason":"connect","instances":[{"uid":"b"}]}"#), clock);
        data.apply(&event(r#"{"type":"heartbeat","upstream":"live","upstreamAgeMs":40}"#), clock);
        assert_eq!(data.events().len(), 1);
        assert_eq!(data.events()[0].text, "connect: 2 instances, 0 claims, 0 pools");
        let upstream = data.upstream().unwrap();
        assert_eq!((upstream.state.as_str(), upstream.age), ("live", Some(Duration::from_millis(40))));
        data.apply(&event(r#"{"type":"upstream.down","resource":"pods"}"#), clock);
        assert_eq!(data.upstream().unwrap().state, "down");
        data.tick(later(clock, 3));
        assert_eq!(data.last_event_age(), Some(Duration::from_secs(3)));
    }

    #[test]
    fn pools_keep_their_depth_over_time_until_all_of_it_is_zero() {
        let start = Clock::read();
        let mut data = Data::new(start);
        let depth = |ready: u64| event(&format!(r#"{{"type":"pool.depth","workloadRef":"w","ready":{ready}}}"#));
        data.apply(&depth(2), start);
        data.tick(later(start, 2));
        data.apply(&depth(0), later(start, 2));
        data.tick(later(start, 3));
        assert_eq!(data.pools()["w"].ready, [2, 2, 0]);
        assert_eq!(data.pools()["w"].counts.ready, 0);
        data.tick(later(start, 3 + 500));
        assert!(data.pools().is_empty(), "{:?}", data.pools());
    }

    #[test]
    fn pools_stay_during_an_outage_and_follow_the_next_connection() {
        let start = Clock::read();
        let mut data = Data::new(start);
        let depth =
            |pool: &str| event(&format!(r#"{{"type":"pool.depth","workloadRef":"{pool}","ready":0,"acquired":5}}"#));
        let shown = |data: &Data| -> Vec<(String, u64)> {
            data.pools().iter().map(|(pool, depth)| (pool.clone(), depth.counts.acquired)).collect()
        };
        let both = vec![("a".to_owned(), 5), ("b".to_owned(), 5)];
        data.apply(&depth("a"), start);
        data.apply(&depth("b"), start);
        data.connection_ended();
        data.tick(later(start, 500));
        assert_eq!(shown(&data), both, "no connection");
        data.connection_ended();
        // The pools of a resumed stream arrive one after the other.
        data.apply(&event(r#"{"type":"heartbeat","upstream":"live"}"#), later(start, 600));
        data.apply(&depth("a"), later(start, 600));
        assert_eq!(shown(&data), both, "b has not arrived");
        data.apply(&depth("b"), later(start, 600));
        data.tick(later(start, 602));
        assert_eq!(shown(&data), both, "resumed");
        data.connection_ended();
        data.apply(&depth("a"), later(start, 700));
        data.tick(later(start, 702));
        assert_eq!(shown(&data), both[..1], "b is gone");
        data.connection_ended();
        let part =
            r#"{"type":"state.initial","reason":"expired","more":true,"pools":[{"workloadRef":"b","acquired":5}]}"#;
        data.apply(&event(part), later(start, 800));
        data.tick(later(start, 850));
        assert_eq!(shown(&data), both[..1], "the state is not complete");
        data.apply(&event(r#"{"type":"state.initial","reason":"expired"}"#), later(start, 850));
        data.tick(later(start, 852));
        assert_eq!(shown(&data), both[1..]);
    }

    #[test]
    fn memory_and_rate_are_bounded() {
        let start = Clock::read();
        let mut data = Data::new(start);
        let long = format!(r#"{{"type":"new","text":"{}"}}"#, "ä".repeat(MAX_EVENT_BYTES));
        for _ in 0..MAX_EVENTS + 10 {
            data.apply(&event(&long), start);
        }
        assert_eq!((data.events().len(), data.events()[0].number), (MAX_EVENTS, 11));
        assert!(data.events()[0].json.len() <= MAX_EVENT_BYTES);
        data.tick(later(start, 5));
        assert!((data.rate() - 202.0).abs() < 0.01, "{}", data.rate());
        data.tick(later(start, 3600));
        assert!(data.rate() < 0.01 && data.counts.len() <= RATE_SAMPLES);
    }
}
