//! Telemetry of instances that this replica does not know yet. Data only.
//!
//! Replicas watch the API server independently: another one can know an instance first, and accept its telemetry.

use std::{collections::BTreeMap, time::Duration};

use crate::{event::Telemetry, feed::Feed};

/// Maximum number of snapshots: as many as instances in a large namespace, each of less than 1 KiB.
const MAX_PENDING: usize = 10_000;

/// The newest telemetry of each unknown instance.
#[derive(Debug, Default)]
pub(super) struct Pending {
    by_uid: BTreeMap<String, Telemetry>,
}

impl Pending {
    /// Publishes telemetry, or keeps it until its instance is known. Returns false if there are too many.
    pub(super) fn publish(&mut self, feed: &Feed, telemetry: Telemetry) -> bool {
        let uid = telemetry.tunnel_id.clone();
        if feed.publish_telemetry(telemetry.clone()).is_ok() {
            self.by_uid.remove(&uid);
            return true;
        }
        let has_room = self.by_uid.len() < MAX_PENDING || self.by_uid.contains_key(&uid);
        if has_room {
            self.by_uid.insert(uid, telemetry);
        }
        has_room
    }

    /// Publishes the telemetry of the instances that are known now, and removes what is older than `ttl`.
    pub(super) fn retry(&mut self, feed: &Feed, ttl: Duration) {
        if self.by_uid.is_empty() {
            return;
        }
        for uid in feed.living_tunnels(&self.by_uid) {
            if let Some(telemetry) = self.by_uid.remove(&uid) {
                self.publish(feed, telemetry);
            }
        }
        let now_ms = feed.wall_clock_ms();
        self.by_uid
            .retain(|_, telemetry| u128::from(now_ms.saturating_sub(telemetry.received_at_ms)) < ttl.as_millis());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{
            NamespaceId, Resource,
            projection::{EventFormat, Projection},
        },
        feed::Config,
        test_support::{PodBuilder, telemetry},
    };

    const TTL: Duration = Duration::from_secs(300);

    fn clock() -> u64 {
        1_000_000
    }

    #[tokio::test]
    async fn telemetry_of_an_unknown_instance_waits_for_it_and_expires() {
        let (mut writer, feed) = Feed::new(Config { wall_clock_ms: clock, telemetry_ttl: TTL, ..Config::default() });
        writer.set_namespace(NamespaceId::from_uid("u"));
        writer.replace(Resource::Pods, Vec::new(), 1);
        writer.replace(Resource::Claims, Vec::new(), 1);
        let at = |uid: &str, received_at_ms| Telemetry { received_at_ms, ..telemetry(uid) };
        let mut pending = Pending::default();
        assert!(pending.publish(&feed, at("uid-a", clock())));
        assert!(pending.publish(&feed, at("uid-a", clock() - 1)), "the later one counts, whatever its time");
        assert!(pending.publish(&feed, at("uid-old", clock() - 300_000)));
        pending.retry(&feed, TTL);
        assert_eq!(pending.by_uid.keys().collect::<Vec<_>>(), ["uid-a"]);
        writer.upsert(PodBuilder::new("a").version(2).view());
        pending.retry(&feed, TTL);
        assert!(pending.by_uid.is_empty());
        let snapshot = feed.snapshot().await.unwrap();
        let served = feed.telemetry(&snapshot, &Projection::everything(EventFormat::Full));
        assert_eq!(served.iter().map(|telemetry| telemetry.received_at_ms).collect::<Vec<_>>(), [clock() - 1]);
        for number in 0..=MAX_PENDING {
            let uid = number.to_string();
            assert_eq!(pending.publish(&feed, at(&uid, clock())), number < MAX_PENDING);
        }
    }
}
