//! A rate budget: a number of uses per minute for each caller.
//!
//! A budget is a GCRA token bucket of the `governor` crate: the complete budget is available at once and refills evenly
//! over the minute. Time is tokio's clock, so that tests can pause it.
//!
//! Guarantees: the memory is bounded. A budget distinguishes at most `callers` callers; all others share one bucket.
//!
//! Must not import: any other module of this crate except `caller`.

use std::{
    collections::HashMap,
    fmt,
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};

use governor::{
    Quota, RateLimiter, clock::Clock, middleware::StateInformationMiddleware, nanos::Nanos, state::StateStore,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

use crate::http::{caller::Caller, sync::lock};

/// The time over which a budget refills completely.
const WINDOW: Duration = Duration::from_secs(60);
/// Minimum time between two sweeps of a full table. A sweep is O(number of callers), so many new callers must not cause one
/// on each request.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

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

/// One use of a budget that can be given back. Dropping it keeps the use consumed.
#[derive(Debug)]
#[must_use = "a reservation that is dropped stays consumed"]
pub struct Reservation<'a> {
    budget: &'a RateBudget,
    key: CallerKey,
}

/// A caller of the table, or [`None`] for all callers that do not fit into it.
type CallerKey = Option<Caller>;

impl RateBudget {
    pub(super) fn new(name: &'static str, quota: NonZeroU32, callers: usize, rejections: Counter) -> RateBudget {
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

    /// Consumes one use that can be given back. Concurrent callers can never hold more uses than are left.
    ///
    /// # Errors
    /// As [`RateBudget::consume`].
    pub fn reserve(&self, caller: &Caller) -> Result<Reservation<'_>, BudgetStatus> {
        self.consume(caller).map(|_| Reservation { budget: self, key: self.store.key(caller) })
    }

    /// Returns whether [`RateBudget::consume`] would succeed, without consuming a use.
    ///
    /// # Errors
    /// As [`RateBudget::consume`].
    pub fn check(&self, caller: &Caller) -> Result<(), BudgetStatus> {
        // The budget is full at `full_at`. No use is left while the time until then is longer than the refill time of all
        // uses but one.
        let full_at = self.store.full_at(caller).map(Duration::from).unwrap_or_default();
        let all_but_one = self.refill_time() * (self.quota.get() - 1);
        let wait = full_at.saturating_sub(all_but_one).saturating_sub(self.store.clock.now());
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

    /// Returns the time in which one use refills.
    fn refill_time(&self) -> Duration {
        WINDOW / self.quota.get()
    }

    fn status(&self, remaining: u32, after: Duration) -> BudgetStatus {
        BudgetStatus { name: self.name, quota: self.quota.get(), remaining, after }
    }
}

impl Reservation<'_> {
    /// Gives the use back, for an action that does not count against the budget.
    pub fn give_back(self) {
        let refill_time = Nanos::from(self.budget.refill_time());
        if let Some(full_at) = lock(&self.budget.store.entries).full_at.get_mut(&self.key) {
            *full_at = full_at.saturating_sub(refill_time);
        }
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
    full_at: HashMap<CallerKey, Nanos>,
    last_sweep: Duration,
}

impl BoundedStateStore {
    fn full_at(&self, caller: &Caller) -> Option<Nanos> {
        let key = self.key(caller);
        lock(&self.entries).full_at.get(&key).copied()
    }

    /// Returns the key that a use of this caller has now.
    fn key(&self, caller: &Caller) -> CallerKey {
        let entries = lock(&self.entries);
        let key = Some(caller.clone());
        if entries.full_at.len() >= self.max_callers && !entries.full_at.contains_key(&key) { None } else { key }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(last: u8) -> Caller {
        Caller::address([192, 0, 2, last].into())
    }

    fn new_budget(quota: u32, callers: usize) -> RateBudget {
        RateBudget::new("default", NonZeroU32::new(quota).unwrap(), callers, Counter::default())
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
    /// As parallel requests do: all uses are taken before the first is given back.
    #[tokio::test(start_paused = true)]
    async fn reserved_uses_count_until_they_are_given_back() {
        let budget = new_budget(3, 10);
        let reserved: Vec<_> = (0..3).map(|_| budget.reserve(&caller(1)).unwrap()).collect();
        assert!(budget.check(&caller(1)).is_err() && budget.reserve(&caller(1)).is_err());
        assert!(budget.check(&caller(2)).is_ok(), "the budget of another caller is full");
        for (given_back, reservation) in reserved.into_iter().enumerate() {
            reservation.give_back();
            assert_eq!(budget.consume(&caller(1)).unwrap().remaining, 0, "after {given_back} more");
        }
        drop(budget.reserve(&caller(2)));
        assert_eq!(budget.consume(&caller(2)).unwrap().remaining, 1, "a dropped reservation stays consumed");
    }

    #[tokio::test(start_paused = true)]
    async fn given_back_uses_never_exceed_the_budget() {
        let budget = new_budget(60, 1);
        let reservation = budget.reserve(&caller(1)).unwrap();
        // The use refills while the action runs.
        tokio::time::advance(WINDOW).await;
        reservation.give_back();
        assert_eq!(budget.consume(&caller(1)).unwrap().remaining, 59);
        // The table is full: callers 2 and 3 share a bucket, and give back to that bucket.
        let reservation = budget.reserve(&caller(2)).unwrap();
        assert_eq!(budget.consume(&caller(3)).unwrap().remaining, 58);
        reservation.give_back();
        assert_eq!(budget.consume(&caller(3)).unwrap().remaining, 58);
        assert_eq!(budget.consume(&caller(1)).unwrap().remaining, 58);
    }
}
