//! When the screen is drawn: soon after a change, and once a second for the ages. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// The least time between two redraws: 10 a second.
pub(super) const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// The time between two redraws while nothing changes.
pub(super) const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// The schedule of the redraws. The first one is due at once.
#[derive(Debug, Default)]
pub(super) struct Redraw {
    drawn_at: Option<Instant>,
    has_changed: bool,
}

impl Redraw {
    /// Records that something on the screen may have changed.
    pub(super) fn request(&mut self) {
        self.has_changed = true;
    }

    /// Returns when the next redraw is due.
    pub(super) fn due(&self, now: Instant) -> Instant {
        let interval = if self.has_changed { MIN_INTERVAL } else { IDLE_INTERVAL };
        self.drawn_at.map_or(now, |at| at + interval)
    }

    /// Records a redraw.
    pub(super) fn drawn(&mut self, now: Instant) {
        *self = Redraw { drawn_at: Some(now), has_changed: false };
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep_until};

    use super::*;

    /// Counts the redraws in 10 s, with a change after each of these intervals.
    async fn redraws(changes: Option<Duration>) -> u32 {
        let (mut redraw, mut count) = (Redraw::default(), 0);
        let end = Instant::now() + Duration::from_secs(10);
        let mut change_at = Instant::now();
        while Instant::now() < end {
            tokio::select! {
                biased;
                () = sleep_until(redraw.due(Instant::now())) => {
                    redraw.drawn(Instant::now());
                    count += 1;
                }
                () = sleep_until(change_at), if changes.is_some() => {
                    redraw.request();
                    change_at += changes.unwrap();
                }
            }
        }
        count
    }

    #[tokio::test(start_paused = true)]
    async fn at_most_ten_redraws_a_second_and_one_while_nothing_changes() {
        assert!((95..=101).contains(&redraws(Some(Duration::from_millis(5))).await));
        assert!((10..=11).contains(&redraws(None).await));
        assert!((20..=22).contains(&redraws(Some(Duration::from_millis(500))).await));
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_after_a_quiet_time_is_drawn_at_once() {
        let mut redraw = Redraw::default();
        redraw.drawn(Instant::now());
        advance(Duration::from_millis(600)).await;
        redraw.request();
        assert!(redraw.due(Instant::now()) <= Instant::now());
    }
}
