//! How a subscription learns that there is something to read: it waits by itself, or somebody tells its whole audience.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
};

use tokio::time::{sleep_until, timeout_at};

use super::{Phase, Subscription};
use crate::feed::{group::Group, projection_cache::SharedBatch};

impl Subscription {
    /// Resolves when a read may yield something else than [`crate::feed::ReadResult::Idle`].
    pub async fn readable(&mut self) {
        poll_fn(|cx| self.poll_readable(cx)).await;
    }

    /// Ready when a read may yield something else than [`crate::feed::ReadResult::Idle`]; of what an [`Group`] is shown it need not be.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let told = self.in_fan_out && matches!(self.phase, Phase::Live);
        if told && self.wake_at.is_none() {
            return Poll::Pending;
        }
        // Boxed: most streams are told by others, and what they would wait with is most of their memory.
        let wait = self.wake_future.get_or_insert_with(|| {
            let (mut log_end, limit) = (self.log_end.clone(), self.wake_at);
            Box::pin(async move {
                match limit {
                    // The sender lives in the subscription, so waiting for it cannot fail.
                    None => drop(log_end.changed().await),
                    Some(limit) if told => sleep_until(limit).await,
                    Some(limit) => drop(timeout_at(limit, log_end.changed()).await),
                }
            })
        });
        ready!(wait.as_mut().poll(cx));
        self.wake_future = None;
        self.log_end.borrow_and_update();
        Poll::Ready(())
    }

    /// Those who are shown what this one is shown, for whoever tells them all; `None` where there is nobody else, and
    /// while this one still has something else to be told. From now on whoever asked tells this one, too.
    pub fn join_group(&mut self) -> Option<Group> {
        let shared = matches!(self.phase, Phase::Live) && self.inner.hub_feed.is_none();
        shared.then(|| {
            self.in_fan_out = true;
            Group::new(self.inner.clone(), self.cache.clone())
        })
    }

    /// Takes what its audience is shown instead of reading it: false where this one is somewhere else.
    pub fn accept_batch(&mut self, shown: &SharedBatch) -> bool {
        let is_there = matches!(self.phase, Phase::Live) && !self.heartbeat_first && self.position == shown.from;
        if is_there {
            (self.position, self.delivered_versions) = (shown.to, shown.versions_after);
        }
        is_there
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{advance, timeout};

    use crate::{
        event::{
            NamespaceId, PerResource, Resource,
            projection::{EventFormat, Projection},
        },
        feed::{Config, Feed, Framing, ReadResult, StartAt},
    };

    /// A moment that somebody waited for, and that has passed, would be waited for over and over, at a processor's cost.
    #[tokio::test(start_paused = true)]
    async fn live_subscription_wakes_only_for_new_entries() {
        let (mut writer, feed) = Feed::new(Config::default());
        let namespace = NamespaceId::from_uid("home");
        writer.set_namespace(namespace);
        for resource in [Resource::Pods, Resource::Claims] {
            writer.replace(resource, Vec::new(), 5);
        }
        let projection = Projection::everything(EventFormat::Full);
        // Ahead of this replica, which has not heard of version 9 yet.
        let cursor = projection.cursor_at(namespace, PerResource::new(9, 9));
        let mut reader =
            feed.subscribe(feed.projection_cache(projection, Framing::WEBSOCKET), StartAt::Cursor(cursor)).unwrap();
        assert!(matches!(reader.read(1 << 20), ReadResult::Batch(_)), "the first heartbeat");
        assert!(matches!(reader.read(1 << 20), ReadResult::Idle));
        for resource in [Resource::Pods, Resource::Claims] {
            writer.bookmark(resource, 9);
        }
        while let Ok(()) = timeout(Duration::from_secs(1), reader.readable()).await {
            assert!(matches!(reader.read(1 << 20), ReadResult::Idle));
        }
        advance(Config::default().ahead_cursor_wait).await;
        assert!(timeout(Duration::from_secs(3600), reader.readable()).await.is_err());
    }
}
