//! The history: the last events of the upstream and of the relay itself, where each client has a position.
//!
//! Owns: the log with the index of its ids (`state`), and the batches that the members of a fan-out group share.
//!
//! Guarantees:
//! - An id leads to the first event that has it, so that a client that resumes misses nothing. Events that repeat the id
//!   of the event before, as heartbeats of a bridge do, can come again.
//! - If an event after that one was evicted, the client gets `relay.gap`, also when a later event has the same id.
//! - An id that the upstream has used for two different places leads to no position, as far as the history remembers.
//! - MQTT messages share the bytes of the history with the events of the upstream, but not its number of events. A message that was
//!   evicted is no gap: it belongs to no state.

mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;

pub use self::state::Limits;
pub(super) use self::state::Start;
use self::state::State;
use super::{
    entry::{Entry, FORMATS, GapReason, Kind, format_index},
    metrics::Metrics,
};
use crate::{
    event::MqttMessage,
    feed::{FrameFormat, SharedBatch},
};

/// Entries read from the log at once. It bounds the work under the lock.
const ENTRIES_PER_READ: usize = 256;

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
    batches: [Mutex<Option<SharedBatch>>; FORMATS],
    limits: Limits,
    pub(super) metrics: Metrics,
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
        let index = format_index(format);
        (index, &self.batches[index])
    }
}

impl History {
    /// Creates an empty history and its writer.
    #[must_use]
    pub fn new(limits: Limits, metrics: Metrics) -> (Writer, History) {
        let state = State::new();
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
        self.count_gap(start)
    }

    /// Returns where a client continues whose next position was evicted.
    pub(super) fn restart(&self, position: u64) -> Start {
        let start = self.0.state().start_at(position);
        self.count_gap(start)
    }

    fn count_gap(&self, start: Start) -> Start {
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
        self.0.state().has_seen(id)
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
    /// are none, if they exceed `max_bytes`, if one is large, or if an entry was evicted. They are framed once for all shards.
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
                if entry.is_large() {
                    return None;
                }
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
