//! The handle of the simulated API.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use super::fault::{ConnectionEnd, Fault, NetworkState};
use super::resource::{ApiResource, Verb};
use super::review::{Identity, ReviewState, Rule};
use super::store::{Revision, Store};

/// Times, bounds and the beginning. The defaults are the real API server's.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// What uids are made from.
    pub seed: u64,
    /// Namespaces that exist from the beginning.
    pub namespaces: Vec<String>,
    /// The revision before the first write: a real cluster is never at 0, and versions below are expired.
    pub first_revision: Revision,
    /// The time at the beginning, from which tokio's clock counts on.
    pub start: Timestamp,
    /// Who the client is, in the words of a 403.
    pub user: String,
    /// Time between bookmarks: about a minute.
    pub bookmark_interval: Duration,
    /// How long before a watch's timeout its last bookmark comes.
    pub bookmark_lead: Duration,
    /// Watches asked for less than this get no bookmark at all.
    pub bookmark_min_watch: Duration,
    /// How long a watch lives that asks for no timeout: the real one draws 30 to 60 minutes.
    pub watch_timeout: Duration,
    /// How long a list waits for a revision that has not come yet.
    pub future_version_timeout: Duration,
    /// Most connections that [`Sim::serve`] holds at once; more wait in the listener's queue.
    pub max_connections: usize,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            namespaces: vec!["boilerhouse".to_owned()],
            first_revision: 1000,
            start: Timestamp::now(),
            user: "system:serviceaccount:boilerhouse:boilerhouse-bridge".to_owned(),
            bookmark_interval: Duration::from_secs(60),
            bookmark_lead: Duration::from_secs(2),
            bookmark_min_watch: Duration::from_secs(12),
            watch_timeout: Duration::from_secs(30 * 60),
            future_version_timeout: Duration::from_secs(3),
            max_connections: 4096,
        }
    }
}

/// What has been asked for, and which watches are open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Requests that reached the API, refused ones included.
    pub requests: BTreeMap<(Verb, ApiResource), u64>,
    /// Watches open now, silent ones included, until their client drops them.
    pub open_watches: BTreeMap<ApiResource, u64>,
}

impl Metrics {
    /// How many requests of a verb there were, over all resources.
    #[must_use]
    pub fn count(&self, verb: Verb) -> u64 {
        self.requests.iter().filter(|((v, _), _)| *v == verb).map(|(_, count)| count).sum()
    }

    /// How many watches are open, over all resources.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.open_watches.values().sum()
    }
}

/// The handle to a simulated API; its clones are the same one.
#[derive(Clone, Debug)]
pub struct Sim(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: SimConfig,
    started: Instant,
    state: Mutex<SimState>,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
pub(super) struct SimState {
    pub(super) store: Store,
    pub(super) network: NetworkState,
    pub(super) faults: Vec<Fault>,
    pub(super) denied: Vec<(Verb, ApiResource)>,
    pub(super) unauthorized: bool,
    /// Whose tokens there are, and who may what.
    pub(super) review_state: ReviewState,
    /// Whether reviews are answered.
    pub(super) reviews_available: bool,
    /// Whether the claims' CRD is installed.
    pub(super) crd: bool,
    /// How often all watches were ended, and how the last time.
    pub(super) cuts: (u64, ConnectionEnd),
    /// How often all watches were silenced.
    pub(super) stalls: u64,
    pub(super) metrics: Metrics,
}

impl Sim {
    /// An API with nothing in it but its namespaces.
    #[must_use]
    pub fn new(config: SimConfig) -> Self {
        let mut store = Store::new(config.seed, config.first_revision, config.start);
        for name in &config.namespaces {
            // A name that is listed twice exists once; nothing else can be refused here.
            let _ = store.create(
                ApiResource::Namespaces,
                serde_json::json!({"metadata": {"name": name}, "status": {"phase": "Active"}}),
            );
        }
        store.lose_watch_history();
        let state = SimState {
            store,
            network: NetworkState::Up,
            faults: Vec::new(),
            denied: Vec::new(),
            unauthorized: false,
            review_state: ReviewState::default(),
            reviews_available: true,
            crd: true,
            cuts: (0, ConnectionEnd::Eof),
            stalls: 0,
            metrics: Metrics::default(),
        };
        let (changed, _) = watch::channel(());
        Self(Arc::new(Inner { config, started: Instant::now(), state: Mutex::new(state), changed }))
    }

    /// The time of the simulated cluster.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let elapsed = self.0.started.elapsed();
        self.0.config.start.saturating_add(elapsed).unwrap_or(self.0.config.start)
    }

    /// Looks into the store or writes to it; watches see all of it at once when `body` returns. Must not wait or call
    /// back into this handle.
    pub fn store<R>(&self, body: impl FnOnce(&mut Store) -> R) -> R {
        self.change(|state| body(&mut state.store))
    }

    /// What has been asked for so far.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.lock().metrics.clone()
    }

    /// Arms a fault for the next request that it fits; several wait in the order they were armed.
    pub fn arm(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// How many armed faults have not been met yet.
    #[must_use]
    pub fn pending_faults(&self) -> usize {
        self.lock().faults.len()
    }

    /// From now on a verb on a resource is answered with 403. Open watches go on, as they do in Kubernetes.
    pub fn deny(&self, verb: Verb, resource: ApiResource) {
        self.lock().denied.push((verb, resource));
    }

    /// From now on every request is answered with 401, or no longer.
    pub fn set_unauthorized(&self, unauthorized: bool) {
        self.lock().unauthorized = unauthorized;
    }

    /// Whether the claims' CRD is installed, as it is at first; without it their paths do not exist.
    pub fn set_crd(&self, installed: bool) {
        self.lock().crd = installed;
    }

    /// Takes every [`Sim::deny`] back.
    pub fn allow_all(&self) {
        self.lock().denied.clear();
    }

    /// Refuses every connection and resets every open watch, until [`Sim::up`].
    pub fn down(&self) {
        self.change(|state| state.network = NetworkState::Refusing);
        self.cut_watches(ConnectionEnd::Reset);
    }

    /// Requests are answered again. What a black hole has swallowed stays silent.
    pub fn up(&self) {
        self.change(|state| state.network = NetworkState::Up);
    }

    /// Swallows everything: open watches fall silent for good, new requests are never answered, until [`Sim::up`].
    pub fn black_hole(&self) {
        self.change(|state| {
            state.network = NetworkState::BlackHole;
            state.stalls += 1;
        });
    }

    /// The API server dies and is back: every watch is reset and the watch history is gone; exact lists go on working.
    pub fn restart(&self) {
        self.change(|state| state.store.lose_watch_history());
        self.cut_watches(ConnectionEnd::Reset);
    }

    /// etcd is put back to an older copy (a clone of the store) and the API server restarted. Returns the lost branch.
    pub fn restore(&self, older: Store) -> Store {
        let lost = self.change(|state| state.store.restore(older));
        self.cut_watches(ConnectionEnd::Reset);
        lost
    }

    /// Ends every open watch.
    pub fn cut_watches(&self, how: ConnectionEnd) {
        self.change(|state| state.cuts = (state.cuts.0 + 1, how));
    }

    /// Silences every open watch for good: neither events nor an end. New watches are well.
    pub fn stall_watches(&self) {
        self.change(|state| state.stalls += 1);
    }

    /// From now on this token is this identity's.
    pub fn issue(&self, token: &str, identity: Identity) {
        self.lock().review_state.issue(token, identity);
    }

    /// From now on this token is nobody's, whenever it would have ended.
    pub fn revoke(&self, token: &str) {
        self.lock().review_state.revoke(token);
    }

    /// From now on somebody may do something. It is what SubjectAccessReviews are answered by, and no more: those who ask
    /// this API may do what is not denied to them ([`Sim::deny`]).
    pub fn grant(&self, rule: Rule) {
        self.lock().review_state.grant(rule);
    }

    /// Takes every [`Sim::grant`] to this user or group back.
    pub fn revoke_grants(&self, subject: &str) {
        self.lock().review_state.revoke_grants(subject);
    }

    /// Whether reviews are answered, as they are at first; connections for them are refused otherwise.
    pub fn set_reviews_available(&self, available: bool) {
        self.lock().reviews_available = available;
    }

    pub(super) fn config(&self) -> &SimConfig {
        &self.0.config
    }

    /// Returns a receiver that wakes at each change of the state.
    pub(super) fn changed(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// Changes the state and wakes every watch.
    pub(super) fn change<R>(&self, body: impl FnOnce(&mut SimState) -> R) -> R {
        let now = self.now();
        let result = {
            let mut state = self.lock();
            state.store.set_time(now);
            body(&mut state)
        };
        self.0.changed.send_replace(());
        result
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, SimState> {
        // A test that panics while it holds the store must not hide its own message behind a poisoned lock.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
