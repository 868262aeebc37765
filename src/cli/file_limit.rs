//! The limit of open files (`RLIMIT_NOFILE`), and the number of connections that it allows.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

use crate::http::conn::{NON_STREAM_CONNECTIONS, PROBE_CONNECTIONS};

/// Open files that are no connection of a client: listeners, watches, lists, reviews, files that are read again, those
/// of the runtime, and connections that are accepted before others have closed for them.
const RESERVED_FILES: usize = 256;
/// Connections to the API server of one pair of dedicated watchers.
const FILES_PER_DEDICATED_WATCHER: usize = 2;
/// Minimum number of connections, however low the limit is.
const MIN_CONNECTIONS: usize = 16;

/// How many clients can connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConnectionLimits {
    /// Maximum number of streams.
    pub(super) streams: usize,
    /// Maximum number of TCP connections, streams included.
    pub(super) connections: usize,
}

/// Returns the limits for `max_connections` streams and `dedicated_watchers` of them with watchers of their own, as far as
/// the limit of open files allows.
///
/// Raises the soft limit if necessary: a shell often grants a tenth of what is needed, and a process may raise it up to
/// the hard limit. Logs a warning if that is too low.
pub(super) fn connection_limits(max_connections: usize, dedicated_watchers: usize) -> ConnectionLimits {
    let other = other_files(max_connections.min(dedicated_watchers));
    let needed = max_connections.saturating_add(NON_STREAM_CONNECTIONS).saturating_add(other);
    let files = raise_file_limit(needed);
    let limits = fit(max_connections, other, files);
    if limits.streams < max_connections {
        let ConnectionLimits { streams, connections } = limits;
        warn!(
            files,
            needed,
            streams,
            connections,
            "the open file limit is too low for --max-connections; the bridge allows fewer streams and connections; raise the \
             hard limit (ulimit -Hn)"
        );
    }
    limits
}

/// Raises the soft limit to `needed`, as far as the hard limit allows. Returns the limit, or `None` if there is none.
fn raise_file_limit(needed: usize) -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let needed = needed as u64;
    if limit.current.is_none_or(|current| current >= needed) {
        return limit.current;
    }
    let allowed = limit.maximum.map_or(needed, |maximum| maximum.min(needed));
    // If this fails, the limit is the one that is read below.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), maximum: limit.maximum });
    getrlimit(Resource::Nofile).current
}

fn other_files(dedicated_watchers: usize) -> usize {
    let upstream = dedicated_watchers.saturating_mul(FILES_PER_DEDICATED_WATCHER);
    RESERVED_FILES.saturating_add(PROBE_CONNECTIONS).saturating_add(upstream)
}

/// Fits the connections of `streams` streams and of [`NON_STREAM_CONNECTIONS`] into `files`, beside `other` files. If they
/// do not fit, a quarter of the connections that do is for requests that are no streams.
fn fit(streams: usize, other: usize, files: Option<u64>) -> ConnectionLimits {
    let wanted = streams.saturating_add(NON_STREAM_CONNECTIONS);
    let available = files.map_or(wanted, |files| usize::try_from(files).unwrap_or(usize::MAX).saturating_sub(other));
    let connections = wanted.min(available.max(MIN_CONNECTIONS));
    let reserve = NON_STREAM_CONNECTIONS.min(connections / 4);
    ConnectionLimits { streams: streams.min(connections - reserve), connections }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_into_the_file_limit() {
        let limits = |streams, connections| ConnectionLimits { streams, connections };
        // 256 + 64 + 2 for each of 50 dedicated watchers.
        let other = other_files(50);
        assert_eq!(other, 420);
        assert_eq!(fit(10_000, other, None), limits(10_000, 11_000), "no limit");
        assert_eq!(fit(10_000, other, Some(11_420)), limits(10_000, 11_000), "just enough");
        assert_eq!(fit(10_000, other, Some(11_419)), limits(9_999, 10_999), "one file is missing");
        assert_eq!(fit(10_000, other, Some(4096)), limits(2757, 3676));
        assert_eq!(fit(10_000, other, Some(1024)), limits(453, 604));
        assert_eq!(fit(10, other, Some(1024)), limits(10, 604), "few streams keep their number");
        assert_eq!(fit(10, other, Some(64)), limits(10, 16), "the minimum");
        assert_eq!(fit(1_000_000, other_files(usize::MAX), Some(u64::MAX)), limits(12, 16));
    }
}
