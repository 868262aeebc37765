//! The limit of open files (`RLIMIT_NOFILE`).

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// Open files beside one for each connection: listeners, watches and those of the runtime, with a reserve.
const RESERVED_FILES: u64 = 64;

/// Raises the soft limit of open files so that each connection can have one. A shell often grants a tenth of that; a
/// process may raise the soft limit up to the hard limit. Logs a warning when the hard limit is too low.
pub(super) fn raise_file_limit(max_connections: usize) {
    let needed = (max_connections as u64).saturating_add(RESERVED_FILES);
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return;
    }
    let allowed = limit.maximum.map_or(needed, |maximum| maximum.min(needed));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), maximum: limit.maximum });
    if raised.is_err() || allowed < needed {
        let files = getrlimit(Resource::Nofile).current;
        warn!(
            files,
            needed, "open file limit is lower than --max-connections needs; raise the hard limit (ulimit -Hn)"
        );
    }
}
