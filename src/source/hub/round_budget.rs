//! How often backfill rounds and version checks may start. Cursors come from clients, so they must not become a way to load
//! the API server.
//!
//! Guarantees:
//! - At most the given number of rounds starts within any minute.
//! - A round beyond that waits, and is never skipped: it answers all clients that wait by then.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The time in which rounds are counted.
const MINUTE: Duration = Duration::from_secs(60);

/// A token bucket: half of the rounds of a minute may start at once, the others evenly.
#[derive(Debug)]
pub(super) struct RoundBudget {
    /// Rounds that may start at once.
    burst: u32,
    /// The time after which one more round may start.
    period: Duration,
    /// When no start counts any more.
    full_at: Instant,
}

impl RoundBudget {
    /// Creates a budget of at most `max` starts within any minute.
    pub(super) fn per_minute(max: u32) -> RoundBudget {
        let burst = (max / 2).max(1);
        // `max - burst` periods are shorter than a minute, and one more is as long as a minute.
        let period = MINUTE / (max.max(burst) - burst + 1);
        RoundBudget { burst, period, full_at: Instant::now() }
    }

    /// Waits until one more round may start: at most `period`. Cancel safe.
    pub(super) async fn ready(&self) {
        // The earliest time at which at most `burst - 1` starts still count.
        let counted = self.period * (self.burst - 1);
        if let Some(ready_at) = self.full_at.checked_sub(counted) {
            sleep_until(ready_at).await;
        }
    }

    /// Counts the start of a round.
    pub(super) fn start(&mut self) {
        self.full_at = self.full_at.max(Instant::now()) + self.period;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The resolution of tokio's timer.
    const RESOLUTION: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn any_minute_has_at_most_the_budget_and_each_wait_is_at_most_one_period() {
        for max in [1, 2, 3, 6, 12] {
            let mut budget = RoundBudget::per_minute(max);
            let mut starts: Vec<Instant> = Vec::new();
            for round in 0..60_u64 {
                // Rounds of different lengths, and now and then a pause in which the budget fills.
                tokio::time::sleep(Duration::from_secs(if round % 20 == 19 { 90 } else { round % 3 })).await;
                let requested = Instant::now();
                budget.ready().await;
                let waited = requested.elapsed();
                assert!(waited <= budget.period + RESOLUTION, "{max} a minute: a wait of {waited:?}");
                budget.start();
                starts.push(Instant::now());
            }
            for (first, start) in starts.iter().enumerate() {
                let within = starts[first..].iter().take_while(|later| **later - *start < MINUTE).count();
                assert!(within <= max as usize, "{max} a minute: {within} starts within a minute");
            }
            let shortest = starts.windows(max as usize + 1).map(|window| window[max as usize] - window[0]).min();
            assert!(
                shortest.is_some_and(|time| time < MINUTE * 2),
                "{max} a minute: the budget is not used: {shortest:?}"
            );
        }
    }
}
