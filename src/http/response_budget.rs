//! The memory of snapshot responses: one body for all requests with the same answer, and a bound on the bytes of all
//! bodies that clients have not read yet (docs/limits.md).
//!
//! Guarantees:
//! - Requests with the same key share one body while one of them is being answered.
//! - The bodies of one caller have at most a quarter of the budget, so that one caller cannot keep others from answers.
//!   A body that alone is larger counts as that quarter.
//! - A request waits for its turn, after earlier requests of the same caller, for at most [`Config::max_wait`].
//!
//! Must not import: the feed, endpoints.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use tokio::{
    sync::{OnceCell, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    caller::Caller,
    sync::{lock, run_blocking},
};
use crate::{
    event::{hash::sha256_prefix, projection::Projection},
    weak_table::WeakTable,
};

/// Default of [`Config::max_bytes`] in MiB.
pub const DEFAULT_MAX_MIB: u32 = 48;
/// Bytes of one permit of a budget.
const UNIT_BYTES: usize = 1024;
/// The part of the budget that the bodies of one caller may have.
const CALLER_SHARE: usize = 4;

/// Bounds of the bodies.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Maximum bytes of all bodies that clients have not read yet. Default: 48 MiB (`--response-memory`).
    pub max_bytes: usize,
    /// Maximum time that a request waits for a part of the budget. Default: 1 s.
    pub max_wait: Duration,
    /// Maximum number of bodies that are encoded at once. Default: 2.
    pub max_concurrent_encodings: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            max_bytes: (DEFAULT_MAX_MIB as usize) << 20,
            max_wait: Duration::from_secs(1),
            max_concurrent_encodings: 2,
        }
    }
}

/// What determines a body.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BodyKey {
    /// The endpoint.
    pub path: &'static str,
    /// What the client may see and has asked for.
    pub projection: Projection,
    /// The position of the log after the state.
    pub position: u64,
}

/// The bodies of all responses, and their budget.
pub struct ResponseBudget {
    config: Config,
    total: Arc<Semaphore>,
    callers: Mutex<WeakTable<Caller, Semaphore>>,
    bodies: Mutex<WeakTable<BodyKey, OnceCell<Body>>>,
    encodings: Arc<Semaphore>,
    bytes: Gauge,
    rejections: Counter,
}

/// A part of the budget. Dropping it returns it.
#[derive(Debug)]
pub struct Reservation {
    of_caller: OwnedSemaphorePermit,
    of_total: OwnedSemaphorePermit,
}

/// The budget has no part for a request, and none became free in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetExceeded;

/// An encoded body, as a response holds it.
#[derive(Clone, Debug)]
pub struct EncodedBody {
    /// The bytes, shared by all responses with this body.
    pub bytes: Bytes,
    /// The first 64 bits of their SHA-256, for `ETag`.
    pub hash: u64,
}

/// An encoded body. It exists until the last response with it has been read.
struct Body {
    text: String,
    hash: u64,
    bytes: Gauge,
    _reservation: Reservation,
}

impl Drop for Body {
    fn drop(&mut self) {
        self.bytes.dec_by(self.text.len().cast_signed() as i64);
    }
}

/// The owner of the bytes of a body.
struct SharedBody(Arc<OnceCell<Body>>);

impl AsRef<[u8]> for SharedBody {
    fn as_ref(&self) -> &[u8] {
        self.0.get().map_or(&[], |body| body.text.as_bytes())
    }
}

impl ResponseBudget {
    /// Creates a budget of which nothing is used.
    #[must_use]
    pub fn new(config: Config) -> ResponseBudget {
        ResponseBudget {
            config,
            total: Arc::new(Semaphore::new(units(config.max_bytes) as usize)),
            callers: Mutex::default(),
            bodies: Mutex::default(),
            encodings: Arc::new(Semaphore::new(config.max_concurrent_encodings)),
            bytes: Gauge::default(),
            rejections: Counter::default(),
        }
    }

    /// Registers the metrics. The caller sets the prefix of the registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "http_response_bytes",
            "Bytes of snapshot responses that clients have not read completely",
            self.bytes.clone(),
        );
        registry.register(
            "http_response_budget_rejections",
            "Snapshot requests answered with 503 because unread responses use the budget",
            self.rejections.clone(),
        );
    }

    /// Returns the body with this key, if a response has it.
    pub fn find(&self, key: &BodyKey) -> Option<EncodedBody> {
        share(lock(&self.bodies).get(key)?)
    }

    /// Reserves a part of the budget for a body of about `bytes` bytes.
    ///
    /// # Errors
    /// [`BudgetExceeded`] after [`Config::max_wait`].
    pub async fn reserve(&self, caller: &Caller, bytes: usize) -> Result<Reservation, BudgetExceeded> {
        let share = units(self.config.max_bytes / CALLER_SHARE);
        let of_caller = lock(&self.callers).get_or_insert(caller.clone(), || Semaphore::new(share as usize));
        let wanted = units(bytes).min(share);
        // An error would mean a closed semaphore, which these never are.
        let reserved = timeout(self.config.max_wait, async {
            let of_caller = of_caller.acquire_many_owned(wanted).await.ok()?;
            let of_total = self.total.clone().acquire_many_owned(wanted).await.ok()?;
            Some(Reservation { of_caller, of_total })
        });
        reserved.await.ok().flatten().ok_or(BudgetExceeded)
    }

    /// Counts a request that is rejected after [`BudgetExceeded`].
    pub fn count_rejection(&self) {
        self.rejections.inc();
    }

    /// Returns the body with this key. If no response has it, `encode` makes it on a blocking thread. A body without a key is
    /// not shared.
    ///
    /// # Errors
    /// The error of `encode`.
    pub async fn body<E: Send + 'static>(
        &self,
        key: Option<BodyKey>,
        reservation: Reservation,
        encode: impl FnOnce() -> Result<String, E> + Send + 'static,
    ) -> Result<EncodedBody, E> {
        let cell = key.map_or_else(Arc::default, |key| lock(&self.bodies).get_or_insert(key, OnceCell::new));
        let init = cell.get_or_try_init(|| async {
            // Encoding 10,000 Pods takes 10 ms, which would delay streams on the runtime's threads. The reservation is held
            // until its end, also if the client disconnects.
            let work = move || (reservation, encode().map(|text| (sha256_prefix(text.as_bytes()), text)));
            let (mut reservation, encoded) = run_blocking(&self.encodings, work).await;
            let (hash, text) = encoded?;
            reservation.adjust_to(text.len());
            self.bytes.inc_by(text.len().cast_signed() as i64);
            Ok(Body { text, hash, bytes: self.bytes.clone(), _reservation: reservation })
        });
        init.await?;
        Ok(share(cell).expect("the body exists since it was initialized"))
    }
}

impl fmt::Debug for ResponseBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBudget")
            .field("config", &self.config)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

impl Reservation {
    /// Returns what exceeds `bytes` to the budget. What is missing is taken if it is free.
    fn adjust_to(&mut self, bytes: usize) {
        for permit in [&mut self.of_caller, &mut self.of_total] {
            let (held, needed) = (permit.num_permits(), units(bytes) as usize);
            drop(permit.split(held.saturating_sub(needed)));
            let missing = u32::try_from(needed.saturating_sub(held)).unwrap_or(u32::MAX);
            if let Ok(more) = permit.semaphore().clone().try_acquire_many_owned(missing) {
                permit.merge(more);
            }
        }
    }
}

/// Returns a body for one more response, if it exists.
fn share(cell: Arc<OnceCell<Body>>) -> Option<EncodedBody> {
    let hash = cell.get()?.hash;
    Some(EncodedBody { bytes: Bytes::from_owner(SharedBody(cell)), hash })
}

/// Returns the permits for this number of bytes, at least one.
fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).clamp(1, u32::MAX >> 4)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tokio::time::Instant;

    use super::*;
    use crate::event::projection::EventFormat;

    const MIB: usize = 1 << 20;

    fn budget(max_bytes: usize) -> ResponseBudget {
        ResponseBudget::new(Config { max_bytes, ..Config::default() })
    }

    fn caller(last: u8) -> Caller {
        Caller::address([192, 0, 2, last].into())
    }

    fn key(position: u64) -> BodyKey {
        BodyKey { path: "/test", projection: Projection::everything(EventFormat::Full), position }
    }

    async fn body(budget: &ResponseBudget, from: u8, position: u64, bytes: usize) -> Result<Bytes, BudgetExceeded> {
        if let Some(body) = budget.find(&key(position)) {
            return Ok(body.bytes);
        }
        let reservation = budget.reserve(&caller(from), bytes).await?;
        let body = budget.body(Some(key(position)), reservation, move || Ok::<_, Infallible>("x".repeat(bytes))).await;
        Ok(body.unwrap_or_else(|never| match never {}).bytes)
    }

    #[tokio::test(start_paused = true)]
    async fn requests_with_one_key_share_one_body() {
        let budget = budget(8 * MIB);
        let mut bodies = Vec::new();
        for _ in 0..400 {
            bodies.push(body(&budget, 1, 7, MIB).await.unwrap());
        }
        assert!(bodies.iter().all(|body| body.as_ptr() == bodies[0].as_ptr() && body.len() == MIB));
        assert_eq!(budget.bytes.get(), MIB as i64);
        drop(bodies);
        assert_eq!(budget.bytes.get(), 0, "the body is dropped with its last response");
        assert_eq!(budget.total.available_permits(), 8 * MIB / UNIT_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn caller_has_a_quarter_and_others_are_served_meanwhile() {
        let budget = budget(8 * MIB);
        let first = body(&budget, 1, 1, MIB).await.unwrap();
        let second = body(&budget, 1, 2, MIB).await.unwrap();
        let start = Instant::now();
        assert_eq!(body(&budget, 1, 3, MIB).await.unwrap_err(), BudgetExceeded);
        assert_eq!(start.elapsed(), budget.config.max_wait);
        let start = Instant::now();
        let other = body(&budget, 2, 4, MIB).await.unwrap();
        assert!(start.elapsed().is_zero(), "another caller does not wait");
        let shared = body(&budget, 1, 1, MIB).await.unwrap();
        assert_eq!(shared.as_ptr(), first.as_ptr(), "a body that exists needs no part of the budget");
        drop((first, shared));
        let third = body(&budget, 1, 3, MIB).await.unwrap();
        assert_eq!(budget.bytes.get(), 3 * MIB as i64);
        drop((second, third, other));
        assert_eq!(budget.bytes.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_request_gets_its_turn_when_a_body_has_been_read() {
        let budget = budget(4 * MIB);
        let first = body(&budget, 1, 1, MIB).await.unwrap();
        let read_first = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            drop(first);
        };
        let (waiting, ()) = tokio::join!(body(&budget, 1, 2, MIB), read_first);
        assert_eq!(waiting.map(|body| body.len()), Ok(MIB));
    }

    #[tokio::test(start_paused = true)]
    async fn body_larger_than_the_share_is_served_alone_and_a_small_one_returns_its_excess() {
        let budget = budget(4 * MIB);
        let large = body(&budget, 1, 1, 3 * MIB).await.unwrap();
        assert!(body(&budget, 1, 2, 1).await.is_err());
        drop(large);
        let reservation = budget.reserve(&caller(1), MIB).await.unwrap();
        let small = budget.body(None, reservation, || Ok::<_, Infallible>("x".to_owned())).await.unwrap();
        assert!(body(&budget, 1, 4, MIB - UNIT_BYTES).await.is_ok(), "the reservation was reduced to the body");
        drop(small);
    }

    #[tokio::test]
    async fn encoding_of_a_client_that_left_holds_its_permit_and_its_reservation() {
        let budget = budget(4 * MIB);
        let (started, mut has_started) = tokio::sync::mpsc::channel(1);
        let (continues, may_continue) = std::sync::mpsc::sync_channel::<()>(1);
        let reservation = budget.reserve(&caller(1), MIB).await.unwrap();
        let encode = move || {
            started.try_send(()).unwrap();
            may_continue.recv().unwrap();
            Ok::<_, Infallible>("x".repeat(MIB))
        };
        {
            let mut body = std::pin::pin!(budget.body(Some(key(1)), reservation, encode));
            tokio::select! {
                _ = &mut body => panic!("the encoding has not ended"),
                _ = has_started.recv() => {}
            }
        }
        assert_eq!(budget.encodings.available_permits(), budget.config.max_concurrent_encodings - 1);
        assert_eq!(budget.total.available_permits(), 3 * MIB / UNIT_BYTES);
        continues.send(()).unwrap();
        let ended = timeout(Duration::from_secs(20), async {
            while budget.total.available_permits() < 4 * MIB / UNIT_BYTES {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        assert!(ended.await.is_ok(), "the reservation is not returned");
    }

    #[tokio::test(start_paused = true)]
    async fn failed_encoding_is_not_shared_and_returns_its_reservation() {
        let budget = budget(4 * MIB);
        let reservation = budget.reserve(&caller(1), MIB).await.unwrap();
        assert_eq!(budget.body(Some(key(1)), reservation, || Err::<String, _>("no")).await.unwrap_err(), "no");
        assert_eq!(body(&budget, 1, 1, MIB).await.unwrap().len(), MIB);
    }
}
