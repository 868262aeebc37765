//! What readers want to know of the past: the history before the log, and whether there are versions as high as theirs
//! (architecture.md, the feed's contract, 3 and 5).
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
    api_client::{self, Api},
    line_splitter::Lines,
};
use crate::{
    event::ResourceVersion,
    feed::{Gap, Past},
    source::{
        decode::{ClaimRow, PodRow, Row},
        error::Trouble,
    },
};

/// The time over which rounds are counted.
const MINUTE: Duration = Duration::from_secs(60);

/// Serves the past for as long as it is polled.
pub(super) async fn run(client: &kube::Client, config: &Config, metrics: &Metrics, past: &Past) -> Infallible {
    let pods = Api::<PodRow>::new(client, config, metrics);
    let claims = Api::<ClaimRow>::new(client, config, metrics);
    let (never, _) = tokio::join!(backfill(&pods, &claims, past), confirm(&pods, &claims, past));
    never
}

/// How many rounds may begin within a minute.
struct Budget {
    most: usize,
    begun: VecDeque<Instant>,
}

impl Budget {
    fn new(most: usize) -> Budget {
        Budget { most, begun: VecDeque::new() }
    }

    /// Whether one more may begin; if so, it has.
    fn take(&mut self) -> bool {
        let now = Instant::now();
        while self.begun.front().is_some_and(|begun| *begun + MINUTE <= now) {
            self.begun.pop_front();
        }
        let may = self.begun.len() < self.most;
        if may {
            self.begun.push_back(now);
        }
        may
    }
}

async fn backfill(pods: &Api<'_, PodRow>, claims: &Api<'_, ClaimRow>, past: &Past) -> Infallible {
    let config = pods.config;
    let mut budget = Budget::new(config.backfills_a_minute);
    loop {
        past.wanted().await;
        sleep(config.park).await;
        let mut round = past.begin();
        if !budget.take() {
            tracing::debug!("too many cursors older than the log: their clients get the current state");
            past.give_up();
            continue;
        }
        let filled = async {
            for gap in &mut round.gaps {
                match gap.kind() {
                    crate::event::Resource::Instance => fill(pods, gap).await?,
                    crate::event::Resource::Claim => fill(claims, gap).await?,
                }
            }
            Ok::<_, Trouble>(())
        };
        match timeout(config.backfill_time, filled).await {
            Ok(Ok(())) => past.fill(round),
            Ok(Err(trouble)) => {
                tracing::info!("the past could not be read, clients get the current state: {trouble}");
                past.give_up();
            }
            Err(_) => {
                tracing::info!("reading the past took too long, clients get the current state");
                past.give_up();
            }
        }
    }
}

/// The state at the gap's start, then what happened up to its end.
async fn fill<T: Row>(api: &Api<'_, T>, gap: &mut Gap) -> Result<(), Trouble> {
    let (views, rv) = api.list_at(Some(gap.from())).await?;
    if rv != gap.from() {
        return Err(Trouble::Unreadable(format!("a list at version {rv} where {} was asked for", gap.from())));
    }
    gap.list(views);
    // Without its history, what is left is the difference.
    let whole = match watch(api, gap).await {
        Ok(whole) => whole,
        Err(trouble) => {
            tracing::debug!(resource = T::KIND.resource(), "the past is told as a difference: {trouble}");
            false
        }
    };
    gap.close(whole);
    Ok(())
}

/// Reads what happened. Whether that is all of it.
async fn watch<T: Row>(api: &Api<'_, T>, gap: &mut Gap) -> Result<bool, Trouble> {
    let config = api.config;
    let (began, lasts) = (Instant::now(), config.backfill_watch);
    let mut body = api.watch(gap.from(), lasts).await?.into_data_stream();
    let mut lines = Lines::new(config.line_bytes);
    loop {
        let chunk = match timeout(lasts + config.watch_grace, body.next()).await {
            Ok(Some(Ok(chunk))) => chunk,
            Ok(Some(Err(_))) | Err(_) => return Ok(false),
            // Ended in order. Sooner than asked, something else ended it, and may have kept the rest.
            Ok(None) => return Ok(began.elapsed() >= lasts),
        };
        lines.push(&chunk);
        while let Some(line) = lines.next().map_err(|_| Trouble::Unreadable("a line that is too long".to_owned()))? {
            if past_end(api, gap, &line)? {
                return Ok(true);
            }
            if gap.len() > config.backfill_steps {
                return Err(Trouble::Unreadable(format!("more than {} changes", config.backfill_steps)));
            }
        }
    }
}

/// Takes one line in. Whether it shows that all up to the gap's end has come.
fn past_end<T: Row>(api: &Api<'_, T>, gap: &mut Gap, line: &[u8]) -> Result<bool, Trouble> {
    let to = gap.to();
    let rv = match api_client::line::<T>(line)? {
        WatchEvent::Added(row) | WatchEvent::Modified(row) => {
            let view = api.view(row);
            let rv = view.rv();
            if rv <= to {
                gap.upsert(view);
            }
            rv
        }
        WatchEvent::Deleted(row) => {
            let view = api.view(row);
            if view.rv() <= to {
                gap.remove(&view);
            }
            view.rv()
        }
        WatchEvent::Bookmark(bookmark) => bookmark.metadata.resource_version.parse().unwrap_or(0),
        WatchEvent::Error(status) => return Err(Trouble::line(&status, &api.ask("watch"))),
    };
    Ok(rv >= to)
}

async fn confirm(pods: &Api<'_, PodRow>, claims: &Api<'_, ClaimRow>, past: &Past) -> Infallible {
    let config = pods.config;
    let mut budget = Budget::new(config.confirms_a_minute);
    loop {
        past.unsure().await;
        past.begin_confirm();
        if !budget.take() {
            past.confirm(None);
            continue;
        }
        let mut tries = 0;
        let versions: [ResourceVersion; 2] = loop {
            match futures::future::try_join(pods.version(), claims.version()).await {
                Ok((pods, claims)) => break [pods, claims],
                Err(trouble) => {
                    // The hub says what is wrong; who waits goes on waiting, as nothing is known.
                    tries += 1;
                    super::pause(config, tries, &trouble).await;
                }
            }
        };
        past.confirm(Some(versions));
    }
}
