//! The current state as a lens shows it: encoded once for all who come at about the same time.

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
    /// The state now, or as it was a moment ago if the log goes on from it; `None` while it is older than `at_least`.
    pub(in crate::feed) fn initial(
        &self,
        shared: &Shared,
        reason: SnapshotReason,
        at_least: PerResource<ResourceVersion>,
    ) -> Option<Arc<InitialState>> {
        // Whoever comes meanwhile waits for it rather than encoding the same.
        let _building = lock(&self.encode_lock);
        let last = self.frame_cache().initial(reason);
        let state = shared.state();
        if let Some(last) = last.filter(|last| last.is_reusable(&state) && self.covers(last.versions, at_least)) {
            return Some(last);
        }
        if !self.covers(state.latest_versions, at_least) {
            return None;
        }
        let namespace = state.synced_namespace().ok()?;
        let (inventory, rv, position) = (state.inventory.clone(), state.latest_versions, state.log.end_position());
        let history = state.history_epoch;
        drop(state);
        let snapshot = Snapshot { namespace, inventory, versions: rv, position };
        let initial = Arc::new(self.build(shared, &snapshot, reason, history));
        if shared.hub_feed.is_none() {
            self.frame_cache().store_initial(reason, &initial);
        }
        Some(initial)
    }

    fn build(&self, shared: &Shared, snapshot: &Snapshot, reason: SnapshotReason, history: u64) -> InitialState {
        shared.metrics.snapshots.inc();
        let started = Instant::now();
        let parts = match self.projection.format {
            EventFormat::Boilerhouse => self.encode_burst(snapshot, shared.config.initial_state_part_bytes),
            EventFormat::Full => self.state_initial(&shared.config, snapshot, reason),
        };
        let Snapshot { namespace, position, versions: rv, .. } = *snapshot;
        InitialState {
            namespace,
            parts,
            position,
            versions: rv,
            history_epoch: history,
            built: started,
            cost: started.elapsed(),
        }
    }

    /// `/ws`: the state as events.
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

    /// The full stream: the state as one or more `state.initial`.
    fn state_initial(&self, config: &Config, snapshot: &Snapshot, reason: SnapshotReason) -> Vec<Bytes> {
        let id = self.cursor(snapshot.namespace, snapshot.versions);
        let snapshot_at = render::format_timestamp((config.wall_clock_ms)());
        let connection_id = snapshot.namespace.connection_id.to_string();
        let (pods, claims) = (
            self.projection.types.contains(EventType::InstanceState),
            self.projection.types.contains(EventType::ClaimState),
        );
        let instances = snapshot.inventory.instances.values().filter(|i| pods && self.projection.includes_instance(i));
        let claims = snapshot.inventory.claims.values().filter(|c| claims && self.projection.includes_claim(c));
        let pools = if self.projection.types.contains(EventType::PoolDepth) {
            snapshot.pools(&self.projection)
        } else {
            Vec::new()
        };

        let mut parts = vec![Part::default()];
        for instance in instances {
            Part::with_capacity_for(&mut parts, instance.charged_bytes(), config.initial_state_part_bytes)
                .instances
                .push(instance);
        }
        for claim in claims {
            Part::with_capacity_for(&mut parts, claim.charged_bytes(), config.initial_state_part_bytes)
                .claims
                .push(claim);
        }
        let last = parts.len() - 1;
        let message = |(at, part): (usize, Part<'_>)| {
            let id = (at == last).then_some(id.as_str());
            let body = StateInitial {
                id,
                snapshot_at: &snapshot_at,
                reason: reason.name(),
                connection_id: &connection_id,
                instances: &part.instances,
                claims: &part.claims,
                pools: if at == last { &pools } else { &[] },
                more: at != last,
            };
            let mut bytes = Vec::new();
            self.append_body(&mut bytes, "state.initial", id, body);
            Bytes::from(bytes)
        };
        parts.into_iter().enumerate().map(message).collect()
    }
}

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
