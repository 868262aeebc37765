//! Tests of tenant isolation in the feed, over seeded histories of two tenants in one feed.
//!
//! The property is non-interference. Two histories that differ only in the values of the other tenant's objects produce
//! the same bytes for this tenant: with every framing, in both formats, in snapshots and after resumes. Two more
//! properties are checked: no word of the other tenant appears in the bytes, and the fold equals the state of this
//! tenant.

use std::{collections::BTreeMap, sync::Arc};

use boilerhouse_bridge::{
    event::{
        Claim, Cursor, Instance, NamespaceId, PerResource, Resource, ResourceVersion, View,
        projection::{EventFormat, EventTypes, Filter, ObjectFilter, Projection, Scope},
    },
    feed::{self, Feed, FrameFormat, Framing, Health, ReadResult, SnapshotReason, StartAt, Subscription, Writer},
    test_support::SeededRng,
};
use serde_json::Value;

use crate::support;

/// Number of histories in the long form and in the short form of the test.
const HISTORIES: [u64; 2] = [1_000, 100];
/// Changes in a history.
const CHANGES: usize = 30;
/// Snapshots are taken at every n-th resourceVersion.
const SNAPSHOT_EVERY: u64 = 5;
/// The tenant that reads, and the other one.
const OWN: &str = "alice";
const OTHER: &str = "mallory";
/// Formats and framings of the streams.
const FRAMINGS: [(EventFormat, Framing); 3] = [
    (EventFormat::Boilerhouse, Framing::WEBSOCKET),
    (EventFormat::Full, Framing { format: FrameFormat::Sse { named: false, chunked: false }, edgeplane_names: true }),
    (EventFormat::Full, Framing { format: FrameFormat::JsonLines, edgeplane_names: false }),
];

/// The tenant that owns an object, if any.
#[derive(Clone, Copy, PartialEq)]
enum Owner {
    Own,
    Other,
    None,
}

/// A change without the values of the object. It is the same for all variants of a history.
enum ScriptedChange {
    Written {
        resource: Resource,
        slot: u64,
        owner: Owner,
    },
    Removed {
        resource: Resource,
        slot: u64,
    },
    /// A re-list, which delivers all changes that the feed has missed.
    Listed {
        resource: Resource,
    },
    /// All full streams resume after their cursor; the others start again.
    Resumed,
}

/// Draws a history.
fn script(rng: &mut SeededRng) -> Vec<ScriptedChange> {
    let mut script = Vec::new();
    for _ in 0..CHANGES {
        let resource = *rng.choose(&Resource::ALL);
        let slot = rng.below(4);
        let owner = *rng.choose(&[Owner::Own, Owner::Other, Owner::Other, Owner::None]);
        script.push(match rng.below(10) {
            0 | 1 => ScriptedChange::Removed { resource, slot },
            2 => ScriptedChange::Listed { resource },
            3 => ScriptedChange::Resumed,
            _ => ScriptedChange::Written { resource, slot, owner },
        });
    }
    script
}

/// Returns a view whose values contain the word of its owner. Name and uid do not: they stay when the owner changes.
///
/// It sets every field, which the builders of `test_support` do not.
fn view(resource: Resource, slot: u64, uid: u64, version: ResourceVersion, owner: Owner, rng: &mut SeededRng) -> View {
    let word = match owner {
        Owner::Own => OWN,
        Owner::Other => OTHER,
        Owner::None => "spare",
    };
    let optional =
        |rng: &mut SeededRng, field: &str| (rng.below(3) > 0).then(|| format!("{word}-{field}-{}", rng.below(3)));
    let (name, uid) = (format!("{}-{slot}", resource.plural()), format!("uid-{}-{uid}", resource.plural()));
    let phase = ["Active", "Released", "Pending"][rng.below(3) as usize];
    let phase = if rng.below(4) == 0 { format!("{word}-phase-{}", rng.below(3)) } else { phase.to_owned() };
    let labels = BTreeMap::from([(format!("{word}/label"), format!("{word}-{}", rng.below(3)))]);
    match resource {
        Resource::Pods => View::Instance(Arc::new(Instance {
            name,
            uid,
            phase,
            workload_ref: optional(rng, "workload"),
            tenant_id: (owner != Owner::None).then(|| word.to_owned()),
            pool_status: if rng.below(2) == 0 { Some("ready".to_owned()) } else { optional(rng, "status") },
            ip: optional(rng, "ip"),
            created_at: "2026-01-01T00:00:00Z".to_owned(),
            labels,
            resource_version: version,
        })),
        Resource::Claims => View::Claim(Arc::new(Claim {
            name,
            uid,
            tenant_id: if owner == Owner::None { String::new() } else { word.to_owned() },
            workload_ref: format!("{word}-workload"),
            phase,
            // A claim can name any Pod, also one of the other tenant.
            instance_id: Some(format!("pods-{}", rng.below(4))),
            endpoint: None,
            source: optional(rng, "source"),
            claimed_at: optional(rng, "at"),
            detail: optional(rng, "detail"),
            labels,
            last_activity: optional(rng, "active"),
            resource_version: version,
        })),
    }
}

/// A feed with objects of both tenants, and the streams of one tenant.
struct TwoTenantFeed {
    writer: Writer,
    feed: Feed,
    /// The existing objects by resource and slot: number of the uid, and view.
    objects: BTreeMap<(Resource, u64), (u64, View)>,
    version: ResourceVersion,
    /// Number of the newest uid.
    last_uid: u64,
    readers: Vec<Reader>,
    /// All bytes that the tenant has received.
    received: Vec<u8>,
}

/// A stream of the tenant, with the fold of a full stream in JSON lines.
struct Reader {
    projection: Projection,
    framing: Framing,
    subscription: Subscription,
    fold: BTreeMap<String, Value>,
}

/// Returns the projections and framings of all streams.
fn projections() -> Vec<(Projection, Framing)> {
    let scope = Scope::Tenant(OWN.to_owned());
    let mut projections: Vec<_> = FRAMINGS
        .into_iter()
        .map(|(format, framing)| (Projection { scope: scope.clone(), ..Projection::everything(format) }, framing))
        .collect();
    // One filter requests the objects of the other tenant, and one matches objects of both tenants.
    let other = ObjectFilter { tenant_id: Some(OTHER.to_owned()), ..ObjectFilter::default() };
    let active = ObjectFilter { phase: Some("Active".to_owned()), ..ObjectFilter::default() };
    for object_filter in [other, active] {
        let filter = Filter { instances: object_filter.clone(), claims: object_filter };
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
        writer.set_namespace(NamespaceId::from_uid("namespace"));
        for resource in Resource::ALL {
            writer.replace(resource, Vec::new(), 100);
            writer.set_health(resource, Health::Live);
        }
        let mut readers = Vec::new();
        for (projection, framing) in projections() {
            let subscription = feed
                .subscribe(
                    feed.projection_cache(projection.clone(), framing),
                    StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: Default::default() },
                )
                .unwrap();
            readers.push(Reader { projection, framing, subscription, fold: BTreeMap::new() });
        }
        TwoTenantFeed {
            writer,
            feed,
            objects: BTreeMap::new(),
            version: 100,
            last_uid: 0,
            readers,
            received: Vec::new(),
        }
    }

    /// Applies one change. The writer does not get it if `missed` is set: the watch is interrupted.
    async fn apply(&mut self, change: &ScriptedChange, missed: bool, rng: &mut [SeededRng; 3]) {
        self.version += 1;
        let version = self.version;
        match *change {
            ScriptedChange::Written { resource, slot, owner } => {
                let uid = self.objects.get(&(resource, slot)).map_or_else(
                    || {
                        self.last_uid += 1;
                        self.last_uid
                    },
                    |(uid, _)| *uid,
                );
                let view = view(resource, slot, uid, version, owner, &mut rng[owner as usize]);
                self.objects.insert((resource, slot), (uid, view.clone()));
                if !missed {
                    self.writer.upsert(view);
                }
            }
            ScriptedChange::Removed { resource, slot } => {
                if let Some((_, view)) = self.objects.remove(&(resource, slot))
                    && !missed
                {
                    self.writer.remove(resource, view.name(), view.uid(), version);
                }
            }
            ScriptedChange::Listed { resource } => {
                let listed = self.objects.iter().filter(|((of, _), _)| *of == resource);
                self.writer.replace(resource, listed.map(|(_, (_, view))| view.clone()).collect(), version);
            }
            ScriptedChange::Resumed => {
                for reader in &mut self.readers {
                    let projection = self.feed.projection_cache(reader.projection.clone(), reader.framing);
                    let start = match reader.subscription.cursor().and_then(|id| Cursor::decode(&id)) {
                        Some(cursor) if reader.projection.format == EventFormat::Full => StartAt::Cursor(cursor),
                        _ => StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: Default::default() },
                    };
                    reader.subscription = self.feed.subscribe(projection, start).unwrap();
                }
            }
        }
        self.read_streams();
        if version.is_multiple_of(SNAPSHOT_EVERY) {
            self.take_snapshot().await;
        }
    }

    /// Reads all available frames of all streams.
    fn read_streams(&mut self) {
        for reader in &mut self.readers {
            while let ReadResult::Batch(frames) = reader.subscription.read(4096) {
                for frame in frames {
                    if reader.framing.format == FrameFormat::JsonLines {
                        reader.apply(std::str::from_utf8(&frame).unwrap());
                    }
                    self.received.extend_from_slice(&frame);
                }
            }
            self.received.extend(reader.subscription.heartbeat().into_iter().flatten());
        }
    }

    /// Appends the responses of the snapshot GETs.
    async fn take_snapshot(&mut self) {
        let snapshot = self.feed.snapshot().await.unwrap();
        for (projection, _) in projections() {
            let responses = [
                serde_json::to_vec(&snapshot.instances(&projection)).unwrap(),
                serde_json::to_vec(&snapshot.tenants(&projection)).unwrap(),
                serde_json::to_vec(&snapshot.pools(&projection)).unwrap(),
                projection.cursor_at(snapshot.namespace, snapshot.versions).encode().into_bytes(),
            ];
            assert_eq!(responses[2], b"[]", "expected no pools for a tenant");
            self.received.extend(responses.concat());
        }
    }

    /// Asserts that the fold of each full stream equals the tenant's objects that match its filter.
    fn check_folds(&self) {
        for reader in self.readers.iter().filter(|reader| reader.projection.format == EventFormat::Full) {
            if reader.framing.format != FrameFormat::JsonLines {
                continue;
            }
            let is_expected = |view: &&View| {
                let (tenant, phase) = match view {
                    View::Instance(pod) => (pod.tenant_id.as_deref(), &pod.phase),
                    View::Claim(claim) => (Some(claim.tenant_id.as_str()), &claim.phase),
                };
                let filter = &reader.projection.filter.instances;
                tenant == Some(OWN)
                    && filter.tenant_id.as_deref().is_none_or(|value| tenant == Some(value))
                    && filter.phase.as_ref().is_none_or(|value| value == phase)
            };
            let json = |view: &View| match view {
                View::Instance(pod) => serde_json::to_value(&**pod).unwrap(),
                View::Claim(claim) => serde_json::to_value(&**claim).unwrap(),
            };
            let visible = self.objects.values().map(|(_, view)| view).filter(is_expected);
            let expected: BTreeMap<String, Value> = visible.map(|view| (view.uid().to_owned(), json(view))).collect();
            assert_eq!(reader.fold, expected, "{:?}", reader.projection);
        }
    }
}

impl Reader {
    /// Applies JSON lines to the fold.
    fn apply(&mut self, lines: &str) {
        if self.projection.format != EventFormat::Full {
            return;
        }
        for line in lines.lines() {
            let event: Value = serde_json::from_str(line).unwrap();
            match event["type"].as_str().unwrap() {
                "state.initial" => {
                    let objects = ["instances", "claims"].into_iter().flat_map(|key| event[key].as_array().unwrap());
                    self.fold =
                        objects.map(|object| (object["uid"].as_str().unwrap().to_owned(), object.clone())).collect();
                }
                event_type @ ("instance.state" | "claim.state") => {
                    let object = &event[event_type.split('.').next().unwrap()];
                    let uid = object["uid"].as_str().unwrap().to_owned();
                    if event["phase"] == "Deleted" {
                        assert!(
                            self.fold.remove(&uid).is_some_and(|last| last == *object),
                            "expected the last delivered view in {event}"
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

/// Runs one history. Returns the bytes that this tenant receives. The values of the other tenant are drawn with the
/// seed `other_seed`.
async fn received(seed: u64, other_seed: u64) -> Vec<u8> {
    let script = script(&mut SeededRng(seed));
    let mut rng = [SeededRng(seed + 1), SeededRng(other_seed), SeededRng(seed + 2)];
    let mut feed_model = TwoTenantFeed::new();
    let mut missed_until = 0;
    for (index, change) in script.iter().enumerate() {
        if let Some(list) = script[index..].iter().position(|later| matches!(later, ScriptedChange::Listed { .. }))
            && index.is_multiple_of(7)
        {
            // The watch is interrupted until the next list. Both resources are listed then.
            missed_until = index + list;
        }
        feed_model.apply(change, index < missed_until, &mut rng).await;
        if index == missed_until {
            for resource in Resource::ALL {
                feed_model.apply(&ScriptedChange::Listed { resource }, false, &mut rng).await;
            }
            feed_model.check_folds();
        }
    }
    for resource in Resource::ALL {
        feed_model.apply(&ScriptedChange::Listed { resource }, false, &mut rng).await;
    }
    feed_model.check_folds();
    feed_model.received
}

fn contains(received: &[u8], word: &str) -> bool {
    memchr::memmem::find(received, word.as_bytes()).is_some()
}

// The clock is paused: the reuse of a cached initial state depends on its age, and both histories must be delivered
// equally.
#[tokio::test(start_paused = true)]
async fn tenant_stream_contains_no_byte_of_another_tenant() {
    let (mut with_own, mut with_deleted, mut with_filtered) = (0, 0, 0);
    let histories = if support::long_form() { HISTORIES[0] } else { HISTORIES[1] };
    for seed in 0..histories {
        let first = received(seed, seed + 1_000_000).await;
        let is_isolated = !contains(&first, OTHER) && !contains(&first, "spare");
        assert!(is_isolated, "seed {seed}: expected no word of another owner in the received bytes");
        let second = received(seed, seed + 2_000_000).await;
        assert!(first == second, "seed {seed}: expected equal bytes for different values of the other tenant");
        with_own += u64::from(contains(&first, OWN));
        with_deleted += u64::from(contains(&first, r#""cause":"deleted""#));
        with_filtered += u64::from(contains(&first, r#""cause":"filtered""#));
    }
    println!("of {histories} histories: {with_own} with own objects, {with_deleted} deleted, {with_filtered} filtered");
    assert!(with_own > histories * 9 / 10 && with_deleted > histories / 3 && with_filtered > histories / 3);
}

/// A Pod moves from one tenant to another. The events of both are compared completely.
#[test]
fn reassigned_pod_leaves_the_first_tenant_and_enters_the_second() {
    let (mut writer, feed) = Feed::new(feed::Config { wall_clock_ms: || 0, ..feed::Config::default() });
    writer.set_namespace(NamespaceId::from_uid("namespace"));
    // `PodBuilder` sets the label of a managed Pod, and no time of creation.
    let pod = |tenant: &str, version| {
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
            resource_version: version,
            pool_status: Some("ready".to_owned()),
            ..Instance::default()
        }))
    };
    writer.replace(Resource::Pods, vec![pod(OWN, 5)], 5);
    writer.replace(Resource::Claims, Vec::new(), 5);
    let subscribe = |tenant: &str| {
        let projection =
            Projection { scope: Scope::Tenant(tenant.to_owned()), ..Projection::everything(EventFormat::Full) };
        let framing = Framing { format: FrameFormat::JsonLines, edgeplane_names: false };
        feed.subscribe(feed.projection_cache(projection, framing), StartAt::Live).unwrap()
    };
    let read_events = |subscription: &mut Subscription| {
        let mut events: Vec<Value> = Vec::new();
        while let ReadResult::Batch(frames) = subscription.read(4096) {
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
    let deleted = serde_json::json!({
        "type": "instance.state", "time": time, "name": "pod", "phase": "Deleted", "previousPhase": "alice-phase",
        "tenantId": OWN, "instance": view(OWN), "cause": "filtered", "key": "u.6.instance.state",
    });
    assert_eq!(read_events(&mut first), [deleted]);
    let appeared = serde_json::json!({
        "type": "instance.state", "time": time, "name": "pod", "phase": "mallory-phase", "tenantId": OTHER,
        "instance": view(OTHER), "key": "u.6.instance.state",
    });
    let ready = serde_json::json!({
        "type": "pool.instance.ready", "time": time, "name": "pod", "uid": "u", "key": "u.6.pool.instance.ready",
    });
    assert_eq!(read_events(&mut second), [appeared, ready]);
    writer.upsert(pod(OTHER, 7));
    writer.remove(Resource::Pods, "pod", "u", 8);
    let events = read_events(&mut first);
    assert!(events.is_empty(), "expected no event about an object of the second tenant, found: {events:?}");
}

/// A cursor is valid only for the scope in which it was issued.
#[test]
fn cursor_of_another_scope_restarts_with_state_initial() {
    let (mut writer, feed) = Feed::new(feed::Config::default());
    writer.set_namespace(NamespaceId::from_uid("namespace"));
    for resource in Resource::ALL {
        writer.replace(resource, Vec::new(), 5);
    }
    let scopes = [Scope::All, Scope::Tenant(OWN.to_owned()), Scope::Tenant(OTHER.to_owned())];
    for issued_for in &scopes {
        for used_by in &scopes {
            let projection =
                |scope: &Scope| Projection { scope: scope.clone(), ..Projection::everything(EventFormat::Full) };
            let cursor = projection(issued_for).cursor_at(NamespaceId::from_uid("namespace"), PerResource::new(5, 5));
            let framing = Framing { format: FrameFormat::JsonLines, edgeplane_names: false };
            let mut subscription =
                feed.subscribe(feed.projection_cache(projection(used_by), framing), StartAt::Cursor(cursor)).unwrap();
            let ReadResult::Batch(frames) = subscription.read(4096) else { panic!("expected a first event") };
            let first: Value = serde_json::from_slice(&frames[0]).unwrap();
            let expected = if issued_for == used_by { ("heartbeat", None) } else { ("state.initial", Some("filter")) };
            let received = (first["type"].as_str().unwrap(), first["reason"].as_str());
            assert_eq!(received, expected, "cursor issued for {issued_for:?}, used by {used_by:?}");
        }
    }
}
