//! The time stamp that every change carries, and the search for it in received bytes.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::SystemTime,
};

use memchr::memmem;

/// Text in front of the microsecond at which a change was made.
pub(crate) const TIMESTAMP_MARKER: &str = "\"phase\":\"t";

/// Returns the microseconds since the Unix epoch. All processes of a machine share this clock. Within one process, no
/// two calls return the same value.
pub(crate) fn now_micros() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    let last = LAST.fetch_update(Relaxed, Relaxed, |last| Some(now.max(last + 1))).unwrap_or(now);
    now.max(last + 1)
}

/// Returns the time stamps in these bytes, except one whose end is missing.
pub(crate) fn timestamps(bytes: &[u8]) -> impl Iterator<Item = u64> {
    memmem::find_iter(bytes, TIMESTAMP_MARKER.as_bytes()).filter_map(|at| {
        let digits = &bytes[at + TIMESTAMP_MARKER.len()..];
        let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
        std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
    })
}
