//! How much: requests, refused credentials and new streams a minute, and open streams, for each caller.
//!
//! A budget is governor's GCRA: its whole at once, then evenly over the minute. Time is tokio's, so that tests hold it.
//! Always: however many callers there are, only so many are told apart; the rest share one budget.

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
use tokio::time::Instant;

use super::caller::Caller;

/// The time over which budgets are given.
const WINDOW: Duration = Duration::from_secs(60);

/// What a caller may use.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// GETs a minute (docs/protocol.md#access: 6000).
    pub requests: NonZeroU32,
    /// Refused credentials a minute and address (docs/protocol.md#access: 60); and so many questions to the cluster about
    /// tokens that are nobody's.
    pub denied_credentials: NonZeroU32,
    /// New streams a minute (docs/protocol.md#access: off).
    pub stream_opens: Option<NonZeroU32>,
    /// Open streams (docs/protocol.md#access; off).
    pub max_open_streams: Option<NonZeroU32>,
    /// Callers that are told apart in each budget: 10,000, about 1 MiB. Those whose budget is whole again make room.
    pub callers: usize,
}

impl Default for Config {
    fn default() -> Self {
        let (requests, denied_credentials) = (NonZeroU32::new(6000), NonZeroU32::new(60));
        Config {
            requests: requests.unwrap_or(NonZeroU32::MAX),
            denied_credentials: denied_credentials.unwrap_or(NonZeroU32::MAX),
            stream_opens: None,
            max_open_streams: None,
            callers: 10_000,
        }
    }
}

/// All limits of a listener.
#[derive(Debug)]
pub struct RateLimits {
    /// GETs.
    pub requests: RateBudget,
    /// Credentials that were refused.
    pub denied_credentials: RateBudget,
    /// Those of them that the cluster had to be asked about, and that nobody has.
    pub token_reviews: RateBudget,
    stream_opens: Option<RateBudget>,
    max_open_streams: Option<usize>,
    open_streams: Arc<Mutex<BTreeMap<Caller, usize>>>,
}

/// A seat among a caller's open streams; given back when dropped.
#[derive(Debug)]
pub struct StreamSlot {
    caller: Caller,
    open_streams: Arc<Mutex<BTreeMap<Caller, usize>>>,
}

/// Why a caller may not open one more stream now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitExceeded {
    /// The caller already has as many open streams as it may have (`--max-connections-per-principal`).
    StreamsOfCaller,
    /// The caller has opened as many streams as it may open per minute (`--connect-rate`).
    Rate(BudgetStatus),
}

/// So many a minute for each caller.
pub struct RateBudget {
    name: &'static str,
    quota: NonZeroU32,
    limiter: RateLimiter<Caller, BoundedStateStore, TokioClock, StateInformationMiddleware>,
    store: BoundedStateStore,
}

/// What a budget is at after a use, or when one is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetStatus {
    name: &'static str,
    /// Uses per minute.
    pub quota: u32,
    /// Uses left.
    pub remaining: u32,
    /// When it is refused: until the next one. Otherwise: until the budget is whole again.
    pub after: Duration,
}

impl RateLimits {
    /// Whole budgets.
    #[must_use]
    pub fn new(config: &Config) -> RateLimits {
        RateLimits {
            requests: RateBudget::new("default", config.requests, config.callers),
            denied_credentials: RateBudget::new("refused", config.denied_credentials, config.callers),
            token_reviews: RateBudget::new("refused", config.denied_credentials, config.callers),
            stream_opens: config
                .stream_opens
                .map(|stream_opens| RateBudget::new("connects", stream_opens, config.callers)),
            max_open_streams: config.max_open_streams.and_then(|max| max.get().try_into().ok()),
            open_streams: Arc::default(),
        }
    }

    /// A seat for one more stream; `None` where they are not counted.
    ///
    /// # Errors
    /// Both reasons pass by themselves.
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
    fn new(name: &'static str, quota: NonZeroU32, callers: usize) -> RateBudget {
        let clock = TokioClock(Instant::now());
        let store = BoundedStateStore { entries: Arc::default(), max_callers: callers, clock };
        let limiter = RateLimiter::new(Quota::per_minute(quota), store.clone(), clock);
        RateBudget { name, quota, limiter, store }
    }

    /// Uses one.
    ///
    /// # Errors
    /// When none is left, with how long to wait.
    pub fn consume(&self, caller: &Caller) -> Result<BudgetStatus, BudgetStatus> {
        match self.limiter.check_key(caller) {
            Ok(state) => {
                let remaining = state.remaining_burst_capacity();
                let used = f64::from(self.quota.get() - remaining) / f64::from(self.quota.get());
                Ok(self.status(remaining, WINDOW.mul_f64(used)))
            }
            Err(refused) => Err(self.status(0, refused.wait_time_from(self.store.clock.now()))),
        }
    }

    /// Whether [`RateBudget::consume`] would be refused, without using one.
    ///
    /// # Errors
    /// As there.
    pub fn check(&self, caller: &Caller) -> Result<(), BudgetStatus> {
        // One comes back in `each`; the budget is whole at `full_at`, and none is left while that is further off than all
        // but one take to come back.
        let each = WINDOW / self.quota.get();
        let full_at = self.store.full_at(caller).map(Duration::from).unwrap_or_default();
        let wait = full_at.saturating_sub(each * (self.quota.get() - 1)).saturating_sub(self.store.clock.now());
        if wait.is_zero() { Ok(()) } else { Err(self.status(0, wait)) }
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
    /// Says it in the headers of draft-ietf-httpapi-ratelimit-headers-10.
    pub fn write_headers(&self, headers: &mut HeaderMap) {
        let BudgetStatus { name, quota, remaining, .. } = self;
        let window = WINDOW.as_secs();
        put(headers, "ratelimit-policy", &format!("\"{name}\";q={quota};w={window}"));
        put(headers, "ratelimit", &format!("\"{name}\";r={remaining};t={}", self.seconds()));
    }

    /// At least one, as nobody can wait for less.
    pub fn seconds(&self) -> u64 {
        self.after.as_millis().div_ceil(1000).max(u128::from(self.remaining == 0)).try_into().unwrap_or(u64::MAX)
    }
}

fn put(headers: &mut HeaderMap, name: &'static str, value: &str) {
    // Digits and names of ours: always a valid value.
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

/// By caller, the time at which its budget is whole again. A bounded [`StateStore`]; its clones are the same one.
#[derive(Clone, Debug)]
struct BoundedStateStore {
    entries: Arc<Mutex<Entries>>,
    max_callers: usize,
    clock: TokioClock,
}

#[derive(Debug, Default)]
struct Entries {
    /// [`None`] is everybody for whom there was no room.
    full_at: HashMap<Option<Caller>, Nanos>,
    last_sweep: Duration,
}

/// Looking for room costs as much as there are callers: a crowd of strangers shall not make everybody pay for it often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

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

    fn limits(config: Config) -> RateLimits {
        RateLimits::new(&config)
    }

    #[tokio::test(start_paused = true)]
    async fn budget_allows_a_burst_and_refills_evenly() {
        let budget = RateBudget::new("default", NonZeroU32::new(600).unwrap(), 10);
        for used in 1..=600 {
            assert_eq!(budget.check(&caller(1)), Ok(()));
            let status = budget.consume(&caller(1)).unwrap();
            assert_eq!(status.remaining, 600 - used);
            assert_eq!(status.after.as_millis(), u128::from(used) * 100);
        }
        let refused = budget.consume(&caller(1)).unwrap_err();
        assert_eq!((refused.remaining, refused.after), (0, Duration::from_millis(100)));
        assert_eq!(budget.check(&caller(1)), Err(refused), "looking tells the same");
        let mut headers = HeaderMap::new();
        refused.write_headers(&mut headers);
        assert_eq!(headers["ratelimit-policy"], "\"default\";q=600;w=60");
        assert_eq!(headers["ratelimit"], "\"default\";r=0;t=1");
        assert_eq!(budget.consume(&caller(2)).unwrap().remaining, 599, "others are not touched");
        tokio::time::advance(Duration::from_millis(99)).await;
        assert!(budget.consume(&caller(1)).is_err());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(budget.consume(&caller(1)).unwrap().remaining, 0);
        tokio::time::advance(WINDOW).await;
        assert_eq!(budget.consume(&caller(1)).unwrap().remaining, 599);
    }

    #[tokio::test(start_paused = true)]
    async fn callers_beyond_table_capacity_share_one_budget() {
        let budget = RateBudget::new("default", NonZeroU32::new(2).unwrap(), 3);
        for last in 1..=3 {
            budget.consume(&caller(last)).unwrap();
        }
        budget.consume(&caller(4)).unwrap();
        budget.consume(&caller(5)).unwrap();
        assert!(budget.consume(&caller(6)).is_err(), "4, 5 and 6 share");
        assert_eq!(budget.consume(&caller(1)).unwrap().remaining, 0, "1 has its own");
        assert!(lock(&budget.store.entries).full_at.len() <= 4);
        let budget = RateBudget::new("default", NonZeroU32::new(2).unwrap(), 3);
        for last in 1..=3 {
            budget.consume(&caller(last)).unwrap();
        }
        tokio::time::advance(WINDOW).await;
        assert_eq!(budget.consume(&caller(4)).unwrap().remaining, 1, "the others are whole again, and make room");
        assert_eq!(budget.consume(&caller(4)).unwrap().remaining, 0);
        assert_eq!(budget.consume(&caller(5)).unwrap().remaining, 1);
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
