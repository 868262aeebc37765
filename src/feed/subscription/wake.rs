//! How a subscription learns that there is something to read: it waits by itself, or somebody tells its whole audience.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
};

use tokio::time::{sleep_until, timeout_at};

use super::{Phase, Subscription};
use crate::feed::{Audience, Shown};

impl Subscription {
    /// Resolves when a read may yield something else than [`super::Read::Idle`].
    pub async fn changed(&mut self) {
        poll_fn(|cx| self.poll_changed(cx)).await;
    }

    /// Ready when a read may yield something else than [`super::Read::Idle`]; of what an [`Audience`] is shown it need not be.
    pub fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let told = self.seated && matches!(self.phase, Phase::Live);
        if told && self.limit.is_none() {
            return Poll::Pending;
        }
        // Boxed: most streams are told by others, and what they would wait with is most of their memory.
        let wait = self.wait.get_or_insert_with(|| {
            let (mut head, limit) = (self.head.clone(), self.limit);
            Box::pin(async move {
                match limit {
                    // The sender lives in the subscription, so waiting for it cannot fail.
                    None => drop(head.changed().await),
                    Some(limit) if told => sleep_until(limit).await,
                    Some(limit) => drop(timeout_at(limit, head.changed()).await),
                }
            })
        });
        ready!(wait.as_mut().poll(cx));
        self.wait = None;
        self.head.borrow_and_update();
        Poll::Ready(())
    }

    /// Those who are shown what this one is shown, for whoever tells them all; `None` where there is nobody else, and
    /// while this one still has something else to be told. From now on whoever asked tells this one, too.
    pub fn audience(&mut self) -> Option<Audience> {
        let shared = matches!(self.phase, Phase::Live) && self.shared.hub.is_none();
        shared.then(|| {
            self.seated = true;
            Audience::new(self.shared.clone(), self.lens.clone())
        })
    }

    /// Takes what its audience is shown instead of reading it: false where this one is somewhere else.
    pub fn take(&mut self, shown: &Shown) -> bool {
        let is_there = matches!(self.phase, Phase::Live) && !self.greet && self.position == shown.from;
        if is_there {
            (self.position, self.served) = (shown.to, shown.after);
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
            Home, Resource,
            projection::{Format, Lens},
        },
        feed::{Config, Feed, Framing, From, subscription::Read},
    };

    /// A moment that somebody waited for, and that has passed, would be waited for over and over, at a processor's cost.
    #[tokio::test(start_paused = true)]
    async fn who_has_waited_and_is_live_is_woken_by_news_only() {
        let (mut writer, feed) = Feed::new(Config::default());
        let home = Home::of("home");
        writer.home(home);
        for kind in [Resource::Instance, Resource::Claim] {
            writer.replace(kind, Vec::new(), 5);
        }
        let lens = Lens::all(Format::Full);
        // Ahead of this replica, which has not heard of version 9 yet.
        let cursor = lens.cursor(home, [9, 9]);
        let mut reader = feed.subscribe(feed.lens(lens, Framing::WEBSOCKET), From::Resume(cursor)).unwrap();
        assert!(matches!(reader.read(1 << 20), Read::Batch(_)), "the first heartbeat");
        assert!(matches!(reader.read(1 << 20), Read::Idle));
        for kind in [Resource::Instance, Resource::Claim] {
            writer.bookmark(kind, 9);
        }
        while let Ok(()) = timeout(Duration::from_secs(1), reader.changed()).await {
            assert!(matches!(reader.read(1 << 20), Read::Idle));
        }
        advance(Config::default().ahead_wait).await;
        assert!(timeout(Duration::from_secs(3600), reader.changed()).await.is_err());
    }
}
