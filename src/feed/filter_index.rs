//! The index of filters: which projections an entry of the log can concern. With it, the cost of a change depends on the
//! projections that it can concern, and not on all of them.
//!
//! *Owns* the places of all projections with a filter or with the scope of a tenant. The others are not in it: each entry
//! can concern them.
//!
//! *Guarantees:*
//! - An entry that is not marked for a projection has no event for it and no effect on its subscriptions.
//! - The writer marks each entry once, under the lock of the state, so that marks are complete up to the end of the log.
//!
//! *Must not import* anything that renders: `feed/state.rs` imports it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use crate::{
    event::{
        Claim, EntryKind, EphemeralEvent, Instance, LogEntry, PerResource, Resource, View,
        projection::{EventType, Filter, ObjectFilter, Projection, Scope},
    },
    weak_table::PruneSchedule,
};

/// Marked positions of one projection that are kept. A projection with more unread marks renders all entries instead.
const MAX_MARKS: usize = 1024;

/// The index of one feed.
#[derive(Debug, Default)]
pub(super) struct FilterIndex(Mutex<Places>);

/// The marked positions of one projection.
#[derive(Debug)]
pub(super) struct Marks {
    /// The number of the projection.
    id: usize,
    positions: Mutex<Positions>,
}

#[derive(Debug)]
struct Positions {
    /// From this position on, an entry without a mark does not concern the projection.
    complete_from: u64,
    /// In order.
    marked: VecDeque<u64>,
}

/// All projections in the index.
#[derive(Debug, Default)]
struct Places {
    by_value: HashMap<Selector, HashMap<String, Vec<Weak<Marks>>>>,
    all: Vec<Weak<Marks>>,
    prune_schedule: PruneSchedule,
    /// For each reader the projections that were marked since it asked, with their last marks.
    marked_ids: Vec<HashMap<usize, u64>>,
}

/// The objects of a resource, or the pools, by one of their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Selector {
    Name(Resource),
    Tenant(Resource),
    Workload(Resource),
    Phase(Resource),
    Pool,
    /// All objects of a resource. The value is empty.
    EveryObject(Resource),
    /// All pools. The value is empty.
    EveryPool,
    /// All MQTT messages. The value is empty.
    EveryMqttMessage,
}

impl FilterIndex {
    /// Adds a projection, for entries from `position` on, the end of the log. Returns `None` for a projection that is not in
    /// the index. The caller holds the lock of the state.
    pub(super) fn add(&self, id: usize, projection: &Projection, position: u64) -> Option<Arc<Marks>> {
        if projection.filter == Filter::default() && projection.scope == Scope::All {
            return None;
        }
        let positions = Mutex::new(Positions { complete_from: position, marked: VecDeque::new() });
        let marks = Arc::new(Marks { id, positions });
        let mut places = self.lock();
        places.prune();
        places.all.push(Arc::downgrade(&marks));
        for (selector, value) in selectors(projection) {
            places.by_value.entry(selector).or_default().entry(value).or_default().push(Arc::downgrade(&marks));
        }
        Some(marks)
    }

    /// Marks an entry for the projections that it can concern. The caller holds the lock of the state.
    #[inline]
    pub(super) fn mark(&self, entry: &LogEntry, position: u64) {
        let mut places = self.lock();
        if !places.all.is_empty() {
            places.mark(entry, position);
        }
    }

    /// Adds a reader of marked projections. Returns its number.
    pub(super) fn add_reader(&self) -> usize {
        let mut places = self.lock();
        places.marked_ids.push(HashMap::new());
        places.marked_ids.len() - 1
    }

    /// Returns the numbers of the projections that were marked since the reader called this last. Those with marks at `end`
    /// or after it are returned again by the next call: the reader does not see entries from `end` on yet.
    pub(super) fn take_marked(&self, reader: usize, end: u64) -> Vec<usize> {
        let mut places = self.lock();
        let Some(marked) = places.marked_ids.get_mut(reader) else { return Vec::new() };
        let ids = marked.keys().copied().collect();
        marked.retain(|_, last| *last >= end);
        ids
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    fn mark(&mut self, entry: &LogEntry, position: u64) {
        let Places { by_value, all, marked_ids, .. } = self;
        let mut mark = |places: &[Weak<Marks>]| {
            for marks in places.iter().filter_map(Weak::upgrade) {
                if marks.mark(position) {
                    for ids in &mut *marked_ids {
                        ids.insert(marks.id, position);
                    }
                }
            }
        };
        let mut mark_value = |selector, value: &str| {
            if let Some(places) = by_value.get(&selector).and_then(|by_value| by_value.get(value)) {
                mark(places);
            }
        };
        match &entry.kind {
            EntryKind::ChangeSet(change_set) if change_set.coalesced_from.is_none() && !change_set.history_reset => {
                for view in change_set.changes.iter().flat_map(|change| [&change.old, &change.new]).flatten() {
                    match view {
                        View::Instance(instance) => values_of_instance(instance, &mut mark_value),
                        View::Claim(claim) => values_of_claim(claim, &mut mark_value),
                    }
                }
            }
            EntryKind::Ephemeral(EphemeralEvent::Telemetry { instance, .. }) => {
                values_of_instance(instance, &mut mark_value);
            }
            EntryKind::Ephemeral(EphemeralEvent::MqttMessage { .. }) => mark_value(Selector::EveryMqttMessage, ""),
            EntryKind::Ephemeral(EphemeralEvent::PoolDepth(pool)) => {
                mark_value(Selector::Pool, &pool.workload_ref);
                mark_value(Selector::EveryPool, "");
            }
            // A difference is announced to every client, and a reset or the state of the upstream concerns every client.
            EntryKind::ChangeSet(_) | EntryKind::Ephemeral(EphemeralEvent::Upstream { .. }) => mark(all),
        }
    }

    /// Removes the places of projections that no longer exist.
    fn prune(&mut self) {
        if !self.prune_schedule.is_due(self.all.len()) {
            return;
        }
        let exists = |marks: &Weak<Marks>| marks.strong_count() > 0;
        self.all.retain(exists);
        self.prune_schedule.pruned(self.all.len());
        self.by_value.retain(|_, by_value| {
            by_value.retain(|_, places| {
                places.retain(exists);
                !places.is_empty()
            });
            !by_value.is_empty()
        });
    }
}

impl Marks {
    /// Marks a position. Returns false if it is the last marked one.
    fn mark(&self, position: u64) -> bool {
        let mut positions = self.lock();
        if positions.marked.back() == Some(&position) {
            return false;
        }
        if positions.marked.len() >= MAX_MARKS {
            positions.complete_from = position;
            positions.marked.clear();
        }
        positions.marked.push_back(position);
        true
    }

    /// Returns the first position from `from` on whose entry can concern the projection, and forgets the marks before it.
    /// `end` if there is none.
    pub(super) fn next_from(&self, from: u64, end: u64) -> u64 {
        let mut positions = self.lock();
        if from < positions.complete_from {
            return from;
        }
        while positions.marked.front().is_some_and(|position| *position < from) {
            positions.marked.pop_front();
        }
        positions.marked.front().map_or(end, |position| end.min(*position))
    }

    fn lock(&self) -> MutexGuard<'_, Positions> {
        self.positions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls `mark` with each value of an instance by which a projection can select it.
fn values_of_instance(instance: &Instance, mark: &mut impl FnMut(Selector, &str)) {
    let (tenant, workload) = (instance.tenant_id.as_deref(), instance.workload_ref.as_deref());
    values_of_object(Resource::Pods, &instance.name, tenant, workload, &instance.phase, mark);
}

/// Calls `mark` with each value of a claim by which a projection can select it.
fn values_of_claim(claim: &Claim, mark: &mut impl FnMut(Selector, &str)) {
    let (tenant, workload) = (Some(&*claim.tenant_id), Some(&*claim.workload_ref));
    values_of_object(Resource::Claims, &claim.name, tenant, workload, &claim.phase, mark);
}

fn values_of_object(
    resource: Resource,
    name: &str,
    tenant: Option<&str>,
    workload: Option<&str>,
    phase: &str,
    mark: &mut impl FnMut(Selector, &str),
) {
    mark(Selector::Name(resource), name);
    tenant.into_iter().for_each(|tenant| mark(Selector::Tenant(resource), tenant));
    workload.into_iter().for_each(|workload| mark(Selector::Workload(resource), workload));
    mark(Selector::Phase(resource), phase);
    mark(Selector::EveryObject(resource), "");
}

/// Returns the places of a projection: one for Pods (`telemetry` is found by the values of its Pod), for claims, for pools
/// and for MQTT messages, as far as it includes any.
fn selectors(projection: &Projection) -> impl Iterator<Item = (Selector, String)> {
    let Projection { scope, filter: Filter { instances, claims }, types, .. } = projection;
    let filters = PerResource::new(instances, claims);
    let needs =
        |resource| types.resources()[resource] || (resource == Resource::Pods && types.contains(EventType::Telemetry));
    let of_resource = |resource| needs(resource).then(|| selector(resource, scope, filters[resource]));
    let has_pools = types.contains(EventType::PoolDepth) && *scope == Scope::All;
    let pools = has_pools.then(|| match &instances.workload_ref {
        Some(workload) => (Selector::Pool, workload.clone()),
        None => (Selector::EveryPool, String::new()),
    });
    let has_messages = types.contains(EventType::MqttMessage) && *scope == Scope::All;
    let messages = has_messages.then(|| (Selector::EveryMqttMessage, String::new()));
    Resource::ALL.map(of_resource).into_iter().flatten().chain(pools).chain(messages)
}

/// Returns the value that selects the fewest objects of a resource.
fn selector(resource: Resource, scope: &Scope, filter: &ObjectFilter) -> (Selector, String) {
    let of_scope = match scope {
        Scope::All => None,
        Scope::Tenant(tenant) => Some(tenant),
    };
    let candidates = [
        (Selector::Name(resource), filter.name.as_ref()),
        (Selector::Tenant(resource), filter.tenant_id.as_ref().or(of_scope)),
        (Selector::Workload(resource), filter.workload_ref.as_ref()),
        (Selector::Phase(resource), filter.phase.as_ref()),
    ];
    let first = candidates.into_iter().find_map(|(selector, value)| Some((selector, value?.clone())));
    first.unwrap_or((Selector::EveryObject(resource), String::new()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{Change, ChangeSet, MqttMessage, PoolDepth, ResourceVersion, projection::EventFormat, render},
        test_support::{self, ClaimBuilder, PodBuilder, ReplayCommand, SeededRng, seeds_to_run},
        weak_table::PRUNE_SLACK,
    };

    const NAMES: [&str; 3] = ["a", "b", "c"];

    fn projection(rng: &mut SeededRng) -> Projection {
        let filter = |rng: &mut SeededRng| {
            let mut value = |chance: u64| (rng.below(chance) == 0).then(|| (*rng.choose(&NAMES)).to_owned());
            let (name, tenant_id, workload_ref, phase) = (value(4), value(4), value(4), value(4));
            ObjectFilter { name, tenant_id, workload_ref, phase, ..ObjectFilter::default() }
        };
        let filter = Filter { instances: filter(rng), claims: filter(rng) };
        let scope = if rng.below(4) == 0 { Scope::Tenant("a".into()) } else { Scope::All };
        let types = EventType::ALL.into_iter().filter(|_| rng.below(3) > 0).collect();
        Projection { scope, filter, types, format: EventFormat::Full }
    }

    fn entry(rng: &mut SeededRng, version: ResourceVersion) -> LogEntry {
        let mut name = || *rng.choose(&NAMES);
        let (object, tenant, workload, other) = (name(), name(), name(), name());
        let resource = *rng.choose(&Resource::ALL);
        let view = |phase: &str| match resource {
            Resource::Pods => {
                PodBuilder::new(object).tenant(tenant).workload(workload).phase(phase).version(version).view()
            }
            Resource::Claims => {
                ClaimBuilder::new(object).tenant(tenant).workload(workload).phase(phase).version(version).view()
            }
        };
        let (old, new) = (view("a"), view(other));
        let change = match rng.below(3) {
            0 => Change { old: None, new: Some(new) },
            1 => Change { old: Some(old), new: None },
            _ => Change { old: Some(old), new: Some(new) },
        };
        let kind = match rng.below(8) {
            0 => {
                let pool = PoolDepth { workload_ref: workload.into(), ..PoolDepth::default() };
                EntryKind::Ephemeral(EphemeralEvent::PoolDepth(pool))
            }
            1 => EntryKind::Ephemeral(EphemeralEvent::Upstream {
                resource: resource.plural(),
                down_reason: None,
                last_byte_ms: 0,
            }),
            6 => {
                let pod =
                    PodBuilder::new(object).tenant(tenant).workload(workload).phase(other).version(version).view();
                let View::Instance(instance) = pod else { unreachable!("a Pod") };
                let telemetry = Arc::new(test_support::telemetry(&instance.uid));
                EntryKind::Ephemeral(EphemeralEvent::Telemetry { instance, telemetry })
            }
            7 => {
                let message = MqttMessage { topic: String::new(), payload: serde_json::Value::Null };
                EntryKind::Ephemeral(EphemeralEvent::MqttMessage { message: Arc::new(message), charged_bytes: 0 })
            }
            random => EntryKind::ChangeSet(ChangeSet {
                resource,
                version,
                changes: [change].into(),
                coalesced_from: (random == 2).then_some(1),
                history_reset: random == 3 && rng.below(4) == 0,
            }),
        };
        LogEntry { versions_after: PerResource::default(), observed_at_ms: 0, kind }
    }

    /// Returns whether an entry has an event for the projection, or concerns each of its subscriptions.
    fn concerns(entry: &LogEntry, projection: &Projection) -> bool {
        match &entry.kind {
            EntryKind::Ephemeral(EphemeralEvent::Upstream { .. }) => true,
            EntryKind::Ephemeral(event) => render::render_ephemeral(event, projection, "").is_some(),
            EntryKind::ChangeSet(change_set) => {
                let mut events = 0;
                render::render_change_set(change_set, projection, |_| events += 1);
                events > 0 || change_set.history_reset || change_set.coalesced_from.is_some()
            }
        }
    }

    #[test]
    fn entries_without_a_mark_do_not_concern_a_projection() {
        for seed in seeds_to_run(0..30) {
            let _hint = ReplayCommand::on_panic(crate::test_name!(), seed);
            let mut rng = SeededRng(seed);
            let index = FilterIndex::default();
            let reader = index.add_reader();
            let mut projections = Vec::new();
            let (mut marked, mut unmarked) = (0, 0);
            for position in 0..300 {
                if rng.below(10) == 0 {
                    let projection = projection(&mut rng);
                    let id = projections.len();
                    projections.push((index.add(id, &projection, position), projection));
                }
                let entry = entry(&mut rng, position + 1);
                index.mark(&entry, position);
                let ids = index.take_marked(reader, position + 1);
                for (id, (marks, projection)) in projections.iter().enumerate() {
                    let Some(marks) = marks else { continue };
                    let is_marked = marks.next_from(position, position + 1) == position;
                    assert_eq!(is_marked, ids.contains(&id));
                    assert!(is_marked || !concerns(&entry, projection), "{entry:?} concerns {projection:?}");
                    *(if is_marked { &mut marked } else { &mut unmarked }) += 1;
                }
            }
            assert!(marked > 100 && unmarked > 100, "{marked} marked, {unmarked} unmarked");
        }
    }

    #[test]
    fn marks_beyond_the_maximum_and_entries_before_the_projection_count_as_marked() {
        let named = |name: &str| {
            let filter = Filter::parse(&format!(r#"{{"instances":{{"name":"{name}"}}}}"#)).unwrap();
            let types = [EventType::InstanceState].into_iter().collect();
            Projection { filter, types, ..Projection::everything(EventFormat::Full) }
        };
        let index = FilterIndex::default();
        let (a, b) = (index.add(1, &named("a"), 10).unwrap(), index.add(2, &named("b"), 10).unwrap());
        assert_eq!((a.next_from(7, 10), a.next_from(10, 10)), (7, 10), "entries before 10 are unknown");
        let change = Change { old: None, new: Some(PodBuilder::new("a").view()) };
        let change_set = ChangeSet {
            resource: Resource::Pods,
            version: 1,
            changes: [change].into(),
            coalesced_from: None,
            history_reset: false,
        };
        let kind = EntryKind::ChangeSet(change_set);
        let entry = LogEntry { versions_after: PerResource::default(), observed_at_ms: 0, kind };
        let end = 10 + MAX_MARKS as u64 + 1;
        for position in 10..end {
            index.mark(&entry, position);
        }
        let reader = index.add_reader();
        index.mark(&entry, end);
        assert_eq!(index.take_marked(reader, end), [1]);
        assert_eq!(index.take_marked(reader, end + 1), [1], "the entry was not visible before");
        assert!(index.take_marked(reader, end + 1).is_empty());
        assert_eq!((a.next_from(10, end), a.next_from(end - 1, end), b.next_from(10, end)), (10, end - 1, end));
        drop((a, b));
        for id in 0..=PRUNE_SLACK {
            index.add(id, &named(&id.to_string()), end);
        }
        assert!(index.lock().all.len() < PRUNE_SLACK, "places of dropped projections are removed");
    }
}
