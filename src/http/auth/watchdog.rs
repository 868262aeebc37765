//! Users who have streams: the cluster is asked about them again and again, for as long as one of those lives.
//!
//! One loop passes over all of them, another asks once more about those whom it was told no of: an API server that has
//! just started does not know all its roles yet, and says no to people who may. Neither waits for the other. Nothing here
//! ends a stream because nobody answers: that is a matter of time, and the time's loop looks at it ([`super::lease`]).

use std::{
    collections::HashMap,
    convert::Infallible,
    pin::pin,
    sync::{Arc, PoisonError},
};

use futures::{StreamExt, future, stream};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{
    authenticator::Authenticator,
    lease::{CredentialStatus, Lease, ReviewHistory},
    review_cache::{ReviewCache, ReviewSubject},
    signed_token::CredentialSubject,
};
use crate::wire::CloseReason;

impl Authenticator {
    /// Looks after those who have streams, and after the keys file, for ever.
    pub async fn run_watchdog(&self) -> Infallible {
        if self.allows_anonymous {
            return future::pending().await;
        }
        let time = async {
            let (mut tick, mut read) = (interval(self.config.check_interval), Instant::now());
            loop {
                tick.tick().await;
                if read.elapsed() >= self.config.keys_reload_interval {
                    read = Instant::now();
                    self.reload_keys();
                }
                self.check_leases();
            }
        };
        let cluster = async {
            match &self.reviews {
                Some(cache) => self.run_reviews(cache).await,
                None => future::pending().await,
            }
        };
        future::select(pin!(time), pin!(cluster)).await.factor_first().0
    }

    /// Looks at all credentials that have streams.
    fn check_leases(&self) {
        // It cannot be reached once a pass should have had an answer.
        let (now, max_age) = (Instant::now(), self.config.review_interval + self.config.unreachable_grace);
        for lease in self.leases.all() {
            let is_user = matches!(lease.identity.subject, Some(CredentialSubject::User(_)));
            let status = if is_user && lease.review_history().is_stale(now, max_age) {
                CredentialStatus::Ended(CloseReason::AccessRevoked)
            } else {
                self.status(&lease.identity)
            };
            self.set_status(&lease, status);
        }
    }

    fn set_status(&self, lease: &Lease, status: CredentialStatus) {
        if lease.set(status) && status == CredentialStatus::Ended(CloseReason::AccessRevoked) {
            self.metrics.revoked.inc();
        }
    }

    /// Takes a new version of the keys file in. A bad one changes nothing.
    fn reload_keys(&self) {
        let Some(file) = &self.file else { return };
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        let path = file.path().display().to_string();
        match file.poll_change() {
            None => {}
            Some(Ok(mut keys)) => {
                tracing::info!(path, keys = keys.len(), "the keys file has changed");
                if let Some(secret) = &self.environment {
                    keys = keys.with_environment(secret);
                }
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
            }
            Some(Err(error)) => {
                self.metrics.bad_keys_files.inc();
                tracing::error!(path, %error, "the keys file cannot be used: what it said before still counts");
            }
        }
    }

    /// Asks about all who have streams, for ever.
    async fn run_reviews(&self, cache: &ReviewCache) -> Infallible {
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
