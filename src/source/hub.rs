//! The hub: one list-and-watch a resource, shared by everybody who listens, into one feed's Writer.
//!
//! Owes the Writer the changes, each once and in order, and the truth about itself: connecting, live, down since.
//! It retries for ever and never ends. It must not know who reads the feed. kube-runtime's watcher is not used here:
//! it hides the list's version and bookmarks, which are what cursors are made of.

mod api_client;
mod backfill;
mod line_splitter;
mod metrics;
#[cfg(test)]
mod tests;
mod watch_loop;

use std::{
    convert::Infallible,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kube::Client;
use tokio::time::{Instant, sleep};

pub use self::metrics::Metrics;
use self::{api_client::ResourceApi, watch_loop::WatchLoop};
use super::decode::{DecodedClaim, DecodedPod};
use super::error::UpstreamError;
use crate::{
    event::{NamespaceId, Resource, ResourceVersion, View},
    feed::{Health, Writer},
};

/// What to watch, and the hub's bounds.
#[derive(Clone, Debug)]
pub struct Config {
    /// The namespace: nothing outside it is ever asked for, but its own Namespace object.
    pub namespace: Arc<str>,
    /// The API server's URL, for messages only.
    pub server: Arc<str>,
    /// Objects in one page of a list. kubectl's and client-go's number: a page of Pods is then about 7 MB.
    pub page_objects: u32,
    /// Bytes of one page; a longer one is unreadable. Nine times what 500 Pods of 14 KB take.
    pub page_bytes: usize,
    /// Objects in one list, so that a server whose pages never end cannot fill the memory.
    pub list_objects: usize,
    /// How long one page of a list, or the Namespace, may take from first to last byte.
    pub page_timeout: Duration,
    /// How long a watch may take to start. An API server answers at once; 15 s is a slow day behind a load balancer.
    pub start_timeout: Duration,
    /// What watches ask for as `timeoutSeconds`: whole seconds, more than the 12 below which no bookmark is sent.
    pub watch_timeout: Duration,
    /// How much longer than that a watch may live before its connection counts as dead.
    pub watch_grace: Duration,
    /// Bytes of one line of a watch. etcd's own limit for an object is 1.5 MiB; a MODIFIED holds one.
    pub line_bytes: usize,
    /// Silence of a watch after which one `LIST limit=1` asks whether the API server is there.
    pub probe_after_silence: Duration,
    /// How long that may take.
    pub probe_timeout: Duration,
    /// Silence after which a watch taken up again has delivered what had been missed: the API server sends that at once.
    pub catch_up_quiet_period: Duration,
    /// A watch that ends sooner, without a change, has failed: something ends it as soon as it starts.
    pub min_watch_duration: Duration,
    /// The first pause between tries.
    pub backoff_min: Duration,
    /// The longest pause between tries. Short, because clients are told that the upstream is down while it lasts.
    pub backoff_max: Duration,
    /// The longest pause that `Retry-After` may ask for.
    pub retry_after_max: Duration,
    /// How long clients that are behind the log are waited for, so that they share a round.
    pub backfill_batch_delay: Duration,
    /// How long the watch of a backfill lasts, in whole seconds, where nothing shows sooner that it has told everything.
    pub backfill_watch_timeout: Duration,
    /// How long a backfill may take in all.
    pub backfill_timeout: Duration,
    /// Changes that a backfill may bring in one resource: as many as the log holds by default.
    pub backfill_max_changes: usize,
    /// Backfills that may begin within a minute.
    pub backfills_per_minute: usize,
    /// Questions for the newest versions, asked for clients ahead of us, that may begin within a minute.
    pub version_checks_per_minute: usize,
    /// Random bits for the pause after the given try.
    pub jitter: fn(u32) -> u64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            namespace: "boilerhouse".into(),
            server: "the API server".into(),
            page_objects: 500,
            page_bytes: 64 << 20,
            list_objects: 500_000,
            page_timeout: Duration::from_secs(30),
            start_timeout: Duration::from_secs(15),
            watch_timeout: Duration::from_secs(30),
            watch_grace: Duration::from_secs(5),
            line_bytes: 4 << 20,
            probe_after_silence: Duration::from_secs(15),
            probe_timeout: Duration::from_secs(5),
            catch_up_quiet_period: Duration::from_secs(1),
            min_watch_duration: Duration::from_secs(1),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(1),
            retry_after_max: Duration::from_secs(30),
            backfill_batch_delay: Duration::from_secs(1),
            backfill_watch_timeout: Duration::from_secs(2),
            backfill_timeout: Duration::from_secs(10),
            backfill_max_changes: 64 << 10,
            backfills_per_minute: 6,
            version_checks_per_minute: 12,
            jitter: |tries| RandomState::new().hash_one(tries),
        }
    }
}

/// Keeps the feed true to the cluster until it is dropped. Trouble is logged once a change, told to the feed as health,
/// and counted; it never ends this future.
pub async fn run(client: Client, config: Config, mut writer: Writer, metrics: Arc<Metrics>) -> Infallible {
    let past = writer.backfill_handle();
    let out = Mutex::new(move |fact: SourceEvent| match fact {
        SourceEvent::Namespace(uid) => writer.set_namespace(NamespaceId::from_uid(&uid)),
        SourceEvent::Replace(resource, views, rv) => writer.replace(resource, views, rv),
        SourceEvent::Upsert(view) => writer.upsert(view),
        SourceEvent::Remove(view) => writer.remove(view.resource(), view.name(), view.uid(), view.resource_version()),
        SourceEvent::Bookmark(resource, rv) => writer.bookmark(resource, rv),
        SourceEvent::BytesReceived(resource) => writer.record_received(resource),
        SourceEvent::Health(resource, health) => writer.set_health(resource, health),
    });
    let (never, _) =
        tokio::join!(watch_all(&client, &config, &metrics, &out), backfill::run(&client, &config, &metrics, &past));
    never
}

/// One call of the Writer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SourceEvent {
    Namespace(String),
    Replace(Resource, Vec<View>, ResourceVersion),
    Upsert(View),
    /// As it was told last, but for its version, which is the deletion's.
    Remove(View),
    Bookmark(Resource, ResourceVersion),
    /// A byte came.
    BytesReceived(Resource),
    Health(Resource, Health),
}

/// Where facts go. Both resources are followed within one task, so the lock is never waited for.
type EventSink<'a> = &'a Mutex<dyn FnMut(SourceEvent) + Send + 'a>;

fn emit(out: EventSink<'_>, fact: SourceEvent) {
    (out.lock().unwrap_or_else(PoisonError::into_inner))(fact);
}

async fn watch_all(client: &Client, config: &Config, metrics: &Metrics, out: EventSink<'_>) -> Infallible {
    let pods = ResourceApi::<DecodedPod>::new(client, config, metrics);
    let claims = ResourceApi::<DecodedClaim>::new(client, config, metrics);
    fetch_namespace(&pods, config, out).await;
    let (never, _) = tokio::join!(WatchLoop::new(&pods, out).run(), WatchLoop::new(&claims, out).run());
    never
}

/// Until the Namespace has said its uid there are no cursors, so nothing else is asked for.
async fn fetch_namespace(api: &ResourceApi<'_, DecodedPod>, config: &Config, out: EventSink<'_>) {
    let since = Instant::now();
    let mut told: Option<UpstreamError> = None;
    for tries in 1_u32.. {
        let error = match api.namespace_uid().await {
            Ok(uid) => return emit(out, SourceEvent::Namespace(uid)),
            Err(error) => error,
        };
        if told.as_ref() != Some(&error) {
            tracing::warn!(resource = "namespaces", namespace = &*config.namespace, "{error}");
            for resource in Resource::ALL {
                emit(out, SourceEvent::Health(resource, Health::Down { since, reason: error.reason().into() }));
            }
            told = Some(error.clone());
        }
        back_off(config, tries, &error).await;
    }
}

async fn back_off(config: &Config, tries: u32, error: &UpstreamError) {
    sleep(config.pause(tries, error, (config.jitter)(tries))).await;
}

impl Config {
    /// How long to wait after the `tries`th failure in a row: doubling up to the cap and jittered down to its half, so that
    /// replicas do not come back all at once; longer where the API server asks for it.
    fn pause(&self, tries: u32, error: &UpstreamError, random: u64) -> Duration {
        let doubled = self.backoff_min.saturating_mul(1_u32.checked_shl(tries.saturating_sub(1)).unwrap_or(u32::MAX));
        let capped = doubled.min(self.backoff_max);
        // 16 bits are plenty for a jitter.
        let share = f64::from(u16::try_from(random >> 48).unwrap_or(0)) / f64::from(u16::MAX);
        let jittered = capped.mul_f64(0.5 + share / 2.0);
        match error {
            UpstreamError::Throttled { retry_after: Some(asked), .. } => {
                jittered.max((*asked).min(self.retry_after_max))
            }
            _ => jittered,
        }
    }
}
