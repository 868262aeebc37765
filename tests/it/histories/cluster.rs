//! The simulated cluster of a history: what is written to it, what it went through, and the way to it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::event::ResourceVersion;
use boilerhouse_bridge::sim::store::{Change, Store};
use boilerhouse_bridge::sim::{Sim, SimConfig};
use tokio::time::{Instant, sleep, sleep_until};

use super::pace::{Beat, Pace};
use super::truth::{NAMESPACE, Truth};
use super::witness::{self, Log, Shared};

/// One history of etcd ended here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fork {
    /// The last revision that both histories share.
    pub(super) at: ResourceVersion,
    pub(super) when: Instant,
}

/// How long everybody is waited for before an older copy is restored.
const HEARD: Duration = Duration::from_secs(60);

/// What all bridges of a history watch.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) sim: Sim,
    pub(super) witness: Arc<Shared>,
    /// The histories that ended when an older copy was restored.
    past: Mutex<Vec<Vec<Change>>>,
    forks: Mutex<Vec<Fork>>,
    /// When what had been written: how many histories ended before, revision.
    written: Mutex<Vec<(usize, ResourceVersion, Instant)>>,
    /// Where everything has moments of its own: since when.
    beat: Option<Instant>,
    /// Those whose hearing is waited for before an older copy is restored.
    listeners: Mutex<Vec<Arc<Mutex<Log>>>>,
}

impl Cluster {
    /// A cluster as `fill` makes it.
    pub(super) fn new(seed: u64, fill: impl FnOnce(&mut Store)) -> Cluster {
        let start = "2026-01-01T00:00:00Z".parse().unwrap();
        let namespaces = vec![NAMESPACE.to_owned(), "elsewhere".to_owned()];
        let sim = Sim::new(SimConfig { seed, start, namespaces, ..SimConfig::default() });
        sim.store(fill);
        Cluster {
            sim,
            witness: Arc::default(),
            past: Mutex::default(),
            forks: Mutex::default(),
            written: Mutex::default(),
            beat: None,
            listeners: Mutex::default(),
        }
    }

    /// The same; what its script does, it does on the beat.
    pub(super) fn on_beat(seed: u64, begun: Instant, fill: impl FnOnce(&mut Store)) -> Cluster {
        Cluster { beat: Some(begun), ..Cluster::new(seed, fill) }
    }

    /// A client and what it hears.
    pub(super) fn client(&self, pace: Pace) -> (kube::Client, Arc<Mutex<Log>>) {
        witness::client(&self.sim, &self.witness, pace)
    }

    /// From now on these are waited for.
    pub(super) fn listens(&self, logs: Vec<Arc<Mutex<Log>>>) {
        *self.listeners.lock().unwrap() = logs;
    }

    pub(super) fn write(&self, write: impl FnOnce(&mut Store)) {
        let revision = self.sim.store(|store| {
            write(store);
            store.revision()
        });
        self.note(revision);
    }

    fn note(&self, revision: ResourceVersion) {
        self.written.lock().unwrap().push((self.witness.epoch.load(Ordering::Relaxed), revision, Instant::now()));
    }

    /// Some time passes.
    pub(super) async fn nap(&self, time: Duration) {
        match self.beat {
            None => sleep(time).await,
            Some(begun) => sleep_until(Beat::next(begun, time, 0)).await,
        }
    }

    /// Whether everybody who is waited for has heard of both resources up to a version at least this high.
    pub(super) async fn is_heard(&self, rv: ResourceVersion) -> bool {
        let (began, logs) = (Instant::now(), self.listeners.lock().unwrap().clone());
        while !logs.iter().all(|log| log.lock().unwrap().has_heard(rv)) {
            if began.elapsed() > HEARD {
                return false;
            }
            self.nap(Duration::from_millis(50)).await;
        }
        true
    }

    /// etcd is put back to an older copy.
    pub(super) fn restore(&self, older: Store) {
        self.witness.epoch.fetch_add(1, Ordering::Relaxed);
        self.forks.lock().unwrap().push(Fork { at: older.revision(), when: Instant::now() });
        let lost = self.sim.restore(older);
        self.past.lock().unwrap().push(lost.history().to_vec());
        self.note(self.sim.store(|store| store.revision()));
    }

    /// When what had been written: how many histories ended before, revision.
    pub(super) fn written(&self) -> Vec<(usize, ResourceVersion, Instant)> {
        self.written.lock().unwrap().clone()
    }

    pub(super) fn truth(&self) -> Truth {
        let mut histories = self.past.lock().unwrap().clone();
        histories.push(self.sim.store(|store| store.history().to_vec()));
        Truth::of(&histories)
    }

    pub(super) fn forks(&self) -> Vec<Fork> {
        self.forks.lock().unwrap().clone()
    }
}
