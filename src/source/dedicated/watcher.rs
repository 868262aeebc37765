//! One resource's own watchers, one kube-runtime watcher after the other: what each of their events and errors means.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use kube::{
    Api,
    core::Status,
    runtime::watcher::{self, Event},
};
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, watch},
    time::{Instant, sleep, timeout},
};

use super::DedicatedWatchers;
use crate::{
    api::MANAGED_SELECTOR,
    event::{PerResource, Resource, ResourceVersion, View},
    feed::{Health, Writer},
    source::decode::Decode,
};

/// One resource, for ever.
pub(super) async fn run_resource<T: Decode>(watchers: &DedicatedWatchers, writer: &Mutex<Writer>) -> Infallible {
    let mut hub = HubSignals { history_resets: watchers.hub.history_resets(), health: watchers.hub.health() };
    let mut watcher = Watcher { watchers, writer, list: None, highest: 0, failed: None, relist: None };
    loop {
        let selector = match T::KIND {
            Resource::Pods => MANAGED_SELECTOR,
            Resource::Claims => "",
        };
        let seconds = u32::try_from(watchers.config.watch_timeout.as_secs()).unwrap_or(u32::MAX);
        let config = watcher::Config::default().labels(selector).timeout(seconds);
        let api = Api::<T>::namespaced(watchers.client.clone(), &watchers.namespace);
        let why = watcher.run(kube::runtime::watcher(api, config).boxed(), &mut hub).await;
        // What it knew of versions and of trouble outlives it; a list that it was collecting does not.
        watcher.list = None;
        let reason = match why {
            RebuildReason::Expired => "its version has expired",
            RebuildReason::Unreadable => "a line did not parse",
            RebuildReason::History => {
                // The next list's versions are lower, and are meant to be.
                watcher.highest = 0;
                "the API server has another history"
            }
            RebuildReason::TooMany => "a list has no end",
        };
        tracing::debug!(resource = T::KIND.plural(), reason, "a connection's own watcher is built anew");
        watcher.relist_delay().await;
    }
}

/// What ends a watcher, so that another one must be built.
enum RebuildReason {
    /// It would repeat an expired version for ever.
    Expired,
    /// A line did not parse: its change is lost unless everything is listed.
    Unreadable,
    /// The hub has found another history.
    History,
    /// A list that does not end.
    TooMany,
}

/// What the hub finds out for everybody.
struct HubSignals {
    history_resets: watch::Receiver<u64>,
    health: watch::Receiver<PerResource<Health>>,
}

/// One resource's kube-runtime watchers, one after the other.
struct Watcher<'a> {
    watchers: &'a DedicatedWatchers,
    writer: &'a Mutex<Writer>,
    /// The list that is being collected, and the permission to make it.
    list: Option<(Vec<View>, OwnedSemaphorePermit)>,
    /// The highest version seen of this history: kube-runtime hides the list's.
    highest: ResourceVersion,
    /// When the last error came, while the upstream counts as down for it.
    failed: Option<Instant>,
    /// The last pause before a list, and when it was over.
    relist: Option<(Duration, Instant)>,
}

impl Watcher<'_> {
    async fn run<T: Decode>(
        &mut self,
        mut events: BoxStream<'static, watcher::Result<Event<T>>>,
        hub: &mut HubSignals,
    ) -> RebuildReason {
        loop {
            // Not polled while the reader is behind: TCP then pushes back to the API server. A list goes on, though: it
            // is one step in the end, and others wait for its permit.
            if self.list.is_none() {
                let capacity = self.writer.lock().await.wait_for_capacity();
                capacity.await;
            }
            let next = tokio::select! {
                // What else there may be is of a history that has ended.
                biased;
                // The hub lives as long as the process does.
                _ = hub.history_resets.changed() => return RebuildReason::History,
                _ = hub.health.changed() => {
                    // A watch that is started again and quiet says nothing, but the hub has found the upstream well.
                    if hub.health.borrow_and_update()[T::KIND] == Health::Live {
                        self.mark_healthy(T::KIND).await;
                    }
                    continue;
                }
                next = timeout(self.watchers.config.healthy_after_quiet, events.next()) => next,
            };
            match next {
                Err(_) if self.list.is_none() => self.mark_healthy(T::KIND).await,
                Err(_) => {}
                Ok(Some(Ok(event))) => {
                    if let Err(rebuild) = self.on_event(event).await {
                        return rebuild;
                    }
                }
                Ok(Some(Err(error))) => {
                    // What the hub found before this is no comfort.
                    hub.health.mark_unchanged();
                    if let Some(rebuild) = self.on_error(T::KIND, &error).await {
                        return rebuild;
                    }
                }
                // It never ends by itself.
                Ok(None) => return RebuildReason::Expired,
            }
        }
    }

    async fn on_event<T: Decode>(&mut self, event: Event<T>) -> Result<(), RebuildReason> {
        match event {
            Event::Init => {
                // It comes before any request is made, and nothing is until the next event is asked for.
                let permit = self.watchers.lists.clone().acquire_owned().await;
                self.watchers.metrics.lists.inc();
                self.list = permit.ok().map(|permit| (Vec::new(), permit));
            }
            Event::InitApply(row) => {
                let view = strip_unused_fields(row.into_decoded().view);
                self.highest = self.highest.max(view.resource_version());
                if let Some((views, _)) = &mut self.list {
                    views.push(view);
                    if views.len() > self.watchers.config.list_objects {
                        return Err(RebuildReason::TooMany);
                    }
                }
            }
            Event::InitDone => {
                if let Some((views, _)) = self.list.take() {
                    self.writer.lock().await.replace(T::KIND, views, self.highest);
                }
                self.mark_healthy(T::KIND).await;
            }
            Event::Apply(row) => {
                let view = strip_unused_fields(row.into_decoded().view);
                self.highest = self.highest.max(view.resource_version());
                self.writer.lock().await.upsert(view);
                self.mark_healthy(T::KIND).await;
            }
            Event::Delete(row) => {
                let view = strip_unused_fields(row.into_decoded().view);
                self.highest = self.highest.max(view.resource_version());
                self.writer.lock().await.remove(view.resource(), view.name(), view.uid(), view.resource_version());
                self.mark_healthy(T::KIND).await;
            }
        }
        Ok(())
    }

    /// Pauses, so that what makes a list necessary each time does not keep the API server busy.
    async fn relist_delay(&mut self) {
        let [first, longest] = self.watchers.config.relist_backoff;
        let recent = self.relist.filter(|(_, over)| over.elapsed() < self.watchers.config.healthy_after_quiet);
        let pause = recent.map_or(first, |(pause, _)| longest.min(pause * 2));
        sleep(pause).await;
        self.relist = Some((pause, Instant::now()));
    }

    /// What an error means, and the pause that kube-runtime does not make.
    async fn on_error(&mut self, resource: Resource, error: &watcher::Error) -> Option<RebuildReason> {
        self.watchers.metrics.errors.inc();
        self.list = None;
        if let Some(rebuild) = rebuild(error) {
            return Some(rebuild);
        }
        match error {
            // An ERROR line with 410 is followed by a list, by itself and at once.
            watcher::Error::WatchError(status) if is_expired(status) => self.relist_delay().await,
            // What breaks has worked: whether anything is down is for the next try to say.
            watcher::Error::WatchFailed(_) => {
                self.mark_healthy(resource).await;
                sleep(self.watchers.config.error_delay).await;
            }
            watcher::Error::WatchError(_)
            | watcher::Error::WatchStartFailed(_)
            | watcher::Error::InitialListFailed(_)
            | watcher::Error::NoResourceVersion => {
                let since = *self.failed.get_or_insert_with(Instant::now);
                let reason = Arc::from("the connection's own watch failed");
                self.writer.lock().await.set_health(resource, Health::Down { since, reason });
                sleep(self.watchers.config.error_delay).await;
            }
        }
        None
    }

    /// It works, or has been quiet for so long that it must.
    async fn mark_healthy(&mut self, resource: Resource) {
        if self.failed.take().is_some() {
            self.writer.lock().await.set_health(resource, Health::Live);
        }
    }
}

/// What `/ws` can tell of an object, and no more: this inventory is one connection's alone, and half of it would be
/// labels. Versions stay, so that a change of something else is still a change.
fn strip_unused_fields(mut view: View) -> View {
    match &mut view {
        View::Instance(instance) => {
            let instance = Arc::make_mut(instance);
            (instance.labels, instance.ip, instance.created_at) = Default::default();
        }
        View::Claim(claim) => {
            let claim = Arc::make_mut(claim);
            (claim.labels, claim.instance_id, claim.endpoint) = Default::default();
            (claim.claimed_at, claim.detail, claim.last_activity) = Default::default();
        }
    }
    view
}

/// Whether the watcher cannot go on from this error without a loss or at all.
fn rebuild(error: &watcher::Error) -> Option<RebuildReason> {
    use kube::Error as Client;
    match error {
        watcher::Error::WatchStartFailed(Client::Api(status)) | watcher::Error::WatchFailed(Client::Api(status)) => {
            is_expired(status).then_some(RebuildReason::Expired)
        }
        watcher::Error::WatchFailed(Client::SerdeError(_) | Client::LinesCodecMaxLineLengthExceeded)
        | watcher::Error::NoResourceVersion => Some(RebuildReason::Unreadable),
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchError(_)
        | watcher::Error::WatchFailed(_) => None,
    }
}

fn is_expired(status: &Status) -> bool {
    status.code == 410
}
