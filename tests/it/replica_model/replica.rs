//! One replica of the model: a feed, and two watches that lag, lose their history or restart as the model decides.

use boilerhouse_bridge::{
    event::{PerResource, Resource, ResourceVersion},
    feed::{self, BackfillHandle, BackfillRound, Feed, Gap, Writer},
    ring::Limits,
    test_support::SeededRng,
};
use futures::FutureExt;

use super::history::ObjectHistory;

/// One replica.
pub(super) struct Replica {
    writer: Writer,
    pub(super) feed: Feed,
    backfill_handle: BackfillHandle,
    /// A backfill that has started.
    backfill: Option<BackfillRound>,
    /// The versions up to which its watches have come.
    pub(super) at: PerResource<ResourceVersion>,
}

impl Replica {
    /// Starts a replica with a list at the newest version and a log of at most `items` entries.
    pub(super) fn start(history: &ObjectHistory, items: usize) -> Replica {
        let limits = Limits { items, ..Limits::default() };
        let (mut writer, feed) =
            Feed::new(feed::Config { log: limits, wall_clock_ms: || 0, ..feed::Config::default() });
        writer.set_namespace(history.namespace());
        let at = history.version();
        for resource in Resource::ALL {
            writer.replace(resource, history.list(resource, at), at);
        }
        let backfill_handle = writer.backfill_handle();
        Replica { writer, feed, backfill_handle, backfill: None, at: PerResource::new(at, at) }
    }

    /// Applies the next line of one watch, if there is one.
    pub(super) fn watch(&mut self, history: &ObjectHistory, resource: Resource) {
        let Some(next) = history.between(resource, self.at[resource], ResourceVersion::MAX).next() else { return };
        match &next.after {
            Some(object) => self.writer.upsert(object.view()),
            None => self.writer.remove(resource, &next.name, &next.uid, next.version),
        }
        self.at[resource] = next.version;
    }

    /// Makes one step of a backfill, if one is requested or has started. Returns true if one has ended.
    pub(super) fn backfill(&mut self, history: &ObjectHistory, rng: &mut SeededRng) -> bool {
        let Some(mut backfill) = self.backfill.take() else {
            if self.backfill_handle.wait_for_request().now_or_never().is_some() {
                self.backfill = Some(self.backfill_handle.start_round());
            }
            return false;
        };
        for gap in &mut backfill.gaps {
            let resource = gap.resource();
            if rng.below(8) == 0 {
                // The API server no longer has the oldest requested versions.
                let requested = gap.requested();
                let compacted = requested[rng.below(requested.len() as u64) as usize];
                self.backfill_handle.record_compacted(gap, compacted);
            }
            let (mut is_complete, mut is_left) = (false, false);
            // A list at a requested version, and a watch from there. If the watch ends early or has no history, the next
            // list is at a later requested version.
            while let Some(&from) = gap.requested().first().filter(|_| !is_complete && !is_left) {
                gap.list(from, history.list(resource, from));
                let missed: Vec<_> = history.between(resource, from, gap.to()).collect();
                is_complete = rng.below(4) != 0;
                let received = if is_complete { missed.len() } else { rng.below(missed.len() as u64 + 1) as usize };
                for change in missed.into_iter().take(received) {
                    let line = |gap: &mut Gap| match (&change.after, &change.before) {
                        (Some(object), _) => gap.upsert(object.view()),
                        (None, Some(object)) => gap.remove(&object.at_version(change.version).view()),
                        (None, None) => unreachable!("a change has at least one side"),
                    };
                    line(gap);
                    if rng.below(6) == 0 {
                        // A line that arrives twice must not move anything back.
                        line(gap);
                    }
                    if gap.is_at_end() && rng.below(3) == 0 {
                        // The objects are those at the end of the gap, so the rest is not read.
                        is_left = true;
                        break;
                    }
                }
                if is_left {
                    is_complete = false;
                    for version in gap.requested().to_vec() {
                        gap.list(version, history.list(resource, version));
                    }
                }
            }
            gap.close(is_complete);
        }
        // A round whose gap has no list fails, and the other gap is filled.
        self.backfill_handle.complete_round(backfill, None);
        true
    }

    /// Applies a bookmark, if the watch has come to the newest version of the resource.
    pub(super) fn bookmark(&mut self, history: &ObjectHistory, resource: Resource) {
        if history.between(resource, self.at[resource], ResourceVersion::MAX).next().is_none() {
            self.at[resource] = history.version();
            self.writer.bookmark(resource, self.at[resource]);
        }
    }

    /// Requests the Namespace. The hub lists again when it is another one.
    pub(super) fn check_namespace(&mut self, history: &ObjectHistory) {
        if self.feed.namespace() != Some(history.namespace()) {
            self.writer.set_namespace(history.namespace());
            Resource::ALL.into_iter().for_each(|resource| self.relist(history, resource));
        }
    }

    /// Lists again: the watch has lost its history.
    pub(super) fn relist(&mut self, history: &ObjectHistory, resource: Resource) {
        let version = history.version();
        self.at[resource] = version;
        self.writer.replace(resource, history.list(resource, version), version);
    }
}
