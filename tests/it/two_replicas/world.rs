//! The truth that the model's clients are held against: a history of objects, and what there is at each of its versions.

use std::{collections::BTreeMap, sync::Arc};

use boilerhouse_bridge::event::{Claim, Instance, Resource, ResourceVersion, View};

use crate::support::dice::Dice;

/// What one version did: the life it is about, before and after.
#[derive(Clone)]
pub(super) struct Happening {
    pub(super) rv: ResourceVersion,
    pub(super) kind: Resource,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) old: Option<View>,
    pub(super) new: Option<View>,
}

/// The truth: every version there ever was.
#[derive(Default)]
pub(super) struct World {
    pub(super) history: Vec<Happening>,
    now: BTreeMap<(Resource, String), View>,
    uids: u64,
}

impl World {
    pub(super) fn rv(&self) -> ResourceVersion {
        100 + self.history.len() as ResourceVersion
    }

    pub(super) fn step(&mut self, dice: &mut Dice) {
        let rv = self.rv() + 1;
        let kind = *dice.pick(&Resource::ALL);
        let name = (*dice.pick(&["a", "b", "c", "d"])).to_owned();
        let key = (kind, name.clone());
        let old = self.now.get(&key).cloned();
        let uid = old.as_ref().map_or_else(
            || {
                self.uids += 1;
                format!("u{}", self.uids)
            },
            |old| old.uid().to_owned(),
        );
        let new = if old.is_some() && dice.roll(5) == 0 {
            self.now.remove(&key);
            None
        } else {
            let view = random_view(dice, kind, &name, &uid, rv);
            self.now.insert(key, view.clone());
            Some(view)
        };
        self.history.push(Happening { rv, kind, name, uid, old, new });
    }

    pub(super) fn of(
        &self,
        kind: Resource,
        after: ResourceVersion,
        up_to: ResourceVersion,
    ) -> impl Iterator<Item = &Happening> {
        self.history.iter().filter(move |h| h.kind == kind && h.rv > after && h.rv <= up_to)
    }

    pub(super) fn list(&self, kind: Resource, at: ResourceVersion) -> BTreeMap<String, View> {
        let mut state = BTreeMap::new();
        for happening in self.of(kind, 0, at) {
            match &happening.new {
                Some(view) => state.insert(happening.name.clone(), view.clone()),
                None => state.remove(&happening.name),
            };
        }
        state
    }
}

fn random_view(dice: &mut Dice, kind: Resource, name: &str, uid: &str, rv: ResourceVersion) -> View {
    let tenant = *dice.pick(&["alice", "bob"]);
    let (name, uid) = (name.to_owned(), uid.to_owned());
    match kind {
        Resource::Instance => View::Instance(Arc::new(Instance {
            name,
            uid,
            rv,
            phase: (*dice.pick(&["Pending", "Running"])).into(),
            tenant_id: (dice.roll(2) == 0).then(|| tenant.into()),
            pool_status: Some((*dice.pick(&["warming", "ready", "acquired"])).into()),
            created_at: "2026-01-01T00:00:00Z".into(),
            ..Instance::default()
        })),
        Resource::Claim => View::Claim(Arc::new(Claim {
            name,
            uid,
            rv,
            tenant_id: tenant.into(),
            workload_ref: "w".into(),
            phase: (*dice.pick(&["Pending", "Active", "Released"])).into(),
            ..Claim::default()
        })),
    }
}
