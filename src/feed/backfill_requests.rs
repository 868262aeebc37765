//! Requests of subscriptions for history that the log does not hold, and the number of rounds that answered them.
//!
//! *Owns* data only: the code that needs the log or the inventory as well is in `feed/backfill.rs`.
//!
//! *Guarantees:*
//! - All subscriptions that request before a round starts share that round.
//! - A subscription gets the number of its round, so it detects when that round has ended.

use crate::event::{PerResource, ResourceVersion};

/// What subscriptions wait for.
#[derive(Debug, Default)]
pub(super) struct BackfillRequests {
    /// The oldest versions requested for the next backfill round; `None` if no subscription requested one.
    oldest_requested: Option<PerResource<ResourceVersion>>,
    backfills: RoundCounter,
    version_check_requested: bool,
    version_checks: RoundCounter,
    /// The newest versions that a version check found at the API server, in the current history.
    checked_versions: PerResource<ResourceVersion>,
}

#[derive(Debug, Default)]
struct RoundCounter {
    started: u64,
    ended: u64,
}

impl BackfillRequests {
    /// Requests the history after these versions. Returns the number of the round that will read it.
    pub(super) fn request_backfill(&mut self, after: PerResource<ResourceVersion>) -> u64 {
        self.oldest_requested = Some(
            self.oldest_requested
                .map_or(after, |oldest| PerResource::from_fn(|resource| oldest[resource].min(after[resource]))),
        );
        self.backfills.started + 1
    }

    pub(super) fn is_backfill_requested(&self) -> bool {
        self.oldest_requested.is_some()
    }

    /// Starts a round for all requests so far. Returns the oldest versions requested.
    pub(super) fn start_backfill(&mut self) -> Option<PerResource<ResourceVersion>> {
        self.backfills.started += 1;
        self.oldest_requested.take()
    }

    pub(super) fn end_backfill(&mut self) {
        self.backfills.ended += 1;
    }

    pub(super) fn backfill_done(&self, round: u64) -> bool {
        self.backfills.ended >= round
    }

    /// Requests the newest versions of the API server. Returns the number of the version check that will read them.
    pub(super) fn request_version_check(&mut self) -> u64 {
        self.version_check_requested = true;
        self.version_checks.started + 1
    }

    pub(super) fn is_version_check_requested(&self) -> bool {
        self.version_check_requested
    }

    /// Starts a version check for all requests so far.
    pub(super) fn start_version_check(&mut self) {
        self.version_check_requested = false;
        self.version_checks.started += 1;
    }

    pub(super) fn end_version_check(&mut self, versions: PerResource<ResourceVersion>) {
        self.version_checks.ended += 1;
        self.checked_versions = versions;
    }

    /// Returns the versions that the check found, as soon as it has ended.
    pub(super) fn version_check_result(&self, check: u64) -> Option<PerResource<ResourceVersion>> {
        (self.version_checks.ended >= check).then_some(self.checked_versions)
    }

    pub(super) fn checked_versions(&self) -> PerResource<ResourceVersion> {
        self.checked_versions
    }

    /// Drops the checked versions after a history reset: versions of two histories are not comparable.
    pub(super) fn reset(&mut self) {
        self.checked_versions = PerResource::default();
    }
}
