//! Credentials that have streams: looked at again and again, for as long as one of those lives.
//!
//! Streams of the same grounds share a lease, and whoever holds one is told when it changes. Time and the keys file are
//! looked at by one loop, the cluster is asked by others (`recheck`), so that one that does not answer delays no
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

use super::{Auth, keys::Access, principal::Grounds, scope, signed_token::Holder, watchdog::Asked};
use crate::wire::Close;

/// How a credential stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Good.
    Good,
    /// Good, and soon over.
    Expiring(Timestamp),
    /// Over, for this reason.
    Ended(Close),
}

/// One credential that has streams.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) grounds: Grounds,
    standing: watch::Sender<Standing>,
    /// What came of asking the cluster about it, if it is a user's.
    asked: Mutex<Asked>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<HashMap<Grounds, Weak<Lease>>>);

/// How one credential stands, now and with every change, for as long as somebody has this: it keeps the lease. A stream,
/// so that who waits for it holds one pointer.
pub type Hold = BoxStream<'static, Standing>;

impl Leases {
    pub(super) fn hold(&self, grounds: &Grounds, standing: impl FnOnce(&Grounds) -> Standing) -> Hold {
        let mut leases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lease = match leases.get(grounds).and_then(Weak::upgrade).filter(|lease| !lease.is_over()) {
            Some(lease) => lease,
            None => {
                // Leases that nobody holds go when a new one comes: there are never more than streams.
                leases.retain(|_, lease| lease.strong_count() > 0);
                let standing = watch::Sender::new(standing(grounds));
                let asked = Mutex::new(Asked::admitted(Instant::now()));
                let lease = Arc::new(Lease { grounds: grounds.clone(), standing, asked });
                leases.insert(grounds.clone(), Arc::downgrade(&lease));
                lease
            }
        };
        let mut standing = lease.standing.subscribe();
        standing.mark_changed();
        let changes = stream::unfold((lease, standing), async |(lease, mut standing)| {
            // The sender lives in the lease, which lives here.
            standing.changed().await.ok()?;
            let now = *standing.borrow_and_update();
            Some((now, (lease, standing)))
        });
        changes.boxed()
    }

    pub(super) fn all(&self) -> Vec<Arc<Lease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().filter_map(Weak::upgrade).collect()
    }
}

impl Lease {
    pub(super) fn is_over(&self) -> bool {
        matches!(*self.standing.borrow(), Standing::Ended(_))
    }

    pub(super) fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note; what is over stays so. Whether it is news that it is.
    fn set(&self, now: Standing) -> bool {
        let changed = self.standing.send_if_modified(|standing| {
            let changed = *standing != now && !matches!(standing, Standing::Ended(_));
            if changed {
                *standing = now;
            }
            changed
        });
        changed && matches!(now, Standing::Ended(_))
    }
}

impl Auth {
    /// Looks after those who have streams, and after the keys file, for ever.
    pub async fn run(&self) -> Infallible {
        if self.is_open {
            return future::pending().await;
        }
        let time = async {
            let (mut tick, mut read) = (interval(self.config.tick), Instant::now());
            loop {
                tick.tick().await;
                if read.elapsed() >= self.config.reread {
                    read = Instant::now();
                    self.reread();
                }
                self.look();
            }
        };
        let cluster = async {
            match &self.verdicts {
                Some(verdicts) => self.ask_again(verdicts).await,
                None => future::pending().await,
            }
        };
        future::select(std::pin::pin!(time), std::pin::pin!(cluster)).await.factor_first().0
    }

    /// How a credential stands by what is known here.
    pub(super) fn standing(&self, grounds: &Grounds) -> Standing {
        let keys = self.keys();
        let mut end = grounds.expires_at;
        let stands = match &grounds.holder {
            None => self.is_open || !keys.has_tenants(),
            Some(Holder::User(_)) => true,
            Some(Holder::Key(name, sealed)) => {
                let key = self.held(&keys, name, sealed);
                end = end.into_iter().chain(key.and_then(|key| key.expires_at)).min();
                key.is_some_and(|key| key.may(Access::Read) && scope(key) == grounds.scope)
            }
        };
        let now = self.now();
        match end {
            _ if !stands => Standing::Ended(Close::AccessRevoked),
            Some(end) if end <= now => Standing::Ended(Close::CredentialExpired),
            Some(end) if now.saturating_add(self.config.expiring).is_ok_and(|soon| end <= soon) => {
                Standing::Expiring(end)
            }
            _ => Standing::Good,
        }
    }

    /// Looks at all credentials that have streams.
    fn look(&self) {
        // It cannot be reached once a pass should have had an answer.
        let (now, most) = (Instant::now(), self.config.recheck + self.config.unreachable);
        for lease in self.leases.all() {
            let is_user = matches!(lease.grounds.holder, Some(Holder::User(_)));
            let standing = if is_user && lease.asked().is_stale(now, most) {
                Standing::Ended(Close::AccessRevoked)
            } else {
                self.standing(&lease.grounds)
            };
            self.set(&lease, standing);
        }
    }

    pub(super) fn set(&self, lease: &Lease, standing: Standing) {
        if lease.set(standing) && standing == Standing::Ended(Close::AccessRevoked) {
            self.metrics.revoked.inc();
        }
    }

    /// Takes a new version of the keys file in. A bad one changes nothing.
    fn reread(&self) {
        let Some(file) = &self.file else { return };
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        let path = file.path().display().to_string();
        match file.look() {
            None => {}
            Some(Ok(mut keys)) => {
                tracing::info!(path, keys = keys.len(), "the keys file has changed");
                if let Some(secret) = &self.environment {
                    keys = keys.with_environment(secret);
                }
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
            }
            Some(Err(problem)) => {
                self.metrics.bad_keys_files.inc();
                tracing::error!(path, %problem, "the keys file cannot be used: what it said before still counts");
            }
        }
    }
}
