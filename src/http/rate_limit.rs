//! Limits for each caller: requests, denied credentials, token reviews and new streams per minute, and open streams.
//!
//! A budget is a GCRA token bucket of the `governor` crate: the complete budget is available at once and refills evenly over
//! the minute. Time is tokio's clock, so that tests can pause it.
//!
//! Guarantees: the memory is bounded. Each budget distinguishes at most [`Config::callers`] callers; all others share one
//! bucket.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use governor::{
    Quota, RateLimiter, clock::Clock, middleware::StateInformationMiddleware, nanos::Nanos, state::StateStore,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::time::Instant;

use super::caller::Caller;

/// The time over which a budget refills completely.
const WINDOW: Duration = Duration::from_secs(60);
/// Minimum time between two sweeps of a full table. A sweep is O(number of callers), so many new callers must not cause one
/// on each request.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

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
    /// Denied credentials, by address.
    pub denied_credentials: RateBudget,
    /// TokenReviews of unknown tokens, by address.
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

/// A number of uses per minute for each caller.
pub struct RateBudget {
    name: &'static str,
    quota: NonZeroU32,
    limiter: RateLimiter<Caller, BoundedStateStore, TokioClock, StateInformationMiddleware>,
    store: BoundedStateStore,
    rejections: Counter,
}

/// The state of a caller's budget after a use or a rejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetStatus {
    name: &'static str,
    /// Uses per minute.
    pub quota: u32,
    /// Uses left.
    pub remaining: u32,
    /// After a rejection: time until the next use is possible. Otherwise: time until the budget is full.
    pub after: Duration,
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
            denied_credentials: new("refused", "denied_credentials", config.denied_credentials),
            token_reviews: new("refused", "token_reviews", config.denied_credentials),
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

impl RateBudget {
    fn new(name: &'static str, quota: NonZeroU32, callers: usize, rejections: Counter) -> RateBudget {
        let clock = TokioClock(Instant::now());
        let store = BoundedStateStore { entries: Arc::default(), max_callers: callers, clock };
        let limiter = RateLimiter::new(Quota::per_minute(quota), store.clone(), clock);
        RateBudget { name, quota, limiter, store, rejections }
    }

    /// Consumes one use.
    ///
    /// # Errors
    /// The status with the time to wait, if no use is left. The rejection is counted.
    pub fn consume(&self, caller: &Caller) -> Result<BudgetStatus, BudgetStatus> {
        self.try_consume(caller).inspect_err(|_| {
            self.rejections.inc();
        })
    }

    /// Consumes one use, if one is left, for an action that has already happened. No rejection is counted.
    pub fn charge(&self, caller: &Caller) {
        // Without a use left there is nothing to consume.
        let _ = self.try_consume(caller);
    }

    /// Returns whether [`RateBudget::consume`] would succeed, without consuming a use.
    ///
    /// # Errors
    /// As [`RateBudget::consume`].
    pub fn check(&self, caller: &Caller) -> Result<(), BudgetStatus> {
        // One use refills in `refill_time`, and the budget is full at `full_at`. No use is left while the time until
        // `full_at` is longer than the refill time of all uses but one.
        let refill_time = WINDOW / self.quota.get();
        let full_at = self.store.full_at(caller).map(Duration::from).unwrap_or_default();
        let wait = full_at.saturating_sub(refill_time * (self.quota.get() - 1)).saturating_sub(self.store.clock.now());
        if wait.is_zero() {
            return Ok(());
        }
        self.rejections.inc();
        Err(self.status(0, wait))
    }

    fn try_consume(&self, caller: &Caller) -> Result<BudgetStatus, BudgetStatus> {
        match self.limiter.check_key(caller) {
            Ok(state) => {
                let remaining = state.remaining_burst_capacity();
                let used = f64::from(self.quota.get() - remaining) / f64::from(self.quota.get());
                Ok(self.status(remaining, WINDOW.mul_f64(used)))
            }
            Err(not_until) => Err(self.status(0, not_until.wait_time_from(self.store.clock.now()))),
        }
    }

    fn status(&self, remaining: u32, after: Duration) -> BudgetStatus {
        BudgetStatus { name: self.name, quota: self.quota.get(), remaining, after }
    }
}

impl fmt::Debug for RateBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateBudget").field("name", &self.name).field("quota", &self.quota).finish_non_exhaustive()
    }
}

impl BudgetStatus {
    /// Adds the headers of draft-ietf-httpapi-ratelimit-headers-10: `RateLimit-Policy` and `RateLimit`.
    pub fn write_headers(&self, headers: &mut HeaderMap) {
        let BudgetStatus { name, quota, remaining, .. } = self;
        let window = WINDOW.as_secs();
        insert(headers, "ratelimit-policy", &format!("\"{name}\";q={quota};w={window}"));
        insert(headers, "ratelimit", &format!("\"{name}\";r={remaining};t={}", self.seconds()));
    }

    /// Returns [`BudgetStatus::after`] in seconds, rounded up, and at least 1 after a rejection.
    #[must_use]
    pub fn seconds(&self) -> u64 {
        self.after.as_millis().div_ceil(1000).max(u128::from(self.remaining == 0)).try_into().unwrap_or(u64::MAX)
    }
}

fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    // Names and numbers of this module are always a valid header value.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// tokio's time since a start.
#[derive(Clone, Copy, Debug)]
struct TokioClock(Instant);

impl Clock for TokioClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A [`StateStore`] with a bounded number of callers: for each caller the time at which its budget is full. Clones share
/// their entries.
#[derive(Clone, Debug)]
struct BoundedStateStore {
    entries: Arc<Mutex<Entries>>,
    max_callers: usize,
    clock: TokioClock,
}

#[derive(Debug, Default)]
struct Entries {
    /// The key [`None`] stands for all callers that do not fit into the table.
    full_at: HashMap<Option<Caller>, Nanos>,
    last_sweep: Duration,
}

impl BoundedStateStore {
    fn full_at(&self, caller: &Caller) -> Option<Nanos> {
        let entries = lock(&self.entries);
        let key = Some(caller.clone());
        let key =
            if entries.full_at.len() >= self.max_callers && !entries.full_at.contains_key(&key) { None } else { key };
        entries.full_at.get(&key).copied()
    }
}

impl StateStore for BoundedStateStore {
    type Key = Caller;

    fn measure_and_replace<T, F, E>(&self, caller: &Caller, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut entries = lock(&self.entries);
        let Entries { full_at, last_sweep } = &mut *entries;
        let mut key = Some(caller.clone());
        if full_at.len() >= self.max_callers && !full_at.contains_key(&key) {
            let now = self.clock.now();
            if now >= *last_sweep + SWEEP_EVERY {
                *last_sweep = now;
                full_at.retain(|_, at| *at > Nanos::from(now));
            }
            if full_at.len() >= self.max_callers {
                key = None;
            }
        }
        let (outcome, at) = f(full_at.get(&key).copied())?;
        full_at.insert(key, at);
        Ok(outcome)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(last: u8) -> Caller {
        Caller::address([192, 0, 2, last].into())
    }

    fn new_budget(quota: u32, callers: usize) -> RateBudget {
        RateBudget::new("default", NonZeroU32::new(quota).unwrap(), callers, Counter::default())
    }

    fn limits(config: Config) -> RateLimits {
        RateLimits::new(&config)
    }

    #[tokio::test(start_paused = true)]
    async fn budget_allows_a_burst_and_refills_evenly() {
        let budget = new_budget(600, 10);
        for used in 1..=600 {
            assert_eq!(budget.check(&caller(1)), Ok(()));
            let status = budget.consume(&caller(1)).unwrap();
            assert_eq!(status.remaining, 600 - used);
            assert_eq!(status.after.as_millis(), u128::from(used) * 100);
        }
        let rejected = budget.consume(&caller(1)).unwrap_err();
        assert_eq!((rejected.remaining, rejected.after), (0, Duration::from_millis(100)));
        assert_eq!(budget.check(&caller(1)), Err(rejected), "check returns the status of consume");
        let mut headers = HeaderMap::new();
        rejected.write_headers(&mut headers);
        assert_eq!(headers["ratelimit-policy"], "\"default\";q=600;w=60");
        assert_eq!(headers["ratelimit"], "\"default\";r=0;t=1");
        assert_eq!(budget.consume(&caller(2)).unwrap().remaining, 599, "the budget of another caller is full");
        tokio::time::advance(Duration::from_millis(99)).await;
        assert!(budget.consume(&caller(1)).is_err(), "1 ms before the next use");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(budget.consume(&caller(1)).unwrap().remaining, 0);
        tokio::time::advance(WINDOW).await;
        assert_eq!(budget.consume(&caller(1)).unwrap().remaining, 599);
    }

    #[tokio::test(start_paused = true)]
    async fn callers_beyond_table_capacity_share_one_budget() {
        let budget = new_budget(2, 3);
        for last in 1..=3 {
            budget.consume(&caller(last)).unwrap();
        }
        budget.consume(&caller(4)).unwrap();
        budget.consume(&caller(5)).unwrap();
        assert!(budget.consume(&caller(6)).is_err(), "callers 4, 5 and 6 share a bucket");
        assert_eq!(budget.consume(&caller(1)).unwrap().remaining, 0, "caller 1 has a bucket of its own");
        assert!(lock(&budget.store.entries).full_at.len() <= 4);
        let budget = new_budget(2, 3);
        for last in 1..=3 {
            budget.consume(&caller(last)).unwrap();
        }
        tokio::time::advance(WINDOW).await;
        assert_eq!(budget.consume(&caller(4)).unwrap().remaining, 1, "callers with full budgets are removed");
        assert_eq!(budget.consume(&caller(4)).unwrap().remaining, 0);
        assert_eq!(budget.consume(&caller(5)).unwrap().remaining, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn dedicated_watchers_are_budgeted_by_caller_and_in_total() {
        let limits = limits(Config::default().with_dedicated_watchers(50));
        let opened = |last: u8| (0..200).filter(|_| limits.open_dedicated(&caller(last))).count();
        assert_eq!([opened(1), opened(2), opened(3)], [50, 50, 0], "50 of each caller, 100 of all");
        tokio::time::advance(WINDOW / 2).await;
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
