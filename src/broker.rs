//! What the connections to an MQTT broker and to NATS share: how TLS is configured, the delay between two tries, and the state
//! that operators see.
//!
//! Owns: no connection.
//!
//! Must not import: any other module of this crate.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use rustls::ClientConfig;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// Delay after the first failure.
const MIN_DELAY: Duration = Duration::from_secs(1);
/// Maximum delay between two tries.
const MAX_DELAY: Duration = Duration::from_secs(30);
/// Maximum characters of a reason, because a server can send any text.
pub(crate) const MAX_REASON_CHARS: usize = 200;

/// Returns the configuration of TLS. It is called before each try, so that changed certificates are used.
pub type TlsConfig = Arc<dyn Fn() -> Result<Arc<ClientConfig>, String> + Send + Sync>;

/// Returns the delay after this number of failures in a row, the last one included.
pub(crate) fn retry_delay(failures: u32) -> Duration {
    delay(failures, RandomState::new().hash_one(failures))
}

/// The delay doubles from [`MIN_DELAY`] to [`MAX_DELAY`], and is drawn from its upper half, so that replicas do not connect all
/// at once.
fn delay(failures: u32, random: u64) -> Duration {
    let longest = MIN_DELAY.saturating_mul(1 << failures.saturating_sub(1).min(8)).min(MAX_DELAY);
    let fraction = f64::from(u16::try_from(random >> 48).unwrap_or(0)) / f64::from(u16::MAX);
    longest.mul_f64(0.5 + fraction / 2.0)
}

/// The metrics of a connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    up: Gauge,
    connections: Counter,
    failures: Counter,
}

impl Metrics {
    /// Registers the metrics `<name>_up`, `<name>_connections` and `<name>_failures` with these descriptions.
    pub(crate) fn register(&self, registry: &mut Registry, name: &str, [up, connections, failures]: [&str; 3]) {
        registry.register(format!("{name}_up"), up, self.up.clone());
        registry.register(format!("{name}_connections"), connections, self.connections.clone());
        registry.register(format!("{name}_failures"), failures, self.failures.clone());
    }
}

/// The state of a connection. Its task changes it, and `/readyz?verbose` shows it.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The server, as the log names it.
    server: &'static str,
    state: Mutex<State>,
    metrics: Metrics,
}

#[derive(Debug)]
enum State {
    Connecting,
    Up,
    Down { since: Instant, reason: String },
}

impl Connection {
    /// Creates the state before the first try.
    pub(crate) fn new(server: &'static str, metrics: Metrics) -> Connection {
        Connection { server, state: Mutex::new(State::Connecting), metrics }
    }

    /// Returns the state in words: `connected`, or `down for 7 s: connection refused`.
    pub(crate) fn text(&self) -> String {
        match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Connecting => "connecting".to_owned(),
            State::Up => "connected".to_owned(),
            State::Down { since, reason } => format!("down for {} s: {reason}", since.elapsed().as_secs()),
        }
    }

    /// Records that the connection is in use. Returns whether that ends an outage.
    pub(crate) fn up(&self) -> bool {
        self.metrics.up.set(1);
        self.metrics.connections.inc();
        info!("{} connected", self.server);
        let before = std::mem::replace(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner), State::Up);
        matches!(before, State::Down { .. })
    }

    /// Records a failed try or the end of a connection; the reason is cut after 200 characters. It logs the first failure of an
    /// outage, and further ones at level `debug`. Returns the reason, if this is the first one.
    pub(crate) fn down(&self, reason: &str) -> Option<String> {
        self.metrics.up.set(0);
        self.metrics.failures.inc();
        let reason: String = reason.chars().take(MAX_REASON_CHARS).collect();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Down { since, .. } = *state {
            debug!(reason, "{} still down", self.server);
            *state = State::Down { since, reason };
            return None;
        }
        warn!(reason, "{} down; connecting again", self.server);
        *state = State::Down { since: Instant::now(), reason: reason.clone() };
        Some(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_the_maximum_with_jitter() {
        let seconds = |failures, random| delay(failures, random).as_secs_f64();
        assert_eq!(
            [1, 2, 3, 4, 5, 6, u32::MAX].map(|failures| seconds(failures, u64::MAX)),
            [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
        );
        assert_eq!([0, 1, 99].map(|failures| seconds(failures, 0)), [0.5, 0.5, 15.0]);
        assert!((0.5..=1.0).contains(&retry_delay(1).as_secs_f64()));
    }

    #[tokio::test(start_paused = true)]
    async fn state_is_that_of_the_last_call_and_an_outage_has_one_start() {
        let connection = Connection::new("NATS", Metrics::default());
        assert_eq!(connection.text(), "connecting");
        assert!(!connection.up(), "the first connection ends no outage");
        assert_eq!(connection.text(), "connected");
        assert_eq!(connection.down(&"x".repeat(300)), Some("x".repeat(MAX_REASON_CHARS)));
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(connection.down("refused"), None);
        assert_eq!(connection.text(), "down for 7 s: refused");
        assert!(connection.up());
        let Metrics { up, connections, failures } = &connection.metrics;
        assert_eq!((up.get(), connections.get(), failures.get()), (1, 2, 2));
    }
}
