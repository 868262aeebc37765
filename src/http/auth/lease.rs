//! Credentials that have streams: looked at again and again, for as long as one of those lives.
//!
//! Streams of the same grounds share a lease, and whoever holds one is told when it changes. Time and the keys file are
//! looked at by one loop, the cluster is asked by others (`watchdog`), so that one that does not answer delays no
//! end, its own included.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use futures::{
    StreamExt, future,
    stream::{self, BoxStream},
};
use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Instant, interval},
};

use super::{
    Authenticator, keys::Permission, principal::CredentialIdentity, scope, signed_token::CredentialSubject,
    watchdog::ReviewHistory,
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
    fn set(&self, now: CredentialStatus) -> bool {
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
        future::select(std::pin::pin!(time), std::pin::pin!(cluster)).await.factor_first().0
    }

    /// How a credential stands by what is known here.
    pub(super) fn status(&self, identity: &CredentialIdentity) -> CredentialStatus {
        let keys = self.keys();
        let mut end = identity.expires_at;
        let is_valid = match &identity.subject {
            None => self.allows_anonymous || !keys.has_tenants(),
            Some(CredentialSubject::User(_)) => true,
            Some(CredentialSubject::Key(name, key_id)) => {
                let key = self.find_signed_key(&keys, name, key_id);
                end = end.into_iter().chain(key.and_then(|key| key.expires_at)).min();
                key.is_some_and(|key| key.allows(Permission::Read) && scope(key) == identity.scope)
            }
        };
        let now = self.now();
        match end {
            _ if !is_valid => CredentialStatus::Ended(CloseReason::AccessRevoked),
            Some(end) if end <= now => CredentialStatus::Ended(CloseReason::CredentialExpired),
            Some(end) if now.saturating_add(self.config.expiry_notice).is_ok_and(|soon| end <= soon) => {
                CredentialStatus::Expiring(end)
            }
            _ => CredentialStatus::Valid,
        }
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

    pub(super) fn set_status(&self, lease: &Lease, status: CredentialStatus) {
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
}
