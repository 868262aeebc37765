//! `pool.depth`: how many instances of each workload wait, are ready, are taken (protocol.md section 3).
//!
//! Counts change with every pod, so they are told only so often. A pool that has changed is told even where it is by then
//! as it was told last: somebody may have come in between and hold what it was in between.

use std::convert::Infallible;

use tokio::time::sleep;

use super::{Feed, state::State};
use crate::event::{Change, Notice, Pool, View};

impl Feed {
    /// Tells of pool depths as they change, at most once in [`Config::pool_period`](super::Config::pool_period) each, the
    /// last always. For as long as it is polled.
    pub async fn announce_pools(self) -> Infallible {
        let mut head = self.shared.head.subscribe();
        self.ready().await;
        loop {
            // The sender lives in `self.shared`, so this cannot fail while we are here.
            let _ = head.changed().await;
            if !self.shared.state().touched.is_empty() {
                self.shared.change(State::tell_pools);
                sleep(self.shared.config.pool_period).await;
            }
        }
    }
}

impl State {
    /// Notes whose pools a change concerns.
    pub(super) fn touch_pools(&mut self, changes: &[Change]) {
        for Change { old, new } in changes {
            let [old, new] = [old, new].map(|side| side.as_ref().and_then(pool_of));
            if old != new {
                let touched = old.into_iter().chain(new).map(|(workload_ref, _)| workload_ref.to_owned());
                self.touched.extend(touched);
            }
        }
    }

    fn tell_pools(&mut self, now_ms: u64) {
        let mut gone = std::mem::take(&mut self.touched);
        let pools: Vec<Pool> = self.inventory.pools().into_iter().filter(|p| gone.remove(&p.workload_ref)).collect();
        let gone = gone.into_iter().map(|workload_ref| Pool { workload_ref, ..Pool::default() });
        for pool in gone.chain(pools) {
            self.notice(now_ms, Notice::PoolDepth(pool));
        }
    }
}

/// The workload and the status by which an instance counts.
fn pool_of(view: &View) -> Option<(&str, Option<&str>)> {
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
            Home, Instance, Resource, View,
            projection::{Format, Lens},
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
        writer.replace(Resource::Instance, vec![pod("a", "warming", 1)], 1);
        writer.replace(Resource::Claim, Vec::new(), 1);
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
