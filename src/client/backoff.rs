//! Delays before a client reconnects (docs/protocol.md#events).

use std::time::Duration;

/// The delay after the first failure.
const MIN: Duration = Duration::from_secs(1);
/// The longest delay.
const MAX: Duration = Duration::from_secs(30);

/// Delays from 1 s on, doubling to 30 s. Each is drawn at random from its upper half, so that clients spread.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Returns the next delay. `random` is between 0 and 1. A longer delay that the server asks for wins, up to `MAX`.
    pub fn next(&mut self, asked: Option<Duration>, random: f64) -> Duration {
        let own = (MIN * 2_u32.saturating_pow(self.failures.min(8))).min(MAX);
        self.failures = self.failures.saturating_add(1);
        let own = own.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0);
        asked.map_or(own, |asked| asked.min(MAX).max(own))
    }

    /// Starts again at 1 s, because a connection has delivered an event.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Returns a random number between 0 and 1.
#[must_use]
pub fn random() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    f64::from(u32::try_from(RandomState::new().hash_one(0) >> 32).unwrap_or(u32::MAX)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_the_maximum_and_honour_the_server() {
        let mut backoff = Backoff::default();
        let delays: Vec<u64> = (0..7).map(|_| backoff.next(None, 1.0).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 30, 30]);
        backoff.reset();
        assert_eq!(backoff.next(None, 0.0), Duration::from_millis(500));
        assert_eq!(backoff.next(Some(Duration::from_secs(7)), 0.0), Duration::from_secs(7));
        assert_eq!(backoff.next(Some(Duration::from_secs(3600)), 0.0), MAX);
        assert!((0.0..=1.0).contains(&random()));
    }
}
