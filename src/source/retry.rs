//! Which failure is an outage, and the delay before the next attempt. The hub and the dedicated watchers use the same
//! rules (docs/failures.md#expected-errors-and-outages).

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use tokio::time::sleep;

use super::error::UpstreamError;

/// Maximum number of expected errors in a row that are retried at once and do not count as an outage. A restart of the API
/// server causes two: the watch is cut, and the next watch finds its history expired.
const EXPECTED_FAILURES: u32 = 2;

/// Returns whether this error is an outage, as the last one of `failures` failures in a row.
pub(super) fn is_outage(error: &UpstreamError, failures: u32) -> bool {
    !error.is_expected() || failures > EXPECTED_FAILURES
}

/// Delays between retries.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// Delay before the first retry.
    pub min: Duration,
    /// Maximum delay between retries. It is short, because clients see the upstream as down during the delay.
    pub max: Duration,
    /// Maximum delay that a `Retry-After` header can request.
    pub retry_after_max: Duration,
    /// Returns random bits for the delay after the given number of failures.
    pub jitter: fn(u32) -> u64,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff {
            min: Duration::from_millis(100),
            max: Duration::from_secs(1),
            retry_after_max: Duration::from_secs(30),
            jitter: |failures| RandomState::new().hash_one(failures),
        }
    }
}

impl Backoff {
    /// Waits before the next attempt. `error` is the last one of `failures` failures in a row. Cancel safe.
    pub(super) async fn wait(&self, failures: u32, error: &UpstreamError) {
        sleep(self.delay(failures, error, (self.jitter)(failures))).await;
    }

    /// Returns the delay that a `Retry-After` of the API server requests, up to `retry_after_max`.
    pub(super) fn requested(&self, error: &UpstreamError) -> Option<Duration> {
        match error {
            UpstreamError::Throttled { retry_after, .. } => Some((*retry_after)?.min(self.retry_after_max)),
            _ => None,
        }
    }

    /// Returns the delay after `failures` failures in a row.
    ///
    /// The delay doubles from `min` to `max`. `random` then reduces it to between its half and its full length, so that
    /// replicas do not retry all at once. A `Retry-After` makes it longer.
    fn delay(&self, failures: u32, error: &UpstreamError, random: u64) -> Duration {
        let doubled = self.min.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
        let capped = doubled.min(self.max);
        // 16 bits are enough for a jitter.
        let fraction = f64::from(u16::try_from(random >> 48).unwrap_or(0)) / f64::from(u16::MAX);
        let jittered = capped.mul_f64(0.5 + fraction / 2.0);
        self.requested(error).map_or(jittered, |requested| jittered.max(requested))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_delays_double_up_to_the_maximum_with_jitter() {
        let (backoff, error) = (Backoff::default(), UpstreamError::WatchEnded);
        let ms = |failures, random| backoff.delay(failures, &error, random).as_millis();
        assert_eq!([1, 2, 3, 4, 5, 50].map(|failures| ms(failures, u64::MAX)), [100, 200, 400, 800, 1000, 1000]);
        assert_eq!([1, 2, u32::MAX].map(|failures| ms(failures, 0)), [50, 100, 500]);
        let throttled =
            |seconds| UpstreamError::Throttled { code: 429, retry_after: Some(Duration::from_secs(seconds)) };
        assert_eq!(backoff.delay(1, &throttled(9), 0), Duration::from_secs(9));
        assert_eq!(backoff.delay(1, &throttled(900), 0), Duration::from_secs(30));
    }

    #[test]
    fn third_expected_failure_and_every_other_failure_is_an_outage() {
        assert_eq!([1, 2, 3].map(|failures| is_outage(&UpstreamError::Expired, failures)), [false, false, true]);
        let throttled = UpstreamError::Throttled { code: 429, retry_after: None };
        assert!(is_outage(&throttled, 1));
    }
}
