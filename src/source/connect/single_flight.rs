//! A load that many requests wait for, and that runs at most once at a time.
//!
//! Guarantees: a load continues when the requests that wait for it are dropped. It makes progress only while a request
//! waits, so that no task is needed; its own time limit must be evaluated by a timer.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::{BoxFuture, FutureExt, Shared};
use tokio::time::timeout;

/// The load that runs now.
pub(super) struct SingleFlight<T: Clone> {
    running: Mutex<Option<Shared<BoxFuture<'static, T>>>>,
}

impl<T: Clone> SingleFlight<T> {
    pub(super) fn new() -> SingleFlight<T> {
        SingleFlight { running: Mutex::new(None) }
    }

    /// Waits for the load that runs, or for one that `start` starts. Returns `None` if it does not end within `wait`; the next
    /// call waits for the same load. `done` runs once for each load, before another one can start.
    pub(super) async fn load(
        &self,
        start: impl FnOnce() -> BoxFuture<'static, T>,
        wait: Duration,
        done: impl FnOnce(&T),
    ) -> Option<T> {
        let load = self.running().get_or_insert_with(|| start().shared()).clone();
        let value = timeout(wait, load.clone()).await.ok()?;
        let mut running = self.running();
        if running.as_ref().is_some_and(|running| running.ptr_eq(&load)) {
            done(&value);
            *running = None;
        }
        Some(value)
    }

    /// Returns whether a load runs.
    pub(super) fn is_running(&self) -> bool {
        self.running().is_some()
    }

    fn running(&self) -> MutexGuard<'_, Option<Shared<BoxFuture<'static, T>>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
