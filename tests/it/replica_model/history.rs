//! The truth that the model's clients are held against: a history of objects, and what there is at each of its versions.

use std::{collections::BTreeMap, sync::Arc};

use boilerhouse_bridge::event::{Claim, Instance, Resource, ResourceVersion, View};

use crate::support::rng::SeededRng;

/// What one version did: the life it is about, before and after.
#[derive(Clone)]
pub(super) struct VersionChange {
    pub(super) rv: ResourceVersion,
    pub(super) kind: Resource,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) old: Option<View>,
    pub(super) new: Option<View>,
}

/// The truth: every version there ever was.
#[derive(Default)]
pub(super) struct ObjectHistory {
    pub(super) changes: Vec<VersionChange>,
    now: BTreeMap<(Resource, String), View>,
    uids: u64,
}

impl ObjectHistory {
    pub(super) fn rv(&self) -> ResourceVersion {
        100 + self.changes.len() as ResourceVersion
    }

    pub(super) fn step(&mut self, rng: &mut SeededRng) {
        let rv = self.rv() + 1;
        let kind = *rng.choose(&Resource::ALL);
        let name = (*rng.choose(&["a", "b", "c", "d"])).to_owned();
        let key = (kind, name.clone());
        let old = self.now.get(&key).cloned();
        let uid = old.as_ref().map_or_else(
            || {
                self.uids += 1;
                format!("u{}", self.uids)
            },
            |old| old.uid().to_owned(),
        );
        let new = if old.is_some() && rng.below(5) == 0 {
            self.now.remove(&key);
            None
        } else {
            let view = random_view(rng, kind, &name, &uid, rv);
            self.now.insert(key, view.clone());
            Some(view)
        };
        self.changes.push(VersionChange { rv, kind, name, uid, old, new });
    }

    pub(super) fn of(
        &self,
        kind: Resource,
        after: ResourceVersion,
        up_to: ResourceVersion,
    ) -> impl Iterator<Item = &VersionChange> {
        self.changes.iter().filter(move |h| h.kind == kind && h.rv > after && h.rv <= up_to)
    }

    pub(super) fn list(&self, kind: Resource, at: ResourceVersion) -> BTreeMap<String, View> {
        let mut state = BTreeMap::new();
        for change in self.of(kind, 0, at) {
            match &change.new {
                Some(view) => state.insert(change.name.clone(), view.clone()),
                None => state.remove(&change.name),
            };
        }
        state
    }
}

fn random_view(rng: &mut SeededRng, kind: Resource, name: &str, uid: &str, rv: ResourceVersion) -> View {
    let tenant = *rng.choose(&["alice", "bob"]);
    let (name, uid) = (name.to_owned(), uid.to_owned());
    match kind {
        Resource::Pods => View::Instance(Arc::new(Instance {
            name,
            uid,
            resource_version: rv,
            phase: (*rng.choose(&["Pending", "Running"])).into(),
            tenant_id: (rng.below(2) == 0).then(|| tenant.into()),
            pool_status: Some((*rng.choose(&["warming", "ready", "acquired"])).into()),
            created_at: "2026-01-01T00:00:00Z".into(),
            ..Instance::default()
        })),
        Resource::Claims => View::Claim(Arc::new(Claim {
            name,
            uid,
            resource_version: rv,
            tenant_id: tenant.into(),
            workload_ref: "w".into(),
            phase: (*rng.choose(&["Pending", "Active", "Released"])).into(),
            ..Claim::default()
        })),
    }
}
