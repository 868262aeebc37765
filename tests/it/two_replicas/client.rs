//! A client of the model, which holds all that it is told against the history. The rules are written here once more, by
//! hand: using the product's own would blind the model.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use boilerhouse_bridge::{
    event::{
        Cursor, Resource, ResourceVersion, View,
        projection::{Filter, Format, Lens, Scope, Types, Wanted},
    },
    feed::{Carrier, Framing, From, Read, Reason, Subscription},
};
use serde_json::Value;

use super::{
    planted::Plant,
    replica::Replica,
    world::{Happening, World},
};
use crate::support::dice::Dice;

/// A client: what it asked for, what it holds, and what it has been told.
pub(super) struct Client {
    lens: Lens,
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
    plant: Option<Plant>,
}

impl Client {
    pub(super) fn new(dice: &mut Dice, calm: bool, plant: Option<Plant>) -> Client {
        let tenant = (dice.roll(3) == 0).then(|| "alice".to_owned());
        let status = (dice.roll(4) == 0).then(|| "ready".to_owned());
        let filter = Filter {
            instances: Wanted { tenant_id: tenant.clone(), pool_status: status, ..Wanted::default() },
            claims: Wanted { tenant_id: tenant, ..Wanted::default() },
        };
        let types = match dice.roll(4) {
            0 => Types::parse("instance,pool", Format::Full).unwrap(),
            1 => Types::parse("claim,tenant", Format::Full).unwrap(),
            _ => Types::all(Format::Full),
        };
        let lens = Lens { scope: Scope::All, filter, types, format: Format::Full };
        Client {
            lens,
            on: None,
            cursor: None,
            fold: BTreeMap::new(),
            keys: HashSet::new(),
            since: None,
            whole: false,
            resumes: 0,
            calm,
            plant,
        }
    }

    pub(super) fn connect(&mut self, replica: &Replica) {
        let lens =
            replica.feed.lens(self.lens.clone(), Framing { carrier: Carrier::Sse { named: false }, matrix: false });
        let cursor = self.cursor.map(|cursor| self.plant.map_or(cursor, |plant| plant.spoil_cursor(cursor)));
        let from = cursor.map_or(From::Snapshot(Reason::Connect, [0; 2]), From::Resume);
        let on = replica.feed.subscribe(lens, from).expect("a synced feed");
        self.resumes += u64::from(self.cursor.is_some());
        self.since = self.since.take().filter(|_| self.cursor.is_some());
        self.on = Some(on);
    }

    /// Breaks off, keeping what a client keeps: its last id (of an event, or a heartbeat's).
    pub(super) fn disconnect(&mut self, dice: &mut Dice, world: &World) {
        let Some(mut on) = self.on.take() else { return };
        if dice.roll(2) == 0
            && let Some(id) = on.cursor()
        {
            self.reach(&id, world);
        }
        // What came after the last id will come again, and is forgotten with it (the last event of a step has the id,
        // so with whole frames there is nothing).
        assert!(self.since.as_ref().is_none_or(BTreeSet::is_empty), "events of a step without its id");
    }

    /// Whether there was anything to read.
    pub(super) fn read(&mut self, dice: &mut Dice, world: &World) -> bool {
        let Some(on) = &mut self.on else { return false };
        if dice.roll(4) == 0
            && let Some(id) = on.cursor()
        {
            self.reach(&id, world);
        }
        let Some(on) = &mut self.on else { return false };
        let batch = match on.read(1 + dice.roll(2_000) as usize) {
            Read::Batch(batch) => batch,
            Read::Idle => return false,
            Read::End(close) => panic!("the full stream does not end: {close:?}"),
        };
        let text = String::from_utf8(batch.concat()).unwrap();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let mut events: Vec<Value> = data.map(|data| serde_json::from_str(data).unwrap()).collect();
        if let Some(plant) = self.plant {
            plant.spoil(&mut events, dice);
            let reason = match plant {
                Plant::FalseExpired => Some(Reason::Expired),
                Plant::FalseForeign => Some(Reason::Foreign),
                _ => None,
            };
            if let (Some(reason), Some(on)) = (reason, &mut self.on)
                && dice.roll(8) == 0
            {
                on.start_over(reason);
            }
        }
        for event in &events {
            self.take(event, world);
        }
        true
    }

    fn take(&mut self, event: &Value, world: &World) {
        let text = |key: &str| event[key].as_str();
        assert!(!(self.calm && event["coalesced"] == true), "nothing was skipped: {event}");
        match text("type").unwrap() {
            "state.initial" => {
                assert!(!(self.calm && self.whole), "a picture for no reason: {}", event["reason"]);
                self.fold.clear();
                self.since = None;
                self.whole = true;
                for (kind, array) in [(Resource::Instance, "instances"), (Resource::Claim, "claims")] {
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
                    "instance.state" => (Resource::Instance, &event["instance"]),
                    "claim.state" => (Resource::Claim, &event["claim"]),
                    _ => (Resource::Instance, &Value::Null),
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
            self.reach(id, world);
        }
    }

    /// An id: everything up to it must have been told, exactly.
    pub(super) fn reach(&mut self, id: &str, world: &World) {
        let cursor = Cursor::decode(id).expect("an id that decodes");
        if let Some(before) = self.cursor {
            for k in 0..2 {
                assert!(cursor.rv[k] >= before.rv[k], "id went back: {before:?} then {cursor:?}");
            }
            if let Some(told) = self.since.take() {
                assert_eq!(told, self.expected(before.rv, cursor.rv, world), "from {before:?} to {cursor:?}");
            }
        }
        assert!(self.whole, "an id before the first picture");
        assert_eq!(self.fold, self.state_at(cursor.rv, world), "the fold at {cursor:?}");
        self.cursor = Some(cursor);
        self.since = Some(BTreeSet::new());
    }

    /// Rules of its own: equality on the two filtered keys.
    fn shows(&self, view: Option<&View>) -> bool {
        let is = |want: &Option<String>, have: Option<&str>| want.as_deref().is_none_or(|want| have == Some(want));
        match view {
            Some(View::Instance(i)) => {
                is(&self.lens.filter.instances.tenant_id, i.tenant_id.as_deref())
                    && is(&self.lens.filter.instances.pool_status, i.pool_status.as_deref())
            }
            Some(View::Claim(c)) => is(&self.lens.filter.claims.tenant_id, Some(&c.tenant_id)),
            None => false,
        }
    }

    pub(super) fn state_at(&self, rv: [ResourceVersion; 2], world: &World) -> BTreeMap<String, (Resource, Value)> {
        let kinds = self.lens.types.kinds();
        let mut state = BTreeMap::new();
        for kind in Resource::ALL.into_iter().filter(|kind| kinds[*kind as usize]) {
            for view in world.list(kind, rv[kind as usize]).into_values().filter(|view| self.shows(Some(view))) {
                let json = match &view {
                    View::Instance(i) => serde_json::to_value(&**i),
                    View::Claim(c) => serde_json::to_value(&**c),
                };
                state.insert(view.uid().to_owned(), (kind, json.unwrap()));
            }
        }
        state
    }

    fn expected(&self, after: [ResourceVersion; 2], up_to: [ResourceVersion; 2], world: &World) -> BTreeSet<String> {
        let kinds = self.lens.types.kinds();
        let mut keys = BTreeSet::new();
        for kind in Resource::ALL.into_iter().filter(|kind| kinds[*kind as usize]) {
            let k = kind as usize;
            for h in world.of(kind, after[k], up_to[k]) {
                let (old, new) = (self.shows(h.old.as_ref()), self.shows(h.new.as_ref()));
                if !old && !new {
                    continue;
                }
                let state = if kind == Resource::Instance { "instance.state" } else { "claim.state" };
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

fn same_face(h: &Happening) -> bool {
    match (&h.old, &h.new) {
        (Some(View::Instance(a)), Some(View::Instance(b))) => {
            (&a.phase, &a.tenant_id, &a.pool_status) == (&b.phase, &b.tenant_id, &b.pool_status)
        }
        (Some(View::Claim(a)), Some(View::Claim(b))) => (&a.phase, &a.tenant_id) == (&b.phase, &b.tenant_id),
        _ => false,
    }
}

fn edge(h: &Happening) -> Option<&'static str> {
    let phase = |view: &Option<View>| match view {
        Some(View::Claim(c)) => Some(c.phase.clone()),
        _ => None,
    };
    let ready =
        |view: &Option<View>| matches!(view, Some(View::Instance(i)) if i.pool_status.as_deref() == Some("ready"));
    if h.kind == Resource::Instance {
        return (ready(&h.new) && !ready(&h.old)).then_some("pool.instance.ready");
    }
    match (phase(&h.old).as_deref(), phase(&h.new).as_deref()) {
        (was, Some("Active")) if was != Some("Active") => Some("tenant.claimed"),
        (Some(was), Some("Released") | None) if was != "Released" => Some("tenant.released"),
        _ => None,
    }
}
