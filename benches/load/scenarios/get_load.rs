//! GETs of all instances, one after the other, while the streams of a bridge are measured.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use anyhow::{Result, anyhow};

use crate::http_client::time_response;

/// Sends GETs until it is stopped.
#[derive(Debug)]
pub(crate) struct GetLoad {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl GetLoad {
    pub(crate) fn start(address: String) -> GetLoad {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut count = 0;
            while !stopped.load(Relaxed) {
                time_response(&address, "/api/v1/instances", None)?;
                count += 1;
            }
            Ok(count)
        });
        GetLoad { stop, thread }
    }

    /// Returns the number of responses.
    pub(crate) fn stop(self) -> Result<u64> {
        self.stop.store(true, Relaxed);
        self.thread.join().map_err(|_| anyhow!("the thread that sends GETs has panicked"))?
    }
}
