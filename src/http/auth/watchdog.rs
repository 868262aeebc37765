//! Users who have streams: the cluster is asked about them again and again, for as long as one of those lives.
//!
//! One loop passes over all of them, another asks once more about those whom it was told no of: an API server that has
//! just started does not know all its roles yet, and says no to people who may. Neither waits for the other. Nothing here
//! ends a stream because nobody answers: that is a matter of time, and the time's loop looks at it ([`super::lease`]).

use std::{collections::HashMap, convert::Infallible, pin::pin, sync::Arc, time::Duration};

use futures::{StreamExt, future, stream};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{
    Authenticator,
    lease::{CredentialStatus, Lease},
    review_cache::{ReviewCache, ReviewOutcome, ReviewSubject, ReviewUnavailable},
    signed_token::CredentialSubject,
};
use crate::wire::CloseReason;

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
    fn record(
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
    fn needs_confirmation(&self, now: Instant, confirm_delay: Duration) -> bool {
        self.denied_since.is_some_and(|since| now - since >= confirm_delay)
    }

    /// The least is asked about first: whoever waits longest, and last of all whom there was no yes about. So neither does a
    /// pass that is cut short always leave the same ones out, nor do those hold others up about whom nobody can say anything.
    fn priority(&self) -> (bool, Instant) {
        (self.last_attempt != self.last_allowed, self.last_attempt)
    }
}

impl Authenticator {
    /// Asks about all who have streams, for ever.
    pub(super) async fn run_reviews(&self, cache: &ReviewCache) -> Infallible {
        let period_interval = |period| {
            let mut period_interval = interval(period);
            period_interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            period_interval
        };
        let passes = async {
            let mut interval = period_interval(self.config.review_interval);
            loop {
                interval.tick().await;
                self.review_subjects(cache, |_| true).await;
            }
        };
        let confirmations = async {
            let (mut interval, confirm_delay) =
                (period_interval(self.config.check_interval), self.config.denial_confirm_delay);
            loop {
                // Whoever has been asked about is doubted no more: as long as there is somebody, there is no pause.
                while self
                    .review_subjects(cache, |history| history.needs_confirmation(Instant::now(), confirm_delay))
                    .await
                {}
                interval.tick().await;
            }
        };
        future::select(pin!(passes), pin!(confirmations)).await.factor_first().0
    }

    /// Asks about these, once about each subject, some at a time. When as many as that have not been answered in a row, the
    /// rest is left for another time: each of them would wait just as long. Whether there was anybody to ask about.
    async fn review_subjects(&self, cache: &ReviewCache, filter: impl Fn(&ReviewHistory) -> bool) -> bool {
        let (subjects, concurrency) = (self.subjects(filter), self.config.reviews.max_concurrent_reviews);
        let any = !subjects.is_empty();
        let reviews = stream::iter(subjects);
        let reviews = reviews.map(async |(subject, leases)| (cache.refresh(&subject).await, leases));
        let mut outcomes = pin!(reviews.buffer_unordered(concurrency));
        let mut failures = 0;
        while failures < concurrency
            && let Some((outcome, leases)) = outcomes.next().await
        {
            failures = if outcome.is_err() { failures + 1 } else { 0 };
            for lease in leases {
                if lease.review_history().record(&outcome, Instant::now(), self.config.denial_confirm_delay) {
                    self.set_status(&lease, CredentialStatus::Ended(CloseReason::AccessRevoked));
                }
            }
        }
        any
    }

    /// Those of whom this is true, in the order in which they are asked about.
    fn subjects(&self, filter: impl Fn(&ReviewHistory) -> bool) -> Vec<(ReviewSubject, Vec<Arc<Lease>>)> {
        let mut subjects: HashMap<ReviewSubject, Vec<Arc<Lease>>> = HashMap::new();
        for lease in self.leases.all() {
            let Some(CredentialSubject::User(user)) = &lease.identity.subject else { continue };
            if lease.is_over() || !filter(&lease.review_history()) {
                continue;
            }
            let token = lease.identity.token.clone();
            let subject = token.map_or_else(|| ReviewSubject::User(user.clone()), ReviewSubject::Token);
            subjects.entry(subject).or_default().push(lease);
        }
        let mut subjects: Vec<_> = subjects.into_iter().collect();
        subjects.sort_by_cached_key(|(_, leases)| leases.iter().map(|lease| lease.review_history().priority()).min());
        subjects
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
