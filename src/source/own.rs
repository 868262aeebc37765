//! One `/ws` connection's own kube-runtime watchers, into a feed of its own (protocol.md section 2).
//!
//! What kube-runtime leaves to its user is done here (facts.md): a list is collected before it replaces anything, a
//! watcher is built anew after an HTTP-level 410 and after a line that did not parse (it would go on without that
//! change), and when the hub finds another history (it would wait for a version that never comes). It retries for
//! ever; the hub, which hears bookmarks and probes, is the judge of the upstream's health. It must not know other
//! connections: all they share is the number of lists that may run at once.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use kube::{
    Api, Client,
    client::Body,
    core::Status,
    runtime::watcher::{self, Event},
};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep, timeout},
};
use tower::BoxError;

use super::{
    crd::MANAGED_SELECTOR,
    project::{ClaimRow, PodRow, Row},
};
use crate::{
    event::{Kind, Rv, View},
    feed::{Feed, Health, Writer},
};

/// Bounds of own watchers.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Connections that have watchers of their own at a time; 0: none.
    pub connections: usize,
    /// Initial lists that run at once, over all connections: re-lists after an outage included.
    pub lists: usize,
    /// What watches ask for as `timeoutSeconds`. kube-runtime gives them 5 s more, then starts them again.
    pub watch_time: Duration,
    /// How long the API server may take to begin an answer.
    pub start_timeout: Duration,
    /// How long one page of a list may take after that. kube's client would wait for its end for ever.
    pub page_timeout: Duration,
    /// Bytes of one page. Nine times what 500 Pods of 14 KB take.
    pub page_bytes: usize,
    /// Objects in one list, so that a server whose pages never end cannot fill the memory.
    pub list_objects: usize,
    /// The pause after an error: kube-runtime has none of its own.
    pub pause: Duration,
    /// Silence of a watch after an error that means that it works again: longer than it may take to fail to start.
    pub settle: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            connections: 50,
            lists: 4,
            watch_time: Duration::from_secs(30),
            start_timeout: Duration::from_secs(15),
            page_timeout: Duration::from_secs(30),
            page_bytes: 64 << 20,
            list_objects: 500_000,
            pause: Duration::from_secs(1),
            settle: Duration::from_secs(20),
        }
    }
}

/// What own watchers count.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    connections: Gauge,
    lists: Counter,
    errors: Counter,
}

impl Metrics {
    /// Names them in a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("own_watchers", "Connections with watchers of their own", self.connections.clone());
        registry.register("own_watcher_lists", "Lists begun by own watchers", self.lists.clone());
        registry.register("own_watcher_errors", "Errors of own watchers", self.errors.clone());
    }
}

/// Gives connections watchers of their own, as many as there may be.
#[derive(Clone)]
pub struct Watchers {
    client: Client,
    namespace: Arc<str>,
    hub: Feed,
    slots: Arc<Semaphore>,
    lists: Arc<Semaphore>,
    config: Config,
    metrics: Metrics,
}

/// What ends a watcher, so that another one must be built.
enum Rebuild {
    /// It would repeat an expired version for ever.
    Expired,
    /// A line did not parse: its change is lost unless everything is listed.
    Unreadable,
    /// The hub has found another history.
    History,
    /// A list that does not end.
    TooMany,
}

impl Watchers {
    /// Watchers of this namespace, beside this hub.
    #[must_use]
    pub fn new(client: &Client, namespace: &str, hub: Feed, config: Config, metrics: Metrics) -> Watchers {
        let inner = client.clone();
        let bounded = tower::service_fn(move |request| bounded(inner.clone(), request, config));
        let client = Client::new(bounded, client.default_namespace());
        Watchers {
            client,
            namespace: namespace.into(),
            hub,
            slots: Arc::new(Semaphore::new(config.connections)),
            lists: Arc::new(Semaphore::new(config.lists)),
            config,
            metrics,
        }
    }

    /// A feed of its own for one connection and what fills it, for as long as that is polled; `None` when as many as
    /// there may be are in use.
    #[must_use]
    pub fn open(&self) -> Option<(Feed, impl Future<Output = Infallible> + Send + 'static)> {
        let slot = self.slots.clone().try_acquire_owned().ok()?;
        let (writer, feed) = self.hub.single();
        Some((feed, self.clone().run(writer, slot)))
    }

    async fn run(self, writer: Writer, slot: OwnedSemaphorePermit) -> Infallible {
        let _in_use = InUse::new(&self.metrics.connections, slot);
        let writer = Mutex::new(writer);
        let health = async {
            let mut health = self.hub.health();
            loop {
                // The hub lives as long as the process does.
                let _ = health.changed().await;
                writer.lock().await.hub_changed();
            }
        };
        let (never, _, ()) = tokio::join!(self.follow::<PodRow>(&writer), self.follow::<ClaimRow>(&writer), health);
        never
    }

    /// One resource, for ever.
    async fn follow<T: Row>(&self, writer: &Mutex<Writer>) -> Infallible {
        let mut hub = Judge { histories: self.hub.histories(), health: self.hub.health() };
        let mut watcher = Watcher { owner: self, writer, list: None, highest: 0, failed: None };
        loop {
            let selector = match T::KIND {
                Kind::Instance => MANAGED_SELECTOR,
                Kind::Claim => "",
            };
            let seconds = u32::try_from(self.config.watch_time.as_secs()).unwrap_or(u32::MAX);
            let config = watcher::Config::default().labels(selector).timeout(seconds);
            let api = Api::<T>::namespaced(self.client.clone(), &self.namespace);
            let why = watcher.run(kube::runtime::watcher(api, config).boxed(), &mut hub).await;
            // What it knew of versions and of trouble outlives it; a list that it was collecting does not.
            watcher.list = None;
            let reason = match why {
                Rebuild::Expired => "its version has expired",
                Rebuild::Unreadable => "a line did not parse",
                Rebuild::History => {
                    // The next list's versions are lower, and are meant to be.
                    watcher.highest = 0;
                    "the API server has another history"
                }
                Rebuild::TooMany => "a list has no end",
            };
            tracing::debug!(resource = T::KIND.resource(), reason, "a connection's own watcher is built anew");
            sleep(self.config.pause / 10).await;
        }
    }
}

impl std::fmt::Debug for Watchers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watchers").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What the hub finds out for everybody.
struct Judge {
    histories: watch::Receiver<u64>,
    health: watch::Receiver<[Health; 2]>,
}

/// One resource's kube-runtime watchers, one after the other.
struct Watcher<'a> {
    owner: &'a Watchers,
    writer: &'a Mutex<Writer>,
    /// The list that is being collected, and the permission to make it.
    list: Option<(Vec<View>, OwnedSemaphorePermit)>,
    /// The highest version seen of this history: kube-runtime hides the list's.
    highest: Rv,
    /// When the last error came, while the upstream counts as down for it.
    failed: Option<Instant>,
}

impl Watcher<'_> {
    async fn run<T: Row>(
        &mut self,
        mut events: BoxStream<'static, watcher::Result<Event<T>>>,
        hub: &mut Judge,
    ) -> Rebuild {
        loop {
            // Not polled while the reader is behind: TCP then pushes back to the API server. A list goes on, though: it
            // is one step in the end, and others wait for its permit.
            if self.list.is_none() {
                let room = self.writer.lock().await.room();
                room.await;
            }
            let next = tokio::select! {
                // What else there may be is of a history that has ended.
                biased;
                // The hub lives as long as the process does.
                _ = hub.histories.changed() => return Rebuild::History,
                _ = hub.health.changed() => {
                    // A watch that is started again and quiet says nothing, but the hub has found the upstream well.
                    if hub.health.borrow_and_update()[T::KIND as usize] == Health::Live {
                        self.works(T::KIND).await;
                    }
                    continue;
                }
                next = timeout(self.owner.config.settle, events.next()) => next,
            };
            match next {
                Err(_) if self.list.is_none() => self.works(T::KIND).await,
                Err(_) => {}
                Ok(Some(Ok(event))) => {
                    if let Err(rebuild) = self.take(event).await {
                        return rebuild;
                    }
                }
                Ok(Some(Err(error))) => {
                    // What the hub found before this is no comfort.
                    hub.health.mark_unchanged();
                    if let Some(rebuild) = self.fail(T::KIND, &error).await {
                        return rebuild;
                    }
                }
                // It never ends by itself.
                Ok(None) => return Rebuild::Expired,
            }
        }
    }

    async fn take<T: Row>(&mut self, event: Event<T>) -> Result<(), Rebuild> {
        match event {
            Event::Init => {
                // It comes before any request is made, and nothing is until the next event is asked for.
                let permit = self.owner.lists.clone().acquire_owned().await;
                self.owner.metrics.lists.inc();
                self.list = permit.ok().map(|permit| (Vec::new(), permit));
            }
            Event::InitApply(row) => {
                let view = slim(row.into_seen().view);
                self.highest = self.highest.max(view.rv());
                if let Some((views, _)) = &mut self.list {
                    views.push(view);
                    if views.len() > self.owner.config.list_objects {
                        return Err(Rebuild::TooMany);
                    }
                }
            }
            Event::InitDone => {
                if let Some((views, _)) = self.list.take() {
                    self.writer.lock().await.replace(T::KIND, views, self.highest);
                }
                self.works(T::KIND).await;
            }
            Event::Apply(row) => {
                let view = slim(row.into_seen().view);
                self.highest = self.highest.max(view.rv());
                self.writer.lock().await.upsert(view);
                self.works(T::KIND).await;
            }
            Event::Delete(row) => {
                let view = slim(row.into_seen().view);
                self.highest = self.highest.max(view.rv());
                self.writer.lock().await.remove(view.kind(), view.name(), view.uid(), view.rv());
                self.works(T::KIND).await;
            }
        }
        Ok(())
    }

    /// What an error means, and the pause that kube-runtime does not make.
    async fn fail(&mut self, kind: Kind, error: &watcher::Error) -> Option<Rebuild> {
        self.owner.metrics.errors.inc();
        self.list = None;
        if let Some(rebuild) = rebuild(error) {
            return Some(rebuild);
        }
        match error {
            // An ERROR line with 410 is followed by a list, by itself and at once.
            watcher::Error::WatchError(status) if is_expired(status) => {}
            // What breaks has worked: whether anything is down is for the next try to say.
            watcher::Error::WatchFailed(_) => {
                self.works(kind).await;
                sleep(self.owner.config.pause).await;
            }
            watcher::Error::WatchError(_)
            | watcher::Error::WatchStartFailed(_)
            | watcher::Error::InitialListFailed(_)
            | watcher::Error::NoResourceVersion => {
                let since = *self.failed.get_or_insert_with(Instant::now);
                let reason = Arc::from("the connection's own watch failed");
                self.writer.lock().await.health(kind, Health::Down { since, reason });
                sleep(self.owner.config.pause).await;
            }
        }
        None
    }

    /// It works, or has been quiet for so long that it must.
    async fn works(&mut self, kind: Kind) {
        if self.failed.take().is_some() {
            self.writer.lock().await.health(kind, Health::Live);
        }
    }
}

/// Sends a request with bounds on its answer: on its head, and on the whole of a list. What follows the head of a watch is
/// bounded by kube-runtime's idle timeout.
async fn bounded(client: Client, request: Request<Body>, config: Config) -> Result<Response<Body>, BoxError> {
    let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
    let response = timeout(config.start_timeout, client.send(request)).await??;
    if is_watch && response.status().is_success() {
        return Ok(response);
    }
    let (head, body) = response.into_parts();
    let whole = timeout(config.page_timeout, Limited::new(body, config.page_bytes).collect()).await??;
    Ok(Response::from_parts(head, whole.to_bytes().into()))
}

/// What `/ws` can tell of an object, and no more: this inventory is one connection's alone, and half of it would be
/// labels. Versions stay, so that a change of something else is still a change.
fn slim(mut view: View) -> View {
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
fn rebuild(error: &watcher::Error) -> Option<Rebuild> {
    use kube::Error as Client;
    match error {
        watcher::Error::WatchStartFailed(Client::Api(status)) | watcher::Error::WatchFailed(Client::Api(status)) => {
            is_expired(status).then_some(Rebuild::Expired)
        }
        watcher::Error::WatchFailed(Client::SerdeError(_) | Client::LinesCodecMaxLineLengthExceeded)
        | watcher::Error::NoResourceVersion => Some(Rebuild::Unreadable),
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchError(_)
        | watcher::Error::WatchFailed(_) => None,
    }
}

fn is_expired(status: &Status) -> bool {
    status.code == 410
}

/// Counts a connection for as long as it has its slot.
struct InUse {
    connections: Gauge,
    _slot: OwnedSemaphorePermit,
}

impl InUse {
    fn new(connections: &Gauge, slot: OwnedSemaphorePermit) -> InUse {
        connections.inc();
        InUse { connections: connections.clone(), _slot: slot }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.connections.dec();
    }
}
