//! Control of the paused clock in tests with `start_paused`.

use std::{sync::mpsc, time::Duration};

use super::http_client::TEST_TIMEOUT;

/// Maximum time that auto-advance stays off. After it, a test that waits in vain fails by the timeouts of its clients.
const MAX_HOLD: Duration = TEST_TIMEOUT.saturating_mul(3);

/// Turns auto-advance off until the returned sender is dropped. The clock then moves only by [`tokio::time::advance`].
///
/// tokio advances a paused clock when all tasks wait. It does not do so while a blocking task runs.
pub(crate) fn disable_auto_advance() -> mpsc::Sender<()> {
    let (sender, receiver) = mpsc::channel();
    tokio::task::spawn_blocking(move || receiver.recv_timeout(MAX_HOLD));
    sender
}
