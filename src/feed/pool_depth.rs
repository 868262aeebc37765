//! The pools whose depth changed since the last `pool.depth` events (docs/protocol.md#full-stream).
//!
//! *Owns* data only. `Feed::publish_pool_depths` publishes the depths at an interval, because every Pod changes them.
//!
//! *Guarantees:* a pool that changed is published even if its counts are again those of the last event. A client that
//! connected in between may hold the intermediate counts.

use std::collections::BTreeSet;

use super::inventory::Inventory;
use crate::event::{Change, PoolDepth, View};

/// The workloads whose pools have changed since [`DirtyPools::take`]. Bounded by the number of workloads.
#[derive(Debug, Default)]
pub(super) struct DirtyPools(BTreeSet<String>);

impl DirtyPools {
    /// Marks the pools whose counts these changes affect.
    pub(super) fn mark(&mut self, changes: &[Change]) {
        for Change { old, new } in changes {
            let [old, new] = [old, new].map(|side| side.as_ref().and_then(pool_key));
            if old != new {
                self.0.extend(old.into_iter().chain(new).map(|(workload_ref, _)| workload_ref.to_owned()));
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Unmarks all pools and returns their depths: first the pools without instances, then the others.
    pub(super) fn take(&mut self, inventory: &Inventory) -> Vec<PoolDepth> {
        let mut dirty = std::mem::take(&mut self.0);
        let pools: Vec<PoolDepth> = inventory.pools().into_iter().filter(|p| dirty.remove(&p.workload_ref)).collect();
        let empty = dirty.into_iter().map(|workload_ref| PoolDepth { workload_ref, ..PoolDepth::default() });
        empty.chain(pools).collect()
    }
}

/// Returns the workload and the pool status by which an instance is counted.
fn pool_key(view: &View) -> Option<(&str, Option<&str>)> {
    match view {
        View::Instance(instance) => Some((instance.workload_ref.as_deref()?, instance.pool_status.as_deref())),
        View::Claim(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::Value;
    use tokio::time::sleep;

    use crate::{
        event::{
            NamespaceId, Resource, ResourceVersion, View,
            projection::{EventFormat, Projection},
        },
        feed::{Config, Feed, FrameFormat, Framing, ReadResult, StartAt},
        test_support::PodBuilder,
    };

    fn pod(status: &str, version: ResourceVersion) -> View {
        PodBuilder::new("a").workload("w").pool(status).version(version).view()
    }

    #[tokio::test(start_paused = true)]
    async fn pool_depths_are_published_every_250_ms_including_the_last() {
        let (mut writer, feed) = Feed::new(Config::default());
        writer.set_namespace(NamespaceId::from_uid("u"));
        writer.replace(Resource::Pods, vec![pod("warming", 1)], 1);
        writer.replace(Resource::Claims, Vec::new(), 1);
        let cache = feed.projection_cache(
            Projection::everything(EventFormat::Full),
            Framing { format: FrameFormat::JsonLines, edgeplane_names: false },
        );
        let mut reader = feed.subscribe(cache, StartAt::Live).unwrap();
        let writes = async {
            for version in 2..=100 {
                let status = if version % 2 == 0 { "ready" } else { "warming" };
                sleep(Duration::from_millis(10)).await;
                writer.upsert(pod(status, version));
            }
            writer.upsert(pod("acquired", 101));
            sleep(Duration::from_secs(1)).await;
        };
        tokio::select! { never = feed.clone().publish_pool_depths() => match never {}, () = writes => {} }
        let mut depths = Vec::new();
        while let ReadResult::Batch(batch) = reader.read(1 << 20) {
            for event in batch.concat().split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let event: Value = serde_json::from_slice(event).unwrap();
                if event["type"] == "pool.depth" {
                    depths.push((event["warming"].clone(), event["ready"].clone(), event["acquired"].clone()));
                }
            }
        }
        assert!((2..=6).contains(&depths.len()), "one second of changes, one event each 250 ms: {depths:?}");
        assert_eq!(depths.last(), Some(&(0.into(), 0.into(), 1.into())));
    }
}
