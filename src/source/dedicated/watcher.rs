//! One resource of a connection with dedicated watchers: what each event and each error of kube-runtime's watcher leads to.
//!
//! Owns: the list that is collected, the newest version, the failures in a row, and the delays. A watcher that ends is
//! created again.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use kube::{
    Api, Client,
    runtime::watcher::{self, Event},
};
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, watch},
    time::{Instant, sleep},
};

use super::{
    checked_client::{RequestState, upstream_error},
    limits::{DedicatedLimits, RebuildReason},
};
use crate::{
    api::MANAGED_SELECTOR,
    event::{Resource, ResourceVersion, View},
    feed::{Feed, Health, Writer},
    source::{decode::Decode, error::UpstreamError, retry::is_outage},
};

/// What dedicated watchers watch, and within which limits.
#[derive(Clone)]
pub(super) struct WatchTarget {
    /// The client of [`super::checked_client`].
    pub(super) client: Client,
    pub(super) namespace: Arc<str>,
    /// The feed of the hub. It reports history resets and the health of the upstream.
    pub(super) hub: Feed,
    pub(super) limits: Arc<DedicatedLimits>,
}

/// Watches one resource until the future is dropped.
pub(super) async fn run_resource<T: Decode>(target: &WatchTarget, writer: &Mutex<Writer>) -> Infallible {
    let mut history_resets = target.hub.history_resets();
    let mut watcher = Watcher {
        target,
        writer,
        requests: RequestState::new(T::RESOURCE, target.namespace.clone(), target.limits.clone()),
        list: None,
        highest_version: 0,
        failures: 0,
        is_down: false,
        last_relist: None,
    };
    loop {
        let selector = match T::RESOURCE {
            Resource::Pods => MANAGED_SELECTOR,
            Resource::Claims => "",
        };
        let seconds = u32::try_from(target.limits.config.watch_timeout.as_secs()).unwrap_or(u32::MAX);
        let config = watcher::Config::default().labels(selector).timeout(seconds);
        let api = Api::<T>::namespaced(target.client.clone(), &target.namespace);
        let reason = watcher.run(kube::runtime::watcher(api, config).boxed(), &mut history_resets).await;
        // The versions and the health outlive a watcher. An incomplete list does not.
        watcher.drop_list();
        if reason == RebuildReason::HistoryReset {
            // The versions of the next list are lower.
            watcher.highest_version = 0;
        }
        target.limits.metrics.record_rebuild(reason);
        tracing::debug!(resource = T::RESOURCE.plural(), reason = reason.label(), "dedicated watcher restarted");
        watcher.relist_delay().await;
    }
}

/// The watchers of one resource, one after the other.
struct Watcher<'a> {
    target: &'a WatchTarget,
    writer: &'a Mutex<Writer>,
    requests: Arc<RequestState>,
    /// The list that is being collected, with its permit.
    list: Option<(Vec<View>, OwnedSemaphorePermit)>,
    /// The highest version received in this history. kube-runtime hides the version of a list.
    highest_version: ResourceVersion,
    /// Failures in a row since a watch worked.
    failures: u32,
    /// The upstream counts as down for this connection, until a watch starts.
    is_down: bool,
    /// The last delay before a list, and when it ended.
    last_relist: Option<(Duration, Instant)>,
}

impl Watcher<'_> {
    /// Reads one watcher until it must be created again, and returns the reason.
    async fn run<T: Decode>(
        &mut self,
        mut events: BoxStream<'static, watcher::Result<Event<T>>>,
        history_resets: &mut watch::Receiver<u64>,
    ) -> RebuildReason {
        let requests = self.requests.clone();
        loop {
            // The watcher is not polled while the client is behind, so TCP slows down the API server. A list is read
            // nevertheless: it becomes one log entry, and other connections wait for its permit.
            if self.list.is_none() {
                let capacity = self.writer.lock().await.wait_for_capacity();
                capacity.await;
            }
            let error = tokio::select! {
                // A history reset comes first: events that are ready at the same time belong to the old history.
                biased;
                Ok(()) = history_resets.changed() => return RebuildReason::HistoryReset,
                () = requests.wait_started() => {
                    self.mark_live(T::RESOURCE).await;
                    continue;
                }
                event = requests.scope(events.next()) => match event {
                    Some(Ok(event)) => match self.on_event(event).await {
                        Ok(()) => continue,
                        // kube-runtime does not know this error. It would continue the list without the objects that
                        // have been dropped, and then watch from the version of the list.
                        Err(error) => {
                            self.drop_list();
                            let reason = self.on_error(T::RESOURCE, &error).await;
                            return reason.unwrap_or(RebuildReason::after(&error));
                        }
                    },
                    Some(Err(error)) => upstream_error(&error, &requests.request_info("watch")),
                    // The stream of kube-runtime does not end by itself.
                    None => return RebuildReason::Expired,
                },
            };
            if let Some(reason) = self.on_error(T::RESOURCE, &error).await {
                return reason;
            }
        }
    }

    /// Applies one event.
    ///
    /// # Errors
    /// A list exceeds one of its limits.
    async fn on_event<T: Decode>(&mut self, event: Event<T>) -> Result<(), UpstreamError> {
        match event {
            Event::Init => {
                // kube-runtime yields this event before it sends a request, and sends none until it is polled again.
                let permit = self.target.limits.acquire_list().await;
                self.target.limits.metrics.lists[T::RESOURCE].inc();
                self.list = permit.map(|permit| (Vec::new(), permit));
            }
            Event::InitApply(object) => {
                let view = strip_unused_fields(object.into_decoded().view);
                self.requests.add_object(view.charged_bytes())?;
                self.highest_version = self.highest_version.max(view.resource_version());
                if let Some((views, _)) = &mut self.list {
                    views.push(view);
                }
            }
            Event::InitDone => {
                if let Some((views, _)) = self.list.take() {
                    self.writer.lock().await.replace(T::RESOURCE, views, self.highest_version);
                }
                self.requests.reset_list();
            }
            Event::Apply(object) => {
                let view = strip_unused_fields(object.into_decoded().view);
                self.highest_version = self.highest_version.max(view.resource_version());
                self.writer.lock().await.upsert(view);
            }
            Event::Delete(object) => {
                let view = strip_unused_fields(object.into_decoded().view);
                self.highest_version = self.highest_version.max(view.resource_version());
                self.writer.lock().await.remove(view.resource(), view.name(), view.uid(), view.resource_version());
            }
        }
        Ok(())
    }

    fn drop_list(&mut self) {
        self.list = None;
        self.requests.reset_list();
    }

    /// Waits before a list, so that a condition that requires a list each time does not load the API server.
    async fn relist_delay(&mut self) {
        let [first, max] = self.target.limits.config.relist_backoff;
        let window = self.target.limits.config.relist_window;
        let recent = self.last_relist.filter(|(_, ended)| ended.elapsed() < window);
        let delay = recent.map_or(first, |(delay, _)| max.min(delay * 2));
        sleep(delay).await;
        self.last_relist = Some((delay, Instant::now()));
    }

    /// Counts an error, and reports an outage, as the hub does. Then it waits, because kube-runtime retries at once.
    /// Returns a reason if the watcher must be created again.
    async fn on_error(&mut self, resource: Resource, error: &UpstreamError) -> Option<RebuildReason> {
        let DedicatedLimits { config, metrics, .. } = &*self.target.limits;
        if self.requests.take_worked() {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        let is_outage = is_outage(error, self.failures);
        // Watches end all the time.
        if is_outage || *error != UpstreamError::WatchEnded {
            metrics.record_error(resource, error);
            tracing::debug!(resource = resource.plural(), %error, "dedicated watcher failed");
        }
        if is_outage && !self.is_down {
            self.is_down = true;
            // The hub logs its own errors. It has a limit of its own for lists.
            if matches!(error, UpstreamError::ListTooLarge { .. }) {
                tracing::warn!(resource = resource.plural(), %error, "dedicated watchers cannot list");
            }
            let reason = Arc::from(error.reason());
            self.writer.lock().await.set_health(resource, Health::Down { since: Instant::now(), reason });
        }
        let was_list = self.list.is_some();
        if matches!(error, UpstreamError::ListTooLarge { .. }) || (error.requires_relist() && !was_list) {
            return Some(RebuildReason::after(error));
        }
        if was_list {
            // kube-runtime starts the list again.
            self.drop_list();
            if let Some(requested) = config.backoff.requested(error) {
                sleep(requested).await;
            }
            self.relist_delay().await;
        } else if is_outage {
            config.backoff.wait(self.failures, error).await;
        }
        None
    }

    /// Reports that the watcher works: a watch has started.
    async fn mark_live(&mut self, resource: Resource) {
        if std::mem::take(&mut self.is_down) {
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
