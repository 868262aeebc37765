//! Delays between retries.

use std::time::Duration;

use tokio::time::sleep;

use super::config::Config;
use crate::source::error::UpstreamError;

/// Waits before the next attempt. `error` is the last one of `failures` failures in a row. Cancel safe.
pub(super) async fn back_off(config: &Config, failures: u32, error: &UpstreamError) {
    sleep(delay(config, failures, error, (config.jitter)(failures))).await;
}

/// Returns the delay after `failures` failures in a row.
///
/// The delay doubles from `backoff_min` to `backoff_max`. `random` then reduces it to between its half and its full length,
/// so that replicas do not retry all at once. A `Retry-After` of the API server, up to `retry_after_max`, makes it longer.
fn delay(config: &Config, failures: u32, error: &UpstreamError, random: u64) -> Duration {
    let doubled = config.backoff_min.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
    let capped = doubled.min(config.backoff_max);
    // 16 bits are enough for a jitter.
    let fraction = f64::from(u16::try_from(random >> 48).unwrap_or(0)) / f64::from(u16::MAX);
    let jittered = capped.mul_f64(0.5 + fraction / 2.0);
    match error {
        UpstreamError::Throttled { retry_after: Some(requested), .. } => {
            jittered.max((*requested).min(config.retry_after_max))
        }
        _ => jittered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_delays_double_up_to_the_maximum_with_jitter() {
        let (config, error) = (Config::default(), UpstreamError::WatchEnded);
        let ms = |failures, random| delay(&config, failures, &error, random).as_millis();
        assert_eq!([1, 2, 3, 4, 5, 50].map(|failures| ms(failures, u64::MAX)), [100, 200, 400, 800, 1000, 1000]);
        assert_eq!([1, 2, u32::MAX].map(|failures| ms(failures, 0)), [50, 100, 500]);
        let throttled = UpstreamError::Throttled { code: 429, retry_after: Some(Duration::from_secs(9)) };
        assert_eq!(delay(&config, 1, &throttled, 0), Duration::from_secs(9));
    }
}
