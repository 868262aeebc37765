//! Refused origins, and which refusals are logged. Pure: the caller passes the time and writes the log.
//!
//! Guarantees: one pair of Origin and Host is logged at most once in [`LOG_INTERVAL`], and at most [`MAX_PAIRS`] pairs are.
//! Any client can send any pair, so neither the memory nor the log may grow with their number.
//!
//! Must not import: any other module of this crate except `sync`.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Mutex,
    time::Duration,
};

use tokio::time::Instant;

use crate::http::sync::lock;

/// Time after which the refusal of the same pair is logged again (docs/protocol.md#errors).
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Pairs that are remembered. While so many have been logged within [`LOG_INTERVAL`], no other pair is logged.
///
/// A deployment has a few pairs. With at most 200 characters in each text the table stays below 200 KiB.
const MAX_PAIRS: usize = 256;

/// An `Origin` that was refused, and the host that the request named. Both are cut for messages.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RefusedOrigin {
    /// The value of `Origin`.
    pub origin: String,
    /// The value of `Host`, or the host that a trusted proxy forwarded.
    pub host: String,
}

/// The pairs that were logged within the last minute, with the time of the log line. It has at most 256 pairs.
#[derive(Debug, Default)]
pub struct RefusedOrigins(Mutex<HashMap<RefusedOrigin, Instant>>);

impl RefusedOrigins {
    /// Returns whether the refusal of this pair must be logged now, and remembers that it is.
    pub(in crate::http) fn must_log(&self, refused: &RefusedOrigin, now: Instant) -> bool {
        let is_recent = |logged: &Instant| now < *logged + LOG_INTERVAL;
        let mut logged = lock(&self.0);
        if logged.len() >= MAX_PAIRS {
            logged.retain(|_, at| is_recent(at));
        }
        let is_full = logged.len() >= MAX_PAIRS;
        match logged.entry(refused.clone()) {
            Entry::Occupied(entry) if is_recent(entry.get()) => false,
            Entry::Vacant(_) if is_full => false,
            entry => {
                entry.insert_entry(now);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(origin: &str, host: &str) -> RefusedOrigin {
        RefusedOrigin { origin: origin.to_owned(), host: host.to_owned() }
    }

    #[test]
    fn each_pair_is_due_once_a_minute() {
        let (refused, start) = (RefusedOrigins::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for (origin, host, seconds, expected) in [
            ("http://a", "b", 0, true),
            ("http://a", "b", 0, false),
            ("http://a", "c", 1, true),
            ("http://b", "b", 2, true),
            ("http://a", "b", 59, false),
            ("http://a", "b", 60, true),
            ("http://a", "c", 60, false),
            ("http://a", "b", 119, false),
            ("http://a", "b", 120, true),
        ] {
            assert_eq!(refused.must_log(&pair(origin, host), at(seconds)), expected, "{origin} {host} at {seconds} s");
        }
    }

    #[test]
    fn full_table_logs_no_other_pair_until_pairs_expire() {
        let (refused, start) = (RefusedOrigins::default(), Instant::now());
        for number in 0..10 * MAX_PAIRS {
            let is_due = refused.must_log(&pair(&format!("http://{number}"), "b"), start);
            assert_eq!(is_due, number < MAX_PAIRS, "pair {number}");
        }
        assert_eq!(lock(&refused.0).len(), MAX_PAIRS);
        assert!(!refused.must_log(&pair("http://new", "b"), start + LOG_INTERVAL - Duration::from_millis(1)));
        assert!(refused.must_log(&pair("http://new", "b"), start + LOG_INTERVAL));
        assert_eq!(lock(&refused.0).len(), 1);
    }
}
