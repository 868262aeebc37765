//! The history of the objects: every version of each resource, in order, and the state at every version.
//!
//! It is made from the store of the simulated API server, or from writes whose versions are known. A restored older
//! copy of etcd starts another epoch, in which versions above the restored one have another meaning.

use std::collections::BTreeMap;
use std::sync::Arc;

use boilerhouse_bridge::event::{PerResource, Resource, ResourceVersion};
use boilerhouse_bridge::sim::ApiResource;
use boilerhouse_bridge::sim::store::Change;
use serde_json::Value;

use super::object::ExpectedObject;

/// The watched namespace of all simulated clusters.
pub(crate) const NAMESPACE: &str = "boilerhouse";

/// All objects of one resource, by name.
pub(crate) type State = BTreeMap<String, Arc<ExpectedObject>>;

/// One version of one resource: an object before and after it. A side is `None` if the object does not exist there or
/// is not watched.
#[derive(Clone, Debug)]
pub(crate) struct VersionChange {
    pub(crate) version: ResourceVersion,
    pub(crate) before: Option<Arc<ExpectedObject>>,
    pub(crate) after: Option<Arc<ExpectedObject>>,
}

/// Every version of one resource between two restores of etcd.
#[derive(Debug, Default)]
pub(crate) struct Epoch {
    changes: Vec<VersionChange>,
    /// The state after each of the changes.
    states: Vec<State>,
}

/// Where an older copy of etcd was restored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EpochSwitch {
    /// The last revision that the new epoch shares with the one before.
    pub(crate) shared: ResourceVersion,
    /// Milliseconds since the start of the test.
    pub(crate) at: u64,
}

/// One write: its epoch, its revision, and its time in milliseconds since the start of the test.
pub(crate) type Written = (usize, ResourceVersion, u64);

/// The complete history, with at least one epoch.
#[derive(Debug)]
pub(crate) struct History {
    epochs: Vec<PerResource<Epoch>>,
    /// One less than there are epochs; empty if the times are not known.
    switches: Vec<EpochSwitch>,
    /// Empty if the times are not known.
    written: Vec<Written>,
    /// Whether the Namespace was created again. Each replica starts a new history when it notices.
    has_new_namespace: bool,
    no_objects: State,
}

impl History {
    /// The history of a simulated API server: the changes of its store, for each epoch.
    pub(crate) fn of_store(epochs: &[Vec<Change>]) -> History {
        let of = |changes: &[Change], resource: Resource| {
            let watched = |change: &&Change| change.resource == api_resource(resource) && change.namespace == NAMESPACE;
            let sides = changes.iter().filter(watched).map(|change| (change.revision, &change.before, &change.after));
            Epoch::of(sides.filter_map(|(version, before, after)| VersionChange::of(version, before, after)))
        };
        History::new(epochs.iter().map(|changes| PerResource::from_fn(|resource| of(changes, resource))).collect())
    }

    /// The history of one epoch, by changes in any order.
    pub(crate) fn of_changes(changes: Vec<VersionChange>) -> History {
        let mut by_resource: PerResource<Vec<VersionChange>> = PerResource::default();
        for change in changes {
            if let Some(resource) = change.resource() {
                by_resource[resource].push(change);
            }
        }
        History::new(vec![by_resource.map(|mut changes| {
            changes.sort_by_key(|change| change.version);
            Epoch::of(changes.into_iter())
        })])
    }

    fn new(epochs: Vec<PerResource<Epoch>>) -> History {
        History {
            epochs,
            switches: Vec::new(),
            written: Vec::new(),
            has_new_namespace: false,
            no_objects: State::new(),
        }
    }

    /// Adds the times of restores and writes.
    pub(crate) fn with_times(mut self, switches: Vec<EpochSwitch>, written: Vec<Written>) -> History {
        (self.switches, self.written) = (switches, written);
        self
    }

    /// Sets whether the Namespace was created again.
    pub(crate) fn with_new_namespace(self, has_new_namespace: bool) -> History {
        History { has_new_namespace, ..self }
    }

    pub(crate) fn has_new_namespace(&self) -> bool {
        self.has_new_namespace
    }

    /// The number of the last epoch.
    pub(crate) fn last_epoch(&self) -> usize {
        self.epochs.len() - 1
    }

    pub(crate) fn changes(&self, epoch: usize, resource: Resource) -> &[VersionChange] {
        &self.epochs[epoch][resource].changes
    }

    /// The changes after one version, up to and including another one.
    pub(crate) fn changes_between(
        &self,
        epoch: usize,
        resource: Resource,
        after: ResourceVersion,
        up_to: ResourceVersion,
    ) -> &[VersionChange] {
        let changes = self.changes(epoch, resource);
        let position = |version| changes.partition_point(|change| change.version <= version);
        &changes[position(after)..position(up_to).max(position(after))]
    }

    /// Whether an object was created and deleted between two versions.
    pub(crate) fn has_transient(
        &self,
        epoch: usize,
        resource: Resource,
        after: ResourceVersion,
        up_to: ResourceVersion,
    ) -> bool {
        let changes = self.changes_between(epoch, resource, after, up_to);
        let created =
            changes.iter().filter(|change| change.before.is_none()).filter_map(|change| change.after.as_ref());
        let mut created = created.map(|object| &object.uid);
        let is_deleted = |uid: &String| {
            let mut deleted = changes.iter().filter(|change| change.after.is_none());
            deleted.any(|change| change.before.as_ref().is_some_and(|object| object.uid == *uid))
        };
        created.any(is_deleted)
    }

    /// The state at a version of an epoch.
    pub(crate) fn state(&self, epoch: usize, resource: Resource, version: ResourceVersion) -> &State {
        let epoch = &self.epochs[epoch][resource];
        let next = epoch.changes.partition_point(|change| change.version <= version);
        next.checked_sub(1).map_or(&self.no_objects, |nth| &epoch.states[nth])
    }

    /// The state at the end.
    pub(crate) fn final_state(&self, resource: Resource) -> &State {
        self.state(self.last_epoch(), resource, ResourceVersion::MAX)
    }

    /// The epoch at a time.
    pub(crate) fn epoch_at(&self, at: u64) -> usize {
        self.switches.iter().filter(|switch| switch.at <= at).count()
    }

    /// Whether a version has the same meaning in two epochs, `from` being the earlier one.
    pub(crate) fn is_shared(&self, from: usize, to: usize, version: ResourceVersion) -> bool {
        self.switches[from..to].iter().all(|switch| version <= switch.shared)
    }

    /// The newest revision written in an epoch before a time.
    pub(crate) fn written_before(&self, epoch: usize, at: u64) -> ResourceVersion {
        let written = self.written.iter().filter(|(of, _, when)| *of == epoch && *when < at);
        written.map(|(_, version, _)| *version).max().unwrap_or(0)
    }

    /// The newest revision of an epoch. Without a limit if the writes are not known: other objects of the cluster move
    /// the revision as well.
    pub(crate) fn last_version(&self, epoch: usize) -> ResourceVersion {
        if self.written.is_empty() {
            return ResourceVersion::MAX;
        }
        self.written.iter().filter(|(of, ..)| *of == epoch).map(|(_, version, _)| *version).max().unwrap_or(0)
    }

    /// The object of a uid just before a version of the first epoch.
    pub(crate) fn object_before(
        &self,
        resource: Resource,
        uid: &str,
        version: ResourceVersion,
    ) -> Option<&ExpectedObject> {
        let state = self.state(0, resource, version.saturating_sub(1));
        state.values().find(|object| object.uid == uid).map(|object| &**object)
    }
}

impl VersionChange {
    /// Returns the change, or `None` if neither side is watched.
    pub(crate) fn of(
        version: ResourceVersion,
        before: &Option<Arc<Value>>,
        after: &Option<Arc<Value>>,
    ) -> Option<VersionChange> {
        let object = |raw: &Option<Arc<Value>>| raw.as_ref().and_then(ExpectedObject::of);
        let change = VersionChange { version, before: object(before), after: object(after) };
        change.resource().is_some().then_some(change)
    }

    fn resource(&self) -> Option<Resource> {
        self.after.as_ref().or(self.before.as_ref()).map(|object| object.resource)
    }

    /// Applies the change to a state.
    pub(crate) fn apply(&self, state: &mut State) {
        match (&self.before, &self.after) {
            (_, Some(after)) => drop(state.insert(after.name.clone(), after.clone())),
            (Some(before), None) => drop(state.remove(&before.name)),
            (None, None) => {}
        }
    }
}

impl Epoch {
    fn of(changes: impl Iterator<Item = VersionChange>) -> Epoch {
        let (mut epoch, mut state) = (Epoch::default(), State::new());
        for change in changes {
            change.apply(&mut state);
            epoch.states.push(state.clone());
            epoch.changes.push(change);
        }
        epoch
    }
}

/// An object before and after a change.
pub(crate) type Sides<'a> = (Option<&'a Arc<ExpectedObject>>, Option<&'a Arc<ExpectedObject>>);

/// The net difference between two states, as a list shows it (docs/protocol.md#full-stream): deletions by name, then
/// new and changed objects by version. A new uid under an old name is a deletion and a creation.
pub(crate) fn difference<'a>(old: &'a State, new: &'a State) -> impl Iterator<Item = Sides<'a>> {
    let same_uid = |a: &ExpectedObject, b: Option<&Arc<ExpectedObject>>| b.is_some_and(|b| a.uid == b.uid);
    let deleted = old.values().filter(move |object| !same_uid(object, new.get(&object.name)));
    let mut present: Vec<&Arc<ExpectedObject>> = new.values().collect();
    present.sort_by_key(|object| object.version);
    let present = present.into_iter().map(|object| {
        let before = old.get(&object.name).filter(|before| before.uid == object.uid);
        (before, Some(object))
    });
    let changed = present.filter(|(before, after)| before.map(|object| &object.raw) != after.map(|object| &object.raw));
    deleted.map(|object| (Some(object), None)).chain(changed)
}

fn api_resource(resource: Resource) -> ApiResource {
    match resource {
        Resource::Pods => ApiResource::Pods,
        Resource::Claims => ApiResource::Claims,
    }
}
