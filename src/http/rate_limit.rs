//! How much: requests, refused credentials and new streams a minute, and open streams, for each caller.
//!
//! A budget is governor's GCRA: its whole at once, then evenly over the minute. Time is tokio's, so that tests hold it.
//! Always: however many callers there are, only so many are told apart; the rest share one budget.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use governor::{
    Quota, RateLimiter, clock::Clock, middleware::StateInformationMiddleware, nanos::Nanos, state::StateStore,
};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use tokio::time::Instant;

use super::{
    error::{Code, Error},
    unavailable::Later,
};

/// The time over which budgets are given.
const WINDOW: Duration = Duration::from_secs(60);

/// What a caller may use.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// GETs a minute (protocol.md section 7: 6000).
    pub requests: NonZeroU32,
    /// Refused credentials a minute and address (protocol.md section 7: 60); and so many questions to the cluster about
    /// tokens that are nobody's.
    pub refusals: NonZeroU32,
    /// New streams a minute (protocol.md section 7: off).
    pub connects: Option<NonZeroU32>,
    /// Open streams (protocol.md section 7; off).
    pub streams: Option<NonZeroU32>,
    /// Callers that are told apart in each budget: 10,000, about 1 MiB. Those whose budget is whole again make room.
    pub callers: usize,
}

impl Default for Config {
    fn default() -> Self {
        let (requests, refusals) = (NonZeroU32::new(6000), NonZeroU32::new(60));
        Config {
            requests: requests.unwrap_or(NonZeroU32::MAX),
            refusals: refusals.unwrap_or(NonZeroU32::MAX),
            connects: None,
            streams: None,
            callers: 10_000,
        }
    }
}

/// Whose budget it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Caller {
    /// Nobody in particular, from this address. Of IPv6 the first 64 bits, which is what one subscriber has.
    Address(IpAddr),
    /// An API key, by its name.
    Key(Arc<str>),
    /// A Kubernetes user, by its name.
    User(Arc<str>),
}

impl Caller {
    /// Whoever asks from there.
    #[must_use]
    pub fn address(address: IpAddr) -> Caller {
        Caller::Address(match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        })
    }
}

/// All limits of a listener.
#[derive(Debug)]
pub struct Limits {
    /// GETs.
    pub requests: Budget,
    /// Credentials that were refused.
    pub refusals: Budget,
    /// Those of them that the cluster had to be asked about, and that nobody has.
    pub guesses: Budget,
    connects: Option<Budget>,
    streams: Option<usize>,
    open: Arc<Mutex<BTreeMap<Caller, usize>>>,
}

/// A seat among a caller's open streams; given back when dropped.
#[derive(Debug)]
pub struct Seat {
    caller: Caller,
    open: Arc<Mutex<BTreeMap<Caller, usize>>>,
}

/// So many a minute for each caller.
pub struct Budget {
    name: &'static str,
    quota: NonZeroU32,
    limiter: RateLimiter<Caller, Ledger, Held, StateInformationMiddleware>,
    ledger: Ledger,
}

/// What a budget is at after a use, or when one is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spent {
    name: &'static str,
    quota: u32,
    /// Uses left.
    pub remaining: u32,
    /// When it is refused: until the next one. Otherwise: until the budget is whole again.
    pub after: Duration,
}

impl Limits {
    /// Whole budgets.
    #[must_use]
    pub fn new(config: &Config) -> Limits {
        Limits {
            requests: Budget::new("default", config.requests, config.callers),
            refusals: Budget::new("refused", config.refusals, config.callers),
            guesses: Budget::new("refused", config.refusals, config.callers),
            connects: config.connects.map(|connects| Budget::new("connects", connects, config.callers)),
            streams: config.streams.and_then(|most| most.get().try_into().ok()),
            open: Arc::default(),
        }
    }

    /// A seat for one more stream; `None` where they are not counted.
    ///
    /// # Errors
    /// Both reasons pass by themselves.
    pub(super) fn enter(&self, caller: &Caller) -> Result<Option<Seat>, Later> {
        let mut open = lock(&self.open);
        if self.streams.is_some_and(|most| open.get(caller).copied().unwrap_or(0) >= most) {
            return Err(Later::TooManyOfOne);
        }
        if let Some(connects) = &self.connects {
            connects.take(caller).map_err(Later::Rate)?;
        }
        if self.streams.is_none() {
            return Ok(None);
        }
        *open.entry(caller.clone()).or_default() += 1;
        Ok(Some(Seat { caller: caller.clone(), open: self.open.clone() }))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        if let Some(count) = open.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.caller);
            }
        }
    }
}

impl Budget {
    fn new(name: &'static str, quota: NonZeroU32, callers: usize) -> Budget {
        let clock = Held(Instant::now());
        let ledger = Ledger { rows: Arc::default(), most: callers, clock };
        let limiter = RateLimiter::new(Quota::per_minute(quota), ledger.clone(), clock);
        Budget { name, quota, limiter, ledger }
    }

    /// Uses one.
    ///
    /// # Errors
    /// When none is left, with how long to wait.
    pub fn take(&self, caller: &Caller) -> Result<Spent, Spent> {
        match self.limiter.check_key(caller) {
            Ok(state) => {
                let remaining = state.remaining_burst_capacity();
                let used = f64::from(self.quota.get() - remaining) / f64::from(self.quota.get());
                Ok(self.spent(remaining, WINDOW.mul_f64(used)))
            }
            Err(refused) => Err(self.spent(0, refused.wait_time_from(self.ledger.clock.now()))),
        }
    }

    /// Whether [`Budget::take`] would be refused, without using one.
    ///
    /// # Errors
    /// As there.
    pub fn look(&self, caller: &Caller) -> Result<(), Spent> {
        // One comes back in `each`; the budget is whole at `whole_at`, and none is left while that is further off than all
        // but one take to come back.
        let each = WINDOW / self.quota.get();
        let whole_at = self.ledger.whole_at(caller).map(Duration::from).unwrap_or_default();
        let wait = whole_at.saturating_sub(each * (self.quota.get() - 1)).saturating_sub(self.ledger.clock.now());
        if wait.is_zero() { Ok(()) } else { Err(self.spent(0, wait)) }
    }

    fn spent(&self, remaining: u32, after: Duration) -> Spent {
        Spent { name: self.name, quota: self.quota.get(), remaining, after }
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").field("name", &self.name).field("quota", &self.quota).finish_non_exhaustive()
    }
}

impl Spent {
    /// Says it in the headers of draft-ietf-httpapi-ratelimit-headers-10.
    pub fn tell(&self, headers: &mut HeaderMap) {
        let Spent { name, quota, remaining, .. } = self;
        let window = WINDOW.as_secs();
        put(headers, "ratelimit-policy", &format!("\"{name}\";q={quota};w={window}"));
        put(headers, "ratelimit", &format!("\"{name}\";r={remaining};t={}", self.seconds()));
    }

    /// The refusal: 429.
    #[must_use]
    pub fn refusal(&self, message: &str) -> Error {
        let mut headers = HeaderMap::new();
        self.tell(&mut headers);
        put(&mut headers, header::RETRY_AFTER.as_str(), &self.seconds().to_string());
        let seconds = self.seconds();
        let message = format!("{message}: more than {} a minute; try again in {seconds} s", self.quota);
        headers.into_iter().fold(Error::new(Code::RateLimitExceeded, message), |error, (name, value)| match name {
            Some(name) => error.with(name, value),
            None => error,
        })
    }

    /// At least one, as nobody can wait for less.
    fn seconds(&self) -> u64 {
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
struct Held(Instant);

impl Clock for Held {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// By caller, the time at which its budget is whole again. A bounded [`StateStore`]; its clones are the same one.
#[derive(Clone, Debug)]
struct Ledger {
    rows: Arc<Mutex<Rows>>,
    most: usize,
    clock: Held,
}

#[derive(Debug, Default)]
struct Rows {
    /// [`None`] is everybody for whom there was no room.
    whole_at: HashMap<Option<Caller>, Nanos>,
    swept: Duration,
}

/// Looking for room costs as much as there are callers: a crowd of strangers shall not make everybody pay for it often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

impl Ledger {
    fn whole_at(&self, caller: &Caller) -> Option<Nanos> {
        let rows = lock(&self.rows);
        let row = Some(caller.clone());
        let row = if rows.whole_at.len() >= self.most && !rows.whole_at.contains_key(&row) { None } else { row };
        rows.whole_at.get(&row).copied()
    }
}

impl StateStore for Ledger {
    type Key = Caller;

    fn measure_and_replace<T, F, E>(&self, caller: &Caller, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut rows = lock(&self.rows);
        let Rows { whole_at, swept } = &mut *rows;
        let mut row = Some(caller.clone());
        if whole_at.len() >= self.most && !whole_at.contains_key(&row) {
            let now = self.clock.now();
            if now >= *swept + SWEEP_EVERY {
                *swept = now;
                whole_at.retain(|_, at| *at > Nanos::from(now));
            }
            if whole_at.len() >= self.most {
                row = None;
            }
        }
        let (outcome, at) = f(whole_at.get(&row).copied())?;
        whole_at.insert(row, at);
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

    fn limits(config: Config) -> Limits {
        Limits::new(&config)
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_is_had_at_once_and_comes_back_evenly() {
        let budget = Budget::new("default", NonZeroU32::new(600).unwrap(), 10);
        for used in 1..=600 {
            assert_eq!(budget.look(&caller(1)), Ok(()));
            let spent = budget.take(&caller(1)).unwrap();
            assert_eq!(spent.remaining, 600 - used);
            assert_eq!(spent.after.as_millis(), u128::from(used) * 100);
        }
        let refused = budget.take(&caller(1)).unwrap_err();
        assert_eq!((refused.remaining, refused.after), (0, Duration::from_millis(100)));
        assert_eq!(budget.look(&caller(1)), Err(refused), "looking tells the same");
        let mut headers = HeaderMap::new();
        refused.tell(&mut headers);
        assert_eq!(headers["ratelimit-policy"], "\"default\";q=600;w=60");
        assert_eq!(headers["ratelimit"], "\"default\";r=0;t=1");
        assert_eq!(budget.take(&caller(2)).unwrap().remaining, 599, "others are not touched");
        tokio::time::advance(Duration::from_millis(99)).await;
        assert!(budget.take(&caller(1)).is_err());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(budget.take(&caller(1)).unwrap().remaining, 0);
        tokio::time::advance(WINDOW).await;
        assert_eq!(budget.take(&caller(1)).unwrap().remaining, 599);
    }

    #[tokio::test(start_paused = true)]
    async fn callers_without_room_share_one_budget_until_there_is() {
        let budget = Budget::new("default", NonZeroU32::new(2).unwrap(), 3);
        for last in 1..=3 {
            budget.take(&caller(last)).unwrap();
        }
        budget.take(&caller(4)).unwrap();
        budget.take(&caller(5)).unwrap();
        assert!(budget.take(&caller(6)).is_err(), "4, 5 and 6 share");
        assert_eq!(budget.take(&caller(1)).unwrap().remaining, 0, "1 has its own");
        assert!(lock(&budget.ledger.rows).whole_at.len() <= 4);
        let budget = Budget::new("default", NonZeroU32::new(2).unwrap(), 3);
        for last in 1..=3 {
            budget.take(&caller(last)).unwrap();
        }
        tokio::time::advance(WINDOW).await;
        assert_eq!(budget.take(&caller(4)).unwrap().remaining, 1, "the others are whole again, and make room");
        assert_eq!(budget.take(&caller(4)).unwrap().remaining, 0);
        assert_eq!(budget.take(&caller(5)).unwrap().remaining, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn streams_have_seats_that_come_back() {
        let limits = limits(Config { streams: NonZeroU32::new(2), ..Config::default() });
        let first = limits.enter(&caller(1)).unwrap();
        let _second = limits.enter(&caller(1)).unwrap();
        assert!(matches!(limits.enter(&caller(1)), Err(Later::TooManyOfOne)));
        let _other = limits.enter(&caller(2)).unwrap();
        drop(first);
        let _third = limits.enter(&caller(1)).unwrap();
        assert!(limits.enter(&caller(1)).is_err());
        let limits = self::limits(Config { connects: NonZeroU32::new(1), ..Config::default() });
        drop(limits.enter(&caller(1)).unwrap());
        assert!(matches!(limits.enter(&caller(1)), Err(Later::Rate(_))));
        assert!(lock(&limits.open).is_empty());
    }

    #[test]
    fn an_ipv6_subscriber_is_one_caller() {
        let one = |text: &str| Caller::address(text.parse().unwrap());
        assert_eq!(one("2001:db8:0:1::1"), one("2001:db8:0:1:ffff::2"));
        assert_ne!(one("2001:db8:0:1::1"), one("2001:db8:0:2::1"));
    }
}
