//! `pool.depth`: how many instances of each workload wait, are ready, are taken (protocol.md section 3).
//!
//! Counts change with every pod, so they are told when they differ from what was told last, and only so often.

use std::{collections::BTreeMap, convert::Infallible};

use tokio::time::sleep;

use super::Feed;
use crate::event::{Notice, Pool};

impl Feed {
    /// Tells of pool depths as they change, at most once in [`Config::pool_period`](super::Config::pool_period) each, the
    /// last always. For as long as it is polled.
    pub async fn announce_pools(self) -> Infallible {
        let mut head = self.shared.head.subscribe();
        self.ready().await;
        let mut told = self.depths();
        loop {
            // The sender lives in `self.shared`, so this cannot fail while we are here.
            let _ = head.changed().await;
            let now = self.depths();
            let notices = changed(&told, &now);
            told = now;
            if !notices.is_empty() {
                self.shared.change(|state, now_ms| {
                    notices.into_iter().for_each(|pool| state.notice(now_ms, Notice::PoolDepth(pool)));
                });
                sleep(self.shared.config.pool_period).await;
            }
        }
    }

    fn depths(&self) -> BTreeMap<String, Pool> {
        let pools = self.shared.state().inventory.pools();
        pools.into_iter().map(|pool| (pool.workload_ref.clone(), pool)).collect()
    }
}

/// The pools that differ; one that is gone is empty.
fn changed(told: &BTreeMap<String, Pool>, now: &BTreeMap<String, Pool>) -> Vec<Pool> {
    let gone = told.keys().filter(|workload_ref| !now.contains_key(*workload_ref));
    let gone = gone.map(|workload_ref| Pool { workload_ref: workload_ref.clone(), ..Pool::default() });
    let differ = now.iter().filter(|(workload_ref, pool)| told.get(*workload_ref) != Some(*pool));
    gone.chain(differ.map(|(_, pool)| pool.clone())).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::Value;

    use crate::{
        event::{
            Home, Instance, Kind, View,
            lens::{Format, Lens},
        },
        feed::{Carrier, Config, Feed, Framing, From, Read},
    };

    fn pod(name: &str, status: &str, rv: u64) -> View {
        View::Instance(Arc::new(Instance {
            name: name.into(),
            uid: name.into(),
            workload_ref: Some("w".into()),
            pool_status: Some(status.into()),
            rv,
            ..Instance::default()
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn depths_are_told_four_times_a_second_and_the_last_always() {
        let (mut writer, feed) = Feed::new(Config::default());
        writer.home(Home::of("u"));
        writer.replace(Kind::Instance, vec![pod("a", "warming", 1)], 1);
        writer.replace(Kind::Claim, Vec::new(), 1);
        let lens = feed.lens(Lens::all(Format::Full), Framing { carrier: Carrier::Lines, matrix: false });
        let mut reader = feed.subscribe(lens, From::Now).unwrap();
        let writes = async {
            for rv in 2..=100 {
                let status = if rv % 2 == 0 { "ready" } else { "warming" };
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                writer.upsert(pod("a", status, rv));
            }
            writer.upsert(pod("a", "acquired", 101));
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        };
        tokio::select! { never = feed.clone().announce_pools() => match never {}, () = writes => {} }
        let mut depths = Vec::new();
        while let Read::Batch(batch) = reader.read(1 << 20) {
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
