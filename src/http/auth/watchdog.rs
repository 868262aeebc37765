//! The watchdog: checks the credentials of open streams until shutdown.
//!
//! Four loops run concurrently, and none waits for another:
//! - Every `check_interval` it checks the expiry of all leases. This loop also ends the streams of users whose last
//!   approval is too old, so that an API server that does not answer cannot delay that end.
//! - Every `keys_reload_interval` it reads the keys file, on a blocking thread. A file system that does not answer delays
//!   nothing else.
//! - Every `review_interval` it repeats the reviews of all users with open streams.
//! - `denial_confirm_delay` after a denial it reviews the user once more. An API server that has just started has not
//!   loaded all roles, and denies rights that exist.
//!
//! Guarantees:
//! - A failed review ends no stream by itself. Streams end when the last approval is as old as `review_interval` plus
//!   `unreachable_grace`.
//! - An invalid version of the keys file changes nothing.
//!
//! Specification: docs/protocol.md#access, "While a stream is open"; docs/failures.md.

use std::{
    collections::HashMap,
    convert::Infallible,
    panic::resume_unwind,
    pin::pin,
    sync::{Arc, PoisonError},
};

use futures::{StreamExt, future, stream};
use tokio::{
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    authenticator::Authenticator,
    keys::{ApiKeys, KeysFileError},
    keys_file::KeysFile,
    lease::{CredentialStatus, Lease, ReviewHistory},
    metrics::Revocation,
    review_cache::{ReviewCache, ReviewSubject},
    signed_token::CredentialSubject,
};
use crate::wire::CloseReason;

impl Authenticator {
    /// Checks the credentials of open streams and reads the keys file, until shutdown. Without configured credentials
    /// it does nothing.
    ///
    /// Cancel safe: no state is lost when the future is dropped.
    pub async fn run_watchdog(&self) -> Infallible {
        if self.allows_anonymous {
            return future::pending().await;
        }
        let checks = async {
            let mut ticks = interval(self.config.check_interval);
            loop {
                ticks.tick().await;
                self.check_leases();
            }
        };
        let reloads = async {
            match &self.file {
                Some(file) => self.run_reloads(file).await,
                None => future::pending().await,
            }
        };
        let reviews = async {
            match &self.reviews {
                Some(cache) => self.run_reviews(cache).await,
                None => future::pending().await,
            }
        };
        tokio::select! {
            never = checks => never,
            never = reloads => never,
            never = reviews => never,
        }
    }

    /// Updates the status of all leases.
    fn check_leases(&self) {
        // The grace starts when a repeated review should have answered.
        let (now, max_age) = (Instant::now(), self.config.review_interval + self.config.unreachable_grace);
        for lease in self.leases.all() {
            let is_user = matches!(lease.identity.subject, Some(CredentialSubject::User(_)));
            if is_user && lease.review_history().is_stale(now, max_age) {
                self.revoke(&lease, Revocation::Unreachable);
                continue;
            }
            match self.status(&lease.identity) {
                CredentialStatus::Ended(CloseReason::AccessRevoked) => self.revoke(&lease, Revocation::KeyRemoved),
                status => drop(lease.set(status)),
            }
        }
    }

    /// Ends the streams of a lease because its credential lost its rights.
    fn revoke(&self, lease: &Lease, reason: Revocation) {
        if lease.set(CredentialStatus::Ended(CloseReason::AccessRevoked)) {
            self.metrics.count_revoked(reason);
        }
    }

    /// Reads the keys file until shutdown and applies its changes.
    async fn run_reloads(&self, file: &Arc<KeysFile>) -> Infallible {
        let path = file.path().display().to_string();
        loop {
            sleep(self.config.keys_reload_interval).await;
            let reader = file.clone();
            let mut read = spawn_blocking(move || reader.read());
            let content = match timeout(self.config.keys_read_timeout, &mut read).await {
                Ok(content) => content,
                Err(_) => {
                    self.metrics.keys_file_errors.inc();
                    tracing::error!(
                        path,
                        "keys file cannot be read: the file system does not answer; the previously loaded keys stay in effect"
                    );
                    // At most one read runs at once, so that they occupy at most one thread.
                    read.await
                }
            };
            // The task is never aborted, so an error means that it panicked. The panic continues here.
            let content = content.unwrap_or_else(|error| resume_unwind(error.into_panic()));
            if let Some(version) = content.and_then(|content| file.confirm_change(content)) {
                self.apply_keys(version, &path);
            }
        }
    }

    /// Applies a new version of the keys file. An invalid version is logged and counted once.
    fn apply_keys(&self, version: Result<ApiKeys, KeysFileError>, path: &str) {
        match version {
            Ok(mut keys) => {
                tracing::info!(path, keys = keys.len(), "keys file reloaded");
                if let Some(secret) = &self.environment {
                    keys = keys.with_environment(secret);
                }
                self.metrics.set_keys(keys.len());
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
            }
            Err(error) => {
                self.metrics.keys_file_errors.inc();
                tracing::error!(path, %error, "keys file rejected; the previously loaded keys stay in effect");
            }
        }
    }

    /// Repeats the reviews of all users with open streams, and confirms denials, until shutdown.
    async fn run_reviews(&self, cache: &ReviewCache) -> Infallible {
        let delayed_interval = |period| {
            let mut interval = interval(period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        };
        let passes = async {
            let mut interval = delayed_interval(self.config.review_interval);
            loop {
                interval.tick().await;
                self.review_subjects(cache, |_| true).await;
            }
        };
        let confirmations = async {
            let (mut interval, confirm_delay) =
                (delayed_interval(self.config.check_interval), self.config.denial_confirm_delay);
            loop {
                // A review decides or resets a denial, so this loop ends. It does not pause while denials need
                // confirmation.
                while self
                    .review_subjects(cache, |history| history.needs_confirmation(Instant::now(), confirm_delay))
                    .await
                {}
                interval.tick().await;
            }
        };
        future::select(pin!(passes), pin!(confirmations)).await.factor_first().0
    }

    /// Reviews each subject with a matching history once, at most `max_concurrent_reviews` concurrently. Returns
    /// whether there was a subject.
    ///
    /// After that number of consecutive failures it skips the remaining subjects until the next pass, because each of
    /// them would wait for the same timeout.
    async fn review_subjects(&self, cache: &ReviewCache, filter: impl Fn(&ReviewHistory) -> bool) -> bool {
        let (subjects, concurrency) = (self.subjects(filter), self.config.reviews.max_concurrent_reviews);
        let found = !subjects.is_empty();
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
                    self.revoke(&lease, Revocation::AccessDenied);
                }
            }
        }
        found
    }

    /// Returns the users with a matching history and their leases, in the order of [`ReviewHistory::priority`].
    fn subjects(&self, filter: impl Fn(&ReviewHistory) -> bool) -> Vec<(ReviewSubject, Vec<Arc<Lease>>)> {
        let mut subjects: HashMap<ReviewSubject, Vec<Arc<Lease>>> = HashMap::new();
        for lease in self.leases.all() {
            let Some(CredentialSubject::User(user)) = &lease.identity.subject else { continue };
            if lease.is_ended() || !filter(&lease.review_history()) {
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
