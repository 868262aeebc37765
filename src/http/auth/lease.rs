//! Credentials that have streams: looked at again and again, for as long as one of those lives.
//!
//! Streams of the same grounds share a lease, and whoever holds one is told when it changes. Time and the keys file are
//! looked at by one loop, the cluster is asked by others (`watchdog`), so that one that does not answer delays no
//! end, its own included.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
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
use crate::wire::CloseReason;

/// How a credential stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialStatus {
    /// Good.
    Valid,
    /// Good, and soon over.
    Expiring(Timestamp),
    /// Over, for this reason.
    Ended(CloseReason),
}

/// What came of asking about a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReviewHistory {
    /// When the cluster last said yes.
    last_allowed: Instant,
    /// When it was last asked, whatever came of it.
    last_attempt: Instant,
    /// Since when it says no.
    denied_since: Option<Instant>,
}

impl ReviewHistory {
    /// About somebody who has just been admitted.
    pub(super) fn new(now: Instant) -> ReviewHistory {
        ReviewHistory { last_allowed: now, last_attempt: now, denied_since: None }
    }

    /// Whether the last yes is too old to live by.
    pub(super) fn is_stale(&self, now: Instant, max_age: Duration) -> bool {
        now - self.last_allowed >= max_age
    }

    /// Takes an answer in; whether it is a no that counts.
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
            // What was said before an outage is not confirmed by what is said after it.
            Err(ReviewUnavailable) => self.denied_since = None,
        }
        false
    }

    /// Whether a no is to be asked about once more.
    pub(super) fn needs_confirmation(&self, now: Instant, confirm_delay: Duration) -> bool {
        self.denied_since.is_some_and(|since| now - since >= confirm_delay)
    }

    /// The least is asked about first: whoever waits longest, and last of all whom there was no yes about. So neither does a
    /// pass that is cut short always leave the same ones out, nor do those hold others up about whom nobody can say anything.
    pub(super) fn priority(&self) -> (bool, Instant) {
        (self.last_attempt != self.last_allowed, self.last_attempt)
    }
}

/// One credential that has streams.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) identity: CredentialIdentity,
    status: watch::Sender<CredentialStatus>,
    /// What came of asking the cluster about it, if it is a user's.
    review_history: Mutex<ReviewHistory>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct LeaseTable(Mutex<HashMap<CredentialIdentity, Weak<Lease>>>);

/// How one credential stands, now and with every change, for as long as somebody has this: it keeps the lease. A stream,
/// so that who waits for it holds one pointer.
pub type CredentialWatch = BoxStream<'static, CredentialStatus>;

impl LeaseTable {
    pub(super) fn watch(
        &self,
        identity: &CredentialIdentity,
        status: impl FnOnce(&CredentialIdentity) -> CredentialStatus,
    ) -> CredentialWatch {
        let mut leases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lease = match leases.get(identity).and_then(Weak::upgrade).filter(|lease| !lease.is_over()) {
            Some(lease) => lease,
            None => {
                // Leases that nobody holds go when a new one comes: there are never more than streams.
                leases.retain(|_, lease| lease.strong_count() > 0);
                let status = watch::Sender::new(status(identity));
                let review_history = Mutex::new(ReviewHistory::new(Instant::now()));
                let lease = Arc::new(Lease { identity: identity.clone(), status, review_history });
                leases.insert(identity.clone(), Arc::downgrade(&lease));
                lease
            }
        };
        let mut status = lease.status.subscribe();
        status.mark_changed();
        let changes = stream::unfold((lease, status), async |(lease, mut status)| {
            // The sender lives in the lease, which lives here.
            status.changed().await.ok()?;
            let now = *status.borrow_and_update();
            Some((now, (lease, status)))
        });
        changes.boxed()
    }

    pub(super) fn all(&self) -> Vec<Arc<Lease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().filter_map(Weak::upgrade).collect()
    }
}

impl Lease {
    pub(super) fn is_over(&self) -> bool {
        matches!(*self.status.borrow(), CredentialStatus::Ended(_))
    }

    pub(super) fn review_history(&self) -> MutexGuard<'_, ReviewHistory> {
        self.review_history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note; what is over stays so. Whether it is news that it is.
    pub(super) fn set(&self, now: CredentialStatus) -> bool {
        let changed = self.status.send_if_modified(|status| {
            let changed = *status != now && !matches!(status, CredentialStatus::Ended(_));
            if changed {
                *status = now;
            }
            changed
        });
        changed && matches!(now, CredentialStatus::Ended(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIRM: Duration = Duration::from_secs(2);

    fn allowed() -> Result<ReviewOutcome, ReviewUnavailable> {
        Ok(ReviewOutcome::Allowed(Arc::default()))
    }

    #[test]
    fn denial_ends_streams_only_after_a_second_denial() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let denied = || Ok(ReviewOutcome::Unknown);
        for (between, counts) in [(denied(), true), (allowed(), false), (Err(ReviewUnavailable), false)] {
            let mut history = ReviewHistory::new(start);
            assert!(!history.record(&denied(), at(20), CONFIRM));
            assert!(!history.needs_confirmation(at(21), CONFIRM) && history.needs_confirmation(at(22), CONFIRM));
            assert!(!history.record(&between, at(21), CONFIRM), "too early to count");
            assert_eq!(history.record(&denied(), at(22), CONFIRM), counts, "{between:?}");
        }
    }

    #[test]
    fn only_approvals_extend_freshness() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut history = ReviewHistory::new(start);
        history.record(&allowed(), at(20), CONFIRM);
        history.record(&Err(ReviewUnavailable), at(40), CONFIRM);
        history.record(&Ok(ReviewOutcome::Unknown), at(60), CONFIRM);
        let max_age = Duration::from_secs(320);
        assert!(!history.is_stale(at(339), max_age) && history.is_stale(at(340), max_age));
    }

    #[test]
    fn priority_orders_by_review_age_with_failed_reviews_last() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let history = |outcome, seconds| {
            let mut history = ReviewHistory::new(start);
            history.record(&outcome, at(seconds), CONFIRM);
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
}
