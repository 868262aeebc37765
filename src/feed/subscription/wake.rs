//! How a subscription waits for something to read: by itself, or as a member of its fan-out group.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
};

use tokio::time::{sleep_until, timeout_at};

use super::{Phase, Subscription};
use crate::feed::{group::Group, projection_cache::SharedBatch};

impl Subscription {
    /// Waits until a read may return something else than [`ReadResult::Idle`](crate::feed::ReadResult::Idle). Cancel safe.
    pub async fn readable(&mut self) {
        poll_fn(|cx| self.poll_readable(cx)).await;
    }

    /// Polls until a read may return something else than [`ReadResult::Idle`](crate::feed::ReadResult::Idle). A live
    /// member of a [`Group`] is not woken for entries that its group delivers.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let group_delivers = self.in_fan_out && matches!(self.phase, Phase::Live);
        if group_delivers && self.wake_at.is_none() {
            return Poll::Pending;
        }
        // Boxed, because the groups wake most streams, and this future would be most of their memory.
        let wake_future = self.wake_future.get_or_insert_with(|| {
            let (mut log_end, wake_at) = (self.log_end.clone(), self.wake_at);
            Box::pin(async move {
                match wake_at {
                    // Cannot fail: the subscription holds the sender.
                    None => drop(log_end.changed().await),
                    Some(wake_at) if group_delivers => sleep_until(wake_at).await,
                    Some(wake_at) => drop(timeout_at(wake_at, log_end.changed()).await),
                }
            })
        });
        ready!(wake_future.as_mut().poll(cx));
        self.wake_future = None;
        self.log_end.borrow_and_update();
        Poll::Ready(())
    }

    /// Joins the fan-out group of the projection. From now on the owner of the returned group must deliver new entries to
    /// this subscription. `None` in a dedicated feed, and while the subscription is not live.
    pub fn join_group(&mut self) -> Option<Group> {
        let can_join = matches!(self.phase, Phase::Live) && self.inner.hub_feed.is_none();
        can_join.then(|| {
            self.in_fan_out = true;
            Group::new(self.inner.clone(), self.cache.clone())
        })
    }

    /// Advances past a batch that the group delivers instead of a read. Returns false, and does nothing, if the
    /// subscription is not live at the start of the batch.
    pub fn accept_batch(&mut self, batch: &SharedBatch) -> bool {
        let is_next = matches!(self.phase, Phase::Live)
            && self.greeting.is_none()
            && !self.sent_syncing
            && self.position == batch.from;
        if is_next {
            (self.position, self.delivered_versions) = (batch.to, batch.versions_after);
        }
        is_next
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
        feed::{Config, Feed, Framing, Health, ReadResult, StartAt, Subscription},
    };

    /// Returns the text of the next frames.
    fn read_text(reader: &mut Subscription) -> String {
        let ReadResult::Batch(frames) = reader.read(1 << 20) else { panic!("nothing to read") };
        String::from_utf8_lossy(&frames.concat()).into_owned()
    }

    /// A deadline in the past that is not cleared would wake the stream in a loop.
    #[tokio::test(start_paused = true)]
    async fn live_subscription_wakes_only_for_new_entries() {
        let (mut writer, feed) = Feed::new(Config::default());
        let namespace = NamespaceId::from_uid("home");
        writer.set_namespace(namespace);
        for resource in [Resource::Pods, Resource::Claims] {
            writer.replace(resource, Vec::new(), 5);
            writer.set_health(resource, Health::Live);
        }
        let projection = Projection::everything(EventFormat::Full);
        // Ahead of this replica, whose versions are 5.
        let cursor = projection.cursor_at(namespace, PerResource::new(9, 9));
        let mut reader =
            feed.subscribe(feed.projection_cache(projection, Framing::WEBSOCKET), StartAt::Cursor(cursor)).unwrap();
        let first = read_text(&mut reader);
        assert!(first.contains(r#""upstream":"syncing""#), "the stream starts with a heartbeat: {first}");
        assert!(matches!(reader.read(1 << 20), ReadResult::Idle));
        for resource in [Resource::Pods, Resource::Claims] {
            writer.bookmark(resource, 9);
        }
        let second = read_text(&mut reader);
        assert!(second.contains(r#""upstream":"live""#), "a heartbeat follows when the resume is complete: {second}");
        while let Ok(()) = timeout(Duration::from_secs(1), reader.readable()).await {
            assert!(matches!(reader.read(1 << 20), ReadResult::Idle));
        }
        advance(Config::default().ahead_cursor_wait).await;
        assert!(timeout(Duration::from_secs(3600), reader.readable()).await.is_err());
    }
}
