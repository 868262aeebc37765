//! The hub: one list-and-watch for each resource, written to one feed (docs/architecture.md#source).
//!
//! Owns: the watch loops of both resources and the backfill. All of them run in one task.
//!
//! Guarantees:
//! - Each change is written once, in the order of its resourceVersion (docs/architecture.md#feed-contract).
//! - Health changes are written as they happen: `Connecting`, `Live`, and `Down` with the time of the last byte.
//! - The hub retries until it is dropped.
//!
//! Must not import: `feed::Subscription`. The hub does not use the watcher of kube-runtime, because that watcher hides the
//! version of a list and the bookmarks. Cursors are made of both.

mod api_client;
mod backfill;
mod config;
mod event;
mod metrics;
mod round_budget;
#[cfg(test)]
mod tests;
mod version_check;
mod watch_loop;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use kube::Client;
use tokio::time::{Instant, sleep};

use self::{
    api_client::ResourceApi,
    event::{EventSink, SourceEvent, emit},
    watch_loop::WatchLoop,
};
pub use self::{config::Config, metrics::Metrics};
use super::{
    decode::{DecodedClaim, DecodedPod},
    error::UpstreamError,
};
use crate::{
    event::{NamespaceId, Resource},
    feed::{Health, Writer},
};

/// Writes both resources of a namespace to a feed until the future is dropped.
///
/// Errors never end it. Each is counted, reported to the feed as health, and logged once for each change of the error.
pub async fn run(client: Client, config: Config, mut writer: Writer, metrics: Arc<Metrics>) -> Infallible {
    let backfills = writer.backfill_handle();
    let sink = Mutex::new(move |event: SourceEvent| match event {
        SourceEvent::Namespace(uid) => writer.set_namespace(NamespaceId::from_uid(&uid)),
        SourceEvent::Replace(resource, views, version) => writer.replace(resource, views, version),
        SourceEvent::Upsert(view) => writer.upsert(view),
        SourceEvent::Remove(view) => writer.remove(view.resource(), view.name(), view.uid(), view.resource_version()),
        SourceEvent::Bookmark(resource, version) => writer.bookmark(resource, version),
        SourceEvent::BytesReceived(resource) => writer.record_received(resource),
        SourceEvent::Health(resource, health) => writer.set_health(resource, health),
    });
    let pods = ResourceApi::<DecodedPod>::new(&client, &config, &metrics);
    let claims = ResourceApi::<DecodedClaim>::new(&client, &config, &metrics);
    let (never, ..) = tokio::join!(
        watch_all(&pods, &claims, &sink),
        backfill::run(&pods, &claims, &backfills),
        version_check::run(&pods, &claims, &backfills)
    );
    never
}

/// Reads the uid of the Namespace, then runs both watch loops. Lists both resources again when the uid has changed.
async fn watch_all(
    pods: &ResourceApi<'_, DecodedPod>,
    claims: &ResourceApi<'_, DecodedClaim>,
    sink: EventSink<'_>,
) -> Infallible {
    let config = pods.config;
    let mut uid = fetch_namespace(pods, config, sink).await;
    let (mut pods_loop, mut claims_loop) = (WatchLoop::new(pods, sink), WatchLoop::new(claims, sink));
    loop {
        emit(sink, SourceEvent::Namespace(uid.clone()));
        tokio::select! {
            biased;
            (never, _) = async { tokio::join!(pods_loop.run(), claims_loop.run()) } => match never {},
            changed = wait_for_another_namespace(pods, &uid) => uid = changed,
        }
        tracing::warn!(
            namespace = &*config.namespace,
            "the namespace was created again; its former cursors are foreign"
        );
    }
}

/// Requests the Namespace in intervals until it has another uid. Returns that uid. A failure says nothing about the uid: the
/// watches report an outage.
async fn wait_for_another_namespace(api: &ResourceApi<'_, DecodedPod>, uid: &str) -> String {
    loop {
        sleep(api.config.namespace_check_interval).await;
        match api.namespace_uid().await {
            Ok(current) if current != uid => return current,
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "namespace check failed"),
        }
    }
}

/// Requests the uid of the Namespace until it succeeds. Cursors need the uid, so the hub requests nothing else before.
async fn fetch_namespace(api: &ResourceApi<'_, DecodedPod>, config: &Config, sink: EventSink<'_>) -> String {
    let since = Instant::now();
    let mut reported: Option<UpstreamError> = None;
    let mut failures = 0;
    loop {
        let error = match api.namespace_uid().await {
            Ok(uid) => {
                // The error was that of the Namespace. The first lists have not failed.
                if reported.is_some() {
                    for resource in Resource::ALL {
                        emit(sink, SourceEvent::Health(resource, Health::Connecting));
                    }
                }
                return uid;
            }
            Err(error) => error,
        };
        failures += 1;
        for resource in Resource::ALL {
            api.metrics.record_interruption(resource, &error);
        }
        if reported.as_ref() != Some(&error) {
            tracing::warn!(resource = "namespaces", namespace = &*config.namespace, %error, "request failed");
            for resource in Resource::ALL {
                emit(sink, SourceEvent::Health(resource, Health::Down { since, reason: error.reason().into() }));
            }
            reported = Some(error.clone());
        }
        config.backoff.wait(failures, &error).await;
    }
}
