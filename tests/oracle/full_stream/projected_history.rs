//! A history as clients see it: which versions have events for a projection, and the difference, the fold and the pools
//! at a version.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use boilerhouse_bridge::event::{Resource, ResourceVersion};
use serde_json::{Value, json};

use crate::oracle::fold::STATE_EVENTS;
use crate::oracle::history::{self, History};
use crate::oracle::visibility::ExpectedProjection;

use super::expected::events_of;

/// The events of one version, without `id` and `time`. There is at least one.
#[derive(Debug)]
pub(super) struct VisibleChange {
    pub(super) version: ResourceVersion,
    pub(super) events: Vec<Arc<Value>>,
}

/// Instances of each workload: warming, ready, acquired.
pub(crate) type Pools = BTreeMap<String, [u64; 3]>;

type VisibleCache = HashMap<(usize, usize, Resource), Rc<Vec<VisibleChange>>>;

/// A history and the projections of the clients that are compared with it.
#[derive(Debug)]
pub(crate) struct ProjectedHistory {
    pub(crate) history: History,
    /// By number.
    pub(crate) projections: Vec<ExpectedProjection>,
    visible_cache: RefCell<VisibleCache>,
}

impl ProjectedHistory {
    pub(crate) fn new(history: History, projections: Vec<ExpectedProjection>) -> ProjectedHistory {
        ProjectedHistory { history, projections, visible_cache: RefCell::default() }
    }

    /// Every version with events for a projection.
    pub(super) fn visible(&self, projection: usize, epoch: usize, resource: Resource) -> Rc<Vec<VisibleChange>> {
        let compute = || {
            let changes = self.history.changes(epoch, resource).iter().map(|change| {
                let (before, after) = (change.before.as_deref(), change.after.as_deref());
                let events = events_of(&self.projections[projection], before, after, change.version);
                VisibleChange { version: change.version, events }
            });
            Rc::new(changes.filter(|change| !change.events.is_empty()).collect())
        };
        let mut cache = self.visible_cache.borrow_mut();
        cache.entry((projection, epoch, resource)).or_insert_with(compute).clone()
    }

    /// The first version with events for a projection after another version.
    pub(crate) fn next_visible(
        &self,
        projection: usize,
        epoch: usize,
        resource: Resource,
        after: ResourceVersion,
    ) -> Option<ResourceVersion> {
        let visible = self.visible(projection, epoch, resource);
        visible.get(visible.partition_point(|change| change.version <= after)).map(|change| change.version)
    }

    /// The events of the net difference between two versions.
    pub(super) fn difference(
        &self,
        projection: usize,
        epoch: usize,
        resource: Resource,
        since: ResourceVersion,
        to: ResourceVersion,
    ) -> Vec<Arc<Value>> {
        let state = |version| self.history.state(epoch, resource, version);
        let mut events = Vec::new();
        for (before, after) in history::difference(state(since), state(to)) {
            let (before, after) = (before.map(|object| &**object), after.map(|object| &**object));
            for event in events_of(&self.projections[projection], before, after, to) {
                let mut event = (*event).clone();
                event["coalesced"] = true.into();
                events.push(Arc::new(event));
            }
        }
        events
    }

    /// What a client holds at a version, by uid.
    pub(crate) fn fold(
        &self,
        projection: usize,
        epoch: usize,
        resource: Resource,
        version: ResourceVersion,
    ) -> BTreeMap<&str, &Value> {
        let projection = &self.projections[projection];
        let objects = self.history.state(epoch, resource, version).values();
        let visible = objects.filter(|object| projection.has(STATE_EVENTS[resource]) && projection.shows(object));
        visible.map(|object| (object.uid.as_str(), &object.view)).collect()
    }

    /// The pools that a client sees at a version.
    pub(crate) fn pools(&self, projection: usize, epoch: usize, version: ResourceVersion) -> Pools {
        let projection = &self.projections[projection];
        let mut pools = Pools::new();
        for pod in self.history.state(epoch, Resource::Pods, version).values() {
            let Some(workload) = pod.text("workloadRef").filter(|workload| projection.shows_pool(workload)) else {
                continue;
            };
            let pool = pools.entry(workload.to_owned()).or_default();
            let status = pod.text("poolStatus").unwrap_or_default();
            if let Some(nth) = ["warming", "ready", "acquired"].iter().position(|one| *one == status) {
                pool[nth] += 1;
            }
        }
        pools
    }

    /// A `state.initial` that is true at these versions, without `id`.
    pub(crate) fn state_initial(
        &self,
        projection: usize,
        reason: &str,
        version: impl Fn(Resource) -> ResourceVersion,
    ) -> Value {
        let objects = |resource: Resource| -> Vec<&Value> {
            let needed = self.projections[projection].needs(resource);
            let fold = needed.then(|| self.fold(projection, 0, resource, version(resource)));
            fold.into_iter().flatten().map(|(_, view)| view).collect()
        };
        let pools = self.pools(projection, 0, version(Resource::Pods));
        let pools = pools.into_iter().map(|(workload, [warming, ready, acquired])| {
            json!({"workloadRef": workload, "warming": warming, "ready": ready, "acquired": acquired})
        });
        json!({
            "type": "state.initial", "reason": reason, "instances": objects(Resource::Pods),
            "claims": objects(Resource::Claims), "pools": pools.collect::<Vec<Value>>(),
        })
    }
}
