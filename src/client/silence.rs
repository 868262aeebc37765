//! How long a connection may be silent.

use std::time::Duration;

use tokio::time::Instant;

/// Before the interval of the heartbeats is known: twice the longest interval of a bridge (60 s), and a margin.
const INITIAL: Duration = Duration::from_secs(130);
/// Added to two intervals.
const MARGIN: Duration = Duration::from_secs(10);

/// The limit of one connection: two heartbeats and a margin.
#[derive(Debug)]
pub(super) struct SilenceLimit {
    /// A fixed limit.
    fixed: Option<Duration>,
    last_heartbeat: Option<Instant>,
    interval: Option<Duration>,
}

impl SilenceLimit {
    pub(super) fn new(fixed: Option<Duration>) -> SilenceLimit {
        SilenceLimit { fixed, last_heartbeat: None, interval: None }
    }

    /// Records a heartbeat. The longest interval between two of them counts.
    pub(super) fn on_heartbeat(&mut self, now: Instant) {
        if let Some(last) = self.last_heartbeat.replace(now) {
            let interval = now - last;
            self.interval = Some(self.interval.map_or(interval, |known| known.max(interval)));
        }
    }

    /// Returns the longest silence of a connection that lives.
    pub(super) fn limit(&self) -> Duration {
        // Two heartbeats in a row, as after a resume, say nothing about the interval: a bridge has at least 5 s.
        let measured = self.interval.filter(|interval| *interval >= Duration::from_secs(4));
        self.fixed.unwrap_or_else(|| measured.map_or(INITIAL, |interval| (2 * interval + MARGIN).min(INITIAL)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_follows_the_interval_of_the_heartbeats() {
        let (mut silence, start) = (SilenceLimit::new(None), Instant::now());
        assert_eq!(silence.limit(), INITIAL);
        silence.on_heartbeat(start);
        silence.on_heartbeat(start + Duration::from_millis(100));
        assert_eq!(silence.limit(), INITIAL);
        silence.on_heartbeat(start + Duration::from_millis(15_100));
        assert_eq!(silence.limit(), Duration::from_secs(40));
        assert_eq!(SilenceLimit::new(Some(MARGIN)).limit(), MARGIN);
    }
}
