//! Limits for each caller: requests, denied credentials, token reviews and new streams per minute, and open streams.
//!
//! Guarantees: the memory is bounded. Each [`RateBudget`] distinguishes at most [`Config::callers`] callers, and a stream
//! slot exists only while its stream is open.

mod budget;

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    sync::{Arc, Mutex},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

pub use self::budget::{BudgetStatus, RateBudget, Reservation};
use super::{caller::Caller, sync::lock};

/// Minimum of [`Config::dedicated_opens`], for a small `--dedicated-watchers`.
pub const MIN_DEDICATED_OPENS: u32 = 50;

/// Limits for each caller.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Requests per minute, except probes and streams (docs/protocol.md#access: 6000).
    pub requests: NonZeroU32,
    /// Denied credentials per minute and address (docs/protocol.md#access: 60). The same number limits the TokenReviews of
    /// unknown tokens.
    pub denied_credentials: NonZeroU32,
    /// Reads of all telemetry per minute and caller (docs/protocol.md#access: 600).
    pub telemetry_reads: NonZeroU32,
    /// Posts of telemetry per minute and tunnel (docs/protocol.md#access: 1200).
    pub telemetry_posts: NonZeroU32,
    /// New streams per minute (docs/protocol.md#access); `None`: no limit.
    pub stream_opens: Option<NonZeroU32>,
    /// Connections to `/ws` that get dedicated watchers, per minute; twice as many for all callers together. Each of them
    /// costs two lists at the API server.
    pub dedicated_opens: NonZeroU32,
    /// Open streams (docs/protocol.md#access); `None`: no limit.
    pub max_open_streams: Option<NonZeroU32>,
    /// Callers that each budget distinguishes: 10,000, about 1 MiB. Callers with a full budget are removed when the table
    /// is full.
    pub callers: usize,
}

impl Default for Config {
    fn default() -> Self {
        let (requests, denied_credentials) = (NonZeroU32::new(6000), NonZeroU32::new(60));
        Config {
            requests: requests.unwrap_or(NonZeroU32::MAX),
            denied_credentials: denied_credentials.unwrap_or(NonZeroU32::MAX),
            telemetry_reads: NonZeroU32::new(600).unwrap_or(NonZeroU32::MAX),
            telemetry_posts: NonZeroU32::new(1200).unwrap_or(NonZeroU32::MAX),
            stream_opens: None,
            dedicated_opens: NonZeroU32::new(MIN_DEDICATED_OPENS).unwrap_or(NonZeroU32::MIN),
            max_open_streams: None,
            callers: 10_000,
        }
    }
}

impl Config {
    /// Returns this configuration with a budget that lets one caller open all dedicated watchers of a server at once.
    #[must_use]
    pub fn with_dedicated_watchers(self, max_connections: usize) -> Config {
        let opens = u32::try_from(max_connections).unwrap_or(u32::MAX).max(MIN_DEDICATED_OPENS);
        Config { dedicated_opens: NonZeroU32::new(opens).unwrap_or(NonZeroU32::MAX), ..self }
    }
}

/// All budgets and stream slots of a server.
#[derive(Debug)]
pub struct RateLimits {
    /// Requests, by caller.
    pub requests: RateBudget,
    /// Reads of all telemetry, by caller.
    pub telemetry_reads: RateBudget,
    /// Posts of telemetry, by tunnel.
    pub telemetry_posts: RateBudget,
    /// Denied credentials, by address.
    pub denied_credentials: RateBudget,
    /// TokenReviews of unknown tokens, by address. A use is given back when the API server accepts the token.
    pub token_reviews: RateBudget,
    stream_opens: Option<RateBudget>,
    dedicated_opens: RateBudget,
    dedicated_opens_total: RateBudget,
    max_open_streams: Option<usize>,
    open_streams: Arc<Mutex<BTreeMap<Caller, usize>>>,
    rejections: Rejections,
}

/// Rejections by budget.
type Rejections = Family<BudgetLabels, Counter>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BudgetLabels {
    budget: &'static str,
}

/// One open stream of a caller. Dropping it frees the slot.
#[derive(Debug)]
pub struct StreamSlot {
    caller: Caller,
    open_streams: Arc<Mutex<BTreeMap<Caller, usize>>>,
}

/// Why a caller may not open a stream now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitExceeded {
    /// The caller has the maximum number of open streams (`--max-connections-per-principal`).
    StreamsOfCaller,
    /// The caller has opened the maximum number of streams per minute (`--connect-rate`).
    Rate(BudgetStatus),
}

impl RateLimits {
    /// Creates full budgets.
    #[must_use]
    pub fn new(config: &Config) -> RateLimits {
        let rejections = Rejections::default();
        // `name` is part of the response headers, `budget` is the label of the metric.
        let new = |name, budget, quota| {
            let counter = rejections.get_or_create_owned(&BudgetLabels { budget });
            RateBudget::new(name, quota, config.callers, counter)
        };
        // This budget is optional, its metric is not.
        drop(rejections.get_or_create(&BudgetLabels { budget: "stream_opens" }));
        RateLimits {
            requests: new("default", "requests", config.requests),
            telemetry_reads: new("telemetry", "telemetry_reads", config.telemetry_reads),
            telemetry_posts: new("posts", "telemetry_posts", config.telemetry_posts),
            denied_credentials: new("refused", "denied_credentials", config.denied_credentials),
            token_reviews: new("reviews", "token_reviews", config.denied_credentials),
            stream_opens: config.stream_opens.map(|quota| new("connects", "stream_opens", quota)),
            dedicated_opens: new("watchers", "dedicated_opens", config.dedicated_opens),
            // A budget for no caller is one budget for all callers.
            dedicated_opens_total: RateBudget::new(
                "watchers",
                config.dedicated_opens.saturating_add(config.dedicated_opens.get()),
                0,
                rejections.get_or_create_owned(&BudgetLabels { budget: "dedicated_opens_total" }),
            ),
            max_open_streams: config.max_open_streams.and_then(|max| max.get().try_into().ok()),
            open_streams: Arc::default(),
            rejections,
        }
    }

    /// Registers the metrics under their names.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("rate_limit_rejections", "Requests over a rate budget", self.rejections.clone());
    }

    /// Returns whether a connection of this caller may get dedicated watchers, and consumes one use of the budgets.
    pub(super) fn open_dedicated(&self, caller: &Caller) -> bool {
        self.dedicated_opens.consume(caller).is_ok() && self.dedicated_opens_total.consume(caller).is_ok()
    }

    /// Counts one more open stream of a caller. Returns its slot, or `None` if open streams are not limited.
    ///
    /// # Errors
    /// [`LimitExceeded`]; both reasons pass without a change by the client.
    pub(super) fn open_stream(&self, caller: &Caller) -> Result<Option<StreamSlot>, LimitExceeded> {
        let mut open = lock(&self.open_streams);
        if self.max_open_streams.is_some_and(|max| open.get(caller).copied().unwrap_or(0) >= max) {
            return Err(LimitExceeded::StreamsOfCaller);
        }
        if let Some(stream_opens) = &self.stream_opens {
            stream_opens.consume(caller).map_err(LimitExceeded::Rate)?;
        }
        if self.max_open_streams.is_none() {
            return Ok(None);
        }
        *open.entry(caller.clone()).or_default() += 1;
        Ok(Some(StreamSlot { caller: caller.clone(), open_streams: self.open_streams.clone() }))
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        let mut open = lock(&self.open_streams);
        if let Some(count) = open.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(last: u8) -> Caller {
        Caller::address([192, 0, 2, last].into())
    }

    fn limits(config: Config) -> RateLimits {
        RateLimits::new(&config)
    }

    #[tokio::test(start_paused = true)]
    async fn dedicated_watchers_are_budgeted_by_caller_and_in_total() {
        let limits = limits(Config::default().with_dedicated_watchers(50));
        let opened = |last: u8| (0..200).filter(|_| limits.open_dedicated(&caller(last))).count();
        assert_eq!([opened(1), opened(2), opened(3)], [50, 50, 0], "50 of each caller, 100 of all");
        tokio::time::advance(std::time::Duration::from_secs(30)).await;
        assert_eq!([opened(1), opened(2), opened(3)], [25, 25, 0]);
        assert_eq!(Config::default().with_dedicated_watchers(1).dedicated_opens.get(), MIN_DEDICATED_OPENS);
    }

    #[tokio::test(start_paused = true)]
    async fn closed_streams_release_their_permits() {
        let limits = limits(Config { max_open_streams: NonZeroU32::new(2), ..Config::default() });
        let first = limits.open_stream(&caller(1)).unwrap();
        let _second = limits.open_stream(&caller(1)).unwrap();
        assert!(matches!(limits.open_stream(&caller(1)), Err(LimitExceeded::StreamsOfCaller)));
        let _other = limits.open_stream(&caller(2)).unwrap();
        drop(first);
        let _third = limits.open_stream(&caller(1)).unwrap();
        assert!(limits.open_stream(&caller(1)).is_err());
        let limits = self::limits(Config { stream_opens: NonZeroU32::new(1), ..Config::default() });
        drop(limits.open_stream(&caller(1)).unwrap());
        assert!(matches!(limits.open_stream(&caller(1)), Err(LimitExceeded::Rate(_))));
        assert!(lock(&limits.open_streams).is_empty());
    }
}
