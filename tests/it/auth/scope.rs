//! What a tenant's lens lets through, byte by byte, over seeded histories of two tenants in one feed.
//!
//! The property is non-interference: two histories that differ only in what the other tenant does inside its own
//! objects are the same bytes for this one, on every transport, in both formats, in snapshots and after resumes. Beside
//! it, more bluntly: no word of the other tenant stands anywhere; and the fold is exactly this tenant's state.

use std::{collections::BTreeMap, sync::Arc};

use boilerhouse_bridge::{
    event::{
        Claim, Cursor, Home, Instance, Resource, ResourceVersion, View,
        projection::{Filter, Format, Lens, Scope, Types, Wanted},
    },
    feed::{self, Carrier, Feed, Framing, From, Health, Read, Reason, Subscription, Writer},
};
use serde_json::Value;

use crate::support::{self, dice::Dice};

/// Histories in the long form of the test, and in the short one.
const HISTORIES: [u64; 2] = [1_000, 250];
/// Happenings in a history.
const STEPS: usize = 30;
/// The GETs are asked after every so many of them.
const LOOK_EVERY: u64 = 5;
/// The tenant that looks, and the other one.
const OWN: &str = "alice";
const OTHER: &str = "mallory";
/// What each tenant's lens is tried with.
const FRAMINGS: [(Format, Framing); 3] = [
    (Format::Boilerhouse, Framing::WEBSOCKET),
    (Format::Full, Framing { carrier: Carrier::Sse { named: false }, matrix: true }),
    (Format::Full, Framing { carrier: Carrier::Lines, matrix: false }),
];

/// An object of the history: which tenant has it now, if any.
#[derive(Clone, Copy, PartialEq)]
enum Owner {
    Own,
    Other,
    Nobody,
}

/// What happens, without what it looks like: the same for all variants of a history.
enum Happening {
    Written {
        kind: Resource,
        slot: u64,
        owner: Owner,
    },
    Removed {
        kind: Resource,
        slot: u64,
    },
    /// A re-list, after which nothing is unseen any more.
    Listed {
        kind: Resource,
    },
    Resumed,
}

fn script(dice: &mut Dice) -> Vec<Happening> {
    let mut script = Vec::new();
    for _ in 0..STEPS {
        let kind = *dice.pick(&Resource::ALL);
        let slot = dice.roll(4);
        let owner = *dice.pick(&[Owner::Own, Owner::Other, Owner::Other, Owner::Nobody]);
        script.push(match dice.roll(10) {
            0 | 1 => Happening::Removed { kind, slot },
            2 => Happening::Listed { kind },
            3 => Happening::Resumed,
            _ => Happening::Written { kind, slot, owner },
        });
    }
    script
}

/// A view whose words are its owner's, but for its name and uid, which stay when it changes hands.
fn view(kind: Resource, slot: u64, life: u64, rv: ResourceVersion, owner: Owner, dice: &mut Dice) -> View {
    let word = match owner {
        Owner::Own => OWN,
        Owner::Other => OTHER,
        Owner::Nobody => "spare",
    };
    let some = |dice: &mut Dice, what: &str| (dice.roll(3) > 0).then(|| format!("{word}-{what}-{}", dice.roll(3)));
    let (name, uid) = (format!("{}-{slot}", kind.resource()), format!("uid-{}-{life}", kind.resource()));
    let phase = ["Active", "Released", "Pending"][dice.roll(3) as usize];
    let phase = if dice.roll(4) == 0 { format!("{word}-phase-{}", dice.roll(3)) } else { phase.to_owned() };
    let labels = BTreeMap::from([(format!("{word}/label"), format!("{word}-{}", dice.roll(3)))]);
    match kind {
        Resource::Instance => View::Instance(Arc::new(Instance {
            name,
            uid,
            phase,
            workload_ref: some(dice, "workload"),
            tenant_id: (owner != Owner::Nobody).then(|| word.to_owned()),
            pool_status: if dice.roll(2) == 0 { Some("ready".to_owned()) } else { some(dice, "status") },
            ip: some(dice, "ip"),
            created_at: "2026-01-01T00:00:00Z".to_owned(),
            labels,
            rv,
        })),
        Resource::Claim => View::Claim(Arc::new(Claim {
            name,
            uid,
            tenant_id: if owner == Owner::Nobody { String::new() } else { word.to_owned() },
            workload_ref: format!("{word}-workload"),
            phase,
            // Whoever writes it may name any Pod, the other tenant's too.
            instance_id: Some(format!("pods-{}", dice.roll(4))),
            endpoint: None,
            source: some(dice, "source"),
            claimed_at: some(dice, "at"),
            detail: some(dice, "detail"),
            labels,
            last_activity: some(dice, "active"),
            rv,
        })),
    }
}

struct World {
    writer: Writer,
    feed: Feed,
    /// By kind and slot: the life, and what it looks like.
    now: BTreeMap<(Resource, u64), (u64, View)>,
    rv: ResourceVersion,
    lives: u64,
    readers: Vec<Reader>,
    /// All that a lens of the tenant has yielded.
    heard: Vec<u8>,
}

struct Reader {
    lens: Lens,
    framing: Framing,
    on: Subscription,
    fold: BTreeMap<String, Value>,
}

fn lenses() -> Vec<(Lens, Framing)> {
    let scope = Scope::Tenant(OWN.to_owned());
    let mut lenses: Vec<_> = FRAMINGS
        .into_iter()
        .map(|(format, framing)| (Lens { scope: scope.clone(), ..Lens::all(format) }, framing))
        .collect();
    // Filters that ask for the other tenant, and that match both.
    let other = Wanted { tenant_id: Some(OTHER.to_owned()), ..Wanted::default() };
    let active = Wanted { phase: Some("Active".to_owned()), ..Wanted::default() };
    for wanted in [other, active] {
        let filter = Filter { instances: wanted.clone(), claims: wanted };
        for format in [Format::Boilerhouse, Format::Full] {
            let lens = Lens { scope: scope.clone(), filter: filter.clone(), types: Types::all(format), format };
            lenses.push((lens, Framing { carrier: Carrier::Lines, matrix: false }));
        }
    }
    lenses
}

impl World {
    fn new() -> World {
        let (mut writer, feed) = Feed::new(feed::Config { clock: || 1_700_000_000_000, ..feed::Config::default() });
        writer.home(Home::of("home"));
        for kind in Resource::ALL {
            writer.replace(kind, Vec::new(), 100);
            writer.health(kind, Health::Live);
        }
        let mut readers = Vec::new();
        for (lens, framing) in lenses() {
            let on = feed.subscribe(feed.lens(lens.clone(), framing), From::Snapshot(Reason::Connect, [0; 2])).unwrap();
            readers.push(Reader { lens, framing, on, fold: BTreeMap::new() });
        }
        World { writer, feed, now: BTreeMap::new(), rv: 100, lives: 0, readers, heard: Vec::new() }
    }

    async fn happen(&mut self, happening: &Happening, unseen: bool, dice: &mut [Dice; 3]) {
        self.rv += 1;
        let rv = self.rv;
        match *happening {
            Happening::Written { kind, slot, owner } => {
                let life = self.now.get(&(kind, slot)).map_or_else(
                    || {
                        self.lives += 1;
                        self.lives
                    },
                    |(life, _)| *life,
                );
                let view = view(kind, slot, life, rv, owner, &mut dice[owner as usize]);
                self.now.insert((kind, slot), (life, view.clone()));
                if !unseen {
                    self.writer.upsert(view);
                }
            }
            Happening::Removed { kind, slot } => {
                if let Some((_, view)) = self.now.remove(&(kind, slot))
                    && !unseen
                {
                    self.writer.remove(kind, view.name(), view.uid(), rv);
                }
            }
            Happening::Listed { kind } => {
                let now = self.now.iter().filter(|((k, _), _)| *k == kind);
                self.writer.replace(kind, now.map(|(_, (_, view))| view.clone()).collect(), rv);
            }
            Happening::Resumed => {
                for reader in &mut self.readers {
                    let lens = self.feed.lens(reader.lens.clone(), reader.framing);
                    let from = match reader.on.cursor().and_then(|id| Cursor::decode(&id)) {
                        Some(cursor) if reader.lens.format == Format::Full => From::Resume(cursor),
                        _ => From::Snapshot(Reason::Connect, [0; 2]),
                    };
                    reader.on = self.feed.subscribe(lens, from).unwrap();
                }
            }
        }
        self.listen();
        if rv.is_multiple_of(LOOK_EVERY) {
            self.look().await;
        }
    }

    /// Everybody reads what there is.
    fn listen(&mut self) {
        for reader in &mut self.readers {
            while let Read::Batch(frames) = reader.on.read(4096) {
                for frame in frames {
                    if reader.framing.carrier == Carrier::Lines {
                        reader.take(std::str::from_utf8(&frame).unwrap());
                    }
                    self.heard.extend_from_slice(&frame);
                }
            }
            self.heard.extend(reader.on.heartbeat().into_iter().flatten());
        }
    }

    /// The GETs' answers.
    async fn look(&mut self) {
        let snapshot = self.feed.snapshot().await.unwrap();
        for (lens, _) in lenses() {
            let answers = [
                serde_json::to_vec(&snapshot.instances(&lens)).unwrap(),
                serde_json::to_vec(&snapshot.tenants(&lens)).unwrap(),
                serde_json::to_vec(&snapshot.pools(&lens)).unwrap(),
                lens.cursor(snapshot.home, snapshot.rv).encode().into_bytes(),
            ];
            assert_eq!(answers[2], b"[]", "a tenant has no pools");
            self.heard.extend(answers.concat());
        }
    }

    /// The fold of each full stream is the tenant's state as its filter has it.
    fn check_folds(&self) {
        for reader in self.readers.iter().filter(|reader| reader.lens.format == Format::Full) {
            if reader.framing.carrier != Carrier::Lines {
                continue;
            }
            let mine = |view: &&View| {
                let (tenant, phase) = match view {
                    View::Instance(pod) => (pod.tenant_id.as_deref(), &pod.phase),
                    View::Claim(claim) => (Some(claim.tenant_id.as_str()), &claim.phase),
                };
                let wanted = &reader.lens.filter.instances;
                tenant == Some(OWN)
                    && wanted.tenant_id.as_deref().is_none_or(|want| tenant == Some(want))
                    && wanted.phase.as_ref().is_none_or(|want| want == phase)
            };
            let json = |view: &View| match view {
                View::Instance(pod) => serde_json::to_value(&**pod).unwrap(),
                View::Claim(claim) => serde_json::to_value(&**claim).unwrap(),
            };
            let now = self.now.values().map(|(_, view)| view).filter(mine);
            let expected: BTreeMap<String, Value> = now.map(|view| (view.uid().to_owned(), json(view))).collect();
            assert_eq!(reader.fold, expected, "{:?}", reader.lens);
        }
    }
}

impl Reader {
    fn take(&mut self, line: &str) {
        if self.lens.format != Format::Full {
            return;
        }
        for line in line.lines() {
            let event: Value = serde_json::from_str(line).unwrap();
            match event["type"].as_str().unwrap() {
                "state.initial" => {
                    let objects = ["instances", "claims"].into_iter().flat_map(|key| event[key].as_array().unwrap());
                    self.fold = objects.map(|o| (o["uid"].as_str().unwrap().to_owned(), o.clone())).collect();
                }
                kind @ ("instance.state" | "claim.state") => {
                    let object = &event[kind.split('.').next().unwrap()];
                    let uid = object["uid"].as_str().unwrap().to_owned();
                    if event["phase"] == "Deleted" {
                        assert!(
                            self.fold.remove(&uid).is_some_and(|known| known == *object),
                            "another last view: {event}"
                        );
                    } else {
                        self.fold.insert(uid, object.clone());
                    }
                }
                _ => {}
            }
        }
    }
}

/// A history as this tenant hears it; `other` is what the other tenant's words and values are drawn from.
async fn heard(seed: u64, other: u64) -> Vec<u8> {
    let script = script(&mut Dice(seed));
    let mut dice = [Dice(seed + 1), Dice(other), Dice(seed + 2)];
    let mut world = World::new();
    let mut unseen_until = 0;
    for (at, happening) in script.iter().enumerate() {
        if let Some(list) = script[at..].iter().position(|later| matches!(later, Happening::Listed { .. }))
            && at.is_multiple_of(7)
        {
            // The watch is lost, up to the next list; both resources are then listed.
            unseen_until = at + list;
        }
        world.happen(happening, at < unseen_until, &mut dice).await;
        if at == unseen_until {
            for kind in Resource::ALL {
                world.happen(&Happening::Listed { kind }, false, &mut dice).await;
            }
            world.check_folds();
        }
    }
    for kind in Resource::ALL {
        world.happen(&Happening::Listed { kind }, false, &mut dice).await;
    }
    world.check_folds();
    world.heard
}

fn contains(heard: &[u8], word: &str) -> bool {
    memchr::memmem::find(heard, word.as_bytes()).is_some()
}

// The clock is held: how old a shared initial state may be is a matter of time, and the two histories are to be told alike.
#[tokio::test(start_paused = true)]
async fn no_byte_of_one_tenant_reaches_the_other() {
    let (mut heard_of, mut deleted, mut filtered) = (0, 0, 0);
    let histories = if support::full() { HISTORIES[0] } else { HISTORIES[1] };
    for seed in 0..histories {
        let one = heard(seed, seed + 1_000_000).await;
        assert!(!contains(&one, OTHER) && !contains(&one, "spare"), "seed {seed}: another's word is told");
        let two = heard(seed, seed + 2_000_000).await;
        assert!(one == two, "seed {seed}: what the other tenant does inside its objects shows");
        heard_of += u64::from(contains(&one, OWN));
        deleted += u64::from(contains(&one, r#""cause":"deleted""#));
        filtered += u64::from(contains(&one, r#""cause":"filtered""#));
    }
    println!("histories with a deletion: {deleted}, with one handed over: {filtered}");
    assert!(heard_of > histories * 9 / 10 && deleted > histories / 3 && filtered > histories / 3);
}

/// A Pod that changes hands, word by word.
#[test]
fn a_pod_handed_over_leaves_the_first_and_enters_the_second() {
    let (mut writer, feed) = Feed::new(feed::Config { clock: || 0, ..feed::Config::default() });
    writer.home(Home::of("home"));
    let pod = |tenant: &str, rv| {
        let labels = BTreeMap::from([("boilerhouse.dev/tenant".to_owned(), tenant.to_owned())]);
        let (tenant_id, created_at) = (Some(tenant.to_owned()), "2026-01-01T00:00:00Z".to_owned());
        let (name, uid, phase) = ("pod".to_owned(), "u".to_owned(), format!("{tenant}-phase"));
        View::Instance(Arc::new(Instance {
            name,
            uid,
            phase,
            tenant_id,
            created_at,
            labels,
            rv,
            pool_status: Some("ready".to_owned()),
            ..Instance::default()
        }))
    };
    writer.replace(Resource::Instance, vec![pod(OWN, 5)], 5);
    writer.replace(Resource::Claim, Vec::new(), 5);
    let subscribe = |tenant: &str| {
        let lens = Lens { scope: Scope::Tenant(tenant.to_owned()), ..Lens::all(Format::Full) };
        let framing = Framing { carrier: Carrier::Lines, matrix: false };
        feed.subscribe(feed.lens(lens, framing), From::Now).unwrap()
    };
    let told = |on: &mut Subscription| {
        let mut events: Vec<Value> = Vec::new();
        while let Read::Batch(frames) = on.read(4096) {
            let text: String = frames.iter().map(|frame| std::str::from_utf8(frame).unwrap()).collect();
            events.extend(text.lines().map(|line| serde_json::from_str(line).unwrap()));
        }
        let events = events.into_iter().filter(|event| event["type"] != "heartbeat");
        events
            .map(|mut event| {
                event.as_object_mut().unwrap().remove("id");
                event
            })
            .collect::<Vec<_>>()
    };
    let (mut first, mut second) = (subscribe(OWN), subscribe(OTHER));
    writer.upsert(pod(OTHER, 6));
    let time = "1970-01-01T00:00:00.000Z";
    let view = |tenant: &str| {
        serde_json::json!({
            "name": "pod", "uid": "u", "phase": format!("{tenant}-phase"), "tenantId": tenant, "poolStatus": "ready",
            "createdAt": "2026-01-01T00:00:00Z", "labels": {"boilerhouse.dev/tenant": tenant},
        })
    };
    let left = serde_json::json!({
        "type": "instance.state", "time": time, "name": "pod", "phase": "Deleted", "previousPhase": "alice-phase",
        "tenantId": OWN, "instance": view(OWN), "cause": "filtered", "key": "u.6.instance.state",
    });
    assert_eq!(told(&mut first), [left]);
    let came = serde_json::json!({
        "type": "instance.state", "time": time, "name": "pod", "phase": "mallory-phase", "tenantId": OTHER,
        "instance": view(OTHER), "key": "u.6.instance.state",
    });
    let ready = serde_json::json!({
        "type": "pool.instance.ready", "time": time, "name": "pod", "uid": "u", "key": "u.6.pool.instance.ready",
    });
    assert_eq!(told(&mut second), [came, ready]);
    writer.upsert(pod(OTHER, 7));
    writer.remove(Resource::Instance, "pod", "u", 8);
    assert!(told(&mut first).is_empty(), "what becomes of it is the second's business");
}

/// A cursor is good only under the rights that it was made under.
#[test]
fn a_cursor_of_other_rights_starts_over() {
    let (mut writer, feed) = Feed::new(feed::Config::default());
    writer.home(Home::of("home"));
    for kind in Resource::ALL {
        writer.replace(kind, Vec::new(), 5);
    }
    let scopes = [Scope::All, Scope::Tenant(OWN.to_owned()), Scope::Tenant(OTHER.to_owned())];
    for made in &scopes {
        for used in &scopes {
            let lens = |scope: &Scope| Lens { scope: scope.clone(), ..Lens::all(Format::Full) };
            let cursor = lens(made).cursor(Home::of("home"), [5, 5]);
            let framing = Framing { carrier: Carrier::Lines, matrix: false };
            let mut on = feed.subscribe(feed.lens(lens(used), framing), From::Resume(cursor)).unwrap();
            let Read::Batch(frames) = on.read(4096) else { panic!("nothing is told") };
            let first: Value = serde_json::from_slice(&frames[0]).unwrap();
            let expected = if made == used { ("heartbeat", None) } else { ("state.initial", Some("filter")) };
            let told = (first["type"].as_str().unwrap(), first["reason"].as_str());
            assert_eq!(told, expected, "made under {made:?}, used under {used:?}");
        }
    }
}
