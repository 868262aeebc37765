//! What a client has sent beyond what it may send: a token bucket in two bytes.
//!
//! Guarantees: pure. One client cannot make the bridge parse more than about twice `rate` frames in a second, or one
//! read buffer, whichever is more.

use std::time::Duration;

/// Bytes that count as one frame.
const BYTES_PER_UNIT: usize = 1024;

/// The debt of one client. One unit is one frame or [`BYTES_PER_UNIT`] bytes. `rate` units a second are repaid.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct InputDebt(u16);

impl InputDebt {
    /// Adds one read of `bytes` bytes that contained `frames` frames. `elapsed` is the time since the read before it.
    pub(super) fn add(&mut self, frames: usize, bytes: usize, elapsed: Duration, rate: u32) {
        let repaid = elapsed.as_micros() * u128::from(rate) / 1_000_000;
        let left = self.0.saturating_sub(u16::try_from(repaid).unwrap_or(u16::MAX));
        // Each read has a cost, also one that completes no frame.
        let units = (frames + bytes / BYTES_PER_UNIT).max(1);
        self.0 = left.saturating_add(u16::try_from(units).unwrap_or(u16::MAX));
    }

    /// Returns for how long after the last read nothing more is read: until the debt is what the client may send in one
    /// second. With a `rate` above 65,535 it is always zero.
    pub(super) fn pause(self, rate: u32) -> Duration {
        let excess = u32::from(self.0).saturating_sub(rate);
        Duration::from_micros(u64::from(excess) * 1_000_000 / u64::from(rate.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u32 = 1000;

    #[test]
    fn client_may_send_one_second_at_once_and_then_the_rate() {
        let mut debt = InputDebt::default();
        debt.add(1000, 6000, Duration::ZERO, RATE);
        assert_eq!(debt.pause(RATE).as_millis(), 5, "6000 bytes count as 5 frames");
        debt.add(100, 100, Duration::from_millis(5), RATE);
        assert_eq!(debt.pause(RATE).as_millis(), 100);
        debt.add(1, 1, Duration::from_secs(2), RATE);
        assert_eq!(debt.pause(RATE), Duration::ZERO);
        for _ in 0..100_000 {
            debt.add(1, 6, Duration::from_millis(1), RATE);
            assert_eq!(debt.pause(RATE), Duration::ZERO, "a client that sends at the rate");
        }
    }

    #[test]
    fn every_read_counts_and_the_debt_saturates() {
        let mut debt = InputDebt::default();
        for _ in 0..1100 {
            debt.add(0, 1, Duration::ZERO, RATE);
        }
        assert_eq!(debt.pause(RATE).as_millis(), 100, "1100 reads of one byte");
        debt.add(usize::MAX / 2, 0, Duration::ZERO, RATE);
        assert_eq!(debt.pause(RATE).as_secs(), 64);
        assert_eq!(debt.pause(u32::MAX), Duration::ZERO);
        debt.add(0, 0, Duration::MAX, RATE);
        assert_eq!(debt.pause(RATE), Duration::ZERO);
    }
}
