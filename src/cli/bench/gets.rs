//! Somebody who asks a bridge for all its instances, over and over, while its streams are measured.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use anyhow::{Result, anyhow};

use super::first;

/// Goes on until it is stopped.
#[derive(Debug)]
pub(super) struct Gets {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Gets {
    pub(super) fn start(address: String) -> Gets {
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        let thread = std::thread::spawn(move || {
            let mut count = 0;
            while !seen.load(Relaxed) {
                first::answer(&address, "/api/v1/instances", None)?;
                count += 1;
            }
            Ok(count)
        });
        Gets { over, thread }
    }

    /// How many have been answered.
    pub(super) fn stop(self) -> Result<u64> {
        self.over.store(true, Relaxed);
        self.thread.join().map_err(|_| anyhow!("whoever asks has failed"))?
    }
}
