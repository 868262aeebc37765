//! Publication of events that come from outside the cluster: `telemetry` and `mqtt.message` (docs/protocol.md#telemetry,
//! docs/protocol.md#mqtt).
//!
//! *Guarantees:* telemetry that is stored has an event in the log, and the reverse.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::time::Instant;

use super::{
    handle::Feed,
    latest_telemetry::{Held, with_instances},
    snapshot::Snapshot,
    state::State,
};
use crate::event::{EphemeralEvent, Instance, MqttMessage, Telemetry, projection::Projection};

/// No living instance has the uid of a tunnel. A replica that has not received the creation of the instance yet returns it
/// too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no living instance has this uid")]
pub struct UnknownTunnel;

impl Feed {
    /// Returns the living instance with this uid, if it has telemetry. It does not search.
    #[must_use]
    pub fn find_reporting_instance(&self, uid: &str) -> Option<Arc<Instance>> {
        let state = self.inner.state();
        let (inventory, held) = (state.inventory.clone(), state.telemetry.get(uid).cloned()?);
        drop(state);
        inventory.instances.get(&held.instance_name).filter(|instance| instance.uid == uid).cloned()
    }

    /// Returns the living instance with this uid. It searches all instances, unless the instance has telemetry: 10,000 take
    /// a fraction of a millisecond.
    #[must_use]
    pub fn find_instance(&self, uid: &str) -> Option<Arc<Instance>> {
        self.find_reporting_instance(uid).or_else(|| {
            let inventory = self.inner.state().inventory.clone();
            inventory.instances.values().find(|instance| instance.uid == uid).cloned()
        })
    }

    /// Stores the telemetry of a tunnel and appends its event to the log. It replaces what an earlier call has stored,
    /// whatever the times of both. It expires [`Config::telemetry_ttl`](super::Config::telemetry_ttl) after
    /// `received_at_ms`; what has expired already changes nothing.
    ///
    /// # Errors
    /// [`UnknownTunnel`] if this replica knows no instance with the uid. Nothing is stored then.
    pub fn publish_telemetry(&self, telemetry: Telemetry) -> Result<(), UnknownTunnel> {
        let instance = self.find_instance(&telemetry.tunnel_id).ok_or(UnknownTunnel)?;
        let telemetry = Arc::new(telemetry);
        let mut published = Err(UnknownTunnel);
        self.inner.update(|state, now_ms| {
            // The instance may have changed or ended since. It is not searched for again under the lock.
            let instance = state.inventory.instances.get(&instance.name).filter(|i| i.uid == telemetry.tunnel_id);
            if let Some(instance) = instance.cloned() {
                published = Ok(());
                state.store_telemetry(now_ms, instance, telemetry, self.inner.config.telemetry_ttl);
            }
        });
        published
    }

    /// Returns which of these uids are those of living instances. It reads all instances.
    #[must_use]
    pub fn living_tunnels<T>(&self, uids: &BTreeMap<String, T>) -> Vec<String> {
        let inventory = self.inner.state().inventory.clone();
        let living = inventory.instances.values().map(|instance| &instance.uid);
        living.filter(|uid| uids.contains_key(*uid)).cloned().collect()
    }

    /// Appends `upstream.down` (with a reason) or `upstream.up` for something that is not a resource of the API server, such
    /// as `nats`. `since_ms` is when its last byte arrived, in milliseconds since the Unix epoch.
    pub fn publish_upstream(&self, resource: &'static str, down_reason: Option<Arc<str>>, since_ms: u64) {
        self.inner.update(|state, now_ms| state.report_upstream(now_ms, resource, down_reason, since_ms, true));
    }

    /// Appends a `mqtt.message` event to the log.
    pub fn publish_mqtt_message(&self, message: MqttMessage) {
        let charged_bytes = message.charged_bytes();
        let event = EphemeralEvent::MqttMessage { message: Arc::new(message), charged_bytes };
        self.inner.update(|state, now_ms| state.append_ephemeral(now_ms, event));
    }

    /// Returns the number of instances with telemetry, at least: some of it may have expired.
    #[must_use]
    pub fn telemetry_count(&self) -> usize {
        self.inner.state().telemetry.len()
    }

    /// Returns the most recent telemetry of each instance of this state that the projection includes, by uid.
    #[must_use]
    pub fn telemetry(&self, snapshot: &Snapshot, projection: &Projection) -> Vec<Arc<Telemetry>> {
        let held = self.inner.state().telemetry.unexpired(Instant::now());
        let included = with_instances(&held, &snapshot.inventory).filter(|(i, _)| projection.includes_instance(i));
        included.map(|(_, telemetry)| telemetry.clone()).collect()
    }
}

impl State {
    fn store_telemetry(&mut self, now_ms: u64, instance: Arc<Instance>, telemetry: Arc<Telemetry>, ttl: Duration) {
        let age = Duration::from_millis(now_ms.saturating_sub(telemetry.received_at_ms));
        let (now, instance_name) = (Instant::now(), instance.name.clone());
        let held = Held { telemetry: telemetry.clone(), instance_name, expires_at: now + ttl.saturating_sub(age) };
        if held.expires_at > now {
            self.telemetry.store(held);
            self.append_ephemeral(now_ms, EphemeralEvent::Telemetry { instance, telemetry });
        }
    }
}

#[cfg(test)]
pub(in crate::feed) mod tests {
    use serde_json::{Value, json};
    use tokio::time::advance;

    use super::*;
    use crate::{
        event::{
            Cursor, NamespaceId, PerResource, Resource,
            projection::{EventFormat, EventTypes, Filter, Scope},
        },
        feed::{Config, FrameFormat, Framing, Health, ReadResult, SnapshotReason, StartAt, Subscription, Writer},
        test_support::{PodBuilder, telemetry},
    };

    const TTL: Duration = Duration::from_secs(300);

    fn clock() -> u64 {
        1_000_000
    }

    /// A feed with the instances `a` of tenant `t1` and `b` of tenant `t2`.
    fn feed() -> (Writer, Feed) {
        let (mut writer, feed) = Feed::new(Config { wall_clock_ms: clock, telemetry_ttl: TTL, ..Config::default() });
        writer.set_namespace(NamespaceId::from_uid("u"));
        let pod = |name, tenant| PodBuilder::new(name).tenant(tenant).workload("w").version(1).view();
        writer.replace(Resource::Pods, vec![pod("a", "t1"), pod("b", "t2")], 1);
        writer.replace(Resource::Claims, Vec::new(), 1);
        (writer, feed)
    }

    fn at(uid: &str, received_at_ms: u64) -> Telemetry {
        Telemetry { received_at_ms, ..telemetry(uid) }
    }

    pub(in crate::feed) fn projection(types: &str, scope: Scope, params: &str) -> Projection {
        let types = EventTypes::parse(types, EventFormat::Full).unwrap();
        Projection { scope, filter: Filter::parse(params).unwrap(), types, format: EventFormat::Full }
    }

    fn subscribe(feed: &Feed, projection: Projection) -> Subscription {
        let framing = Framing { format: FrameFormat::JsonLines, edgeplane_names: false };
        feed.subscribe(feed.projection_cache(projection, framing), StartAt::Live).unwrap()
    }

    /// Reads all events but heartbeats.
    pub(in crate::feed) fn read(subscription: &mut Subscription) -> Vec<Value> {
        let mut events = Vec::new();
        while let ReadResult::Batch(batch) = subscription.read(1 << 20) {
            let lines = batch.concat();
            let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            events.extend(lines.map(|line| serde_json::from_slice::<Value>(line).unwrap()));
        }
        events.retain(|event| event["type"] != "heartbeat");
        events
    }

    async fn uids(feed: &Feed, scope: Scope) -> Vec<String> {
        let projection = Projection { scope, ..Projection::everything(EventFormat::Full) };
        let snapshot = feed.snapshot().await.unwrap();
        feed.telemetry(&snapshot, &projection).iter().map(|telemetry| telemetry.tunnel_id.clone()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn telemetry_reaches_those_who_may_see_its_instance_and_asked_for_it() {
        let (_writer, feed) = feed();
        let tenant = |tenant: &str| Scope::Tenant(tenant.to_owned());
        let expected = [
            ("telemetry", Scope::All, "{}", true),
            ("telemetry", tenant("t1"), "{}", true),
            ("telemetry", tenant("t2"), "{}", false),
            ("telemetry", Scope::All, r#"{"instances":{"name":"a"}}"#, true),
            ("telemetry", Scope::All, r#"{"instances":{"name":"b"}}"#, false),
            ("telemetry", Scope::All, r#"{"instances":{"tenantId":"t2"}}"#, false),
            ("telemetry", Scope::All, r#"{"instances":{"workloadRef":"w"}}"#, true),
            ("telemetry", Scope::All, r#"{"claims":{"name":"b"}}"#, true),
            ("instance,claim,tenant,pool,mqtt", Scope::All, "{}", false),
        ];
        for (types, scope, params, is_sent) in expected {
            let mut reader = subscribe(&feed, projection(types, scope.clone(), params));
            feed.publish_telemetry(at("uid-a", clock())).unwrap();
            let events = read(&mut reader);
            assert_eq!(!events.is_empty(), is_sent, "{types} {scope:?} {params}: {events:?}");
        }
        let mut ws = subscribe(&feed, Projection::everything(EventFormat::Boilerhouse));
        let mut all = subscribe(&feed, Projection::everything(EventFormat::Full));
        feed.publish_telemetry(at("uid-a", clock())).unwrap();
        assert_eq!(read(&mut ws), Vec::<Value>::new(), "/ws never gains a type");
        let expected = json!({
            "type": "telemetry", "time": "1970-01-01T00:16:40.000Z", "tunnelId": "uid-a",
            "receivedAt": "1970-01-01T00:16:40.000Z", "region": "eu",
            "metrics": {"ttl": 1, "opn": 0, "rt1Ms": 1.5, "rt5Ms": null, "p50Ms": null, "p90Ms": null, "requests": 3,
                        "errors": 0, "bytes": 9},
        });
        assert_eq!(read(&mut all), [expected], "one event without an id");
    }

    #[tokio::test(start_paused = true)]
    async fn messages_reach_those_who_may_see_everything() {
        let (_writer, feed) = feed();
        let message = || MqttMessage { topic: "a/b".into(), payload: json!({"x": [1, null], "y": "\n"}) };
        for (types, scope, params, is_sent) in [
            ("mqtt", Scope::All, "{}", true),
            ("mqtt.message", Scope::All, r#"{"instances":{"name":"none"}}"#, true),
            ("mqtt", Scope::Tenant("t1".into()), "{}", false),
            ("telemetry", Scope::All, "{}", false),
        ] {
            let mut reader = subscribe(&feed, projection(types, scope.clone(), params));
            feed.publish_mqtt_message(message());
            let events = read(&mut reader);
            assert_eq!(!events.is_empty(), is_sent, "{types} {scope:?} {params}");
            if let [event] = &*events {
                let expected = json!({
                    "type": "mqtt.message", "time": "1970-01-01T00:16:40.000Z", "topic": "a/b",
                    "payload": {"x": [1, null], "y": "\n"},
                });
                assert_eq!(*event, expected);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_stream_that_starts_in_an_outage_is_informed_of_it() {
        let (mut writer, feed) = feed();
        let framing = Framing { format: FrameFormat::JsonLines, edgeplane_names: false };
        let cache = |format| {
            let types = EventTypes::parse("tenant", format).unwrap();
            feed.projection_cache(Projection { types, ..Projection::everything(format) }, framing)
        };
        // Held, so that a state which was encoded before a change is in the cache after it.
        let caches = [EventFormat::Full, EventFormat::Boilerhouse].map(cache);
        let start = |format, start_at| {
            let cache = &caches[usize::from(format == EventFormat::Boilerhouse)];
            feed.subscribe(cache.clone(), start_at).unwrap()
        };
        let snapshot = StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: PerResource::default() };
        // The log after this cursor has all reports.
        let cursor = start(EventFormat::Full, StartAt::Live).cursor().unwrap();
        let cursor = StartAt::Cursor(Cursor::decode(&cursor).unwrap());
        let reports = |start_at| {
            assert_eq!(read(&mut start(EventFormat::Boilerhouse, start_at)), Vec::<Value>::new(), "/ws");
            let mut events = read(&mut start(EventFormat::Full, start_at));
            if matches!(start_at, StartAt::Snapshot { .. }) {
                assert_eq!(events.remove(0)["type"], "state.initial", "the state comes first");
            }
            assert!(events.iter().all(|event| event["type"] == "upstream.down"), "{events:?}");
            let text = |event: &Value| format!("{} {}", event["resource"], event["reason"]).replace('"', "");
            let mut texts: Vec<_> = events.iter().map(text).collect();
            texts.sort();
            texts
        };
        let reports_of_all = || [StartAt::Live, cursor, snapshot, snapshot].map(reports);
        let down = |reason: &str| Health::Down { since: Instant::now(), reason: reason.into() };
        let none = || [(); 4].map(|()| Vec::<String>::new());
        assert_eq!(reports_of_all(), none());
        writer.set_health(Resource::Pods, Health::Live);
        writer.set_health(Resource::Pods, down("forbidden"));
        assert_eq!(reports_of_all(), [(); 4].map(|()| vec!["pods forbidden"]));
        feed.publish_upstream("nats", Some("closed".into()), 0);
        assert_eq!(reports_of_all(), [(); 4].map(|()| vec!["nats closed", "pods forbidden"]));
        // A state is reused for 1 s after a change.
        advance(Duration::from_secs(1)).await;
        assert_eq!(reports(snapshot), ["nats closed", "pods forbidden"]);
        writer.set_health(Resource::Pods, down("no answer"));
        advance(Duration::from_secs(1)).await;
        assert_eq!(reports_of_all(), [(); 4].map(|()| vec!["nats closed", "pods no answer"]), "the last reason");
        writer.set_health(Resource::Pods, Health::Live);
        advance(Duration::from_secs(1)).await;
        assert_eq!(reports_of_all(), [(); 4].map(|()| vec!["nats closed"]));
        feed.publish_upstream("nats", None, 0);
        advance(Duration::from_secs(1)).await;
        assert_eq!(reports_of_all(), none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_before_the_first_lists_is_reported_until_the_watch_works() {
        let (mut writer, feed) = Feed::new(Config { wall_clock_ms: clock, ..Config::default() });
        writer.set_namespace(NamespaceId::from_uid("u"));
        writer.set_health(Resource::Pods, Health::Down { since: Instant::now(), reason: "no answer".into() });
        writer.replace(Resource::Pods, Vec::new(), 1);
        writer.replace(Resource::Claims, Vec::new(), 1);
        let names = |events: Vec<Value>| events.iter().map(|event| event["type"].to_string()).collect::<String>();
        let mut early = subscribe(&feed, projection("instance", Scope::All, "{}"));
        assert_eq!(names(read(&mut early)), r#""upstream.down""#);
        writer.set_health(Resource::Pods, Health::Live);
        assert_eq!(names(read(&mut early)), r#""upstream.up""#);
        assert_eq!(names(read(&mut subscribe(&feed, projection("instance", Scope::All, "{}")))), "");
    }

    #[tokio::test(start_paused = true)]
    async fn latest_telemetry_ends_with_its_ttl_its_instance_and_its_uid() {
        let (mut writer, feed) = feed();
        assert_eq!(feed.publish_telemetry(at("uid-c", clock())), Err(UnknownTunnel));
        feed.publish_telemetry(at("uid-a", clock())).unwrap();
        advance(TTL / 2).await;
        feed.publish_telemetry(at("uid-b", clock() - 1_000)).unwrap();
        assert_eq!(uids(&feed, Scope::All).await, ["uid-a", "uid-b"]);
        assert_eq!(uids(&feed, Scope::Tenant("t2".into())).await, ["uid-b"]);
        advance(TTL / 2).await;
        assert_eq!(uids(&feed, Scope::All).await, ["uid-b"], "the TTL of a is over");
        advance(TTL / 2 - Duration::from_millis(1_001)).await;
        assert_eq!(uids(&feed, Scope::All).await, ["uid-b"]);
        advance(Duration::from_millis(1)).await;
        assert_eq!(uids(&feed, Scope::All).await, [""; 0], "the age on arrival counts");
        feed.publish_telemetry(at("uid-b", clock() - 300_000)).unwrap();
        assert_eq!(uids(&feed, Scope::All).await, [""; 0], "older than the TTL on arrival");
        assert_eq!(feed.inner.state().telemetry.bytes(), 0);

        feed.publish_telemetry(at("uid-a", clock())).unwrap();
        feed.publish_telemetry(at("uid-b", clock())).unwrap();
        writer.remove(Resource::Pods, "a", "uid-a", 2);
        assert_eq!(uids(&feed, Scope::All).await, ["uid-b"], "gone with its instance");
        writer.upsert(PodBuilder::new("b").uid("other").version(3).view());
        assert_eq!(uids(&feed, Scope::All).await, [""; 0], "another instance has the name");
        assert_eq!(feed.inner.state().telemetry.bytes(), 0);
        feed.publish_telemetry(at("other", clock())).unwrap();
        writer.replace(Resource::Pods, Vec::new(), 4);
        assert_eq!(feed.inner.state().telemetry.bytes(), 0, "a list without the instance removes it too");
    }

    #[tokio::test(start_paused = true)]
    async fn each_accepted_telemetry_is_published_and_the_last_one_counts() {
        let (_writer, feed) = feed();
        let mut reader = subscribe(&feed, projection("telemetry", Scope::All, "{}"));
        let first = at("uid-a", clock());
        // An equal one in the same millisecond, and one after the clock has stepped back.
        for telemetry in [first.clone(), first, at("uid-a", clock() - 1_000), at("uid-a", clock() + 1)] {
            feed.publish_telemetry(telemetry.clone()).unwrap();
            assert_eq!(read(&mut reader).len(), 1, "{telemetry:?}");
            let snapshot = feed.snapshot().await.unwrap();
            let served = feed.telemetry(&snapshot, &Projection::everything(EventFormat::Full));
            assert_eq!(*served[0], telemetry, "the last one is served");
        }
        feed.inner.update(|state, _| state.telemetry.remove("uid-a"));
        assert!(feed.inner.state().telemetry.is_empty());
        assert_eq!(feed.publish_telemetry(at("uid-c", clock())), Err(UnknownTunnel));
        let asked = ["uid-a", "uid-b", "uid-c"].map(|uid| (uid.to_owned(), ()));
        assert_eq!(feed.living_tunnels(&asked.into()), ["uid-a", "uid-b"]);
    }
}
