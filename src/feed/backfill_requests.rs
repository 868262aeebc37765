//! Who waits for what, and what came of it.

use crate::event::{PerResource, ResourceVersion};

/// Who waits for what, and what came of it.
#[derive(Debug, Default)]
pub(super) struct BackfillRequests {
    /// The oldest versions asked for, while somebody waits for a round to begin.
    oldest_requested: Option<PerResource<ResourceVersion>>,
    backfills: RoundCounter,
    /// Somebody waits for a confirmation to begin.
    version_check_requested: bool,
    version_checks: RoundCounter,
    /// The newest versions that the API server is known to have had, in this history.
    checked_versions: PerResource<ResourceVersion>,
}

#[derive(Debug, Default)]
struct RoundCounter {
    started: u64,
    ended: u64,
}

impl BackfillRequests {
    /// Asks for the time after `rv`. Returns the round that will tell it.
    pub(super) fn request_backfill(&mut self, rv: PerResource<ResourceVersion>) -> u64 {
        self.oldest_requested = Some(
            self.oldest_requested
                .map_or(rv, |oldest| PerResource::from_fn(|resource| oldest[resource].min(rv[resource]))),
        );
        self.backfills.started + 1
    }

    pub(super) fn is_backfill_requested(&self) -> bool {
        self.oldest_requested.is_some()
    }

    /// Begins a round for all who have asked. Returns the oldest versions asked for.
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

    /// Asks which versions there are. Returns the round that will tell it.
    pub(super) fn request_version_check(&mut self) -> u64 {
        self.version_check_requested = true;
        self.version_checks.started + 1
    }

    pub(super) fn is_version_check_requested(&self) -> bool {
        self.version_check_requested
    }

    pub(super) fn start_version_check(&mut self) {
        self.version_check_requested = false;
        self.version_checks.started += 1;
    }

    pub(super) fn end_version_check(&mut self, versions: PerResource<ResourceVersion>) {
        self.version_checks.ended += 1;
        self.checked_versions = versions;
    }

    /// The versions that there are, once that round has told them.
    pub(super) fn version_check_result(&self, round: u64) -> Option<PerResource<ResourceVersion>> {
        (self.version_checks.ended >= round).then_some(self.checked_versions)
    }

    pub(super) fn checked_versions(&self) -> PerResource<ResourceVersion> {
        self.checked_versions
    }

    /// Versions of another history say nothing.
    pub(super) fn reset(&mut self) {
        self.checked_versions = PerResource::default();
    }
}
