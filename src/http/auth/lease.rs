//! Leases: the shared records that keep credentials under observation while streams depend on them.
//!
//! Owns: the table of leases, and for each lease the status of the credential and the history of its reviews.
//!
//! Guarantees:
//! - Streams with the same credential share one lease. Each stream receives the current status and each change of it.
//! - An ended credential stays ended.
//! - A lease exists while a stream holds it, so the table has at most as many live leases as there are streams.
//!
//! `watchdog` changes the status. Must not import: `authenticator` and `watchdog`.
//!
//! Specification: docs/protocol.md#access, "While a stream is open".

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};

use super::{
    principal::CredentialIdentity,
    review_cache::{ReviewOutcome, ReviewUnavailable},
};
use crate::{weak_table::WeakTable, wire::CloseReason};

/// The status of a credential with open streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialStatus {
    /// The credential is valid.
    Valid,
    /// The credential is valid and expires at this time, within `expiry_notice`.
    Expiring(Timestamp),
    /// The credential is no longer valid. Its streams end with this reason.
    Ended(CloseReason),
}

/// The results of the reviews of one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReviewHistory {
    /// Time of the last approval.
    last_allowed: Instant,
    /// Time of the last review, regardless of its result.
    last_attempt: Instant,
    /// Time of the first denial since the last approval or failure.
    denied_since: Option<Instant>,
}

impl ReviewHistory {
    /// Creates the history of a user that has just been admitted.
    pub(super) fn new(now: Instant) -> ReviewHistory {
        ReviewHistory { last_allowed: now, last_attempt: now, denied_since: None }
    }

    /// Returns whether the last approval is at least `max_age` old.
    pub(super) fn is_stale(&self, now: Instant, max_age: Duration) -> bool {
        now - self.last_allowed >= max_age
    }

    /// Records the result of a review. Returns whether it is a confirmed denial: at least `confirm_delay` after the
    /// first one.
    pub(super) fn record(
        &mut self,
        outcome: &Result<ReviewOutcome, ReviewUnavailable>,
        now: Instant,
        confirm_delay: Duration,
    ) -> bool {
        self.last_attempt = now;
        match outcome {
            Ok(ReviewOutcome::Allowed(_)) => *self = ReviewHistory::new(now),
            Ok(ReviewOutcome::Denied(..) | ReviewOutcome::Unknown) => {
                return now - *self.denied_since.get_or_insert(now) >= confirm_delay;
            }
            // A denial after an outage does not confirm a denial before the outage.
            Err(ReviewUnavailable) => self.denied_since = None,
        }
        false
    }

    /// Returns whether a denial is old enough to be confirmed by another review.
    pub(super) fn needs_confirmation(&self, now: Instant, confirm_delay: Duration) -> bool {
        self.denied_since.is_some_and(|since| now - since >= confirm_delay)
    }

    /// Returns the sort key of the next pass; the minimum is reviewed first.
    ///
    /// Users whose last review was an approval come first, and among them the one with the oldest review. So a pass
    /// that is aborted does not always skip the same users, and users whose reviews fail do not delay the others.
    pub(super) fn priority(&self) -> (bool, Instant) {
        (self.last_attempt != self.last_allowed, self.last_attempt)
    }
}

/// One credential with open streams.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) identity: CredentialIdentity,
    status: watch::Sender<CredentialStatus>,
    /// Used only if the credential belongs to a Kubernetes user.
    review_history: Mutex<ReviewHistory>,
}

/// All leases.
#[derive(Debug, Default)]
pub(super) struct LeaseTable(Mutex<WeakTable<CredentialIdentity, Lease>>);

/// The current status of a credential, followed by each change. It holds the lease.
///
/// It is a boxed stream, so that a waiting task needs one pointer only. It yields the newest status; older ones may be
/// skipped.
pub type CredentialWatch = BoxStream<'static, CredentialStatus>;

impl LeaseTable {
    /// Returns a watch of a credential. `status` computes the first status of a new lease.
    pub(super) fn watch(
        &self,
        identity: &CredentialIdentity,
        status: impl FnOnce(&CredentialIdentity) -> CredentialStatus,
    ) -> CredentialWatch {
        let mut leases = self.lock();
        let lease = match leases.get(identity).filter(|lease| !lease.is_ended()) {
            Some(lease) => lease,
            None => {
                let status = watch::Sender::new(status(identity));
                let review_history = Mutex::new(ReviewHistory::new(Instant::now()));
                let lease = Arc::new(Lease { identity: identity.clone(), status, review_history });
                leases.insert(identity.clone(), &lease);
                lease
            }
        };
        let mut status = lease.status.subscribe();
        status.mark_changed();
        let changes = stream::unfold((lease, status), async |(lease, mut status)| {
            // This cannot fail: the lease, which the stream holds, owns the sender.
            status.changed().await.ok()?;
            let current = *status.borrow_and_update();
            Some((current, (lease, status)))
        });
        changes.boxed()
    }

    /// Returns the number of leases that streams hold.
    pub(super) fn len(&self) -> usize {
        self.lock().values().count()
    }

    /// Returns all leases that a stream holds.
    pub(super) fn all(&self) -> Vec<Arc<Lease>> {
        self.lock().values().collect()
    }

    fn lock(&self) -> MutexGuard<'_, WeakTable<CredentialIdentity, Lease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// Returns whether the credential has ended.
    pub(super) fn is_ended(&self) -> bool {
        matches!(*self.status.borrow(), CredentialStatus::Ended(_))
    }

    /// Locks the history of reviews.
    pub(super) fn review_history(&self) -> MutexGuard<'_, ReviewHistory> {
        self.review_history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the status, unless the credential has ended. Returns whether this call ended it.
    pub(super) fn set(&self, new: CredentialStatus) -> bool {
        let changed = self.status.send_if_modified(|status| {
            let changed = *status != new && !matches!(status, CredentialStatus::Ended(_));
            if changed {
                *status = new;
            }
            changed
        });
        changed && matches!(new, CredentialStatus::Ended(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{event::projection::Scope, http::auth::secret::Secret};

    const CONFIRM_DELAY: Duration = Duration::from_secs(2);

    fn allowed() -> Result<ReviewOutcome, ReviewUnavailable> {
        Ok(ReviewOutcome::Allowed(Arc::default()))
    }

    #[test]
    fn denial_ends_streams_only_after_a_second_denial() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let denied = || Ok(ReviewOutcome::Unknown);
        for (between, is_confirmed) in [(denied(), true), (allowed(), false), (Err(ReviewUnavailable), false)] {
            let mut history = ReviewHistory::new(start);
            assert!(!history.record(&denied(), at(20), CONFIRM_DELAY), "expected no effect of the first denial");
            assert!(!history.needs_confirmation(at(21), CONFIRM_DELAY));
            assert!(history.needs_confirmation(at(22), CONFIRM_DELAY));
            assert!(
                !history.record(&between, at(21), CONFIRM_DELAY),
                "expected no effect before the confirmation delay"
            );
            assert_eq!(history.record(&denied(), at(22), CONFIRM_DELAY), is_confirmed, "after {between:?}");
        }
    }

    #[test]
    fn only_approvals_extend_freshness() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut history = ReviewHistory::new(start);
        history.record(&allowed(), at(20), CONFIRM_DELAY);
        history.record(&Err(ReviewUnavailable), at(40), CONFIRM_DELAY);
        history.record(&Ok(ReviewOutcome::Unknown), at(60), CONFIRM_DELAY);
        let max_age = Duration::from_secs(320);
        assert!(!history.is_stale(at(339), max_age) && history.is_stale(at(340), max_age));
    }

    #[test]
    fn priority_orders_by_review_age_with_failed_reviews_last() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let history = |outcome, seconds| {
            let mut history = ReviewHistory::new(start);
            history.record(&outcome, at(seconds), CONFIRM_DELAY);
            history
        };
        let order = [
            ReviewHistory::new(start),
            history(allowed(), 2),
            history(allowed(), 3),
            history(Err(ReviewUnavailable), 1),
        ];
        assert!(order.is_sorted_by_key(ReviewHistory::priority), "{order:?}");
    }
    fn identity(number: usize) -> CredentialIdentity {
        let token = Some(Secret::new(number.to_string()));
        CredentialIdentity { subject: None, token, expires_at: None, scope: Scope::All }
    }

    #[test]
    fn leases_without_a_stream_are_not_counted() {
        let table = LeaseTable::default();
        let watch = |number| table.watch(&identity(number), |_| CredentialStatus::Valid);
        let open: Vec<_> = (0..100).map(watch).collect();
        for number in 100..10_000 {
            drop(watch(number));
        }
        assert_eq!((table.len(), table.all().len(), open.len()), (100, 100, 100));
    }
}
