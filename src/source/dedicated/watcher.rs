//! One resource of a connection with dedicated watchers: what each event and each error of kube-runtime's watcher leads to.
//!
//! Owns: the list that is collected, the newest version, and the delays. A watcher that ends is created again.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use kube::{
    Api, Client,
    core::Status,
    runtime::watcher::{self, Event},
};
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, watch},
    time::{Instant, sleep, timeout},
};

use super::limits::{DedicatedLimits, RebuildReason};
use crate::{
    api::MANAGED_SELECTOR,
    event::{PerResource, Resource, ResourceVersion, View},
    feed::{Feed, Health, Writer},
    source::decode::Decode,
};

/// What dedicated watchers watch, and within which limits.
#[derive(Clone)]
pub(super) struct WatchTarget {
    pub(super) client: Client,
    pub(super) namespace: Arc<str>,
    /// The feed of the hub. It reports history resets and the health of the upstream.
    pub(super) hub: Feed,
    pub(super) limits: DedicatedLimits,
}

/// Watches one resource until the future is dropped.
pub(super) async fn run_resource<T: Decode>(target: &WatchTarget, writer: &Mutex<Writer>) -> Infallible {
    let mut hub = HubSignals { history_resets: target.hub.history_resets(), health: target.hub.health() };
    let mut watcher = Watcher { target, writer, list: None, highest_version: 0, failed_since: None, last_relist: None };
    loop {
        let selector = match T::RESOURCE {
            Resource::Pods => MANAGED_SELECTOR,
            Resource::Claims => "",
        };
        let seconds = u32::try_from(target.limits.config.watch_timeout.as_secs()).unwrap_or(u32::MAX);
        let config = watcher::Config::default().labels(selector).timeout(seconds);
        let api = Api::<T>::namespaced(target.client.clone(), &target.namespace);
        let reason = watcher.run(kube::runtime::watcher(api, config).boxed(), &mut hub).await;
        // The versions and the health outlive a watcher. An incomplete list does not.
        watcher.list = None;
        if reason == RebuildReason::HistoryReset {
            // The versions of the next list are lower.
            watcher.highest_version = 0;
        }
        target.limits.metrics.record_rebuild(reason);
        tracing::debug!(resource = T::RESOURCE.plural(), reason = reason.label(), "dedicated watcher restarted");
        watcher.relist_delay().await;
    }
}

/// What the hub reports to all dedicated watchers.
struct HubSignals {
    history_resets: watch::Receiver<u64>,
    health: watch::Receiver<PerResource<Health>>,
}

/// The watchers of one resource, one after the other.
struct Watcher<'a> {
    target: &'a WatchTarget,
    writer: &'a Mutex<Writer>,
    /// The list that is being collected, with its permit.
    list: Option<(Vec<View>, OwnedSemaphorePermit)>,
    /// The highest version received in this history. kube-runtime hides the version of a list.
    highest_version: ResourceVersion,
    /// When the first error occurred, while the upstream counts as down for this connection.
    failed_since: Option<Instant>,
    /// The last delay before a list, and when it ended.
    last_relist: Option<(Duration, Instant)>,
}

impl Watcher<'_> {
    /// Reads one watcher until it must be created again, and returns the reason.
    async fn run<T: Decode>(
        &mut self,
        mut events: BoxStream<'static, watcher::Result<Event<T>>>,
        hub: &mut HubSignals,
    ) -> RebuildReason {
        loop {
            // The watcher is not polled while the client is behind, so TCP slows down the API server. A list is read
            // nevertheless: it becomes one log entry, and other connections wait for its permit.
            if self.list.is_none() {
                let capacity = self.writer.lock().await.wait_for_capacity();
                capacity.await;
            }
            let next = tokio::select! {
                // A history reset comes first: events that are ready at the same time belong to the old history.
                biased;
                // It cannot fail: the hub runs until the process ends.
                _ = hub.history_resets.changed() => return RebuildReason::HistoryReset,
                _ = hub.health.changed() => {
                    // A quiet watch that was started again gives no sign of health, but the hub does.
                    if hub.health.borrow_and_update()[T::RESOURCE] == Health::Live {
                        self.mark_healthy(T::RESOURCE).await;
                    }
                    continue;
                }
                next = timeout(self.target.limits.config.healthy_after_quiet, events.next()) => next,
            };
            match next {
                Err(_) if self.list.is_none() => self.mark_healthy(T::RESOURCE).await,
                Err(_) => {}
                Ok(Some(Ok(event))) => {
                    if let Err(rebuild) = self.on_event(event).await {
                        return rebuild;
                    }
                }
                Ok(Some(Err(error))) => {
                    // Only a report of the hub that comes after this error shows that the upstream works.
                    hub.health.mark_unchanged();
                    if let Some(rebuild) = self.on_error(T::RESOURCE, &error).await {
                        return rebuild;
                    }
                }
                // The stream of kube-runtime does not end by itself.
                Ok(None) => return RebuildReason::Expired,
            }
        }
    }

    async fn on_event<T: Decode>(&mut self, event: Event<T>) -> Result<(), RebuildReason> {
        match event {
            Event::Init => {
                // kube-runtime yields this event before it sends a request, and sends none until it is polled again.
                let permit = self.target.limits.acquire_list().await;
                self.target.limits.metrics.lists[T::RESOURCE].inc();
                self.list = permit.map(|permit| (Vec::new(), permit));
            }
            Event::InitApply(object) => {
                let view = strip_unused_fields(object.into_decoded().view);
                self.highest_version = self.highest_version.max(view.resource_version());
                if let Some((views, _)) = &mut self.list {
                    views.push(view);
                    if views.len() > self.target.limits.config.list_objects {
                        return Err(RebuildReason::ListTooLong);
                    }
                }
            }
            Event::InitDone => {
                if let Some((views, _)) = self.list.take() {
                    self.writer.lock().await.replace(T::RESOURCE, views, self.highest_version);
                }
                self.mark_healthy(T::RESOURCE).await;
            }
            Event::Apply(object) => {
                let view = strip_unused_fields(object.into_decoded().view);
                self.highest_version = self.highest_version.max(view.resource_version());
                self.writer.lock().await.upsert(view);
                self.mark_healthy(T::RESOURCE).await;
            }
            Event::Delete(object) => {
                let view = strip_unused_fields(object.into_decoded().view);
                self.highest_version = self.highest_version.max(view.resource_version());
                self.writer.lock().await.remove(view.resource(), view.name(), view.uid(), view.resource_version());
                self.mark_healthy(T::RESOURCE).await;
            }
        }
        Ok(())
    }

    /// Waits before a list, so that a condition that requires a list each time does not load the API server.
    async fn relist_delay(&mut self) {
        let [first, max] = self.target.limits.config.relist_backoff;
        let quiet = self.target.limits.config.healthy_after_quiet;
        let recent = self.last_relist.filter(|(_, ended)| ended.elapsed() < quiet);
        let delay = recent.map_or(first, |(delay, _)| max.min(delay * 2));
        sleep(delay).await;
        self.last_relist = Some((delay, Instant::now()));
    }

    /// Handles an error, with the delay that kube-runtime does not have. Returns a reason if the watcher must be created
    /// again.
    async fn on_error(&mut self, resource: Resource, error: &watcher::Error) -> Option<RebuildReason> {
        let config = &self.target.limits.config;
        self.target.limits.metrics.errors[resource].inc();
        self.list = None;
        if let Some(reason) = rebuild_reason(error) {
            return Some(reason);
        }
        match error {
            // kube-runtime lists at once after an ERROR line with 410.
            watcher::Error::WatchError(status) if is_expired(status) => self.relist_delay().await,
            // A watch that breaks has worked before. The next attempt shows whether the upstream is down.
            watcher::Error::WatchFailed(_) => {
                self.mark_healthy(resource).await;
                sleep(config.error_delay).await;
            }
            watcher::Error::WatchError(_)
            | watcher::Error::WatchStartFailed(_)
            | watcher::Error::InitialListFailed(_)
            | watcher::Error::NoResourceVersion => {
                let since = *self.failed_since.get_or_insert_with(Instant::now);
                let reason = Arc::from("the connection's own watch failed");
                self.writer.lock().await.set_health(resource, Health::Down { since, reason });
                sleep(config.error_delay).await;
            }
        }
        None
    }

    /// Reports that the watcher works: it delivered an event, or it was quiet for `healthy_after_quiet`.
    async fn mark_healthy(&mut self, resource: Resource) {
        if self.failed_since.take().is_some() {
            self.writer.lock().await.set_health(resource, Health::Live);
        }
    }
}

/// Removes the fields that `/ws` does not send. This inventory serves one connection only, and labels would be half of it.
/// The version stays, so that a change of a removed field is still a change.
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

/// Returns why the watcher must be created again after this error, or `None` if it can continue without a loss.
fn rebuild_reason(error: &watcher::Error) -> Option<RebuildReason> {
    use kube::Error as ClientError;
    match error {
        watcher::Error::WatchStartFailed(ClientError::Api(status))
        | watcher::Error::WatchFailed(ClientError::Api(status)) => is_expired(status).then_some(RebuildReason::Expired),
        watcher::Error::WatchFailed(ClientError::SerdeError(_) | ClientError::LinesCodecMaxLineLengthExceeded)
        | watcher::Error::NoResourceVersion => Some(RebuildReason::DecodeError),
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchError(_)
        | watcher::Error::WatchFailed(_) => None,
    }
}

fn is_expired(status: &Status) -> bool {
    status.code == 410
}
