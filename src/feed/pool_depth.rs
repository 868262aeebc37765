//! `pool.depth`: how many instances of each workload wait, are ready, are taken (docs/protocol.md#full-stream).
//!
//! Counts change with every pod, so they are told only so often. A pool that has changed is told even where it is by then
//! as it was told last: somebody may have come in between and hold what it was in between.

use std::collections::BTreeSet;

use super::inventory::Inventory;
use crate::event::{Change, PoolDepth, View};

/// The workloads whose pools have changed since their depths were last appended. No more than there are workloads.
#[derive(Debug, Default)]
pub(super) struct DirtyPools(BTreeSet<String>);

impl DirtyPools {
    /// Marks the pools that these changes concern.
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

    /// Takes the depths of the pools that have changed: first those without instances, then the others.
    pub(super) fn take(&mut self, inventory: &Inventory) -> Vec<PoolDepth> {
        let mut dirty = std::mem::take(&mut self.0);
        let pools: Vec<PoolDepth> = inventory.pools().into_iter().filter(|p| dirty.remove(&p.workload_ref)).collect();
        let removed = dirty.into_iter().map(|workload_ref| PoolDepth { workload_ref, ..PoolDepth::default() });
        removed.chain(pools).collect()
    }
}

/// The workload and the status by which an instance counts.
fn pool_key(view: &View) -> Option<(&str, Option<&str>)> {
    match view {
        View::Instance(instance) => Some((instance.workload_ref.as_deref()?, instance.pool_status.as_deref())),
        View::Claim(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::Value;

    use crate::{
        event::{
            Instance, NamespaceId, Resource, View,
            projection::{EventFormat, Projection},
        },
        feed::{Config, Feed, FrameFormat, Framing, ReadResult, StartAt},
    };

    fn pod(name: &str, status: &str, rv: u64) -> View {
        View::Instance(Arc::new(Instance {
            name: name.into(),
            uid: name.into(),
            workload_ref: Some("w".into()),
            pool_status: Some(status.into()),
            resource_version: rv,
            ..Instance::default()
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn pool_depths_are_published_every_250_ms_including_the_last() {
        let (mut writer, feed) = Feed::new(Config::default());
        writer.set_namespace(NamespaceId::from_uid("u"));
        writer.replace(Resource::Pods, vec![pod("a", "warming", 1)], 1);
        writer.replace(Resource::Claims, Vec::new(), 1);
        let cache = feed.projection_cache(
            Projection::everything(EventFormat::Full),
            Framing { format: FrameFormat::JsonLines, edgeplane_names: false },
        );
        let mut reader = feed.subscribe(cache, StartAt::Live).unwrap();
        let writes = async {
            for rv in 2..=100 {
                let status = if rv % 2 == 0 { "ready" } else { "warming" };
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                writer.upsert(pod("a", status, rv));
            }
            writer.upsert(pod("a", "acquired", 101));
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
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
        assert!((2..=6).contains(&depths.len()), "one second of changes: {depths:?}");
        assert_eq!(depths.last(), Some(&(0.into(), 0.into(), 1.into())));
    }
}
