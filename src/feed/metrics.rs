//! Counters and gauges of the feed. Gauges that are read from the state at scrape time are in `feed/collector.rs`.
//!
//! *Guarantees:* every label set exists from the start with the value 0. Code that counts holds the counter itself, so it
//! does not search for a label set.

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::event::{PerResource, Resource};

/// One label and its value.
pub(super) type Label = [(&'static str, &'static str); 1];

/// The metrics of a feed. Dedicated feeds share those of the hub's feed.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    entries: Family<Label, Counter>,
    /// Change sets appended to the hub's log.
    pub(super) change_sets: Counter,
    /// Ephemeral events appended to the hub's log.
    pub(super) ephemeral_events: Counter,
    coalesced_family: Family<Label, Counter>,
    /// Change sets of the hub's log that are a difference.
    pub(super) coalesced: PerResource<Counter>,
    pub(super) history_resets: Counter,
    pub(super) renders: Counter,
    pub(super) initial_states_encoded: Counter,
    pub(super) initial_state_encode_seconds: Histogram,
    pub(super) lagged: Counter,
    backfills: Family<Label, Counter>,
    pub(super) backfills_filled: Counter,
    pub(super) backfills_no_room: Counter,
    pub(super) backfills_failed: Counter,
    pub(super) backfills_timeout: Counter,
    pub(super) backfill_waiting: Gauge,
    version_checks: Family<Label, Counter>,
    pub(super) version_checks_completed: Counter,
    pub(super) version_checks_timeout: Counter,
    pub(super) read_your_writes_timeouts: Counter,
    pub(super) tombstones_dropped: Counter,
    pub(super) projections: Gauge,
    pub(super) projection_cache_bytes: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let (entries, [change_sets, ephemeral_events]) = family("kind", ["change_set", "ephemeral"]);
        let (coalesced_family, [pods, claims]) = family("resource", Resource::ALL.map(Resource::plural));
        let (backfills, [backfills_filled, backfills_no_room, backfills_failed, backfills_timeout]) =
            family("outcome", ["filled", "no_room", "failed", "timeout"]);
        let (version_checks, [version_checks_completed, version_checks_timeout]) =
            family("outcome", ["completed", "timeout"]);
        Metrics {
            entries,
            change_sets,
            ephemeral_events,
            coalesced_family,
            coalesced: PerResource::new(pods, claims),
            history_resets: Counter::default(),
            renders: Counter::default(),
            initial_states_encoded: Counter::default(),
            // 0.25 ms to 4.1 s: ten thousand Pods take some 10 ms.
            initial_state_encode_seconds: Histogram::new(exponential_buckets(0.000_25, 4.0, 8)),
            lagged: Counter::default(),
            backfills,
            backfills_filled,
            backfills_no_room,
            backfills_failed,
            backfills_timeout,
            backfill_waiting: Gauge::default(),
            version_checks,
            version_checks_completed,
            version_checks_timeout,
            read_your_writes_timeouts: Counter::default(),
            tombstones_dropped: Counter::default(),
            projections: Gauge::default(),
            projection_cache_bytes: Gauge::default(),
        }
    }
}

/// Creates a family with one label and a counter for each of its values.
fn family<const N: usize>(label: &'static str, values: [&'static str; N]) -> (Family<Label, Counter>, [Counter; N]) {
    let family = Family::<Label, Counter>::default();
    let counters = values.map(|value| family.get_or_create_owned(&[(label, value)]));
    (family, counters)
}

impl Metrics {
    /// Registers all of them. The caller sets the prefix of the registry.
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("feed_entries", "Entries appended to the log of the hub's feed", self.entries.clone());
        registry.register(
            "feed_coalesced",
            "Change sets of the hub's feed that were computed as a difference",
            self.coalesced_family.clone(),
        );
        registry.register(
            "feed_history_resets",
            "Times that a new history started, in the hub's feed: resourceVersions went backwards, or another Namespace",
            self.history_resets.clone(),
        );
        registry.register(
            "feed_renders",
            "Log entries rendered, once for each projection or for each subscription that catches up",
            self.renders.clone(),
        );
        registry.register(
            "feed_initial_states_encoded",
            "Initial states encoded, without those served from a cache",
            self.initial_states_encoded.clone(),
        );
        registry.register(
            "feed_initial_state_encode_seconds",
            "Time to encode one initial state",
            self.initial_state_encode_seconds.clone(),
        );
        registry.register(
            "feed_lagged",
            "Subscriptions whose next entry was evicted from the log",
            self.lagged.clone(),
        );
        registry.register(
            "feed_backfills",
            "Backfill rounds; no_room: the log was full or evicted entries during the round",
            self.backfills.clone(),
        );
        registry.register(
            "feed_backfill_waiting",
            "Subscriptions that wait for a backfill",
            self.backfill_waiting.clone(),
        );
        registry.register(
            "feed_version_checks",
            "Version checks for cursors ahead of this replica",
            self.version_checks.clone(),
        );
        registry.register(
            "feed_read_your_writes_timeouts",
            "GETs answered with 503 because the hub's feed had not reached the delivered watermark in time",
            self.read_your_writes_timeouts.clone(),
        );
        registry.register(
            "feed_tombstones_dropped",
            "Deletions that were dropped from the full delivered watermark",
            self.tombstones_dropped.clone(),
        );
        registry.register("feed_projections", "Projections in use in the hub's feed", self.projections.clone());
        registry.register(
            "feed_projection_cache_bytes",
            "Bytes charged for all projection caches",
            self.projection_cache_bytes.clone(),
        );
    }
}
