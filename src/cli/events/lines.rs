//! Lines on stdout that never delay their writer: a thread prints them.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

use super::printer::print;

/// Lines that wait for a reader of stdout that does not read. Further lines are left out.
const MAX_LINES: usize = 1024;
/// Time at the end for the lines that wait.
const FLUSH: Duration = Duration::from_secs(1);

/// A bounded queue of lines.
#[derive(Debug)]
pub(super) struct Lines {
    sender: SyncSender<String>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The thread has ended: stdout is closed or broken, or no line follows.
    ended: Notify,
    error: Mutex<Option<io::Error>>,
}

impl Lines {
    /// Starts the thread.
    pub(super) fn new() -> Lines {
        let (sender, lines) = sync_channel::<String>(MAX_LINES);
        let shared = Arc::<Shared>::default();
        let state = shared.clone();
        std::thread::spawn(move || {
            for line in lines {
                match print(&line) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) => {
                        *state.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        break;
                    }
                }
            }
            state.ended.notify_one();
        });
        Lines { sender, shared }
    }

    /// Adds a line. Returns false if it is left out.
    pub(super) fn push(&self, line: String) -> bool {
        !matches!(self.sender.try_send(line), Err(TrySendError::Full(_)))
    }

    /// Waits until stdout is closed or broken.
    pub(super) async fn closed(&self) {
        self.shared.ended.notified().await;
        // For `finish`.
        self.shared.ended.notify_one();
    }

    /// Waits until all lines are printed, at most [`FLUSH`].
    ///
    /// # Errors
    /// Stdout cannot be written. A closed pipe is no error.
    pub(super) async fn finish(self) -> io::Result<()> {
        let Lines { sender, shared } = self;
        drop(sender);
        // What a reader has not read by then is lost, as its pipe is.
        let _ = timeout(FLUSH, shared.ended.notified()).await;
        shared.error.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }
}
