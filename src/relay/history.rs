//! The history: the last events of the upstream and of the relay itself, where each client has a position.
//!
//! Owns: the log, the index of its ids, and the batches that the members of a fan-out group share.
//!
//! Guarantees:
//! - An id leads to the first event that has it, so that a client that resumes misses nothing. Events that repeat the id
//!   of the event before, as heartbeats of a bridge do, can come again.
//! - An id that the upstream has used for two different places leads to no position.
//! - MQTT messages share the bytes of the history with the events of the upstream, but not its number of events. A message that was
//!   evicted is no gap: it belongs to no state.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use tokio::sync::watch;

use super::{
    entry::{Entry, GapReason, Kind},
    metrics::Metrics,
};
use crate::{
    event::MqttMessage,
    feed::{FrameFormat, SharedBatch},
    ring::{self, RingLog},
};

/// Entries read from the log at once. It bounds the work under the lock.
const ENTRIES_PER_READ: usize = 256;
/// Ids that are remembered after their events were evicted, as hashes: a client with one of them is `expired`, not
/// `foreign`. They take about 2 MiB.
const EXPIRED_IDS: usize = 65_536;

/// Bounds of the history. The newest event is always retained.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of events of the upstream (`--history`).
    pub events: usize,
    /// Maximum number of bytes, as charged: the text of an event and 256 bytes (`--history-memory`).
    pub bytes: usize,
}

/// The history, from the side of its readers.
#[derive(Clone, Debug)]
pub struct History(pub(super) Arc<Shared>);

/// The only handle that adds events of the upstream to a history.
#[derive(Debug)]
pub struct Writer(Arc<Shared>);

/// The history as all streams with one format read it.
#[derive(Clone, Debug)]
pub struct Group {
    shared: Arc<Shared>,
    format: FrameFormat,
}

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    log_end: watch::Sender<u64>,
    /// The last batch of each group. The shards ask for the same one.
    batches: [Mutex<Option<SharedBatch>>; 3],
    limits: Limits,
    pub(super) metrics: Metrics,
}

#[derive(Debug)]
struct State {
    log: RingLog<Entry>,
    /// The number of events of the upstream in the log.
    events: usize,
    ids: HashMap<Box<str>, IdPlace>,
    /// The last id of the upstream.
    last_id: Option<Box<str>>,
    expired: ExpiredIds,
    /// The newest `matrix-down` or `matrix-up`.
    status: Option<Arc<Entry>>,
    /// An event of the upstream was evicted.
    has_evicted: bool,
}

/// Where an id is in the log.
#[derive(Clone, Copy, Debug)]
struct IdPlace {
    /// The first event of those in a row that have the id.
    first: u64,
    /// The last of them.
    last: u64,
    /// The upstream has used the id for an earlier place too.
    is_ambiguous: bool,
}

/// Hashes of evicted ids, at most [`EXPIRED_IDS`].
#[derive(Debug, Default)]
struct ExpiredIds {
    hasher: RandomState,
    order: VecDeque<u64>,
    known: HashSet<u64>,
}

/// Where a client starts.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) position: u64,
    /// What the client may miss.
    pub(super) gap: Option<GapReason>,
    /// The end of the log now. Before it, a change of the upstream's status is history.
    pub(super) end: u64,
    /// The newest status.
    pub(super) status: Option<Arc<Entry>>,
}

impl ExpiredIds {
    fn insert(&mut self, id: &str) {
        let hash = self.hasher.hash_one(id);
        if self.known.insert(hash) {
            self.order.push_back(hash);
        }
        if self.order.len() > EXPIRED_IDS
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    fn contains(&self, id: &str) -> bool {
        self.known.contains(&self.hasher.hash_one(id))
    }
}

impl State {
    fn push(&mut self, entry: Entry) {
        let position = self.log.end_position();
        if entry.kind == Kind::Event {
            self.events += 1;
        }
        if let Some(id) = entry.id() {
            let is_same = self.last_id.as_deref() == Some(id);
            match self.ids.get_mut(id) {
                Some(place) if is_same => place.last = position,
                Some(place) => *place = IdPlace { first: position, last: position, is_ambiguous: true },
                None => {
                    let place = IdPlace { first: position, last: position, is_ambiguous: false };
                    self.ids.insert(id.into(), place);
                }
            }
            if !is_same {
                self.last_id = Some(id.into());
            }
        }
        let (charge, entry) = (entry.charge(), Arc::new(entry));
        if matches!(entry.kind, Kind::Down | Kind::Up) {
            self.status = Some(entry.clone());
        }
        self.log.push(entry, charge, 0);
    }

    /// Removes the oldest entry if a limit is exceeded. Returns whether it has.
    fn evict(&mut self, limits: Limits) -> bool {
        let first = self.log.first_position();
        let is_exceeded = self.events > limits.events || self.log.bytes() > limits.bytes;
        if !is_exceeded || first + 1 >= self.log.end_position() {
            return false;
        }
        let oldest = self.log.read_from(first, 1).and_then(|mut entries| entries.next().cloned());
        self.log.discard_before(first + 1);
        let Some(oldest) = oldest else { return false };
        if oldest.kind == Kind::Event {
            self.events -= 1;
            self.has_evicted = true;
        }
        if let Some(id) = oldest.id()
            && self.ids.get(id).is_some_and(|place| place.last == first)
        {
            self.ids.remove(id);
            self.expired.insert(id);
        }
        true
    }

    fn start(&self, after: Option<&str>) -> Start {
        let first = self.log.first_position();
        let place = after.map(|id| (id, self.ids.get(id)));
        let (position, gap) = match place {
            None => (first, self.has_evicted.then_some(GapReason::Expired)),
            Some((_, Some(place))) if !place.is_ambiguous => ((place.first + 1).max(first), None),
            Some((_, Some(_))) => (first, Some(GapReason::Upstream)),
            Some((id, None)) if self.expired.contains(id) => (first, Some(GapReason::Expired)),
            Some((_, None)) => (first, Some(GapReason::Foreign)),
        };
        Start { position, gap, end: self.log.end_position(), status: self.status.clone() }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Appends entries, and evicts the oldest ones beyond the limits. Readers are woken once.
    fn append(&self, entries: impl IntoIterator<Item = Entry>) {
        let mut state = self.state();
        for entry in entries {
            match entry.kind {
                Kind::Event => {
                    self.metrics.events.inc();
                }
                Kind::Gap => self.metrics.count_gap(GapReason::Upstream),
                Kind::Down | Kind::Up | Kind::Message => {}
            }
            state.push(entry);
            while state.evict(self.limits) {}
        }
        self.metrics.history_events.set(i64::try_from(state.events).unwrap_or(i64::MAX));
        self.metrics.history_bytes.set(i64::try_from(state.log.bytes()).unwrap_or(i64::MAX));
        // Under the lock, so that the end never goes back.
        self.log_end.send_replace(state.log.end_position());
    }

    /// Returns the batch slot and the number of a format.
    fn slot(&self, format: FrameFormat) -> (usize, &Mutex<Option<SharedBatch>>) {
        let index = match format {
            FrameFormat::WebSocket => 0,
            FrameFormat::Sse { chunked: true, .. } => 1,
            FrameFormat::Sse { chunked: false, .. } | FrameFormat::JsonLines => 2,
        };
        (index, &self.batches[index])
    }
}

impl History {
    /// Creates an empty history and its writer.
    #[must_use]
    pub fn new(limits: Limits, metrics: Metrics) -> (Writer, History) {
        // The limits of the log itself are not used: it holds events of the relay too, which do not count.
        let unlimited = ring::Limits { items: usize::MAX, bytes: usize::MAX, age_ms: u64::MAX };
        let state = State {
            log: RingLog::new(unlimited),
            events: 0,
            ids: HashMap::new(),
            last_id: None,
            expired: ExpiredIds::default(),
            status: None,
            has_evicted: false,
        };
        let (log_end, _) = watch::channel(state.log.end_position());
        let shared = Shared { state: Mutex::new(state), log_end, batches: Default::default(), limits, metrics };
        let shared = Arc::new(shared);
        (Writer(shared.clone()), History(shared))
    }

    /// Returns a receiver of the end position of the log.
    #[must_use]
    pub fn log_end(&self) -> watch::Receiver<u64> {
        self.0.log_end.subscribe()
    }

    /// Returns whether the upstream sends its stream.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.0.metrics.upstream_up.get() == 1
    }

    /// Appends `mqtt.message`, with the time now.
    pub fn publish_mqtt_message(&self, message: &MqttMessage) {
        self.0.append([Entry::message(message, &format!("{:.3}", Timestamp::now()))]);
    }

    /// Returns where a client starts that has read the event with this id; without an id, at the oldest event.
    pub(super) fn start(&self, after: Option<&str>) -> Start {
        let start = self.0.state().start(after);
        if let Some(reason) = start.gap {
            self.0.metrics.count_gap(reason);
        }
        start
    }

    /// Returns the entries from a position on, at most [`ENTRIES_PER_READ`]. `None` if the entry at the position was
    /// evicted.
    pub(super) fn read(&self, position: u64) -> Option<Vec<Arc<Entry>>> {
        Some(self.0.state().log.read_from(position, ENTRIES_PER_READ)?.cloned().collect())
    }

    pub(super) fn group(&self, format: FrameFormat) -> Group {
        Group { shared: self.0.clone(), format }
    }
}

impl Writer {
    /// Appends entries, and evicts the oldest ones beyond the limits. Readers are woken once.
    pub(super) fn append(&mut self, entries: impl IntoIterator<Item = Entry>) {
        self.0.append(entries);
    }

    /// Returns whether an event of the upstream has had this id, as far as the history remembers.
    pub(super) fn has_seen(&self, id: &str) -> bool {
        let state = self.0.state();
        state.ids.contains_key(id) || state.expired.contains(id)
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }
}

impl Group {
    /// Returns a number that equal groups share, and no other group of this history.
    #[must_use]
    pub fn id(&self) -> usize {
        self.shared.slot(self.format).0
    }

    /// Returns the end position of the log.
    #[must_use]
    pub fn end(&self) -> u64 {
        *self.shared.log_end.borrow()
    }

    /// Returns the bytes that every member at this position receives: all entries up to the end of the log. `None` if there
    /// are none, if they exceed `max_bytes`, or if an entry was evicted. They are framed once for all shards.
    #[must_use]
    pub fn batch_from(&self, from: u64, max_bytes: usize) -> Option<SharedBatch> {
        let mut cached = lock(self.shared.slot(self.format).1);
        let end = self.end();
        if let Some(batch) = cached.as_ref().filter(|batch| (batch.start(), batch.end()) == (from, end)) {
            return Some(batch.clone()).filter(|batch| batch.bytes.len() <= max_bytes);
        }
        let (mut position, mut bytes) = (from, Vec::new());
        while position < end {
            let entries = History(self.shared.clone()).read(position)?;
            for entry in &entries {
                entry.append_frame(&mut bytes, self.format);
                if bytes.len() > max_bytes {
                    return None;
                }
            }
            position += entries.len() as u64;
        }
        let batch = (position > from).then(|| SharedBatch::new(from, position, bytes.into()));
        cached.clone_from(&batch);
        batch
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
