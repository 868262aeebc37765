//! Reads history for the feed: the changes before the start of the log (docs/architecture.md#feed-contract, item 5).
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

mod history_watch;
mod round_progress;

use std::{convert::Infallible, pin::Pin};

use futures::future::join_all;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use self::{
    history_watch::{HistoryItem, HistoryWatch},
    round_progress::RoundProgress,
};
use super::{api_client::ResourceApi, round_budget::RoundBudget};
use crate::{
    event::{Resource, ResourceVersion},
    feed::{BackfillFailure, BackfillHandle, BackfillRound, Gap},
    source::{
        answer::WatchLine,
        decode::{Decode, DecodedClaim, DecodedPod},
        error::UpstreamError,
    },
};

/// Runs backfill rounds until the future is dropped.
pub(super) async fn run(
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
    let progress = RoundProgress::new(&round.gaps);
    let fills = round.gaps.iter_mut().map(async |gap| {
        let resource = gap.resource();
        let outcome = match resource {
            Resource::Pods => fill(pods, backfills, gap, &progress, deadline).await,
            Resource::Claims => fill(claims, backfills, gap, &progress, deadline).await,
        };
        progress.end(gap);
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

/// Fills a gap until the deadline. What could not be read by then becomes a difference, if there is a list to start from.
async fn fill<'a, T: Decode>(
    api: &'a ResourceApi<'a, T>,
    backfills: &BackfillHandle,
    gap: &mut Gap,
    progress: &RoundProgress,
    deadline: Instant,
) -> Result<Option<Proof<'a>>, BackfillFailure> {
    let resource = T::RESOURCE.plural();
    let failure = match timeout_at(deadline, read_history(api, backfills, gap, progress)).await {
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
    progress: &RoundProgress,
) -> Result<Option<Proof<'a>>, UpstreamError> {
    list_oldest(api, backfills, gap).await?;
    for further_lists in (0..api.config.backfill_lists).rev() {
        let has_expired = match read_changes(api, gap, progress).await {
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
    let mut history = match HistoryWatch::start(api, from).await {
        Err(UpstreamError::Expired) => return Ok(false),
        other => other?,
    };
    match timeout(api.config.backfill_probe_quiet_period, history.next()).await {
        Ok(Err(UpstreamError::Expired)) => Ok(false),
        Ok(Err(error)) => Err(error),
        Ok(Ok(_)) | Err(_) => Ok(true),
    }
}

/// How the reading of changes ended.
enum Ending<'a> {
    /// All changes up to the end of the gap were read.
    Complete,
    /// The changes lead to the state at the end of the gap, and clients need not wait for more.
    AtEnd(Proof<'a>),
    /// Changes can be missing.
    Incomplete,
}

/// Reads the changes from the filled part of the gap on.
async fn read_changes<'a, T: Decode>(
    api: &'a ResourceApi<'a, T>,
    gap: &mut Gap,
    progress: &RoundProgress,
) -> Result<Ending<'a>, UpstreamError> {
    let config = api.config;
    let Some(from) = gap.filled_up_to() else { return Ok(Ending::Incomplete) };
    let mut history = HistoryWatch::start(api, from).await?;
    loop {
        let quiet_at = history.last_chunk_at + config.backfill_quiet_period;
        let item = tokio::select! {
            biased;
            item = history.next() => item?,
            () = progress.wait_at_end(gap, quiet_at) => {
                return Ok(Ending::AtEnd(Box::pin(prove(history, gap.to()))));
            }
        };
        progress.reopen(T::RESOURCE);
        match item {
            HistoryItem::Line(line) => {
                if apply(api, gap, line) >= gap.to() {
                    return Ok(Ending::Complete);
                }
            }
            HistoryItem::End => return Ok(Ending::Complete),
            HistoryItem::Cut => return Ok(Ending::Incomplete),
        }
    }
}

/// Returns whether a watch that was left at the state of the end delivers no change up to `to`.
async fn prove<T: Decode>(mut history: HistoryWatch<'_, T>, to: ResourceVersion) -> bool {
    loop {
        match history.next().await {
            Ok(HistoryItem::End) => return true,
            Ok(HistoryItem::Line(WatchLine::Bookmark(version))) if version < to => {}
            Ok(HistoryItem::Line(WatchLine::Bookmark(_))) => return true,
            Ok(HistoryItem::Line(
                WatchLine::Added(object) | WatchLine::Modified(object) | WatchLine::Deleted(object),
            )) => {
                // A change before the end: an object was created and deleted.
                return history.api.view(object).resource_version() > to;
            }
            Ok(HistoryItem::Cut) | Err(_) => return false,
        }
    }
}

/// Applies one line, and returns its version.
fn apply<T: Decode>(api: &ResourceApi<'_, T>, gap: &mut Gap, line: WatchLine<T>) -> ResourceVersion {
    match line {
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
    }
}
