//! The current state as a lens shows it: encoded once for all who come at about the same time.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde::Serialize;
use tokio::time::Instant;

use super::{Config, Reason, Shared, SharedLens, Snapshot, lock};
use crate::{
    event::{
        Claim, Home, Instance, Pool, ResourceVersion,
        projection::{Format, Type},
        render,
    },
    feed::state::State,
};

/// An initial state is rebuilt when it is older than this many times what building it took...
const REUSE_FACTOR: u32 = 10;
/// ...but never reused when it is older than this (architecture.md, the feed's contract, 6), unless nothing has changed.
const REUSE_LIMIT: Duration = Duration::from_secs(1);

/// An encoded state, and where the log goes on from it.
#[derive(Debug)]
pub(in crate::feed) struct Initial {
    pub(in crate::feed) home: Home,
    pub(in crate::feed) parts: Vec<Bytes>,
    pub(in crate::feed) position: u64,
    pub(in crate::feed) rv: [ResourceVersion; 2],
    /// How many histories had ended before.
    pub(in crate::feed) history: u64,
    built: Instant,
    cost: Duration,
}

impl Initial {
    /// Bytes charged for keeping it.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Initial>() + self.parts.iter().map(|part| size_of::<Bytes>() + part.len()).sum::<usize>()
    }

    /// Whether nobody is given it any more once something has changed.
    pub(super) fn is_old(&self) -> bool {
        let age = self.built.elapsed();
        age >= REUSE_LIMIT || age >= self.cost * REUSE_FACTOR
    }

    fn will_do(&self, state: &State) -> bool {
        self.position == state.log.end() || (!self.is_old() && self.position >= state.log.first())
    }
}

impl SharedLens {
    /// The state now, or as it was a moment ago if the log goes on from it; `None` while it is older than `at_least`.
    pub(in crate::feed) fn initial(
        &self,
        shared: &Shared,
        reason: Reason,
        at_least: [ResourceVersion; 2],
    ) -> Option<Arc<Initial>> {
        // Whoever comes meanwhile waits for it rather than encoding the same.
        let _building = lock(&self.building);
        let last = self.kept().initial(reason);
        let state = shared.state();
        if let Some(last) = last.filter(|last| last.will_do(&state) && self.reached(last.rv, at_least)) {
            return Some(last);
        }
        if !self.reached(state.newest, at_least) {
            return None;
        }
        let home = state.ready().ok()?;
        let (inventory, rv, position) = (state.inventory.clone(), state.newest, state.log.end());
        let history = state.history;
        drop(state);
        let snapshot = Snapshot { home, inventory, rv, position };
        let initial = Arc::new(self.build(shared, &snapshot, reason, history));
        if shared.hub.is_none() {
            self.kept().keep(reason, &initial);
            shared.lenses.trim();
        }
        Some(initial)
    }

    fn build(&self, shared: &Shared, snapshot: &Snapshot, reason: Reason, history: u64) -> Initial {
        shared.metrics.snapshots.inc();
        let started = Instant::now();
        let parts = match self.lens.format {
            Format::Boilerhouse => self.burst(snapshot, shared.config.part_bytes),
            Format::Full => self.state_initial(&shared.config, snapshot, reason),
        };
        let Snapshot { home, position, rv, .. } = *snapshot;
        Initial { home, parts, position, rv, history, built: started, cost: started.elapsed() }
    }

    /// `/ws`: the state as events.
    fn burst(&self, snapshot: &Snapshot, part_bytes: usize) -> Vec<Bytes> {
        let mut parts = Vec::new();
        let mut bytes = Vec::new();
        for view in snapshot.inventory.views() {
            render::render_first(&view, &self.lens, |event| {
                self.put_event(&mut bytes, event, None, None);
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
    fn state_initial(&self, config: &Config, snapshot: &Snapshot, reason: Reason) -> Vec<Bytes> {
        let id = self.cursor(snapshot.home, snapshot.rv);
        let snapshot_at = render::time((config.clock)());
        let connection_id = snapshot.home.connection_id.to_string();
        let (pods, claims) = (self.lens.types.has(Type::InstanceState), self.lens.types.has(Type::ClaimState));
        let instances = snapshot.inventory.instances.values().filter(|i| pods && self.lens.includes_instance(i));
        let claims = snapshot.inventory.claims.values().filter(|c| claims && self.lens.shows_claim(c));
        let pools = if self.lens.types.has(Type::PoolDepth) { snapshot.pools(&self.lens) } else { Vec::new() };

        let mut parts = vec![Part::default()];
        for instance in instances {
            Part::with_room(&mut parts, instance.cost(), config.part_bytes).instances.push(instance);
        }
        for claim in claims {
            Part::with_room(&mut parts, claim.cost(), config.part_bytes).claims.push(claim);
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
            self.put_body(&mut bytes, "state.initial", id, body);
            Bytes::from(bytes)
        };
        parts.into_iter().enumerate().map(message).collect()
    }
}

#[derive(Default)]
struct Part<'a> {
    instances: Vec<&'a Arc<Instance>>,
    claims: Vec<&'a Arc<Claim>>,
    bytes: usize,
}

impl<'a> Part<'a> {
    fn with_room<'p>(parts: &'p mut Vec<Part<'a>>, bytes: usize, most: usize) -> &'p mut Part<'a> {
        if parts.last().is_none_or(|part| part.bytes > 0 && part.bytes + bytes > most) {
            parts.push(Part::default());
        }
        let at = parts.len() - 1;
        parts[at].bytes += bytes;
        &mut parts[at]
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
    pools: &'a [Pool],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    more: bool,
}
