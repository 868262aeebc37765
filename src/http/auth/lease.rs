//! Credentials that have streams: looked at again and again, for as long as one of those lives.
//!
//! Streams of the same grounds share a lease, and whoever holds one is told when it changes. Time and the keys file are
//! looked at by one loop, the cluster is asked by another, so that a cluster that does not answer delays no end.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use futures::{
    StreamExt, future,
    stream::{self, BoxStream},
};
use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::{
    Auth,
    keys::{Access, Keys},
    principal::Grounds,
    scope,
    seal::Holder,
    verdict::{Subject, Unavailable, Verdict, Verdicts},
};
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
struct Lease {
    grounds: Grounds,
    standing: watch::Sender<Standing>,
    /// Since when the cluster could not be asked about it.
    unreachable: Mutex<Option<Instant>>,
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
        let ended = |lease: &Arc<Lease>| matches!(*lease.standing.borrow(), Standing::Ended(_));
        let lease = match leases.get(grounds).and_then(Weak::upgrade).filter(|lease| !ended(lease)) {
            Some(lease) => lease,
            None => {
                // Leases that nobody holds go when a new one comes: there are never more than streams.
                leases.retain(|_, lease| lease.strong_count() > 0);
                let standing = watch::Sender::new(standing(grounds));
                let lease = Arc::new(Lease { grounds: grounds.clone(), standing, unreachable: Mutex::default() });
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

    fn all(&self) -> Vec<Arc<Lease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().filter_map(Weak::upgrade).collect()
    }
}

impl Lease {
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
            let Some(verdicts) = &self.verdicts else { return future::pending().await };
            let mut again = interval(self.config.recheck);
            again.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                again.tick().await;
                self.recheck(verdicts).await;
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
            Some(Holder::Key(name, fingerprint)) => {
                let key = keys.get(name, fingerprint);
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
        for lease in self.leases.all() {
            self.set(&lease, self.standing(&lease.grounds));
        }
    }

    fn set(&self, lease: &Lease, standing: Standing) {
        if lease.set(standing) && standing == Standing::Ended(Close::AccessRevoked) {
            self.metrics.revoked.inc();
        }
    }

    /// Takes a new version of the keys file in. A bad one changes nothing.
    fn reread(&self) {
        let Some((path, last)) = &self.file else { return };
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        // A small file, mostly in memory: not worth a thread. What cannot be read is told once, as a bad version is.
        let read = Keys::read(path);
        let text = read.as_ref().map_or_else(ToString::to_string, Clone::clone);
        if text == *last {
            return;
        }
        *last = text;
        match read.and_then(|text| Keys::parse(&text)) {
            Ok(mut keys) => {
                tracing::info!(path = %path.display(), keys = keys.len(), "the keys file has changed");
                if let Some(secret) = &self.environment {
                    keys = keys.with_environment(secret);
                }
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
            }
            Err(problem) => {
                self.metrics.bad_keys_files.inc();
                let path = path.display();
                tracing::error!(%path, %problem, "the keys file cannot be used: what it said before still counts");
            }
        }
    }

    /// Asks the cluster again about all who have streams, once about each subject. Those whom it refuses are asked about
    /// once more: an API server that has just started does not know all its roles yet, and says no to people who may.
    async fn recheck(&self, verdicts: &Verdicts) {
        let mut subjects: HashMap<Subject, Vec<Arc<Lease>>> = HashMap::new();
        for lease in self.leases.all() {
            let Some(Holder::User(user)) = &lease.grounds.holder else { continue };
            let token = lease.grounds.token.clone();
            let subject = token.map_or_else(|| Subject::User(user.clone()), Subject::Token);
            subjects.entry(subject).or_default().push(lease);
        }
        let refused = self.ask_about(verdicts, subjects, |verdict| verdict.refuses()).await;
        if !refused.is_empty() {
            sleep(self.config.confirm).await;
            self.ask_about(verdicts, refused, |_| false).await;
        }
    }

    /// Asks about these, and applies what is answered, but for verdicts that are `doubted`: whom these are about is returned.
    async fn ask_about(
        &self,
        verdicts: &Verdicts,
        subjects: HashMap<Subject, Vec<Arc<Lease>>>,
        doubted: impl Fn(&Verdict) -> bool,
    ) -> HashMap<Subject, Vec<Arc<Lease>>> {
        let asked = stream::iter(subjects).map(async |(subject, leases)| {
            let verdict = verdicts.afresh(&subject).await;
            if verdict.as_ref().is_ok_and(&doubted) {
                return Some((subject, leases));
            }
            self.apply(&leases, &verdict);
            None
        });
        asked.buffer_unordered(self.config.verdicts.questions).filter_map(future::ready).collect().await
    }

    fn apply(&self, leases: &[Arc<Lease>], verdict: &Result<Verdict, Unavailable>) {
        for lease in leases {
            let mut unreachable = lease.unreachable.lock().unwrap_or_else(PoisonError::into_inner);
            match verdict {
                Ok(Verdict::May(_)) => *unreachable = None,
                Ok(_) => self.set(lease, Standing::Ended(Close::AccessRevoked)),
                Err(Unavailable) => {
                    let since = *unreachable.get_or_insert_with(Instant::now);
                    if since.elapsed() >= self.config.unreachable {
                        self.set(lease, Standing::Ended(Close::AccessRevoked));
                    }
                }
            }
        }
    }
}
