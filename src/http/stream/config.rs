//! Limits of a stream.

use std::time::Duration;

use super::jitter::random_fraction;

/// One stream in this many is reserved for callers with a credential, rounded up. Without the reservation, clients without a
/// credential could take every stream.
const RESERVED_SHARE: usize = 4;

/// Pings without an answer, at least, before a WebSocket peer is disconnected.
const PINGS_BEFORE_IDLE: u32 = 3;

/// Limits of a stream (docs/limits.md).
#[derive(Debug, Clone)]
pub struct Config {
    /// Interval of pings (WebSocket), and of heartbeats or comment lines (`--heartbeat`). Default: 15 s
    /// (docs/protocol.md#boilerhouse-stream). [`Config::with_ping_interval`] sets it together with `peer_idle_timeout`.
    pub ping_interval: Duration,
    /// A WebSocket peer that sends no byte for this time, not even a pong, is disconnected. Default: 45 s, three pings
    /// (docs/protocol.md#boilerhouse-stream).
    pub peer_idle_timeout: Duration,
    /// Time without progress after which a write ends the stream. It is also the maximum time to write the last frame.
    /// Default: 10 s (docs/protocol.md#boilerhouse-stream).
    pub write_timeout: Duration,
    /// Maximum wait for the peer's answer to a close frame. Default: 1 s, a few round trips.
    pub close_timeout: Duration,
    /// Time over which streams are closed when the process drains, each at a random time, so that their clients do not
    /// reconnect at once.
    ///
    /// Default: 8 s. Of the drain time of 10 s (docs/protocol.md#stream-endpoints, "Drain") it leaves 2 s for the last
    /// streams to close.
    pub drain_spread: Duration,
    /// Approximate size of one read of the feed, and so of one write. Default: 16 KiB.
    ///
    /// A stalled client holds this many bytes, up to 8 KiB for their buffers, and those of
    /// [`conn::Config::max_unsent_bytes`](crate::http::conn::Config::max_unsent_bytes) in the kernel: 64 KiB in all
    /// (docs/performance.md#goals). A single log entry or part of an initial state can be larger.
    pub batch_bytes: usize,
    /// Maximum number of parts of initial states that are encoded at once, on blocking threads. Default: 2. Further
    /// streams wait for their turn.
    pub max_concurrent_encodings: usize,
    /// Maximum size of a client's message; a larger one is answered with 1009. Default: 64 KiB
    /// (docs/protocol.md#boilerhouse-stream).
    pub max_message_bytes: usize,
    /// Maximum number of frames that a client may send in a second; each KiB that it sends counts as a frame. Beyond it
    /// the bridge stops to read for a moment, and TCP slows down the client. Default: 1000.
    ///
    /// Clients of the bridge have no need to send anything but pongs, so the limit is far above what they send.
    pub max_frames_per_second: u32,
    /// Maximum number of open streams. Clients of further streams are asked to retry. Default: 10000
    /// (docs/protocol.md#access).
    pub max_streams: usize,
    /// Minimum delay before a client reconnects, as `retry:` and `retryAfterMs` ask for it. Default: 1 s
    /// (docs/protocol.md#stream-endpoints).
    pub retry_min: Duration,
    /// Maximum of that delay, which is random for each client, so that clients do not reconnect at once. Default: 3 s.
    pub retry_max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_secs(15),
            peer_idle_timeout: Duration::from_secs(45),
            write_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(1),
            drain_spread: Duration::from_secs(8),
            batch_bytes: 16 * 1024,
            max_concurrent_encodings: 2,
            max_message_bytes: 64 * 1024,
            max_frames_per_second: 1000,
            max_streams: 10_000,
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(3),
        }
    }
}

impl Config {
    /// Sets the interval of pings, heartbeats and comment lines. A WebSocket peer may then be silent for three intervals, and
    /// for the default time if that is longer.
    #[must_use]
    pub fn with_ping_interval(self, ping_interval: Duration) -> Self {
        let peer_idle_timeout = Self::default().peer_idle_timeout.max(PINGS_BEFORE_IDLE * ping_interval);
        Self { ping_interval, peer_idle_timeout, ..self }
    }

    /// Returns the number of open streams from which on only callers with a credential can open another one.
    pub fn max_anonymous_streams(&self) -> usize {
        self.max_streams - self.max_streams.div_ceil(RESERVED_SHARE)
    }

    /// Returns the delay before a client reconnects. Each call returns another random delay.
    pub fn retry_delay(&self) -> Duration {
        self.retry_min + random_fraction(self.retry_max.saturating_sub(self.retry_min))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_timeout_is_at_least_three_pings_and_45_s() {
        for (ping, idle) in [(5, 45), (15, 45), (16, 48), (60, 180)] {
            let config = Config::default().with_ping_interval(Duration::from_secs(ping));
            assert_eq!(
                (config.ping_interval, config.peer_idle_timeout),
                (Duration::from_secs(ping), Duration::from_secs(idle)),
                "ping interval of {ping} s"
            );
        }
    }
}
