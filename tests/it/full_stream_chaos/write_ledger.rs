//! Writers, and a ledger of their writes, from which the oracle gets the history.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use boilerhouse_bridge::{
    event::{Resource, ResourceVersion},
    test_support::{ClaimBuilder, PodBuilder, SeededRng},
};
use http::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use crate::oracle::fold::{Fold, STATE_EVENTS};
use crate::oracle::full_stream::Entry;
use crate::oracle::history::{History, VersionChange};
use crate::oracle::object::ExpectedObject;
use crate::oracle::violation::{Guarantee, Violation, ensure};
use crate::support::cluster::Cluster;

/// All writes so far.
#[derive(Default)]
pub(super) struct WriteLedger(Mutex<LedgerState>);

#[derive(Default)]
struct LedgerState {
    writes: usize,
    /// By uid.
    objects: BTreeMap<String, ObjectWrites>,
}

/// The writes of one object.
struct ObjectWrites {
    resource: Resource,
    /// The object as the API server returned it after each write.
    versions: Vec<(ResourceVersion, Arc<Value>)>,
    is_deleted: bool,
}

impl ObjectWrites {
    /// The view after the last write, if the object exists.
    fn view(&self) -> Option<Value> {
        let (_, raw) = self.versions.last().filter(|_| !self.is_deleted)?;
        ExpectedObject::of(raw).map(|object| object.view.clone())
    }
}

impl WriteLedger {
    /// The number of writes.
    pub(super) fn writes(&self) -> usize {
        self.0.lock().unwrap().writes
    }

    /// The views of all objects, by uid.
    pub(super) fn state(&self) -> BTreeMap<String, Value> {
        let state = self.0.lock().unwrap();
        state.objects.iter().filter_map(|(uid, object)| Some((uid.clone(), object.view()?))).collect()
    }

    /// Whether a fold holds exactly these views.
    pub(super) fn is_state(&self, fold: &Fold) -> bool {
        is_state(&self.state(), fold)
    }

    /// The history. A writer does not learn the version of a deletion, so it is taken from the record: from the `key`
    /// of the state event that reports the deletion. It must be later than the object's last write.
    ///
    /// # Errors
    /// If a deletion is missing in the record, or has an earlier version.
    pub(super) fn history(&self, record: &[Entry]) -> Result<History, Violation> {
        let deletions: BTreeMap<&str, ResourceVersion> = record.iter().filter_map(deletion_of).collect();
        let state = self.0.lock().unwrap();
        let mut changes = Vec::new();
        for (uid, object) in &state.objects {
            let mut before = None;
            for (version, raw) in &object.versions {
                changes.extend(VersionChange::of(*version, &before, &Some(raw.clone())));
                before = Some(raw.clone());
            }
            if object.is_deleted {
                let version = *deletions.get(uid.as_str()).ok_or_else(|| {
                    Violation::new(Guarantee::Reliable, format!("no event reports that {uid} is deleted"))
                })?;
                let last = object.versions.last().map_or(0, |(version, _)| *version);
                ensure(version > last, Guarantee::Ordered, || {
                    format!("{uid} is deleted at {version}, before its last write at {last}")
                })?;
                changes.extend(VersionChange::of(version, &before, &None));
            }
        }
        Ok(History::of_changes(changes))
    }

    /// Adds what the API server holds: a writer that was stopped during a request does not know its outcome.
    pub(super) async fn finish(&self, cluster: &Cluster) {
        for resource in Resource::ALL {
            let list = cluster.write(Method::GET, resource.plural(), "", &Value::Null).await;
            let items = list["items"].as_array().unwrap();
            let existing: BTreeSet<&str> = items.iter().map(|item| item["metadata"]["uid"].as_str().unwrap()).collect();
            let mut state = self.0.lock().unwrap();
            for (uid, object) in &mut state.objects {
                object.is_deleted |= object.resource == resource && !existing.contains(uid.as_str());
            }
            for item in items {
                state.write(resource, item.clone());
            }
        }
    }
}

/// Whether a fold holds exactly these views.
pub(super) fn is_state(state: &BTreeMap<String, Value>, fold: &Fold) -> bool {
    let views = Resource::ALL.into_iter().flat_map(|resource| fold.views(resource));
    let views: BTreeMap<&str, &Value> = views.collect();
    state.iter().map(|(uid, view)| (uid.as_str(), view)).eq(views)
}

/// The uid and the version of the deletion that an entry reports.
fn deletion_of(entry: &Entry) -> Option<(&str, ResourceVersion)> {
    let Entry::Event(received) = entry else { return None };
    let is_state_event = STATE_EVENTS.iter().any(|name| received.name() == *name);
    if !is_state_event || received.body["cause"] != "deleted" || received.is_coalesced() {
        return None;
    }
    let mut key = received.body["key"].as_str()?.split('.');
    Some((key.next()?, key.next()?.parse().ok()?))
}

impl LedgerState {
    /// Adds an object as the API server returned it.
    fn write(&mut self, resource: Resource, mut raw: Value) {
        // Items of a list of Pods have no kind.
        raw["kind"] = if resource == Resource::Pods { "Pod" } else { "BoilerhouseClaim" }.into();
        let metadata = &raw["metadata"];
        let [uid, version] = ["uid", "resourceVersion"].map(|key| metadata[key].as_str().unwrap().to_owned());
        let version = version.parse().unwrap();
        let new = || ObjectWrites { resource, versions: Vec::new(), is_deleted: false };
        let versions = &mut self.objects.entry(uid).or_insert_with(new).versions;
        // A write that changes nothing has no version of its own.
        if versions.last().is_none_or(|(last, _)| version > *last) {
            versions.push((version, Arc::new(raw)));
        }
    }

    fn delete(&mut self, uid: &str) {
        if let Some(object) = self.objects.get_mut(uid) {
            object.is_deleted = true;
        }
    }
}

/// A writer with objects of its own.
pub(super) struct Writer {
    rng: SeededRng,
    tag: u64,
    created: u64,
    /// Resource, name, uid.
    objects: Vec<(Resource, String, String)>,
}

impl Writer {
    /// `tag` is its seed and a part of its objects' names.
    pub(super) fn new(tag: u64) -> Writer {
        Writer { rng: SeededRng(tag), tag, created: 0, objects: Vec::new() }
    }

    /// Writes until it is dropped, once every `pause`.
    pub(super) async fn run(mut self, cluster: &Cluster, ledger: &WriteLedger, pause: Duration) {
        let mut next = Instant::now();
        loop {
            self.write(cluster, ledger).await;
            next += pause;
            sleep_until(next).await;
        }
    }

    /// Makes this number of writes.
    pub(super) async fn write_some(&mut self, cluster: &Cluster, ledger: &WriteLedger, writes: usize) {
        for _ in 0..writes {
            self.write(cluster, ledger).await;
        }
    }

    async fn write(&mut self, cluster: &Cluster, ledger: &WriteLedger) {
        let count = self.objects.len() as u64;
        match self.rng.below(10) {
            0..2 if count > 3 => self.delete(cluster, ledger).await,
            2..8 if count > 0 => self.change(cluster, ledger).await,
            _ => self.create(cluster, ledger).await,
        }
        ledger.0.lock().unwrap().writes += 1;
    }

    async fn create(&mut self, cluster: &Cluster, ledger: &WriteLedger) {
        self.created += 1;
        let name = format!("o-{}-{}", self.tag, self.created);
        let resource = *self.rng.choose(&Resource::ALL);
        let object = match resource {
            Resource::Pods => PodBuilder::new(&name).version(0).workload("web").json(),
            Resource::Claims => ClaimBuilder::new(&name).version(0).json(),
        };
        let created = cluster.write(Method::POST, resource.plural(), "", &object).await;
        let uid = created["metadata"]["uid"].as_str().unwrap().to_owned();
        ledger.0.lock().unwrap().write(resource, created);
        self.objects.push((resource, name, uid));
    }

    async fn change(&mut self, cluster: &Cluster, ledger: &WriteLedger) {
        let which = self.rng.below(self.objects.len() as u64) as usize;
        let (resource, name, _) = &self.objects[which];
        let choice = match resource {
            Resource::Pods => *self.rng.choose(&["Running", "Failed", "+warming", "+ready", "+acquired"]),
            Resource::Claims => *self.rng.choose(&["Active", "Releasing", "Released", "Error"]),
        };
        let (path, patch) = match choice.strip_prefix('+') {
            Some(status) => {
                (format!("/{name}"), json!({"metadata": {"labels": {"boilerhouse.dev/pool-status": status}}}))
            }
            None => (format!("/{name}/status"), json!({"status": {"phase": choice}})),
        };
        let changed = cluster.write(Method::PATCH, resource.plural(), &path, &patch).await;
        ledger.0.lock().unwrap().write(*resource, changed);
    }

    async fn delete(&mut self, cluster: &Cluster, ledger: &WriteLedger) {
        let which = self.rng.below(self.objects.len() as u64) as usize;
        let (resource, name, uid) = self.objects.swap_remove(which);
        let body = json!({"gracePeriodSeconds": 0});
        cluster.write(Method::DELETE, resource.plural(), &format!("/{name}"), &body).await;
        ledger.0.lock().unwrap().delete(&uid);
    }
}
