//! [`Sim`], the handle of the simulated API: configuration, state, injected faults and counters.
//!
//! Owns: the state of the simulated cluster behind one lock, and the channel that wakes watches.
//!
//! Guarantees: a watch reads the store before or after a call of [`Sim::store`], and never during it.

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

/// Initial state, times and limits. The default times are those of the real API server.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Seed of the uids.
    pub seed: u64,
    /// Namespaces that exist at the start.
    pub namespaces: Vec<String>,
    /// The revision before the first write (1000). A real cluster is never at 0, and revisions below this one are
    /// expired.
    pub first_revision: Revision,
    /// The time at the start. tokio's clock counts from it.
    pub start: Timestamp,
    /// The user in the message of a 403.
    pub user: String,
    /// Time between bookmarks: 60 s.
    pub bookmark_interval: Duration,
    /// Time between the last bookmark of a watch and its timeout: 2 s.
    pub bookmark_lead: Duration,
    /// Minimum timeout of a watch that receives bookmarks: 12 s.
    pub bookmark_min_watch: Duration,
    /// Duration of a watch without a requested timeout: 30 minutes. The real API server chooses 30 to 60 minutes at
    /// random.
    pub watch_timeout: Duration,
    /// Time that a list waits for a revision that does not exist yet: 3 s.
    pub future_version_timeout: Duration,
    /// Maximum number of connections of [`Sim::serve`] (4096). Further connections wait in the listener's queue.
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

/// Counters of requests and open watches. They are for tests, and not part of the bridge's metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Number of requests that reached the API, including those that were answered with an error.
    pub requests: BTreeMap<(Verb, ApiResource), u64>,
    /// Number of open watches, including silent ones. A watch is open until its client drops it.
    pub open_watches: BTreeMap<ApiResource, u64>,
}

impl Metrics {
    /// Returns the number of requests with a verb, over all resources.
    #[must_use]
    pub fn count(&self, verb: Verb) -> u64 {
        self.requests.iter().filter(|((v, _), _)| *v == verb).map(|(_, count)| count).sum()
    }

    /// Returns the number of open watches, over all resources.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.open_watches.values().sum()
    }
}

/// A handle to a simulated API. All clones refer to the same API.
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
    /// The tokens and grants.
    pub(super) review_state: ReviewState,
    /// Whether reviews are answered.
    pub(super) reviews_available: bool,
    /// Whether the CRD of claims is installed.
    pub(super) crd: bool,
    /// Number of times that all watches were ended, and how they ended the last time.
    pub(super) cuts: (u64, ConnectionEnd),
    /// Number of times that all watches were silenced.
    pub(super) stalls: u64,
    pub(super) metrics: Metrics,
}

impl Sim {
    /// Creates an API that contains its namespaces only.
    #[must_use]
    pub fn new(config: SimConfig) -> Self {
        let mut store = Store::new(config.seed, config.first_revision, config.start);
        for name in &config.namespaces {
            // The only possible error is that the configuration lists a name twice. The namespace then exists once.
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

    /// Returns the time of the simulated cluster.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let elapsed = self.0.started.elapsed();
        self.0.config.start.saturating_add(elapsed).unwrap_or(self.0.config.start)
    }

    /// Calls `body` with the store, to read it or to write to it. Watches receive all writes after `body` returns.
    ///
    /// `body` must not block and must not use this handle, because the lock of the state is held.
    pub fn store<R>(&self, body: impl FnOnce(&mut Store) -> R) -> R {
        self.change(|state| body(&mut state.store))
    }

    /// Returns the counters.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.lock().metrics.clone()
    }

    /// Arms a fault for the next request that matches it. If several faults match, the one that was armed first is
    /// used.
    pub fn arm(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Returns the number of armed faults that no request has matched yet.
    #[must_use]
    pub fn pending_faults(&self) -> usize {
        self.lock().faults.len()
    }

    /// Answers requests with this verb on this resource with 403, until [`Sim::allow_all`]. As in Kubernetes, open
    /// watches continue.
    pub fn deny(&self, verb: Verb, resource: ApiResource) {
        self.lock().denied.push((verb, resource));
    }

    /// Sets whether every request is answered with 401. The initial value is `false`.
    pub fn set_unauthorized(&self, unauthorized: bool) {
        self.lock().unauthorized = unauthorized;
    }

    /// Sets whether the CRD of claims is installed. The initial value is `true`. Without the CRD, the paths of claims
    /// do not exist.
    pub fn set_crd(&self, installed: bool) {
        self.lock().crd = installed;
    }

    /// Reverts every [`Sim::deny`].
    pub fn allow_all(&self) {
        self.lock().denied.clear();
    }

    /// Refuses all connections and resets all open watches, until [`Sim::up`].
    pub fn down(&self) {
        self.change(|state| state.network = NetworkState::Refusing);
        self.cut_watches(ConnectionEnd::Reset);
    }

    /// Answers requests again. Watches and requests that [`Sim::black_hole`] has silenced stay silent.
    pub fn up(&self) {
        self.change(|state| state.network = NetworkState::Up);
    }

    /// Silences the network: open watches send nothing more and do not end. Requests before [`Sim::up`] are never
    /// answered.
    pub fn black_hole(&self) {
        self.change(|state| {
            state.network = NetworkState::BlackHole;
            state.stalls += 1;
        });
    }

    /// Simulates a restart of the API server: all watches are reset, and the watch history is lost. Exact lists still
    /// work.
    pub fn restart(&self) {
        self.change(|state| state.store.lose_watch_history());
        self.cut_watches(ConnectionEnd::Reset);
    }

    /// Restores etcd from an older copy (a clone of the store) and restarts the API server. Returns the replaced store.
    pub fn restore(&self, older: Store) -> Store {
        let lost = self.change(|state| state.store.restore(older));
        self.cut_watches(ConnectionEnd::Reset);
        lost
    }

    /// Ends all open watches.
    pub fn cut_watches(&self, how: ConnectionEnd) {
        self.change(|state| state.cuts = (state.cuts.0 + 1, how));
    }

    /// Silences all open watches: they send nothing more and do not end. New watches are not affected.
    pub fn stall_watches(&self) {
        self.change(|state| state.stalls += 1);
    }

    /// Issues a token for an identity.
    pub fn issue(&self, token: &str, identity: Identity) {
        self.lock().review_state.issue(token, identity);
    }

    /// Revokes a token, whatever its expiry is.
    pub fn revoke(&self, token: &str) {
        self.lock().review_state.revoke(token);
    }

    /// Adds a grant. Only the answers to SubjectAccessReviews depend on grants: requests to the simulated API itself
    /// are allowed unless [`Sim::deny`] denies them.
    pub fn grant(&self, rule: Rule) {
        self.lock().review_state.grant(rule);
    }

    /// Removes all grants of this user or group.
    pub fn revoke_grants(&self, subject: &str) {
        self.lock().review_state.revoke_grants(subject);
    }

    /// Sets whether reviews are answered. The initial value is `true`. Otherwise their connections are refused.
    pub fn set_reviews_available(&self, available: bool) {
        self.lock().reviews_available = available;
    }

    /// Returns the configuration.
    pub(super) fn config(&self) -> &SimConfig {
        &self.0.config
    }

    /// Returns a receiver that wakes at each change of the state.
    pub(super) fn changed(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// Changes the state, at the current time of the cluster, and wakes all watches.
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

    /// Locks the state. The caller must not await while it holds the guard.
    pub(super) fn lock(&self) -> MutexGuard<'_, SimState> {
        // If a test panics while it holds the lock, the first panic must be reported instead of a poisoned lock.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
