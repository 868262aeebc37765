//! Requests of subscriptions for history that the log does not hold, and the number of rounds that answered them.
//!
//! *Owns* data only: the code that needs the log or the inventory as well is in `feed/backfill.rs`.
//!
//! *Guarantees:*
//! - All subscriptions that request before a round starts share that round.
//! - A subscription gets the number of its round, so it detects when that round has ended.
//! - Each version is requested by itself. An old or invented one does not change what is read for the others.

use std::collections::BTreeMap;

use crate::event::{PerResource, Resource, ResourceVersion};

/// The versions after which one subscription needs the history; `None` for a resource that it does not need.
pub(super) type RequestedVersions = PerResource<Option<ResourceVersion>>;

/// What subscriptions wait for.
#[derive(Debug, Default)]
pub(super) struct BackfillRequests {
    /// The versions requested for the next backfill round, each with the number of subscriptions that wait for it.
    requested: PerResource<BTreeMap<ResourceVersion, usize>>,
    backfills: RoundCounter,
    /// The newest versions at which the API server rejected an exact list because etcd was compacted (410). All older
    /// versions are compacted as well, so nothing is requested at or below them.
    compacted_versions: PerResource<ResourceVersion>,
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
    pub(super) fn request_backfill(&mut self, after: &RequestedVersions) -> u64 {
        for (requested, version) in self.requested.iter_mut().zip(after.iter()) {
            if let Some(version) = *version {
                *requested.entry(version).or_default() += 1;
            }
        }
        self.backfills.started + 1
    }

    /// Removes a request, unless its round has started.
    pub(super) fn cancel_backfill(&mut self, round: u64, after: &RequestedVersions) {
        if round <= self.backfills.started {
            return;
        }
        for (requested, version) in self.requested.iter_mut().zip(after.iter()) {
            if let Some(version) = *version
                && let Some(waiting) = requested.get_mut(&version)
            {
                *waiting -= 1;
                if *waiting == 0 {
                    requested.remove(&version);
                }
            }
        }
    }

    pub(super) fn is_backfill_requested(&self) -> bool {
        self.requested.iter().any(|requested| !requested.is_empty())
    }

    /// Starts a round for all requests so far. Returns the requested versions, each once and in ascending order.
    pub(super) fn start_backfill(&mut self) -> PerResource<Vec<ResourceVersion>> {
        self.backfills.started += 1;
        std::mem::take(&mut self.requested).map(|requested| requested.into_keys().collect())
    }

    pub(super) fn end_backfill(&mut self) {
        self.backfills.ended += 1;
    }

    pub(super) fn backfill_done(&self, round: u64) -> bool {
        self.backfills.ended >= round
    }

    /// Records that an exact list at this version got 410.
    pub(super) fn record_compacted(&mut self, resource: Resource, version: ResourceVersion) {
        let compacted = &mut self.compacted_versions[resource];
        *compacted = version.max(*compacted);
    }

    /// Returns whether the API server is known to have no history after this version. Version 0 cannot be listed exactly.
    pub(super) fn is_compacted(&self, resource: Resource, version: ResourceVersion) -> bool {
        version <= self.compacted_versions[resource]
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

    /// Requests another version check after one without an answer. It also answers the requests of that one.
    pub(super) fn retry_version_check(&mut self) {
        self.version_check_requested = true;
    }

    pub(super) fn end_version_check(&mut self, versions: PerResource<ResourceVersion>) {
        // Checks without an answer before this one end with it.
        self.version_checks.ended = self.version_checks.started;
        self.checked_versions = versions;
    }

    /// Returns the versions that the check found, as soon as it has ended.
    pub(super) fn version_check_result(&self, check: u64) -> Option<PerResource<ResourceVersion>> {
        (self.version_checks.ended >= check).then_some(self.checked_versions)
    }

    pub(super) fn checked_versions(&self) -> PerResource<ResourceVersion> {
        self.checked_versions
    }

    /// Drops what is known about the API server's versions after a history reset: versions of two histories are not
    /// comparable.
    pub(super) fn reset(&mut self) {
        self.checked_versions = PerResource::default();
        self.compacted_versions = PerResource::default();
    }
}
