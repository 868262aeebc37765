//! Reads history for the feed: the changes before the start of the log, and the newest versions of the API server
//! (docs/architecture.md#feed-contract, items 3 and 5).
//!
//! Guarantees: one round serves all waiting clients, and the number of rounds per minute is bounded. Cursors come from
//! clients, so they must not become a way to load the API server.
//!
//! Kubernetes does not mark the end of the missed changes. The history is complete in two cases only: the watch has reached
//! the start of the log, or it has lasted its full duration and ended in the regular way.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use futures::{StreamExt, future::try_join};
use http_body_util::BodyExt;
use kube::core::WatchEvent;
use tokio::time::{Instant, sleep, timeout};

use super::{
    api_client::{self, ResourceApi},
    backoff::back_off,
    config::Config,
    line_splitter::LineSplitter,
    metrics::Metrics,
};
use crate::{
    event::{PerResource, Resource},
    feed::{BackfillFailure, BackfillHandle, Gap},
    source::{
        decode::{Decode, DecodedClaim, DecodedPod},
        error::UpstreamError,
    },
};

/// The period in which rounds are counted.
const MINUTE: Duration = Duration::from_secs(60);

/// Runs backfills and version checks until the future is dropped.
pub(super) async fn run(
    client: &kube::Client,
    config: &Config,
    metrics: &Metrics,
    backfills: &BackfillHandle,
) -> Infallible {
    let pods = ResourceApi::<DecodedPod>::new(client, config, metrics);
    let claims = ResourceApi::<DecodedClaim>::new(client, config, metrics);
    let (never, _) =
        tokio::join!(run_backfills(&pods, &claims, backfills), run_version_checks(&pods, &claims, backfills));
    never
}

/// The number of rounds that may start within a minute.
struct RoundBudget {
    max: usize,
    started: VecDeque<Instant>,
}

impl RoundBudget {
    fn new(max: usize) -> RoundBudget {
        RoundBudget { max, started: VecDeque::new() }
    }

    /// Returns whether one more round may start now, and counts it if so.
    fn try_start(&mut self) -> bool {
        let now = Instant::now();
        while self.started.front().is_some_and(|started| *started + MINUTE <= now) {
            self.started.pop_front();
        }
        let is_allowed = self.started.len() < self.max;
        if is_allowed {
            self.started.push_back(now);
        }
        is_allowed
    }
}

async fn run_backfills(
    pods: &ResourceApi<'_, DecodedPod>,
    claims: &ResourceApi<'_, DecodedClaim>,
    backfills: &BackfillHandle,
) -> Infallible {
    let config = pods.config;
    let mut budget = RoundBudget::new(config.backfills_per_minute);
    loop {
        backfills.wait_for_request().await;
        sleep(config.backfill_batch_delay).await;
        let mut round = backfills.start_round();
        if !budget.try_start() {
            let limit = config.backfills_per_minute;
            tracing::debug!(limit, "backfill skipped: too many in this minute; waiting clients get the current state");
            backfills.abandon_round(BackfillFailure::Budget);
            continue;
        }
        let filled = async {
            for gap in &mut round.gaps {
                match gap.resource() {
                    Resource::Pods => fill(pods, gap).await?,
                    Resource::Claims => fill(claims, gap).await?,
                }
            }
            Ok::<_, UpstreamError>(())
        };
        match timeout(config.backfill_timeout, filled).await {
            Ok(Ok(())) => backfills.complete_round(round),
            Ok(Err(error)) => {
                tracing::info!(%error, "backfill failed; waiting clients get the current state");
                backfills.abandon_round(BackfillFailure::Failed);
            }
            Err(_) => {
                let limit = config.backfill_timeout;
                tracing::info!(?limit, "backfill timed out; waiting clients get the current state");
                backfills.abandon_round(BackfillFailure::Timeout);
            }
        }
    }
}

/// Reads the state at the start of the gap, then the changes up to its end.
async fn fill<T: Decode>(api: &ResourceApi<'_, T>, gap: &mut Gap) -> Result<(), UpstreamError> {
    let (views, version) = api.list_at(Some(gap.from())).await?;
    if version != gap.from() {
        return Err(UpstreamError::Decode(format!("a list at version {version} instead of {}", gap.from())));
    }
    gap.list(views);
    let is_complete = match read_changes(api, gap).await {
        Ok(is_complete) => is_complete,
        Err(error) => {
            // The two states are known, so the gap is still delivered as their difference.
            tracing::debug!(resource = T::RESOURCE.plural(), %error, "backfill has no history; it delivers a difference");
            false
        }
    };
    gap.close(is_complete);
    Ok(())
}

/// Reads the changes of the gap, and returns whether they are complete.
async fn read_changes<T: Decode>(api: &ResourceApi<'_, T>, gap: &mut Gap) -> Result<bool, UpstreamError> {
    let config = api.config;
    let (started, duration) = (Instant::now(), config.backfill_watch_timeout);
    let mut body = api.watch(gap.from(), duration).await?.into_data_stream();
    let mut lines = LineSplitter::new(config.line_bytes);
    loop {
        let chunk = match timeout(duration + config.watch_grace, body.next()).await {
            Ok(Some(Ok(chunk))) => chunk,
            Ok(Some(Err(_))) | Err(_) => return Ok(false),
            // The watch ended in the regular way. If it ended early, something else ended it, and changes may be missing.
            Ok(None) => return Ok(started.elapsed() >= duration),
        };
        lines.push(&chunk);
        while let Some(line) = lines.next().map_err(|_| api.line_too_long())? {
            if apply_line(api, gap, &line)? {
                return Ok(true);
            }
            if gap.len() > config.backfill_max_changes {
                return Err(UpstreamError::Decode(format!("more than {} changes", config.backfill_max_changes)));
            }
        }
    }
}

/// Applies one line, and returns whether it shows that all changes up to the end of the gap were received.
fn apply_line<T: Decode>(api: &ResourceApi<'_, T>, gap: &mut Gap, line: &[u8]) -> Result<bool, UpstreamError> {
    let end = gap.to();
    let version = match api_client::parse_line::<T>(line)? {
        WatchEvent::Added(object) | WatchEvent::Modified(object) => {
            let view = api.view(object);
            let version = view.resource_version();
            if version <= end {
                gap.upsert(view);
            }
            version
        }
        WatchEvent::Deleted(object) => {
            let view = api.view(object);
            if view.resource_version() <= end {
                gap.remove(&view);
            }
            view.resource_version()
        }
        WatchEvent::Bookmark(bookmark) => bookmark.metadata.resource_version.parse().unwrap_or(0),
        WatchEvent::Error(status) => return Err(UpstreamError::from_watch_status(&status, &api.request_info("watch"))),
    };
    Ok(version >= end)
}

async fn run_version_checks(
    pods: &ResourceApi<'_, DecodedPod>,
    claims: &ResourceApi<'_, DecodedClaim>,
    backfills: &BackfillHandle,
) -> Infallible {
    let config = pods.config;
    let mut budget = RoundBudget::new(config.version_checks_per_minute);
    loop {
        backfills.wait_for_version_check().await;
        backfills.start_version_check();
        if !budget.try_start() {
            backfills.complete_version_check(None);
            continue;
        }
        let mut failures = 0;
        let versions = loop {
            match try_join(pods.current_version(), claims.current_version()).await {
                Ok((pods, claims)) => break PerResource::new(pods, claims),
                Err(error) => {
                    // The watch loops report the error. Waiting clients keep waiting, because nothing is known yet.
                    failures += 1;
                    back_off(config, failures, &error).await;
                }
            }
        };
        backfills.complete_version_check(Some(versions));
    }
}
