//! The history of the model: random changes of a few objects, one version each.

use std::collections::BTreeMap;
use std::sync::Arc;

use boilerhouse_bridge::event::{NamespaceId, Resource, ResourceVersion, View};
use boilerhouse_bridge::test_support::{ClaimBuilder, PodBuilder, SeededRng};
use serde_json::Value;

use crate::oracle::history::{History, VersionChange};

/// An object at one version. It makes the view for the feed, and the Kubernetes JSON for the oracle.
#[derive(Clone, Debug)]
pub(super) enum Object {
    Pod(PodBuilder),
    Claim(ClaimBuilder),
}

impl Object {
    fn random(rng: &mut SeededRng, resource: Resource, name: &str, uid: &str, version: ResourceVersion) -> Object {
        let tenant = *rng.choose(&["alice", "bob"]);
        match resource {
            Resource::Pods => {
                let pod = PodBuilder::new(name).uid(uid).version(version).created_at("2026-01-01T00:00:00Z");
                let pod = pod.phase(rng.choose::<&str>(&["Pending", "Running"]));
                let pod = if rng.below(2) == 0 { pod.tenant(tenant) } else { pod };
                Object::Pod(pod.pool(rng.choose::<&str>(&["warming", "ready", "acquired"])))
            }
            Resource::Claims => {
                let claim = ClaimBuilder::new(name).uid(uid).version(version).tenant(tenant).workload("w");
                Object::Claim(claim.phase(rng.choose::<&str>(&["Pending", "Active", "Released"])))
            }
        }
    }

    pub(super) fn view(&self) -> View {
        match self {
            Object::Pod(pod) => pod.clone().view(),
            Object::Claim(claim) => claim.clone().view(),
        }
    }

    fn json(&self) -> Arc<Value> {
        Arc::new(match self {
            Object::Pod(pod) => pod.clone().json(),
            Object::Claim(claim) => claim.clone().json(),
        })
    }

    /// The same object with another version, as a `DELETED` watch event has it.
    pub(super) fn at_version(&self, version: ResourceVersion) -> Object {
        match self {
            Object::Pod(pod) => Object::Pod(pod.clone().version(version)),
            Object::Claim(claim) => Object::Claim(claim.clone().version(version)),
        }
    }
}

/// One version: an object before and after it.
pub(super) struct Change {
    pub(super) version: ResourceVersion,
    pub(super) resource: Resource,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) before: Option<Object>,
    pub(super) after: Option<Object>,
}

/// Every version so far.
#[derive(Default)]
pub(super) struct ObjectHistory {
    pub(super) changes: Vec<Change>,
    /// The uid and the state of each object that exists.
    objects: BTreeMap<(Resource, String), (String, Object)>,
    uids: u64,
    /// How often the Namespace was deleted and created again.
    pub(super) recreations: u64,
}

impl ObjectHistory {
    /// The newest version.
    pub(super) fn version(&self) -> ResourceVersion {
        100 + self.changes.len() as ResourceVersion
    }

    /// Makes one random change.
    pub(super) fn step(&mut self, rng: &mut SeededRng) {
        let version = self.version() + 1;
        let resource = *rng.choose(&Resource::ALL);
        let name = (*rng.choose(&["a", "b", "c", "d"])).to_owned();
        let before = self.objects.remove(&(resource, name.clone()));
        let uid = before.as_ref().map_or_else(
            || {
                self.uids += 1;
                format!("u{}", self.uids)
            },
            |(uid, _)| uid.clone(),
        );
        let is_deleted = before.is_some() && rng.below(5) == 0;
        let after = (!is_deleted).then(|| Object::random(rng, resource, &name, &uid, version));
        if let Some(after) = &after {
            self.objects.insert((resource, name.clone()), (uid.clone(), after.clone()));
        }
        let before = before.map(|(_, object)| object);
        self.changes.push(Change { version, resource, name, uid, before, after });
    }

    /// Deletes the Namespace with all objects, and creates it again.
    pub(super) fn recreate_namespace(&mut self) {
        for ((resource, name), (uid, object)) in std::mem::take(&mut self.objects) {
            let version = self.version() + 1;
            self.changes.push(Change { version, resource, name, uid, before: Some(object), after: None });
        }
        self.recreations += 1;
    }

    /// The Namespace that exists now.
    pub(super) fn namespace(&self) -> NamespaceId {
        NamespaceId::from_uid(&format!("home-{}", self.recreations))
    }

    /// The changes of one resource after one version, up to and including another one.
    pub(super) fn between(
        &self,
        resource: Resource,
        after: ResourceVersion,
        up_to: ResourceVersion,
    ) -> impl Iterator<Item = &Change> {
        let is_between = move |change: &&Change| change.version > after && change.version <= up_to;
        self.changes.iter().filter(move |change| change.resource == resource).filter(is_between)
    }

    /// A list of one resource at a version, by name.
    pub(super) fn list(&self, resource: Resource, at: ResourceVersion) -> Vec<View> {
        let mut state = BTreeMap::new();
        for change in self.between(resource, 0, at) {
            match &change.after {
                Some(object) => state.insert(&change.name, object.view()),
                None => state.remove(&change.name),
            };
        }
        state.into_values().collect()
    }

    /// The same history for the oracle.
    pub(super) fn expected(&self) -> History {
        let changes = self.changes.iter().filter_map(|change| {
            let json = |object: &Option<Object>| object.as_ref().map(Object::json);
            VersionChange::of(change.version, &json(&change.before), &json(&change.after))
        });
        History::of_changes(changes.collect()).with_new_namespace(self.recreations > 0)
    }
}
