//! The simulated cluster of a seeded history: its writes, its restores, and clients of its API server.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::event::ResourceVersion;
use boilerhouse_bridge::sim::store::{Change, Store};
use boilerhouse_bridge::sim::{Sim, SimConfig};
use tokio::time::{Instant, sleep, sleep_until};

use super::api_recorder::{self, RecorderLog, RecorderState};
use super::latency::{Latency, TimeSlot};
use crate::oracle::history::{History, NAMESPACE};

/// A restore of an older copy of etcd.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HistoryReset {
    /// The last revision that both epochs share.
    pub(crate) at: ResourceVersion,
    pub(crate) when: Instant,
}

/// How long [`Cluster::is_delivered`] waits.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);

/// The cluster that all bridges of a history watch.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) sim: Sim,
    pub(crate) recorder: Arc<RecorderState>,
    /// The changes of the epochs before the current one.
    earlier_epochs: Mutex<Vec<Vec<Change>>>,
    resets: Mutex<Vec<HistoryReset>>,
    /// Epoch, revision and time of each write.
    written: Mutex<Vec<(usize, ResourceVersion, Instant)>>,
    /// The start of the time slots, if the history has them.
    slots_since: Option<Instant>,
    /// The watchers that must have received everything before a restore.
    watchers: Mutex<Vec<Arc<Mutex<RecorderLog>>>>,
}

impl Cluster {
    /// A cluster with the objects that `fill` creates.
    pub(crate) fn new(seed: u64, fill: impl FnOnce(&mut Store)) -> Cluster {
        let start = "2026-01-01T00:00:00Z".parse().unwrap();
        let namespaces = vec![NAMESPACE.to_owned(), "elsewhere".to_owned()];
        let sim = Sim::new(SimConfig { seed, start, namespaces, ..SimConfig::default() });
        sim.store(fill);
        Cluster {
            sim,
            recorder: Arc::default(),
            earlier_epochs: Mutex::default(),
            resets: Mutex::default(),
            written: Mutex::default(),
            slots_since: None,
            watchers: Mutex::default(),
        }
    }

    /// The same with time slots: its script acts in phase 0.
    pub(crate) fn with_time_slots(seed: u64, started: Instant, fill: impl FnOnce(&mut Store)) -> Cluster {
        Cluster { slots_since: Some(started), ..Cluster::new(seed, fill) }
    }

    /// A client and its recording.
    pub(crate) fn client(&self, latency: Latency) -> (kube::Client, Arc<Mutex<RecorderLog>>) {
        api_recorder::client(&self.sim, &self.recorder, latency)
    }

    /// Sets the watchers that [`Cluster::is_delivered`] waits for.
    pub(crate) fn set_watchers(&self, logs: Vec<Arc<Mutex<RecorderLog>>>) {
        *self.watchers.lock().unwrap() = logs;
    }

    pub(crate) fn write(&self, write: impl FnOnce(&mut Store)) {
        let revision = self.sim.store(|store| {
            write(store);
            store.revision()
        });
        self.add_write(revision);
    }

    fn add_write(&self, revision: ResourceVersion) {
        let epoch = self.recorder.epoch.load(Ordering::Relaxed);
        self.written.lock().unwrap().push((epoch, revision, Instant::now()));
    }

    /// Sleeps, and until the next time slot if the history has them.
    pub(crate) async fn sleep_slot(&self, time: Duration) {
        match self.slots_since {
            None => sleep(time).await,
            Some(started) => sleep_until(TimeSlot::next(started, time, 0)).await,
        }
    }

    /// Waits until all watchers have received both resources up to a version. Returns false after [`DELIVERY_TIMEOUT`].
    pub(crate) async fn is_delivered(&self, version: ResourceVersion) -> bool {
        let (started, logs) = (Instant::now(), self.watchers.lock().unwrap().clone());
        while !logs.iter().all(|log| log.lock().unwrap().has_received(version)) {
            if started.elapsed() > DELIVERY_TIMEOUT {
                return false;
            }
            self.sleep_slot(Duration::from_millis(50)).await;
        }
        true
    }

    /// Restores an older copy of etcd.
    pub(crate) fn restore(&self, older: Store) {
        self.recorder.epoch.fetch_add(1, Ordering::Relaxed);
        self.resets.lock().unwrap().push(HistoryReset { at: older.revision(), when: Instant::now() });
        let lost = self.sim.restore(older);
        self.earlier_epochs.lock().unwrap().push(lost.history().to_vec());
        self.add_write(self.sim.store(|store| store.revision()));
    }

    /// Epoch, revision and time of each write.
    pub(crate) fn written(&self) -> Vec<(usize, ResourceVersion, Instant)> {
        self.written.lock().unwrap().clone()
    }

    pub(crate) fn history(&self) -> History {
        let mut epochs = self.earlier_epochs.lock().unwrap().clone();
        epochs.push(self.sim.store(|store| store.history().to_vec()));
        History::of_store(&epochs)
    }

    pub(crate) fn resets(&self) -> Vec<HistoryReset> {
        self.resets.lock().unwrap().clone()
    }
}
