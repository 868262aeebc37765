//! Reads history for the feed: the changes before the start of the log, and the newest versions of the API server
//! (docs/architecture.md#feed-contract, items 3 and 5).
//!
//! Guarantees:
//! - One round serves all waiting clients, and the number of requests per minute is bounded. Cursors come from clients, so
//!   they must not become a way to load the API server.
//! - A cursor whose history the API server no longer has changes nothing for the other clients of the round.
//!
//! Kubernetes does not mark the end of the missed changes. The history is complete in two cases only: the watch has reached
//! the start of the log, or it has lasted its full duration, ended in the regular way and was quiet before.
//!
//! Clients do not wait for that where missed changes were found and the objects are those at the start of the log, in the
//! same versions. All changes up to the last one that was read are then complete, because a watch delivers them in order.
//! Only an object that was created and deleted after that one can be missing: the rest is a difference without a change.
//! The watch goes on until the proof. Clients whose cursors are inside the rest wait for it.

use std::{convert::Infallible, pin::Pin};

use bytes::Bytes;
use futures::{
    Stream, StreamExt, TryStreamExt,
    future::{join_all, try_join},
};
use http_body_util::BodyExt;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::{api_client::ResourceApi, config::Config, metrics::Metrics, round_budget::RoundBudget};
use crate::{
    event::{PerResource, Resource, ResourceVersion},
    feed::{BackfillFailure, BackfillHandle, BackfillRound, Gap},
    source::{
        answer::{self, WatchLine},
        decode::{Decode, DecodedClaim, DecodedPod},
        error::UpstreamError,
        line_splitter::LineSplitter,
    },
};

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

async fn run_backfills(
    pods: &ResourceApi<'_, DecodedPod>,
    claims: &ResourceApi<'_, DecodedClaim>,
    backfills: &BackfillHandle,
) -> Infallible {
    let config = pods.config;
    let mut budget = RoundBudget::per_minute(config.backfills_per_minute);
    let mut next_start = Instant::now();
    loop {
        backfills.wait_for_request().await;
        sleep_until(next_start.max(Instant::now() + config.backfill_batch_delay)).await;
        budget.ready().await;
        next_start = Instant::now() + config.backfill_interval;
        let mut round = backfills.start_round();
        let (mut failure, mut proofs) = (None, Vec::new());
        if !round.gaps.is_empty() {
            budget.start();
            (failure, proofs) = fill_all(pods, claims, backfills, &mut round).await;
        }
        backfills.complete_round(round, failure);
        join_all(proofs.into_iter().map(async |(resource, proof)| backfills.end_rest(resource, proof.await))).await;
    }
}

/// Reads the rest of a history that was closed early. The result is true if it is proven to have no change.
type Proof<'a> = Pin<Box<dyn Future<Output = bool> + Send + 'a>>;

/// Fills the gaps of both resources at the same time. Returns why one of them was not filled, and the proofs of those that
/// were closed early.
async fn fill_all<'a>(
    pods: &'a ResourceApi<'a, DecodedPod>,
    claims: &'a ResourceApi<'a, DecodedClaim>,
    backfills: &BackfillHandle,
    round: &mut BackfillRound,
) -> (Option<BackfillFailure>, Vec<(Resource, Proof<'a>)>) {
    let deadline = Instant::now() + pods.config.backfill_timeout;
    let mut readings = PerResource::new(Reading::Ended { has_changes: false }, Reading::Ended { has_changes: false });
    for gap in &round.gaps {
        readings[gap.resource()] = Reading::Open;
    }
    let readings = watch::Sender::new(readings);
    let fills = round.gaps.iter_mut().map(async |gap| {
        let resource = gap.resource();
        let outcome = match resource {
            Resource::Pods => fill(pods, backfills, gap, &readings, deadline).await,
            Resource::Claims => fill(claims, backfills, gap, &readings, deadline).await,
        };
        readings.send_modify(|readings| readings[resource] = Reading::Ended { has_changes: gap.has_changes() });
        (resource, outcome)
    });
    let (mut failure, mut proofs) = (None, Vec::new());
    for (resource, outcome) in join_all(fills).await {
        match outcome {
            Ok(proof) => proofs.extend(proof.map(|proof| (resource, proof))),
            Err(reason) => failure = failure.or(Some(reason)),
        }
    }
    (failure, proofs)
}

/// How far the history of one resource has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// Changes are missing.
    Open,
    /// The changes so far lead to the state at the end of the gap.
    AtEnd { has_changes: bool },
    /// Nothing more is read.
    Ended { has_changes: bool },
}

/// Returns whether clients need not wait for more: no resource misses a change, and there are changes to deliver. Without
/// one, clients miss nothing while they wait for the proof that there was none.
fn can_deliver(readings: &PerResource<Reading>) -> bool {
    let has_changes = |reading: &Reading| {
        matches!(reading, Reading::AtEnd { has_changes: true } | Reading::Ended { has_changes: true })
    };
    readings.iter().all(|reading| *reading != Reading::Open) && readings.iter().any(has_changes)
}

/// Fills a gap until the deadline. What could not be read by then becomes a difference, if there is a list to start from.
async fn fill<'a, T: Decode>(
    api: &'a ResourceApi<'a, T>,
    backfills: &BackfillHandle,
    gap: &mut Gap,
    readings: &watch::Sender<PerResource<Reading>>,
    deadline: Instant,
) -> Result<Option<Proof<'a>>, BackfillFailure> {
    let resource = T::RESOURCE.plural();
    let failure = match timeout_at(deadline, read_history(api, backfills, gap, readings)).await {
        Ok(Ok(proof)) => return Ok(proof),
        Ok(Err(error)) => {
            tracing::info!(resource, %error, "backfill failed; the history so far is delivered");
            BackfillFailure::Failed
        }
        Err(_) => {
            let limit = api.config.backfill_timeout;
            tracing::info!(resource, ?limit, "backfill timed out; the history so far is delivered");
            BackfillFailure::Timeout
        }
    };
    if gap.filled_up_to().is_none() {
        return Err(failure);
    }
    gap.close(false);
    Ok(None)
}

/// Reads the state at the oldest version that the API server still has, then the changes up to the end of the gap. Where they
/// cannot be read to the end, it continues from the state at a later version.
async fn read_history<'a, T: Decode>(
    api: &'a ResourceApi<'a, T>,
    backfills: &BackfillHandle,
    gap: &mut Gap,
    readings: &watch::Sender<PerResource<Reading>>,
) -> Result<Option<Proof<'a>>, UpstreamError> {
    list_oldest(api, backfills, gap).await?;
    for further_lists in (0..api.config.backfill_lists).rev() {
        let has_expired = match read_changes(api, gap, readings).await {
            Ok(Ending::Complete) => {
                gap.close(true);
                return Ok(None);
            }
            Ok(Ending::AtEnd(proof)) => {
                gap.close_early();
                return Ok(Some(proof));
            }
            Ok(Ending::Incomplete) => false,
            Err(error) => {
                tracing::debug!(resource = T::RESOURCE.plural(), %error, "backfill has no history from here on");
                error == UpstreamError::Expired
            }
        };
        let start = if has_expired { oldest_watchable(api, gap).await? } else { gap.requested().first().copied() };
        match start {
            Some(start) if further_lists > 0 => list_exact(api, gap, start).await?,
            _ => {
                // Clients at these versions get a difference that starts exactly there.
                let newest = gap.requested().iter().rev().take(further_lists).copied().collect::<Vec<_>>();
                for version in newest.into_iter().rev() {
                    list_exact(api, gap, version).await?;
                }
                break;
            }
        }
    }
    gap.close(false);
    Ok(None)
}

/// Lists at the oldest requested version that the API server still has. Older ones are recorded as compacted.
async fn list_oldest<T: Decode>(
    api: &ResourceApi<'_, T>,
    backfills: &BackfillHandle,
    gap: &mut Gap,
) -> Result<(), UpstreamError> {
    while let Some(&oldest) = gap.requested().first() {
        match list_exact(api, gap, oldest).await {
            Err(UpstreamError::Expired) => {}
            other => return other,
        }
        // A binary search: a few small requests, however many clients sent a cursor that is too old.
        let requested = gap.requested();
        let (mut compacted, mut end) = (0, requested.len());
        while compacted + 1 < end {
            let middle = usize::midpoint(compacted, end);
            if api.has_version(requested[middle]).await? { end = middle } else { compacted = middle }
        }
        let version = requested[compacted];
        backfills.record_compacted(gap, version);
    }
    Err(UpstreamError::Expired)
}

/// Lists at exactly this version.
async fn list_exact<T: Decode>(
    api: &ResourceApi<'_, T>,
    gap: &mut Gap,
    exact: ResourceVersion,
) -> Result<(), UpstreamError> {
    let (views, version) = api.list_at(Some(exact)).await?;
    if version != exact {
        return Err(UpstreamError::Decode(format!("a list at version {version} instead of {exact}")));
    }
    gap.list(version, views);
    Ok(())
}

/// Returns the oldest of the requested versions from which the API server still has the watch history, by a binary search.
async fn oldest_watchable<T: Decode>(
    api: &ResourceApi<'_, T>,
    gap: &Gap,
) -> Result<Option<ResourceVersion>, UpstreamError> {
    let requested = gap.requested();
    let (mut start, mut end) = (0, requested.len());
    while start < end {
        let middle = usize::midpoint(start, end);
        if is_watchable(api, requested[middle]).await? { end = middle } else { start = middle + 1 }
    }
    Ok(requested.get(start).copied())
}

/// Returns whether a watch from this version starts. An expired watch sends its error at once, so silence is a start.
async fn is_watchable<T: Decode>(api: &ResourceApi<'_, T>, from: ResourceVersion) -> Result<bool, UpstreamError> {
    let config = api.config;
    let mut body = match api.watch(from, config.backfill_watch_timeout).await {
        Ok(body) => body.into_data_stream(),
        Err(UpstreamError::Expired) => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut lines = LineSplitter::new(config.line_bytes);
    while let Ok(Some(Ok(chunk))) = timeout(config.backfill_probe_quiet_period, body.next()).await {
        lines.push(&chunk);
        if let Some(line) = lines.next().map_err(|_| answer::line_too_long(config.line_bytes))? {
            return match answer::parse_line::<T>(&line, || api.request_info("watch")) {
                Ok(_) => Ok(true),
                Err(UpstreamError::Expired) => Ok(false),
                Err(error) => Err(error),
            };
        }
    }
    Ok(true)
}

/// How the reading of changes ended.
enum Ending<'a> {
    /// All changes up to the end of the gap were read.
    Complete,
    /// The changes lead to the state at the end of the gap ([`Reading::AtEnd`]), and clients need not wait for more.
    AtEnd(Proof<'a>),
    /// Changes can be missing.
    Incomplete,
}

/// Reads the changes from the filled part of the gap on.
async fn read_changes<'a, T: Decode>(
    api: &'a ResourceApi<'a, T>,
    gap: &mut Gap,
    readings: &watch::Sender<PerResource<Reading>>,
) -> Result<Ending<'a>, UpstreamError> {
    let config = api.config;
    let Some(from) = gap.filled_up_to() else { return Ok(Ending::Incomplete) };
    let mut history = HistoryWatch::start(api, from).await?;
    loop {
        let quiet_at = history.last_chunk_at + config.backfill_quiet_period;
        let line = tokio::select! {
            biased;
            line = history.next() => line?,
            () = wait_at_end(gap, readings, quiet_at) => {
                return Ok(Ending::AtEnd(Box::pin(prove(history, gap.to()))));
            }
        };
        readings.send_modify(|readings| readings[T::RESOURCE] = Reading::Open);
        match line {
            HistoryLine::Line(line) if apply_line(api, gap, &line)? => return Ok(Ending::Complete),
            HistoryLine::Line(_) => {}
            HistoryLine::End => return Ok(Ending::Complete),
            HistoryLine::Failed => return Ok(Ending::Incomplete),
        }
    }
}

/// Returns whether a watch that was left at the state of the end delivers nothing up to `to`.
async fn prove<T: Decode>(mut history: HistoryWatch<'_, T>, to: ResourceVersion) -> bool {
    loop {
        match history.next().await {
            Ok(HistoryLine::End) => return true,
            Ok(HistoryLine::Line(line)) => match line_version(history.api, &line) {
                Ok((version, _)) if version >= to => return true,
                Ok((_, is_bookmark)) if is_bookmark => {}
                // An object was created and deleted.
                Ok(_) | Err(_) => return false,
            },
            Ok(HistoryLine::Failed) | Err(_) => return false,
        }
    }
}

/// The version of a line, and whether it is a bookmark.
fn line_version<T: Decode>(api: &ResourceApi<'_, T>, line: &[u8]) -> Result<(ResourceVersion, bool), UpstreamError> {
    Ok(match answer::parse_line::<T>(line, || api.request_info("watch"))? {
        WatchLine::Added(object) | WatchLine::Modified(object) | WatchLine::Deleted(object) => {
            (api.view(object).resource_version(), false)
        }
        WatchLine::Bookmark(version) => (version, true),
    })
}

/// A watch of missed changes.
struct HistoryWatch<'a, T> {
    api: &'a ResourceApi<'a, T>,
    body: Pin<Box<dyn Stream<Item = Result<Bytes, UpstreamError>> + Send>>,
    lines: LineSplitter,
    started: Instant,
    last_chunk_at: Instant,
}

/// What a watch of missed changes delivers next.
enum HistoryLine {
    Line(Vec<u8>),
    /// The watch ended in the regular way: after its time, and after a silence. Nothing is missing.
    End,
    /// The watch ended early, or while it still delivered changes. Some may be missing.
    Failed,
}

impl<'a, T: Decode> HistoryWatch<'a, T> {
    async fn start(api: &'a ResourceApi<'a, T>, from: ResourceVersion) -> Result<HistoryWatch<'a, T>, UpstreamError> {
        let started = Instant::now();
        let body = api.watch(from, api.config.backfill_watch_timeout).await?.into_data_stream();
        let body = Box::pin(body.map_err(|_| UpstreamError::Decode("the body is cut".to_owned())));
        let lines = LineSplitter::new(api.config.line_bytes);
        Ok(HistoryWatch { api, body, lines, started, last_chunk_at: started })
    }

    /// Returns the next line. Cancel safe.
    async fn next(&mut self) -> Result<HistoryLine, UpstreamError> {
        let config = self.api.config;
        let duration = config.backfill_watch_timeout;
        loop {
            if let Some(line) = self.lines.next().map_err(|_| answer::line_too_long(config.line_bytes))? {
                return Ok(HistoryLine::Line(line.to_vec()));
            }
            match timeout(duration + config.watch_grace, self.body.next()).await {
                Ok(Some(Ok(chunk))) => {
                    self.last_chunk_at = Instant::now();
                    self.lines.push(&chunk);
                }
                Ok(Some(Err(_))) | Err(_) => return Ok(HistoryLine::Failed),
                Ok(None) => {
                    let is_regular = self.started.elapsed() >= duration
                        && self.last_chunk_at.elapsed() >= config.catch_up_quiet_period;
                    return Ok(if is_regular { HistoryLine::End } else { HistoryLine::Failed });
                }
            }
        }
    }
}

/// Waits until the gap is at its end at `quiet_at`, and until the histories of both resources can be delivered
/// ([`can_deliver`]). It never ends if a change is missing. Cancel safe.
async fn wait_at_end(gap: &Gap, readings: &watch::Sender<PerResource<Reading>>, quiet_at: Instant) {
    sleep_until(quiet_at).await;
    if !gap.is_at_end() {
        return std::future::pending().await;
    }
    let at_end = Reading::AtEnd { has_changes: gap.has_changes() };
    readings.send_modify(|readings| readings[gap.resource()] = at_end);
    // It fails only without a sender.
    let _ = readings.subscribe().wait_for(can_deliver).await;
}

/// Applies one line, and returns whether it shows that all changes up to the end of the gap were received.
fn apply_line<T: Decode>(api: &ResourceApi<'_, T>, gap: &mut Gap, line: &[u8]) -> Result<bool, UpstreamError> {
    let version = match answer::parse_line::<T>(line, || api.request_info("watch"))? {
        WatchLine::Added(object) | WatchLine::Modified(object) => {
            let view = api.view(object);
            let version = view.resource_version();
            gap.upsert(view);
            version
        }
        WatchLine::Deleted(object) => {
            let view = api.view(object);
            gap.remove(&view);
            view.resource_version()
        }
        WatchLine::Bookmark(version) => version,
    };
    Ok(version >= gap.to())
}

async fn run_version_checks(
    pods: &ResourceApi<'_, DecodedPod>,
    claims: &ResourceApi<'_, DecodedClaim>,
    backfills: &BackfillHandle,
) -> Infallible {
    let config = pods.config;
    let mut budget = RoundBudget::per_minute(config.version_checks_per_minute);
    loop {
        backfills.wait_for_version_check().await;
        budget.ready().await;
        budget.start();
        backfills.start_version_check();
        let versions = timeout(config.version_check_timeout, newest_versions(pods, claims)).await.ok();
        if versions.is_none() {
            let limit = config.version_check_timeout;
            tracing::info!(?limit, "version check timed out; it is repeated, and clients wait for it");
        }
        backfills.complete_version_check(versions);
    }
}

/// Returns the newest versions of the API server. It repeats the requests until both succeed: the watch loops report the
/// error, and nothing is known about the waiting clients before.
async fn newest_versions(
    pods: &ResourceApi<'_, DecodedPod>,
    claims: &ResourceApi<'_, DecodedClaim>,
) -> PerResource<ResourceVersion> {
    let mut failures = 0;
    loop {
        match try_join(pods.current_version(), claims.current_version()).await {
            Ok((pods, claims)) => return PerResource::new(pods, claims),
            Err(error) => {
                failures += 1;
                pods.config.backoff.wait(failures, &error).await;
            }
        }
    }
}
