//! A held clock, for tests with `start_paused`: it goes on only by [`tokio::time::advance`].

use std::{sync::mpsc, time::Duration};

use super::http_client::TEST_TIMEOUT;

/// How long it is held at most, so that a test whose answer does not come fails by the bounds of its clients.
const MAX_HOLD: Duration = TEST_TIMEOUT.saturating_mul(3);

/// Holds the clock until this is dropped. A paused one goes on as soon as everybody waits: a blocking task keeps it from
/// that.
pub(crate) fn disable_auto_advance() -> mpsc::Sender<()> {
    let (held, until) = mpsc::channel();
    tokio::task::spawn_blocking(move || until.recv_timeout(MAX_HOLD));
    held
}
