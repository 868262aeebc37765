//! The feed: one order of changes, the current state, and who has read how far.
//!
//! Facts come in through the one [`Writer`]; clients read through [`Subscription`]s, each a position in the log and a
//! lens. Always true: the inventory is what the log's end says; `newest` never goes back within a history; what a
//! client is served is a function of the log, its lens and its cursor. Under the lock there is pushing and cloning of
//! `Arc`s only. Nothing here knows where facts come from, what a socket is, or who a client is.

mod backfill;
mod framing;
mod group;
pub mod inventory;
mod pool_depth;
mod projection_cache;
mod projection_registry;
mod read_your_writes;
mod resume;
pub mod snapshot;
mod state;
mod subscription;
mod writer;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use thiserror::Error;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

pub use self::{
    backfill::{Backfill, Gap, Past},
    framing::{Carrier, Framing},
    group::{Audience, Shown},
    projection_cache::SharedLens,
    snapshot::Snapshot,
    subscription::{Read, Subscription},
    writer::Writer,
};
use crate::{
    event::{Cursor, Home, Resource, ResourceVersion, projection::Lens},
    ring::{self, Log},
};
use backfill::Wanted;
use projection_registry::Lenses;
use read_your_writes::Told;
use state::{Shared, State};

/// Bounds of a feed.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// What the log may hold.
    pub log: ring::Limits,
    /// How long the upstream may be down before `/ws` clients are sent away, so that they see it (protocol.md section 2).
    pub upstream_limit: Duration,
    /// How long a snapshot GET waits for the feed to reach what somebody has been told (protocol.md section 2).
    pub told_wait: Duration,
    /// How often the depths of the pools are told (protocol.md section 3: 4 times a second).
    pub pool_period: Duration,
    /// About how many bytes an initial state has before it comes in parts (protocol.md section 3: 256 KiB, and a part ends
    /// with the object that passes this).
    pub part_bytes: usize,
    /// How many bytes of what has been rendered all lenses together may keep for their readers, so that a client is not
    /// paid for by how it looks: 32 MiB, half of the log.
    pub lens_bytes: usize,
    /// How long a client whose cursor is older than the log waits for it to be extended backwards, before it is told the
    /// current state instead: two rounds, as one may be under way.
    pub park_limit: Duration,
    /// How long a client whose cursor is ahead of this replica waits before the API server is asked whether there is such
    /// a version (protocol.md section 3: 2 s).
    pub ahead_wait: Duration,
    /// Milliseconds since the Unix epoch, for `time`.
    pub clock: fn() -> u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            log: ring::Limits::default(),
            upstream_limit: Duration::from_secs(60),
            told_wait: Duration::from_secs(1),
            pool_period: Duration::from_millis(250),
            part_bytes: 240 << 10,
            lens_bytes: 32 << 20,
            park_limit: Duration::from_secs(30),
            ahead_wait: Duration::from_secs(2),
            clock: system_clock,
        }
    }
}

fn system_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// What a source says of itself, for one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// Not yet listed for the first time.
    #[default]
    Connecting,
    /// Listed, and watched without a gap since.
    Live,
    /// Re-watching failed, or the watch has been silent past the idle limit.
    Down {
        /// When its last byte came.
        since: Instant,
        /// A sentence for people.
        reason: Arc<str>,
    },
}

/// How a source is as a whole: `state` of `/api/v1/connections` (protocol.md section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Not all has been listed yet.
    #[default]
    Syncing,
    /// All is listed and watched.
    Live,
    /// Some resource cannot be watched.
    Down,
}

impl Condition {
    fn of(all: &[Health; 2]) -> Condition {
        if all.iter().any(|health| matches!(health, Health::Down { .. })) {
            Condition::Down
        } else if all.contains(&Health::Connecting) {
            Condition::Syncing
        } else {
            Condition::Live
        }
    }
}

/// Where a subscription starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// Transitions from this moment on.
    Now,
    /// The current state first, once it has reached these versions: a client must not be taken back in time.
    Snapshot(Reason, [ResourceVersion; 2]),
    /// Exactly what came after the cursor.
    After(Cursor),
    /// The same where it can be had; otherwise the current state, with the reason why not (protocol.md section 3).
    Resume(Cursor),
}

/// Why a client's picture is (re)placed: `reason` of `state.initial` (protocol.md section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It has just come.
    Connect,
    /// Its cursor is older than the log.
    Expired,
    /// Its cursor is of another cluster or another history, or is none.
    Foreign,
    /// Its cursor was made under another filter or other rights, or does not cover a resource.
    Filter,
    /// It read too slowly.
    Lagged,
}

impl Reason {
    /// As it stands in `reason`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Reason::Connect => "connect",
            Reason::Expired => "expired",
            Reason::Foreign => "foreign",
            Reason::Filter => "filter",
            Reason::Lagged => "lagged",
        }
    }
}

/// Why a cursor cannot be resumed from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// No complete state yet.
    #[error("the first lists are not complete yet")]
    NotReady,
    /// Older than the log reaches back.
    #[error("the log does not reach back to the cursor")]
    Below,
    /// In the middle of a difference, which tells its holder nothing true.
    #[error("the log has no history at the cursor, only a difference")]
    Between,
    /// Of another namespace, or not a cursor.
    #[error("the cursor is of another history")]
    Foreign,
    /// Made under another filter or other rights, or not covering a needed resource.
    #[error("the cursor was made under another filter or other rights")]
    OtherLens,
}

/// What the feed counts.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    steps: Counter,
    coalesced: Counter,
    renders: Counter,
    snapshots: Counter,
    lagged: Counter,
    backfills: Counter,
    subscriptions: Gauge,
    log_steps: Gauge,
    log_bytes: Gauge,
    lenses: Gauge,
    lens_bytes: Gauge,
}

impl Metrics {
    /// Names them in a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("feed_steps", "Resource versions taken in", self.steps.clone());
        registry.register("feed_coalesced", "Differences taken in after a re-list", self.coalesced.clone());
        registry.register(
            "feed_renders",
            "Steps rendered, once per lens or per client that catches up",
            self.renders.clone(),
        );
        registry.register("feed_snapshots_built", "Initial states encoded", self.snapshots.clone());
        registry.register("feed_lagged", "Clients that fell off the log", self.lagged.clone());
        registry.register("feed_backfills", "Extensions of the log backwards", self.backfills.clone());
        registry.register("feed_subscriptions", "Clients reading now", self.subscriptions.clone());
        registry.register("feed_log_steps", "Steps held for resumes", self.log_steps.clone());
        registry.register("feed_log_bytes", "Bytes charged for the steps held", self.log_bytes.clone());
        registry.register("feed_lenses", "Different lenses in use", self.lenses.clone());
        registry.register("feed_lens_bytes", "Bytes that lenses keep for their readers", self.lens_bytes.clone());
    }
}

/// A feed, from the readers' side.
#[derive(Clone, Debug)]
pub struct Feed {
    shared: Arc<Shared>,
}

/// What a single reader may be behind before its writer waits: enough for any burst that one write takes up.
const SINGLE_LOG: ring::Limits = ring::Limits { items: 256, bytes: 256 << 10, age_ms: u64::MAX };

impl Feed {
    /// An empty feed and its only writer.
    #[must_use]
    pub fn new(config: Config) -> (Writer, Feed) {
        Feed::build(config, None, Metrics::default())
    }

    /// A feed of the same upstream for a single reader (architecture.md, the feed's contract, 9): its writer waits for
    /// room instead of dropping what is not read, nothing is cached in it, and what it takes in is noted here as told.
    #[must_use]
    pub fn single(&self) -> (Writer, Feed) {
        let config = Config { log: SINGLE_LOG, ..self.shared.config };
        let (mut writer, feed) = Feed::build(config, Some(self.shared.clone()), self.shared.metrics.clone());
        if let Some(home) = self.home() {
            writer.home(home);
        }
        (writer, feed)
    }

    fn build(config: Config, hub: Option<Arc<Shared>>, metrics: Metrics) -> (Writer, Feed) {
        let state = State {
            home: None,
            inventory: Arc::default(),
            log: Log::new(config.log),
            base: [0; 2],
            newest: [0; 2],
            synced: [false; 2],
            down_at: [None; 2],
            down_since_ms: [0; 2],
            told: Told::default(),
            wanted: Wanted::default(),
            origin: [0; 2],
            touched: BTreeSet::new(),
            history: 0,
            condition: (Condition::default(), (config.clock)()),
        };
        let shared = Arc::new(Shared {
            config,
            head: watch::Sender::new(state.log.end()),
            health: watch::Sender::default(),
            heard_ms: Default::default(),
            histories: watch::Sender::default(),
            hub,
            room: Notify::new(),
            asked: Notify::new(),
            state: Mutex::new(state),
            lenses: Lenses::new(config.lens_bytes, metrics.lens_bytes.clone()),
            metrics,
        });
        (Writer::new(shared.clone()), Feed { shared })
    }

    /// What it counts.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Where the facts come from, once known.
    #[must_use]
    pub fn home(&self) -> Option<Home> {
        self.shared.state().home
    }

    /// What the source says of itself, pods then claims; and a way to wait for it to change.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<[Health; 2]> {
        self.shared.health.subscribe()
    }

    /// How the source is as a whole, and since when: milliseconds since the Unix epoch, by [`Config::clock`].
    #[must_use]
    pub fn condition(&self) -> (Condition, u64) {
        self.shared.state().condition
    }

    /// Changes each time the source finds another history (an older copy of etcd): whoever watches by himself must list.
    #[must_use]
    pub fn histories(&self) -> watch::Receiver<u64> {
        self.shared.histories.subscribe()
    }

    /// Changes each time there may be something new to read: the position up to which there is.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.head.subscribe()
    }

    /// Whether both resources have been listed (G10: nothing is served before).
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.shared.state().ready().is_ok()
    }

    /// Resolves once both resources have been listed.
    pub async fn ready(&self) {
        let mut head = self.shared.head.subscribe();
        while !self.is_ready() {
            // The sender lives in `self.shared`, so this cannot fail while we are here.
            let _ = head.changed().await;
        }
    }

    /// Resolves once [`Feed::ready`] does and the upstream has not been down for [`Config::upstream_limit`]: until then a
    /// `/ws` client would be told a state of long ago and sent away at once.
    pub async fn open(&self) {
        let mut head = self.shared.head.subscribe();
        self.ready().await;
        while self.shared.state().is_down_for(self.shared.config.upstream_limit) {
            // Sent when the health changes, too; the sender lives in `self.shared`.
            let _ = head.changed().await;
        }
    }

    /// The lens shared by all who look the same way: equal lenses render once.
    #[must_use]
    pub fn lens(&self, lens: Lens, framing: Framing) -> Arc<SharedLens> {
        let (shared, count) = self.shared.lenses.get(lens, framing);
        if self.shared.hub.is_none() {
            self.shared.metrics.lenses.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        shared
    }

    /// A reader that looks through `lens`.
    ///
    /// # Errors
    /// See [`Refused`]. [`Refused::Below`] may pass when the log is extended backwards; the others call for
    /// [`From::Snapshot`] with a reason.
    pub fn subscribe(&self, lens: Arc<SharedLens>, from: From) -> Result<Subscription, Refused> {
        Subscription::start(self.shared.clone(), lens, from)
    }

    /// The current state as one cut (G4): the state that Kubernetes had at `rv` of each resource. It is not older than
    /// anything that any client of this process has been told; that is waited for, up to [`Config::told_wait`].
    ///
    /// # Errors
    /// [`Refused::NotReady`] before both resources have been listed, and when the wait was not enough.
    pub async fn snapshot(&self) -> Result<Snapshot, Refused> {
        let mut head = self.shared.head.subscribe();
        // What is told from now on is no business of this GET: under load somebody is always ahead.
        let told = self.shared.state().told.clone();
        let reached = async {
            while !self.shared.state().knows(&told) {
                // The sender lives in `self.shared`, so this cannot fail while we are here.
                let _ = head.changed().await;
            }
        };
        tokio::time::timeout(self.shared.config.told_wait, reached).await.map_err(|_| Refused::NotReady)?;
        let state = self.shared.state();
        let home = state.ready()?;
        Ok(Snapshot { home, inventory: state.inventory.clone(), rv: state.newest, position: state.log.end() })
    }
}

/// The resources that a lens tells of: a cursor of it must cover them.
fn needs(lens: &Lens) -> impl Iterator<Item = Resource> {
    let kinds = lens.types.kinds();
    Resource::ALL.into_iter().filter(move |kind| kinds[*kind as usize])
}
