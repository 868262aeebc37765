//! The simulated cluster of a history: what is written to it, what it went through, and the way to it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::event::ResourceVersion;
use boilerhouse_bridge::sim::store::{Change, Store};
use boilerhouse_bridge::sim::{Sim, SimConfig};
use tokio::time::{Instant, sleep, sleep_until};

use super::api_recorder::{self, RecorderLog, RecorderState};
use super::history::{History, NAMESPACE};
use super::latency::{Latency, TimeSlot};

/// One history of etcd ended here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HistoryReset {
    /// The last revision that both histories share.
    pub(crate) at: ResourceVersion,
    pub(crate) when: Instant,
}

/// How long everybody is waited for before an older copy is restored.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);

/// What all bridges of a history watch.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) sim: Sim,
    pub(crate) recorder: Arc<RecorderState>,
    /// The histories that ended when an older copy was restored.
    past: Mutex<Vec<Vec<Change>>>,
    resets: Mutex<Vec<HistoryReset>>,
    /// When what had been written: how many histories ended before, revision.
    written: Mutex<Vec<(usize, ResourceVersion, Instant)>>,
    /// Where everything has moments of its own: since when.
    slot: Option<Instant>,
    /// Those whose hearing is waited for before an older copy is restored.
    listeners: Mutex<Vec<Arc<Mutex<RecorderLog>>>>,
}

impl Cluster {
    /// A cluster as `fill` makes it.
    pub(crate) fn new(seed: u64, fill: impl FnOnce(&mut Store)) -> Cluster {
        let start = "2026-01-01T00:00:00Z".parse().unwrap();
        let namespaces = vec![NAMESPACE.to_owned(), "elsewhere".to_owned()];
        let sim = Sim::new(SimConfig { seed, start, namespaces, ..SimConfig::default() });
        sim.store(fill);
        Cluster {
            sim,
            recorder: Arc::default(),
            past: Mutex::default(),
            resets: Mutex::default(),
            written: Mutex::default(),
            slot: None,
            listeners: Mutex::default(),
        }
    }

    /// The same; what its script does, it does on the beat.
    pub(crate) fn on_time_slots(seed: u64, started: Instant, fill: impl FnOnce(&mut Store)) -> Cluster {
        Cluster { slot: Some(started), ..Cluster::new(seed, fill) }
    }

    /// A client and what it hears.
    pub(crate) fn client(&self, pace: Latency) -> (kube::Client, Arc<Mutex<RecorderLog>>) {
        api_recorder::client(&self.sim, &self.recorder, pace)
    }

    /// From now on these are waited for.
    pub(crate) fn wait_for(&self, logs: Vec<Arc<Mutex<RecorderLog>>>) {
        *self.listeners.lock().unwrap() = logs;
    }

    pub(crate) fn write(&self, write: impl FnOnce(&mut Store)) {
        let revision = self.sim.store(|store| {
            write(store);
            store.revision()
        });
        self.note(revision);
    }

    fn note(&self, revision: ResourceVersion) {
        self.written.lock().unwrap().push((self.recorder.epoch.load(Ordering::Relaxed), revision, Instant::now()));
    }

    /// Some time passes.
    pub(crate) async fn sleep_slot(&self, time: Duration) {
        match self.slot {
            None => sleep(time).await,
            Some(started) => sleep_until(TimeSlot::next(started, time, 0)).await,
        }
    }

    /// Whether everybody who is waited for has heard of both resources up to a version at least this high.
    pub(crate) async fn is_delivered(&self, rv: ResourceVersion) -> bool {
        let (began, logs) = (Instant::now(), self.listeners.lock().unwrap().clone());
        while !logs.iter().all(|log| log.lock().unwrap().has_received(rv)) {
            if began.elapsed() > DELIVERY_TIMEOUT {
                return false;
            }
            self.sleep_slot(Duration::from_millis(50)).await;
        }
        true
    }

    /// etcd is put back to an older copy.
    pub(crate) fn restore(&self, older: Store) {
        self.recorder.epoch.fetch_add(1, Ordering::Relaxed);
        self.resets.lock().unwrap().push(HistoryReset { at: older.revision(), when: Instant::now() });
        let lost = self.sim.restore(older);
        self.past.lock().unwrap().push(lost.history().to_vec());
        self.note(self.sim.store(|store| store.revision()));
    }

    /// When what had been written: how many histories ended before, revision.
    pub(crate) fn written(&self) -> Vec<(usize, ResourceVersion, Instant)> {
        self.written.lock().unwrap().clone()
    }

    pub(crate) fn history(&self) -> History {
        let mut histories = self.past.lock().unwrap().clone();
        histories.push(self.sim.store(|store| store.history().to_vec()));
        History::of(&histories)
    }

    pub(crate) fn resets(&self) -> Vec<HistoryReset> {
        self.resets.lock().unwrap().clone()
    }
}
