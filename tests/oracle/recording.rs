//! What the API server sent to one watcher, as a recorder between the two wrote it down.
//!
//! The recorder reads the responses only. It does not depend on what the bridge makes of them.

use boilerhouse_bridge::event::{PerResource, ResourceVersion};
use tokio::time::Instant;

/// One response, or one line of a watch, about one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordedResponse {
    /// The epoch of the API server at that time.
    pub(crate) epoch: usize,
    pub(crate) kind: ResponseKind,
    pub(crate) at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResponseKind {
    /// A watch line about an object, at this version.
    Line(ResourceVersion),
    /// A bookmark.
    Bookmark(ResourceVersion),
    /// The last page of a list, which is true at this version.
    List(ResourceVersion),
    /// A list with `limit=1`, which shows the newest version of the API server.
    Probe(ResourceVersion),
    /// 410, as a status or as a line.
    Gone,
    /// A line that cannot be parsed.
    Garbage,
    /// A complete list of a backfill, at this version.
    BackfillList(ResourceVersion),
    /// A list of a backfill that failed.
    BackfillListFailed,
    /// 410 for a list of a backfill at this version. Nothing is requested at or below it any more.
    BackfillListGone(ResourceVersion),
    /// A watch of a backfill that did not send everything that was requested.
    BackfillWatchFailed,
}

impl RecordedResponse {
    pub(crate) fn is_list(&self) -> bool {
        matches!(self.kind, ResponseKind::List(_))
    }
}

/// Everything that was recorded of one watcher.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    pub(crate) responses: PerResource<Vec<RecordedResponse>>,
    /// When requests failed that had been sent, and when watches broke.
    pub(crate) failed: PerResource<Vec<Instant>>,
    /// When watches started.
    pub(crate) watch_starts: PerResource<Vec<Instant>>,
    /// When bytes arrived.
    pub(crate) bytes: PerResource<Vec<Instant>>,
}
