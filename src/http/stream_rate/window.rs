//! The window in which the events of a stream are counted. Pure: the caller passes the times.

use std::{num::NonZeroU32, time::Duration};

use tokio::time::Instant;

use crate::event::render;

/// The use of the current window.
#[derive(Debug)]
pub(super) struct RateWindow {
    limit: u64,
    length: Duration,
    /// The start of the window, by the monotonic clock and by the wall clock in ms; `None` until an event is counted.
    start: Option<(Instant, u64)>,
    /// Counted events. Those beyond `limit` use up the next window, but no further one: the differences of a re-list can be
    /// a thousand events, which must not silence a stream for an hour.
    used: u64,
}

impl RateWindow {
    pub(super) fn new(limit: NonZeroU32, length: Duration) -> RateWindow {
        RateWindow { limit: u64::from(limit.get()), length, start: None, used: 0 }
    }

    /// Ends the windows that have passed.
    pub(super) fn advance(&mut self, now: Instant, now_ms: u64) {
        while let Some((start, _)) = self.start
            && now >= start + self.length
        {
            let next = start + self.length;
            self.used = self.used.saturating_sub(self.limit);
            self.start = (self.used > 0).then(|| (next, now_ms.saturating_sub(millis(now - next))));
        }
    }

    /// Counts one event.
    pub(super) fn count(&mut self, now: Instant, now_ms: u64) {
        self.start.get_or_insert((now, now_ms));
        self.used = (self.used + 1).min(2 * self.limit);
    }

    /// Returns the number of windows that the counted events use up, at least 1.
    fn windows_used(&self) -> u32 {
        // At most 2, because `count` bounds `used`.
        if self.used >= 2 * self.limit { 2 } else { 1 }
    }

    /// Returns the time at which the next event is possible, if the window is used up.
    pub(super) fn blocked_until(&self) -> Option<Instant> {
        let (start, _) = self.start?;
        (self.used >= self.limit).then(|| start + self.length * self.windows_used())
    }

    /// Returns the value of `rate_limit`. Without a counted event there is nothing to reset, and `reset_at` is now.
    pub(super) fn to_json(&self, now_ms: u64) -> String {
        let RateWindow { limit, used, .. } = self;
        let reset_ms = self.start.map_or(now_ms, |(_, ms)| ms + millis(self.length * self.windows_used()));
        let reset_at = render::format_timestamp(reset_ms);
        let remaining = limit.saturating_sub(*used);
        format!(r#"{{"limit":{limit},"remaining":{remaining},"reset_at":"{reset_at}"}}"#)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
