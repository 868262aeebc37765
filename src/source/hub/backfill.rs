//! What readers want to know of the past: the history before the log, and whether there are versions as high as theirs
//! (docs/architecture.md#feed-contract, item 3 and 5).
//!
//! Asked for at most so often and for everybody who waits at once: cursors come from clients, and must not become a way
//! to load the API server. Kubernetes marks no end of what was missed, so a watch of the past counts as whole only when
//! it has come to the log's start, or has lasted as long as it was to last and ended in order.

use std::{collections::VecDeque, convert::Infallible, time::Duration};

use futures::StreamExt;
use http_body_util::BodyExt;
use kube::core::WatchEvent;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Config, Metrics,
    api_client::{self, ResourceApi},
    line_splitter::LineSplitter,
};
use crate::{
    event::PerResource,
    feed::{BackfillFailure, BackfillHandle, Gap},
    source::{
        decode::{Decode, DecodedClaim, DecodedPod},
        error::UpstreamError,
    },
};

/// The time over which rounds are counted.
const MINUTE: Duration = Duration::from_secs(60);

/// Serves the past for as long as it is polled.
pub(super) async fn run(
    client: &kube::Client,
    config: &Config,
    metrics: &Metrics,
    past: &BackfillHandle,
) -> Infallible {
    let pods = ResourceApi::<DecodedPod>::new(client, config, metrics);
    let claims = ResourceApi::<DecodedClaim>::new(client, config, metrics);
    let (never, _) = tokio::join!(backfill(&pods, &claims, past), run_version_checks(&pods, &claims, past));
    never
}

/// How many rounds may begin within a minute.
struct RoundBudget {
    max: usize,
    started: VecDeque<Instant>,
}

impl RoundBudget {
    fn new(most: usize) -> RoundBudget {
        RoundBudget { max: most, started: VecDeque::new() }
    }

    /// Whether one more may begin; if so, it has.
    fn take(&mut self) -> bool {
        let now = Instant::now();
        while self.started.front().is_some_and(|begun| *begun + MINUTE <= now) {
            self.started.pop_front();
        }
        let may = self.started.len() < self.max;
        if may {
            self.started.push_back(now);
        }
        may
    }
}

async fn backfill(
    pods: &ResourceApi<'_, DecodedPod>,
    claims: &ResourceApi<'_, DecodedClaim>,
    past: &BackfillHandle,
) -> Infallible {
    let config = pods.config;
    let mut budget = RoundBudget::new(config.backfills_per_minute);
    loop {
        past.wait_for_request().await;
        sleep(config.backfill_batch_delay).await;
        let mut round = past.start_round();
        if !budget.take() {
            tracing::debug!("too many cursors older than the log: their clients get the current state");
            past.abandon_round(BackfillFailure::Budget);
            continue;
        }
        let filled = async {
            for gap in &mut round.gaps {
                match gap.resource() {
                    crate::event::Resource::Pods => fill(pods, gap).await?,
                    crate::event::Resource::Claims => fill(claims, gap).await?,
                }
            }
            Ok::<_, UpstreamError>(())
        };
        match timeout(config.backfill_timeout, filled).await {
            Ok(Ok(())) => past.complete_round(round),
            Ok(Err(error)) => {
                tracing::info!("the past could not be read, clients get the current state: {error}");
                past.abandon_round(BackfillFailure::Failed);
            }
            Err(_) => {
                tracing::info!("reading the past took too long, clients get the current state");
                past.abandon_round(BackfillFailure::Timeout);
            }
        }
    }
}

/// The state at the gap's start, then what happened up to its end.
async fn fill<T: Decode>(api: &ResourceApi<'_, T>, gap: &mut Gap) -> Result<(), UpstreamError> {
    let (views, rv) = api.list_at(Some(gap.from())).await?;
    if rv != gap.from() {
        return Err(UpstreamError::Decode(format!("a list at version {rv} where {} was asked for", gap.from())));
    }
    gap.list(views);
    // Without its history, what is left is the difference.
    let whole = match watch(api, gap).await {
        Ok(whole) => whole,
        Err(error) => {
            tracing::debug!(resource = T::KIND.plural(), "the past is told as a difference: {error}");
            false
        }
    };
    gap.close(whole);
    Ok(())
}

/// Reads what happened. Whether that is all of it.
async fn watch<T: Decode>(api: &ResourceApi<'_, T>, gap: &mut Gap) -> Result<bool, UpstreamError> {
    let config = api.config;
    let (began, lasts) = (Instant::now(), config.backfill_watch_timeout);
    let mut body = api.watch(gap.from(), lasts).await?.into_data_stream();
    let mut lines = LineSplitter::new(config.line_bytes);
    loop {
        let chunk = match timeout(lasts + config.watch_grace, body.next()).await {
            Ok(Some(Ok(chunk))) => chunk,
            Ok(Some(Err(_))) | Err(_) => return Ok(false),
            // Ended in order. Sooner than asked, something else ended it, and may have kept the rest.
            Ok(None) => return Ok(began.elapsed() >= lasts),
        };
        lines.push(&chunk);
        while let Some(line) = lines.next().map_err(|_| UpstreamError::Decode("a line that is too long".to_owned()))? {
            if apply_line(api, gap, &line)? {
                return Ok(true);
            }
            if gap.len() > config.backfill_max_changes {
                return Err(UpstreamError::Decode(format!("more than {} changes", config.backfill_max_changes)));
            }
        }
    }
}

/// Takes one line in. Whether it shows that all up to the gap's end has come.
fn apply_line<T: Decode>(api: &ResourceApi<'_, T>, gap: &mut Gap, line: &[u8]) -> Result<bool, UpstreamError> {
    let to = gap.to();
    let rv = match api_client::parse_line::<T>(line)? {
        WatchEvent::Added(row) | WatchEvent::Modified(row) => {
            let view = api.view(row);
            let rv = view.resource_version();
            if rv <= to {
                gap.upsert(view);
            }
            rv
        }
        WatchEvent::Deleted(row) => {
            let view = api.view(row);
            if view.resource_version() <= to {
                gap.remove(&view);
            }
            view.resource_version()
        }
        WatchEvent::Bookmark(bookmark) => bookmark.metadata.resource_version.parse().unwrap_or(0),
        WatchEvent::Error(status) => return Err(UpstreamError::from_watch_status(&status, &api.request_info("watch"))),
    };
    Ok(rv >= to)
}

async fn run_version_checks(
    pods: &ResourceApi<'_, DecodedPod>,
    claims: &ResourceApi<'_, DecodedClaim>,
    past: &BackfillHandle,
) -> Infallible {
    let config = pods.config;
    let mut budget = RoundBudget::new(config.version_checks_per_minute);
    loop {
        past.wait_for_version_check().await;
        past.start_version_check();
        if !budget.take() {
            past.complete_version_check(None);
            continue;
        }
        let mut tries = 0;
        let versions = loop {
            match futures::future::try_join(pods.current_version(), claims.current_version()).await {
                Ok((pods, claims)) => break PerResource::new(pods, claims),
                Err(error) => {
                    // The hub says what is wrong; who waits goes on waiting, as nothing is known.
                    tries += 1;
                    super::back_off(config, tries, &error).await;
                }
            }
        };
        past.complete_version_check(Some(versions));
    }
}
