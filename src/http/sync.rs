//! Locks, and work that takes milliseconds on blocking threads.
//!
//! Must not import: any other module of this crate.

use std::{
    panic::resume_unwind,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::Semaphore, task::spawn_blocking};

/// Locks a mutex. After a panic of another holder its value is used as it is.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls `work` on a blocking thread, when a permit is free. The permit is held until `work` has ended, also if this future is
/// dropped before. A panic of `work` continues here.
pub(super) async fn run_blocking<T: Send + 'static>(
    permits: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    // An error would mean a closed semaphore, which these never are.
    let permit = permits.clone().acquire_owned().await.ok();
    let task = spawn_blocking(move || {
        let _permit = permit;
        work()
    });
    // The task is never aborted, so an error means that it panicked.
    task.await.unwrap_or_else(|error| resume_unwind(error.into_panic()))
}
