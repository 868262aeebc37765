//! The encoder of initial states (docs/protocol.md#boilerhouse-stream, docs/protocol.md#full-stream).
//!
//! *Guarantees:* subscriptions of one projection that start at about the same time share one encoding. Encoding does not
//! hold the lock of the feed.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use tokio::time::Instant;

use super::{
    ProjectionCache,
    initial_state::{InitialState, Part},
    lock,
};
use crate::{
    event::{
        Claim, Instance, PerResource, PoolDepth, ResourceVersion,
        projection::{EventFormat, EventType},
        render,
    },
    feed::{
        snapshot::Snapshot,
        state::Shared,
        types::{Config, SnapshotReason},
    },
};

impl ProjectionCache {
    /// Returns the current state, or a recent one from which the log continues. `None` while the state is below
    /// `not_before`, or not complete.
    pub(in crate::feed) fn initial_state(
        &self,
        shared: &Shared,
        reason: SnapshotReason,
        not_before: PerResource<ResourceVersion>,
    ) -> Option<Arc<InitialState>> {
        // A subscription that starts meanwhile waits here, and then finds the state in the cache.
        let _guard = lock(&self.encode_lock);
        let cached = self.frame_cache().initial_state(reason);
        let state = shared.state();
        if let Some(cached) =
            cached.filter(|cached| cached.is_reusable(&state) && self.covers(cached.versions, not_before))
        {
            return Some(cached);
        }
        if !self.covers(state.latest_versions, not_before) {
            return None;
        }
        let snapshot = Snapshot {
            namespace: state.synced_namespace().ok()?,
            inventory: state.inventory.clone(),
            versions: state.latest_versions,
            position: state.log.end_position(),
        };
        let history_epoch = state.history_epoch;
        drop(state);
        let initial = Arc::new(self.encode(shared, &snapshot, reason, history_epoch));
        if shared.hub_feed.is_none() {
            self.frame_cache().store_initial(reason, &initial);
        }
        Some(initial)
    }

    fn encode(&self, shared: &Shared, snapshot: &Snapshot, reason: SnapshotReason, history_epoch: u64) -> InitialState {
        let encoded_at = Instant::now();
        let parts = match self.projection.format {
            EventFormat::Boilerhouse => self.encode_burst(snapshot, shared.config.initial_state_part_bytes),
            EventFormat::Full => self.encode_state_initial(&shared.config, snapshot, reason),
        };
        let encode_time = encoded_at.elapsed();
        shared.metrics.initial_states_encoded.inc();
        shared.metrics.initial_state_encode_seconds.observe(encode_time.as_secs_f64());
        let Snapshot { namespace, position, versions, .. } = *snapshot;
        InitialState { namespace, parts, position, versions, history_epoch, encoded_at, encode_time }
    }

    /// Encodes the state as events, for `/ws`.
    fn encode_burst(&self, snapshot: &Snapshot, part_bytes: usize) -> Vec<Bytes> {
        let mut parts = Vec::new();
        let mut bytes = Vec::new();
        for view in snapshot.inventory.views() {
            render::render_initial(&view, &self.projection, |event| {
                self.append_event(&mut bytes, event, None, None);
            });
            if bytes.len() > part_bytes {
                parts.push(std::mem::take(&mut bytes).into());
            }
        }
        if !bytes.is_empty() {
            parts.push(bytes.into());
        }
        parts
    }

    /// Encodes the state as one or more `state.initial` events, for the full stream.
    fn encode_state_initial(&self, config: &Config, snapshot: &Snapshot, reason: SnapshotReason) -> Vec<Bytes> {
        let projection = &self.projection;
        let id = self.cursor(snapshot.namespace, snapshot.versions);
        let snapshot_at = render::format_timestamp((config.wall_clock_ms)());
        let connection_id = snapshot.namespace.connection_id.to_string();
        let with_instances = projection.types.contains(EventType::InstanceState);
        let with_claims = projection.types.contains(EventType::ClaimState);
        let instances =
            snapshot.inventory.instances.values().filter(|i| with_instances && projection.includes_instance(i));
        let claims = snapshot.inventory.claims.values().filter(|c| with_claims && projection.includes_claim(c));
        let pools =
            if projection.types.contains(EventType::PoolDepth) { snapshot.pools(projection) } else { Vec::new() };

        let part_bytes = config.initial_state_part_bytes;
        let mut parts = vec![Part::default()];
        for instance in instances {
            Part::with_capacity_for(&mut parts, instance.charged_bytes(), part_bytes).instances.push(instance);
        }
        for claim in claims {
            Part::with_capacity_for(&mut parts, claim.charged_bytes(), part_bytes).claims.push(claim);
        }
        let last = parts.len() - 1;
        let message = |(index, part): (usize, Part<'_>)| {
            let id = (index == last).then_some(id.as_str());
            let body = StateInitial {
                id,
                snapshot_at: &snapshot_at,
                reason: reason.name(),
                connection_id: &connection_id,
                instances: &part.instances,
                claims: &part.claims,
                pools: if index == last { &pools } else { &[] },
                more: index != last,
            };
            let mut bytes = Vec::new();
            self.append_body(&mut bytes, "state.initial", id, body);
            Bytes::from(bytes)
        };
        parts.into_iter().enumerate().map(message).collect()
    }
}

/// The body of `state.initial`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StateInitial<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    snapshot_at: &'a str,
    reason: &'static str,
    connection_id: &'a str,
    instances: &'a [&'a Arc<Instance>],
    claims: &'a [&'a Arc<Claim>],
    pools: &'a [PoolDepth],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    more: bool,
}
