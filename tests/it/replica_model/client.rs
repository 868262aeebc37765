//! A client of the model, which holds all that it is told against the history. The rules are written here once more, by
//! hand: using the product's own would blind the model.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use boilerhouse_bridge::{
    event::{
        Cursor, PerResource, Resource, ResourceVersion, View,
        projection::{EventFormat, EventTypes, Filter, ObjectFilter, Projection, Scope},
    },
    feed::{FrameFormat, Framing, ReadResult, SnapshotReason, StartAt, Subscription},
};
use serde_json::Value;

use super::{
    history::{ObjectHistory, VersionChange},
    mutations::Mutation,
    replica::Replica,
};
use crate::support::rng::SeededRng;

/// A client: what it asked for, what it holds, and what it has been told.
pub(super) struct Client {
    projection: Projection,
    pub(super) on: Option<Subscription>,
    pub(super) cursor: Option<Cursor>,
    pub(super) fold: BTreeMap<String, (Resource, Value)>,
    pub(super) keys: HashSet<String>,
    /// Keys told since the last id; `None` once a snapshot or a difference came in between.
    since: Option<BTreeSet<String>>,
    whole: bool,
    pub(super) resumes: u64,
    /// Nothing in this history justifies a second picture or a difference.
    calm: bool,
    mutation: Option<Mutation>,
}

impl Client {
    pub(super) fn new(rng: &mut SeededRng, calm: bool, mutation: Option<Mutation>) -> Client {
        let tenant = (rng.below(3) == 0).then(|| "alice".to_owned());
        let status = (rng.below(4) == 0).then(|| "ready".to_owned());
        let filter = Filter {
            instances: ObjectFilter { tenant_id: tenant.clone(), pool_status: status, ..ObjectFilter::default() },
            claims: ObjectFilter { tenant_id: tenant, ..ObjectFilter::default() },
        };
        let types = match rng.below(4) {
            0 => EventTypes::parse("instance,pool", EventFormat::Full).unwrap(),
            1 => EventTypes::parse("claim,tenant", EventFormat::Full).unwrap(),
            _ => EventTypes::all(EventFormat::Full),
        };
        let projection = Projection { scope: Scope::All, filter, types, format: EventFormat::Full };
        Client {
            projection,
            on: None,
            cursor: None,
            fold: BTreeMap::new(),
            keys: HashSet::new(),
            since: None,
            whole: false,
            resumes: 0,
            calm,
            mutation,
        }
    }

    pub(super) fn connect(&mut self, replica: &Replica) {
        let projection = replica.feed.projection_cache(
            self.projection.clone(),
            Framing { format: FrameFormat::Sse { named: false }, edgeplane_names: false },
        );
        let cursor = self.cursor.map(|cursor| self.mutation.map_or(cursor, |mutation| mutation.mutate_cursor(cursor)));
        let from = cursor.map_or(
            StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: Default::default() },
            StartAt::Cursor,
        );
        let on = replica.feed.subscribe(projection, from).expect("a synced feed");
        self.resumes += u64::from(self.cursor.is_some());
        self.since = self.since.take().filter(|_| self.cursor.is_some());
        self.on = Some(on);
    }

    /// Breaks off, keeping what a client keeps: its last id (of an event, or a heartbeat's).
    pub(super) fn disconnect(&mut self, rng: &mut SeededRng, history: &ObjectHistory) {
        let Some(mut on) = self.on.take() else { return };
        if rng.below(2) == 0
            && let Some(id) = on.cursor()
        {
            self.reach(&id, history);
        }
        // What came after the last id will come again, and is forgotten with it (the last event of a step has the id,
        // so with whole frames there is nothing).
        assert!(self.since.as_ref().is_none_or(BTreeSet::is_empty), "events of a step without its id");
    }

    /// Whether there was anything to read.
    pub(super) fn read(&mut self, rng: &mut SeededRng, history: &ObjectHistory) -> bool {
        let Some(on) = &mut self.on else { return false };
        if rng.below(4) == 0
            && let Some(id) = on.cursor()
        {
            self.reach(&id, history);
        }
        let Some(on) = &mut self.on else { return false };
        let batch = match on.read(1 + rng.below(2_000) as usize) {
            ReadResult::Batch(batch) => batch,
            ReadResult::Idle => return false,
            ReadResult::End(close) => panic!("the full stream does not end: {close:?}"),
        };
        let text = String::from_utf8(batch.concat()).unwrap();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let mut events: Vec<Value> = data.map(|data| serde_json::from_str(data).unwrap()).collect();
        if let Some(mutation) = self.mutation {
            mutation.mutate(&mut events, rng);
            let reason = match mutation {
                Mutation::FalseExpired => Some(SnapshotReason::Expired),
                Mutation::FalseForeign => Some(SnapshotReason::Foreign),
                _ => None,
            };
            if let (Some(reason), Some(on)) = (reason, &mut self.on)
                && rng.below(8) == 0
            {
                on.restart_with_snapshot(reason);
            }
        }
        for event in &events {
            self.apply(event, history);
        }
        true
    }

    fn apply(&mut self, event: &Value, history: &ObjectHistory) {
        let text = |key: &str| event[key].as_str();
        assert!(!(self.calm && event["coalesced"] == true), "nothing was skipped: {event}");
        match text("type").unwrap() {
            "state.initial" => {
                assert!(!(self.calm && self.whole), "a picture for no reason: {}", event["reason"]);
                self.fold.clear();
                self.since = None;
                self.whole = true;
                for (kind, array) in [(Resource::Pods, "instances"), (Resource::Claims, "claims")] {
                    for view in event[array].as_array().unwrap() {
                        self.fold.insert(view["uid"].as_str().unwrap().into(), (kind, view.clone()));
                    }
                }
            }
            "heartbeat" => {
                // A difference in which nothing is to be seen; otherwise the greeting of a resumed stream.
                if event["coalesced"] == true {
                    self.since = None;
                }
            }
            "pool.depth" => {}
            name => {
                let key = text("key").unwrap().to_owned();
                if event["coalesced"] == true {
                    self.since = None;
                } else {
                    assert!(self.keys.insert(key.clone()), "told twice: {key}");
                    if let Some(since) = &mut self.since {
                        since.insert(key);
                    }
                }
                let (kind, view) = match name {
                    "instance.state" => (Resource::Pods, &event["instance"]),
                    "claim.state" => (Resource::Claims, &event["claim"]),
                    _ => (Resource::Pods, &Value::Null),
                };
                if let Some(uid) = view["uid"].as_str() {
                    if text("phase") == Some("Deleted") {
                        self.fold.remove(uid);
                    } else {
                        self.fold.insert(uid.into(), (kind, view.clone()));
                    }
                }
            }
        }
        if let Some(id) = text("id") {
            self.reach(id, history);
        }
    }

    /// An id: everything up to it must have been told, exactly.
    pub(super) fn reach(&mut self, id: &str, history: &ObjectHistory) {
        let cursor = Cursor::decode(id).expect("an id that decodes");
        if let Some(before) = self.cursor {
            for resource in Resource::ALL {
                assert!(
                    cursor.versions[resource] >= before.versions[resource],
                    "id went back: {before:?} then {cursor:?}"
                );
            }
            if let Some(received) = self.since.take() {
                assert_eq!(
                    received,
                    self.expected(before.versions, cursor.versions, history),
                    "from {before:?} to {cursor:?}"
                );
            }
        }
        assert!(self.whole, "an id before the first picture");
        assert_eq!(self.fold, self.state_at(cursor.versions, history), "the fold at {cursor:?}");
        self.cursor = Some(cursor);
        self.since = Some(BTreeSet::new());
    }

    /// Rules of its own: equality on the two filtered keys.
    fn shows(&self, view: Option<&View>) -> bool {
        let is = |want: &Option<String>, have: Option<&str>| want.as_deref().is_none_or(|want| have == Some(want));
        match view {
            Some(View::Instance(i)) => {
                is(&self.projection.filter.instances.tenant_id, i.tenant_id.as_deref())
                    && is(&self.projection.filter.instances.pool_status, i.pool_status.as_deref())
            }
            Some(View::Claim(c)) => is(&self.projection.filter.claims.tenant_id, Some(&c.tenant_id)),
            None => false,
        }
    }

    pub(super) fn state_at(
        &self,
        rv: PerResource<ResourceVersion>,
        history: &ObjectHistory,
    ) -> BTreeMap<String, (Resource, Value)> {
        let kinds = self.projection.types.resources();
        let mut state = BTreeMap::new();
        for kind in Resource::ALL.into_iter().filter(|kind| kinds[*kind]) {
            for view in history.list(kind, rv[kind]).into_values().filter(|view| self.shows(Some(view))) {
                let json = match &view {
                    View::Instance(i) => serde_json::to_value(&**i),
                    View::Claim(c) => serde_json::to_value(&**c),
                };
                state.insert(view.uid().to_owned(), (kind, json.unwrap()));
            }
        }
        state
    }

    fn expected(
        &self,
        after: PerResource<ResourceVersion>,
        up_to: PerResource<ResourceVersion>,
        history: &ObjectHistory,
    ) -> BTreeSet<String> {
        let kinds = self.projection.types.resources();
        let mut keys = BTreeSet::new();
        for kind in Resource::ALL.into_iter().filter(|kind| kinds[*kind]) {
            for h in history.of(kind, after[kind], up_to[kind]) {
                let (old, new) = (self.shows(h.old.as_ref()), self.shows(h.new.as_ref()));
                if !old && !new {
                    continue;
                }
                let state = if kind == Resource::Pods { "instance.state" } else { "claim.state" };
                if !(old && new && same_face(h)) {
                    keys.insert(format!("{}.{}.{state}", h.uid, h.rv));
                }
                if let Some(edge) = edge(h) {
                    keys.insert(format!("{}.{}.{edge}", h.uid, h.rv));
                }
            }
        }
        keys
    }
}

fn same_face(h: &VersionChange) -> bool {
    match (&h.old, &h.new) {
        (Some(View::Instance(a)), Some(View::Instance(b))) => {
            (&a.phase, &a.tenant_id, &a.pool_status) == (&b.phase, &b.tenant_id, &b.pool_status)
        }
        (Some(View::Claim(a)), Some(View::Claim(b))) => (&a.phase, &a.tenant_id) == (&b.phase, &b.tenant_id),
        _ => false,
    }
}

fn edge(h: &VersionChange) -> Option<&'static str> {
    let phase = |view: &Option<View>| match view {
        Some(View::Claim(c)) => Some(c.phase.clone()),
        _ => None,
    };
    let ready =
        |view: &Option<View>| matches!(view, Some(View::Instance(i)) if i.pool_status.as_deref() == Some("ready"));
    if h.kind == Resource::Pods {
        return (ready(&h.new) && !ready(&h.old)).then_some("pool.instance.ready");
    }
    match (phase(&h.old).as_deref(), phase(&h.new).as_deref()) {
        (was, Some("Active")) if was != Some("Active") => Some("tenant.claimed"),
        (Some(was), Some("Released") | None) if was != "Released" => Some("tenant.released"),
        _ => None,
    }
}
