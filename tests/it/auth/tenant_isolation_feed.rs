//! What a tenant's lens lets through, byte by byte, over seeded histories of two tenants in one feed.
//!
//! The property is non-interference: two histories that differ only in what the other tenant does inside its own
//! objects are the same bytes for this one, on every transport, in both formats, in snapshots and after resumes. Beside
//! it, more bluntly: no word of the other tenant stands anywhere; and the fold is exactly this tenant's state.

use std::{collections::BTreeMap, sync::Arc};

use boilerhouse_bridge::{
    event::{
        Claim, Cursor, Instance, NamespaceId, PerResource, Resource, ResourceVersion, View,
        projection::{EventFormat, EventTypes, Filter, ObjectFilter, Projection, Scope},
    },
    feed::{self, Feed, FrameFormat, Framing, Health, ReadResult, SnapshotReason, StartAt, Subscription, Writer},
};
use serde_json::Value;

use crate::support::{self, rng::SeededRng};

/// Histories in the long form of the test, and in the short one.
const HISTORIES: [u64; 2] = [1_000, 250];
/// Happenings in a history.
const STEPS: usize = 30;
/// The GETs are asked after every so many of them.
const CHECK_EVERY: u64 = 5;
/// The tenant that looks, and the other one.
const OWN_TENANT: &str = "alice";
const OTHER_TENANT: &str = "mallory";
/// What each tenant's lens is tried with.
const FRAMINGS: [(EventFormat, Framing); 3] = [
    (EventFormat::Boilerhouse, Framing::WEBSOCKET),
    (EventFormat::Full, Framing { format: FrameFormat::Sse { named: false }, edgeplane_names: true }),
    (EventFormat::Full, Framing { format: FrameFormat::JsonLines, edgeplane_names: false }),
];

/// An object of the history: which tenant has it now, if any.
#[derive(Clone, Copy, PartialEq)]
enum Owner {
    Own,
    Other,
    Nobody,
}

/// What happens, without what it looks like: the same for all variants of a history.
enum ScriptedChange {
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

fn script(rng: &mut SeededRng) -> Vec<ScriptedChange> {
    let mut script = Vec::new();
    for _ in 0..STEPS {
        let kind = *rng.choose(&Resource::ALL);
        let slot = rng.below(4);
        let owner = *rng.choose(&[Owner::Own, Owner::Other, Owner::Other, Owner::Nobody]);
        script.push(match rng.below(10) {
            0 | 1 => ScriptedChange::Removed { kind, slot },
            2 => ScriptedChange::Listed { kind },
            3 => ScriptedChange::Resumed,
            _ => ScriptedChange::Written { kind, slot, owner },
        });
    }
    script
}

/// A view whose words are its owner's, but for its name and uid, which stay when it changes hands.
fn view(kind: Resource, slot: u64, life: u64, rv: ResourceVersion, owner: Owner, rng: &mut SeededRng) -> View {
    let word = match owner {
        Owner::Own => OWN_TENANT,
        Owner::Other => OTHER_TENANT,
        Owner::Nobody => "spare",
    };
    let some = |rng: &mut SeededRng, what: &str| (rng.below(3) > 0).then(|| format!("{word}-{what}-{}", rng.below(3)));
    let (name, uid) = (format!("{}-{slot}", kind.plural()), format!("uid-{}-{life}", kind.plural()));
    let phase = ["Active", "Released", "Pending"][rng.below(3) as usize];
    let phase = if rng.below(4) == 0 { format!("{word}-phase-{}", rng.below(3)) } else { phase.to_owned() };
    let labels = BTreeMap::from([(format!("{word}/label"), format!("{word}-{}", rng.below(3)))]);
    match kind {
        Resource::Pods => View::Instance(Arc::new(Instance {
            name,
            uid,
            phase,
            workload_ref: some(rng, "workload"),
            tenant_id: (owner != Owner::Nobody).then(|| word.to_owned()),
            pool_status: if rng.below(2) == 0 { Some("ready".to_owned()) } else { some(rng, "status") },
            ip: some(rng, "ip"),
            created_at: "2026-01-01T00:00:00Z".to_owned(),
            labels,
            resource_version: rv,
        })),
        Resource::Claims => View::Claim(Arc::new(Claim {
            name,
            uid,
            tenant_id: if owner == Owner::Nobody { String::new() } else { word.to_owned() },
            workload_ref: format!("{word}-workload"),
            phase,
            // Whoever writes it may name any Pod, the other tenant's too.
            instance_id: Some(format!("pods-{}", rng.below(4))),
            endpoint: None,
            source: some(rng, "source"),
            claimed_at: some(rng, "at"),
            detail: some(rng, "detail"),
            labels,
            last_activity: some(rng, "active"),
            resource_version: rv,
        })),
    }
}

struct TwoTenantFeed {
    writer: Writer,
    feed: Feed,
    /// By kind and slot: the life, and what it looks like.
    now: BTreeMap<(Resource, u64), (u64, View)>,
    rv: ResourceVersion,
    lives: u64,
    readers: Vec<Reader>,
    /// All that a lens of the tenant has yielded.
    received: Vec<u8>,
}

struct Reader {
    projection: Projection,
    framing: Framing,
    on: Subscription,
    fold: BTreeMap<String, Value>,
}

fn projections() -> Vec<(Projection, Framing)> {
    let scope = Scope::Tenant(OWN_TENANT.to_owned());
    let mut projections: Vec<_> = FRAMINGS
        .into_iter()
        .map(|(format, framing)| (Projection { scope: scope.clone(), ..Projection::everything(format) }, framing))
        .collect();
    // Filters that ask for the other tenant, and that match both.
    let other = ObjectFilter { tenant_id: Some(OTHER_TENANT.to_owned()), ..ObjectFilter::default() };
    let active = ObjectFilter { phase: Some("Active".to_owned()), ..ObjectFilter::default() };
    for wanted in [other, active] {
        let filter = Filter { instances: wanted.clone(), claims: wanted };
        for format in [EventFormat::Boilerhouse, EventFormat::Full] {
            let projection =
                Projection { scope: scope.clone(), filter: filter.clone(), types: EventTypes::all(format), format };
            projections.push((projection, Framing { format: FrameFormat::JsonLines, edgeplane_names: false }));
        }
    }
    projections
}

impl TwoTenantFeed {
    fn new() -> TwoTenantFeed {
        let (mut writer, feed) =
            Feed::new(feed::Config { wall_clock_ms: || 1_700_000_000_000, ..feed::Config::default() });
        writer.set_namespace(NamespaceId::from_uid("home"));
        for kind in Resource::ALL {
            writer.replace(kind, Vec::new(), 100);
            writer.set_health(kind, Health::Live);
        }
        let mut readers = Vec::new();
        for (projection, framing) in projections() {
            let on = feed
                .subscribe(
                    feed.projection_cache(projection.clone(), framing),
                    StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: Default::default() },
                )
                .unwrap();
            readers.push(Reader { projection, framing, on, fold: BTreeMap::new() });
        }
        TwoTenantFeed { writer, feed, now: BTreeMap::new(), rv: 100, lives: 0, readers, received: Vec::new() }
    }

    async fn apply(&mut self, change: &ScriptedChange, unseen: bool, rng: &mut [SeededRng; 3]) {
        self.rv += 1;
        let rv = self.rv;
        match *change {
            ScriptedChange::Written { kind, slot, owner } => {
                let life = self.now.get(&(kind, slot)).map_or_else(
                    || {
                        self.lives += 1;
                        self.lives
                    },
                    |(life, _)| *life,
                );
                let view = view(kind, slot, life, rv, owner, &mut rng[owner as usize]);
                self.now.insert((kind, slot), (life, view.clone()));
                if !unseen {
                    self.writer.upsert(view);
                }
            }
            ScriptedChange::Removed { kind, slot } => {
                if let Some((_, view)) = self.now.remove(&(kind, slot))
                    && !unseen
                {
                    self.writer.remove(kind, view.name(), view.uid(), rv);
                }
            }
            ScriptedChange::Listed { kind } => {
                let now = self.now.iter().filter(|((k, _), _)| *k == kind);
                self.writer.replace(kind, now.map(|(_, (_, view))| view.clone()).collect(), rv);
            }
            ScriptedChange::Resumed => {
                for reader in &mut self.readers {
                    let projection = self.feed.projection_cache(reader.projection.clone(), reader.framing);
                    let from = match reader.on.cursor().and_then(|id| Cursor::decode(&id)) {
                        Some(cursor) if reader.projection.format == EventFormat::Full => StartAt::Cursor(cursor),
                        _ => StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: Default::default() },
                    };
                    reader.on = self.feed.subscribe(projection, from).unwrap();
                }
            }
        }
        self.listen();
        if rv.is_multiple_of(CHECK_EVERY) {
            self.check_snapshots().await;
        }
    }

    /// Everybody reads what there is.
    fn listen(&mut self) {
        for reader in &mut self.readers {
            while let ReadResult::Batch(frames) = reader.on.read(4096) {
                for frame in frames {
                    if reader.framing.format == FrameFormat::JsonLines {
                        reader.apply_line(std::str::from_utf8(&frame).unwrap());
                    }
                    self.received.extend_from_slice(&frame);
                }
            }
            self.received.extend(reader.on.heartbeat().into_iter().flatten());
        }
    }

    /// The GETs' answers.
    async fn check_snapshots(&mut self) {
        let snapshot = self.feed.snapshot().await.unwrap();
        for (projection, _) in projections() {
            let answers = [
                serde_json::to_vec(&snapshot.instances(&projection)).unwrap(),
                serde_json::to_vec(&snapshot.tenants(&projection)).unwrap(),
                serde_json::to_vec(&snapshot.pools(&projection)).unwrap(),
                projection.cursor_at(snapshot.namespace, snapshot.versions).encode().into_bytes(),
            ];
            assert_eq!(answers[2], b"[]", "a tenant has no pools");
            self.received.extend(answers.concat());
        }
    }

    /// The fold of each full stream is the tenant's state as its filter has it.
    fn check_folds(&self) {
        for reader in self.readers.iter().filter(|reader| reader.projection.format == EventFormat::Full) {
            if reader.framing.format != FrameFormat::JsonLines {
                continue;
            }
            let mine = |view: &&View| {
                let (tenant, phase) = match view {
                    View::Instance(pod) => (pod.tenant_id.as_deref(), &pod.phase),
                    View::Claim(claim) => (Some(claim.tenant_id.as_str()), &claim.phase),
                };
                let wanted = &reader.projection.filter.instances;
                tenant == Some(OWN_TENANT)
                    && wanted.tenant_id.as_deref().is_none_or(|want| tenant == Some(want))
                    && wanted.phase.as_ref().is_none_or(|want| want == phase)
            };
            let json = |view: &View| match view {
                View::Instance(pod) => serde_json::to_value(&**pod).unwrap(),
                View::Claim(claim) => serde_json::to_value(&**claim).unwrap(),
            };
            let now = self.now.values().map(|(_, view)| view).filter(mine);
            let expected: BTreeMap<String, Value> = now.map(|view| (view.uid().to_owned(), json(view))).collect();
            assert_eq!(reader.fold, expected, "{:?}", reader.projection);
        }
    }
}

impl Reader {
    fn apply_line(&mut self, line: &str) {
        if self.projection.format != EventFormat::Full {
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
async fn received(seed: u64, other: u64) -> Vec<u8> {
    let script = script(&mut SeededRng(seed));
    let mut rng = [SeededRng(seed + 1), SeededRng(other), SeededRng(seed + 2)];
    let mut feed_model = TwoTenantFeed::new();
    let mut unseen_until = 0;
    for (at, change) in script.iter().enumerate() {
        if let Some(list) = script[at..].iter().position(|later| matches!(later, ScriptedChange::Listed { .. }))
            && at.is_multiple_of(7)
        {
            // The watch is lost, up to the next list; both resources are then listed.
            unseen_until = at + list;
        }
        feed_model.apply(change, at < unseen_until, &mut rng).await;
        if at == unseen_until {
            for kind in Resource::ALL {
                feed_model.apply(&ScriptedChange::Listed { kind }, false, &mut rng).await;
            }
            feed_model.check_folds();
        }
    }
    for kind in Resource::ALL {
        feed_model.apply(&ScriptedChange::Listed { kind }, false, &mut rng).await;
    }
    feed_model.check_folds();
    feed_model.received
}

fn contains(received: &[u8], word: &str) -> bool {
    memchr::memmem::find(received, word.as_bytes()).is_some()
}

// The clock is held: how old a shared initial state may be is a matter of time, and the two histories are to be told alike.
#[tokio::test(start_paused = true)]
async fn tenant_stream_contains_no_byte_of_another_tenant() {
    let (mut heard_of, mut deleted, mut filtered) = (0, 0, 0);
    let histories = if support::long_form() { HISTORIES[0] } else { HISTORIES[1] };
    for seed in 0..histories {
        let one = received(seed, seed + 1_000_000).await;
        assert!(!contains(&one, OTHER_TENANT) && !contains(&one, "spare"), "seed {seed}: another's word is told");
        let two = received(seed, seed + 2_000_000).await;
        assert!(one == two, "seed {seed}: what the other tenant does inside its objects shows");
        heard_of += u64::from(contains(&one, OWN_TENANT));
        deleted += u64::from(contains(&one, r#""cause":"deleted""#));
        filtered += u64::from(contains(&one, r#""cause":"filtered""#));
    }
    println!("histories with a deletion: {deleted}, with one handed over: {filtered}");
    assert!(heard_of > histories * 9 / 10 && deleted > histories / 3 && filtered > histories / 3);
}

/// A Pod that changes hands, word by word.
#[test]
fn reassigned_pod_leaves_the_first_tenant_and_enters_the_second() {
    let (mut writer, feed) = Feed::new(feed::Config { wall_clock_ms: || 0, ..feed::Config::default() });
    writer.set_namespace(NamespaceId::from_uid("home"));
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
            resource_version: rv,
            pool_status: Some("ready".to_owned()),
            ..Instance::default()
        }))
    };
    writer.replace(Resource::Pods, vec![pod(OWN_TENANT, 5)], 5);
    writer.replace(Resource::Claims, Vec::new(), 5);
    let subscribe = |tenant: &str| {
        let projection =
            Projection { scope: Scope::Tenant(tenant.to_owned()), ..Projection::everything(EventFormat::Full) };
        let framing = Framing { format: FrameFormat::JsonLines, edgeplane_names: false };
        feed.subscribe(feed.projection_cache(projection, framing), StartAt::Live).unwrap()
    };
    let told = |on: &mut Subscription| {
        let mut events: Vec<Value> = Vec::new();
        while let ReadResult::Batch(frames) = on.read(4096) {
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
    let (mut first, mut second) = (subscribe(OWN_TENANT), subscribe(OTHER_TENANT));
    writer.upsert(pod(OTHER_TENANT, 6));
    let time = "1970-01-01T00:00:00.000Z";
    let view = |tenant: &str| {
        serde_json::json!({
            "name": "pod", "uid": "u", "phase": format!("{tenant}-phase"), "tenantId": tenant, "poolStatus": "ready",
            "createdAt": "2026-01-01T00:00:00Z", "labels": {"boilerhouse.dev/tenant": tenant},
        })
    };
    let left = serde_json::json!({
        "type": "instance.state", "time": time, "name": "pod", "phase": "Deleted", "previousPhase": "alice-phase",
        "tenantId": OWN_TENANT, "instance": view(OWN_TENANT), "cause": "filtered", "key": "u.6.instance.state",
    });
    assert_eq!(told(&mut first), [left]);
    let came = serde_json::json!({
        "type": "instance.state", "time": time, "name": "pod", "phase": "mallory-phase", "tenantId": OTHER_TENANT,
        "instance": view(OTHER_TENANT), "key": "u.6.instance.state",
    });
    let ready = serde_json::json!({
        "type": "pool.instance.ready", "time": time, "name": "pod", "uid": "u", "key": "u.6.pool.instance.ready",
    });
    assert_eq!(told(&mut second), [came, ready]);
    writer.upsert(pod(OTHER_TENANT, 7));
    writer.remove(Resource::Pods, "pod", "u", 8);
    assert!(told(&mut first).is_empty(), "what becomes of it is the second's business");
}

/// A cursor is good only under the rights that it was made under.
#[test]
fn cursor_of_another_scope_restarts_with_state_initial() {
    let (mut writer, feed) = Feed::new(feed::Config::default());
    writer.set_namespace(NamespaceId::from_uid("home"));
    for kind in Resource::ALL {
        writer.replace(kind, Vec::new(), 5);
    }
    let scopes = [Scope::All, Scope::Tenant(OWN_TENANT.to_owned()), Scope::Tenant(OTHER_TENANT.to_owned())];
    for made in &scopes {
        for used in &scopes {
            let projection =
                |scope: &Scope| Projection { scope: scope.clone(), ..Projection::everything(EventFormat::Full) };
            let cursor = projection(made).cursor_at(NamespaceId::from_uid("home"), PerResource::new(5, 5));
            let framing = Framing { format: FrameFormat::JsonLines, edgeplane_names: false };
            let mut on =
                feed.subscribe(feed.projection_cache(projection(used), framing), StartAt::Cursor(cursor)).unwrap();
            let ReadResult::Batch(frames) = on.read(4096) else { panic!("nothing is told") };
            let first: Value = serde_json::from_slice(&frames[0]).unwrap();
            let expected = if made == used { ("heartbeat", None) } else { ("state.initial", Some("filter")) };
            let told = (first["type"].as_str().unwrap(), first["reason"].as_str());
            assert_eq!(told, expected, "made under {made:?}, used under {used:?}");
        }
    }
}
