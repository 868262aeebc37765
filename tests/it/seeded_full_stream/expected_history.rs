//! All that ever happened, made ready to be asked: the state at every version, and what each client sees of each.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use boilerhouse_bridge::event::{Resource, ResourceVersion};
use serde_json::Value;

use super::projections::{ExpectedObject, PROJECTIONS};
use crate::seeded_ws::history::History;

/// All objects of one resource, by name.
pub(super) type State = BTreeMap<String, Arc<ExpectedObject>>;

/// What one version says to a client, without id and time.
#[derive(Debug)]
pub(super) struct VisibleChange {
    pub(super) rv: ResourceVersion,
    pub(super) events: Vec<Arc<Value>>,
}

/// An object before and after a version.
type Change = (Option<Arc<ExpectedObject>>, Option<Arc<ExpectedObject>>);

/// One resource in one history of etcd.
#[derive(Debug)]
struct EpochStates {
    versions: Vec<ResourceVersion>,
    /// After each of them.
    states: Vec<State>,
    changes: Vec<Change>,
}

/// Where another history of etcd began.
#[derive(Clone, Copy, Debug)]
pub(super) struct EpochSwitch {
    /// The last revision that it shares with the one before.
    pub(super) shared: ResourceVersion,
    /// Milliseconds since the beginning.
    pub(super) at: u64,
}

type VisibleCache = HashMap<(usize, usize, Resource), Rc<Vec<VisibleChange>>>;

#[derive(Debug)]
pub(super) struct ExpectedHistory {
    epochs: Vec<[EpochStates; 2]>,
    switches: Vec<EpochSwitch>,
    /// When what had been written: epoch, revision, milliseconds.
    written: Vec<(usize, ResourceVersion, u64)>,
    nothing: State,
    visible_cache: RefCell<VisibleCache>,
}

impl ExpectedHistory {
    pub(super) fn of(
        history: &History,
        switches: Vec<EpochSwitch>,
        written: Vec<(usize, ResourceVersion, u64)>,
    ) -> ExpectedHistory {
        let epochs =
            (0..history.epochs.len()).map(|epoch| Resource::ALL.map(|kind| chapter(history, epoch, kind))).collect();
        ExpectedHistory { epochs, switches, written, nothing: State::new(), visible_cache: RefCell::default() }
    }

    /// The history that etcd had then.
    pub(super) fn epoch_at(&self, at: u64) -> usize {
        self.switches.iter().filter(|switch| switch.at <= at).count()
    }

    /// Whether a version means the same in two histories, the first the earlier.
    pub(super) fn is_shared(&self, from: usize, to: usize, rv: ResourceVersion) -> bool {
        self.switches[from..to].iter().all(|switch| rv <= switch.shared)
    }

    /// The newest revision that had been written before then.
    pub(super) fn written_before(&self, epoch: usize, at: u64) -> ResourceVersion {
        let written = self.written.iter().filter(|(of, _, when)| *of == epoch && *when < at);
        written.map(|(_, rv, _)| *rv).max().unwrap_or(0)
    }

    /// The newest revision that there ever was in a history.
    pub(super) fn last(&self, epoch: usize) -> ResourceVersion {
        self.written.iter().filter(|(of, ..)| *of == epoch).map(|(_, rv, _)| *rv).max().unwrap_or(0)
    }

    pub(super) fn state(&self, epoch: usize, kind: Resource, rv: ResourceVersion) -> &State {
        let chapter = &self.epochs[epoch][kind as usize];
        let next = chapter.versions.partition_point(|version| *version <= rv);
        next.checked_sub(1).map_or(&self.nothing, |nth| &chapter.states[nth])
    }

    /// The versions of one resource after one and before another.
    pub(super) fn between(
        &self,
        epoch: usize,
        kind: Resource,
        after: ResourceVersion,
        before: ResourceVersion,
    ) -> impl Iterator<Item = ResourceVersion> {
        let versions = self.epochs[epoch][kind as usize].versions.iter().copied();
        versions.skip_while(move |rv| *rv <= after).take_while(move |rv| *rv < before)
    }

    /// Every version of which a client sees something.
    pub(super) fn visible(&self, projection: usize, epoch: usize, kind: Resource) -> Rc<Vec<VisibleChange>> {
        let mut visible_cache = self.visible_cache.borrow_mut();
        let fresh = || {
            let chapter = &self.epochs[epoch][kind as usize];
            let each = chapter.versions.iter().zip(&chapter.changes).map(|(rv, (before, after))| VisibleChange {
                rv: *rv,
                events: PROJECTIONS[projection].events_of(before.as_deref(), after.as_deref(), *rv),
            });
            Rc::new(each.filter(|visible| !visible.events.is_empty()).collect())
        };
        visible_cache.entry((projection, epoch, kind)).or_insert_with(fresh).clone()
    }

    /// The first version after one of which a client sees something.
    pub(super) fn next_visible(
        &self,
        projection: usize,
        epoch: usize,
        kind: Resource,
        after: ResourceVersion,
    ) -> Option<ResourceVersion> {
        let visible = self.visible(projection, epoch, kind);
        visible.get(visible.partition_point(|one| one.rv <= after)).map(|one| one.rv)
    }

    /// The net difference between two versions as a client sees it: deletions first, by name, then what is new or
    /// changed in the order of versions.
    pub(super) fn difference(
        &self,
        projection: usize,
        epoch: usize,
        kind: Resource,
        since: ResourceVersion,
        to: ResourceVersion,
    ) -> Vec<Arc<Value>> {
        let (old, new) = (self.state(epoch, kind, since), self.state(epoch, kind, to));
        let same =
            |a: &ExpectedObject, b: Option<&Arc<ExpectedObject>>| b.is_some_and(|b| a.snapshot.uid == b.snapshot.uid);
        let gone = old
            .values()
            .filter(|object| !same(object, new.get(&object.snapshot.name)))
            .map(|object| (Some(object), None));
        let mut fresh: Vec<&Arc<ExpectedObject>> = new.values().collect();
        fresh.sort_by_key(|object| object.snapshot.rv);
        let fresh = fresh.into_iter().map(|object| {
            let known = old.get(&object.snapshot.name).filter(|known| known.snapshot.uid == object.snapshot.uid);
            (known, Some(object))
        });
        let changed = fresh
            .filter(|(known, object)| known.map(|known| known.snapshot.rv) != object.map(|object| object.snapshot.rv));
        let say = |(before, after): (Option<&Arc<ExpectedObject>>, Option<&Arc<ExpectedObject>>)| {
            PROJECTIONS[projection].events_of(before.map(|object| &**object), after.map(|object| &**object), to)
        };
        let marked = |event: Arc<Value>| {
            let mut event = (*event).clone();
            event["coalesced"] = true.into();
            Arc::new(event)
        };
        gone.chain(changed).flat_map(say).map(marked).collect()
    }

    /// What a client holds at a version, by uid.
    pub(super) fn fold(
        &self,
        projection: usize,
        epoch: usize,
        kind: Resource,
        rv: ResourceVersion,
    ) -> BTreeMap<&str, &Value> {
        let type_of_state = if kind == Resource::Pods { "instance.state" } else { "claim.state" };
        let shown = |object: &&Arc<ExpectedObject>| {
            PROJECTIONS[projection].has(type_of_state) && PROJECTIONS[projection].shows(object)
        };
        let objects = self.state(epoch, kind, rv).values().filter(shown);
        objects.map(|object| (object.snapshot.uid.as_str(), &object.view)).collect()
    }

    /// Instances of each workload: warming, ready, acquired.
    pub(super) fn pools(&self, epoch: usize, rv: ResourceVersion) -> BTreeMap<String, [u64; 3]> {
        let mut pools: BTreeMap<String, [u64; 3]> = BTreeMap::new();
        for object in self.state(epoch, Resource::Pods, rv).values() {
            let Some(workload) = object.view["workloadRef"].as_str() else { continue };
            let pool = pools.entry(workload.to_owned()).or_default();
            let status = object.view["poolStatus"].as_str().unwrap_or_default();
            if let Some(nth) = ["warming", "ready", "acquired"].iter().position(|one| *one == status) {
                pool[nth] += 1;
            }
        }
        pools
    }
}

fn chapter(history: &History, epoch: usize, kind: Resource) -> EpochStates {
    let mut state = State::new();
    let mut chapter = EpochStates { versions: Vec::new(), states: Vec::new(), changes: Vec::new() };
    for version in history.changes(epoch, kind) {
        let name = &version.after.as_ref().or(version.before.as_ref()).unwrap().name;
        let before = version.before.as_ref().map(|_| state.remove(name).unwrap());
        let after = version.after.as_ref().map(|snapshot| Arc::new(ExpectedObject::of(snapshot)));
        if let Some(after) = &after {
            state.insert(name.clone(), after.clone());
        }
        chapter.versions.push(version.rv);
        chapter.states.push(state.clone());
        chapter.changes.push((before, after));
    }
    chapter
}
