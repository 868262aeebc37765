//! A truthful Kubernetes API in one process: enough of it to be listed, watched and written, and to be asked about tokens
//! and users, as kube-apiserver 1.36 does.
//!
//! [`Sim`] is the handle: it makes kube clients, opens the [`store`], arms [`fault`]s and counts requests. Client-visible
//! time is tokio's, so a test may pause it. Nothing is spawned: a watch is a stream that its client pulls. What it says
//! is held against the real API server by `tests/it/sim_conformance.rs`. Knows the claims' schema, and nothing else of this crate.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::api::{GROUP, PLURAL, VERSION};

mod api;
pub mod fault;
mod query;
pub mod review;
pub mod scenario;
mod serve;
mod status;
pub mod store;
mod watch;
mod write;

pub use api::Service;
use fault::{ConnectionEnd, Fault, NetworkState};
use review::ReviewState;
use store::{Revision, Store};

/// The resources that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ApiResource {
    /// `pods`
    Pods,
    /// `boilerhouseclaims.boilerhouse.dev`
    Claims,
    /// `namespaces`
    Namespaces,
    /// `tokenreviews.authentication.k8s.io`, which can only be created and are not kept.
    TokenReviews,
    /// `subjectaccessreviews.authorization.k8s.io`, which can only be created and are not kept.
    AccessReviews,
}

impl ApiResource {
    const ALL: [Self; 5] = [Self::Pods, Self::Claims, Self::Namespaces, Self::TokenReviews, Self::AccessReviews];

    fn plural(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Claims => PLURAL,
            Self::Namespaces => "namespaces",
            Self::TokenReviews => "tokenreviews",
            Self::AccessReviews => "subjectaccessreviews",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Pods => "Pod",
            Self::Claims => "BoilerhouseClaim",
            Self::Namespaces => "Namespace",
            Self::TokenReviews => "TokenReview",
            Self::AccessReviews => "SubjectAccessReview",
        }
    }

    fn group(self) -> &'static str {
        match self {
            Self::Pods | Self::Namespaces => "",
            Self::Claims => GROUP,
            Self::TokenReviews => "authentication.k8s.io",
            Self::AccessReviews => "authorization.k8s.io",
        }
    }

    fn version(self) -> &'static str {
        if self == Self::Claims { VERSION } else { "v1" }
    }

    fn api_version(self) -> String {
        match self.group() {
            "" => self.version().to_owned(),
            group => format!("{group}/{}", self.version()),
        }
    }

    /// The name with its group, as messages have it.
    fn qualified(self) -> String {
        match self.group() {
            "" => self.plural().to_owned(),
            group => format!("{}.{group}", self.plural()),
        }
    }

    fn namespaced(self) -> bool {
        matches!(self, Self::Pods | Self::Claims)
    }

    /// A question, which is answered and not kept.
    fn is_review(self) -> bool {
        matches!(self, Self::TokenReviews | Self::AccessReviews)
    }
}

/// What RBAC calls the ways to use a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are the meaning")]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}

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
    changed: tokio::sync::watch::Sender<()>,
}

#[derive(Debug)]
struct SimState {
    store: Store,
    network: NetworkState,
    faults: Vec<Fault>,
    denied: Vec<(Verb, ApiResource)>,
    unauthorized: bool,
    /// Whose tokens there are, and who may what.
    review_state: ReviewState,
    /// Whether reviews are answered.
    reviews_available: bool,
    /// Whether the claims' CRD is installed.
    crd: bool,
    /// How often all watches were ended, and how the last time.
    cuts: (u64, ConnectionEnd),
    /// How often all watches were silenced.
    stalls: u64,
    metrics: Metrics,
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
        let (changed, _) = tokio::sync::watch::channel(());
        Self(Arc::new(Inner { config, started: Instant::now(), state: Mutex::new(state), changed }))
    }

    /// A kube client of this API. Must be called inside a tokio runtime, as kube's client buffers its requests in a task.
    #[must_use]
    pub fn client(&self, namespace: &str) -> kube::Client {
        kube::Client::new(self.service(), namespace)
    }

    /// The API as a tower service, for a client stack of one's own.
    #[must_use]
    pub fn service(&self) -> Service {
        Service::new(self.clone())
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

    /// Changes the state and wakes every watch.
    fn change<R>(&self, body: impl FnOnce(&mut SimState) -> R) -> R {
        let now = self.now();
        let result = {
            let mut state = self.lock();
            state.store.set_time(now);
            body(&mut state)
        };
        self.0.changed.send_replace(());
        result
    }

    fn lock(&self) -> MutexGuard<'_, SimState> {
        // A test that panics while it holds the store must not hide its own message behind a poisoned lock.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
