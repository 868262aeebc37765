//! When a credential plugin runs, and which of its results requests use.
//!
//! Owns: the last result.
//!
//! Guarantees: at most one process of the plugin runs at a time. The next run starts [`Limits::min_interval`] after the last
//! one; only a request that checks while a run ends can start one at once. A result is used until it expires or until the API
//! server rejects it (401).

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::FutureExt as _;
use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    plugin::{self, Credential, Plugin},
    single_flight::SingleFlight,
};
use crate::source::error::CredentialError;

/// Time before its end at which a credential is replaced. client-go uses the same time for tokens in files.
const LEEWAY: Duration = Duration::from_secs(10);

/// Time limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) run: plugin::Limits,
    /// Maximum time that a request waits for a run.
    pub(super) wait: Duration,
    /// Minimum time between the end of a run and the start of the next one.
    pub(super) min_interval: Duration,
}

/// A plugin and its last result.
pub(super) struct PluginRuns {
    plugin: Arc<Plugin>,
    limits: Limits,
    running: SingleFlight<Result<Credential, CredentialError>>,
    last: Mutex<Option<Run>>,
}

/// A run that has ended.
#[derive(Clone)]
struct Run {
    result: Result<Credential, CredentialError>,
    ended_at: Instant,
    /// When the next run can start. Without it, no run is needed.
    next_at: Option<Instant>,
}

/// A credential, and which run it is of.
pub(super) struct Current {
    pub(super) credential: Credential,
    run: Instant,
}

impl PluginRuns {
    pub(super) fn new(plugin: Arc<Plugin>, limits: Limits) -> PluginRuns {
        PluginRuns { plugin, limits, running: SingleFlight::new(), last: Mutex::new(None) }
    }

    /// Returns a valid credential. Runs the plugin if there is none. `authority` contains the certificates that verify the
    /// server.
    ///
    /// # Errors
    /// When the last run failed, or when the run does not end within [`Limits::wait`]. It then continues.
    pub(super) async fn current(&self, authority: Option<Arc<[u8]>>) -> Result<Current, CredentialError> {
        let now = Instant::now();
        if let Some(run) = self.last().as_ref().filter(|run| run.next_at.is_none_or(|next| now < next)) {
            return run.current();
        }
        let (plugin, limits) = (self.plugin.clone(), self.limits);
        let start = || {
            let run = async move { plugin.run(authority.as_deref(), limits.run).await.map_err(CredentialError) };
            run.boxed()
        };
        let done = |result: &Result<Credential, CredentialError>| {
            let expires_at = result.as_ref().ok().map(|credential| credential.expires_at);
            let next_in = next_run(expires_at, Timestamp::now(), limits.min_interval);
            let ended_at = Instant::now();
            // A time beyond the range of the clock is never reached.
            let next_at = next_in.and_then(|next_in| ended_at.checked_add(next_in));
            *self.last() = Some(Run { result: result.clone(), ended_at, next_at });
        };
        match self.running.load(start, limits.wait, done).await {
            // The result that `done` stored. Only a later run replaces it.
            Some(result) => match self.last().clone() {
                Some(run) => run.current(),
                None => Err(result.err().unwrap_or_else(|| self.unfinished())),
            },
            None => Err(self.unfinished()),
        }
    }

    /// Reports that the API server rejected a credential. The next request runs the plugin again.
    pub(super) fn reject(&self, rejected: Instant) {
        if let Some(run) = self.last().as_mut().filter(|run| run.ended_at == rejected) {
            run.next_at = Some(run.ended_at + self.limits.min_interval);
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_running()
    }

    fn unfinished(&self) -> CredentialError {
        CredentialError(format!("{}: the credential plugin has not ended yet", self.plugin.place()))
    }

    fn last(&self) -> MutexGuard<'_, Option<Run>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Run {
    fn current(&self) -> Result<Current, CredentialError> {
        self.result.clone().map(|credential| Current { credential, run: self.ended_at })
    }
}

impl Current {
    /// Returns the run, for [`PluginRuns::reject`].
    pub(super) fn run(&self) -> Instant {
        self.run
    }
}

/// Returns the time until the next run. `expires_at` is `None` after a failure, and `Some(None)` for a credential without an
/// end, which needs no next run.
fn next_run(expires_at: Option<Option<Timestamp>>, now: Timestamp, min_interval: Duration) -> Option<Duration> {
    match expires_at {
        None => Some(min_interval),
        Some(None) => None,
        Some(Some(expires_at)) => {
            // A time in the past is negative and becomes zero.
            let left = Duration::try_from(expires_at.duration_since(now)).unwrap_or_default();
            Some(left.saturating_sub(LEEWAY).max(min_interval))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_run_is_before_the_end_of_the_credential() {
        let (now, five) = (Timestamp::from_second(1_000).unwrap(), Duration::from_secs(5));
        for (expires_at, expected) in [
            (None, Some(5)),
            (Some(None), None),
            (Some(Some(4_600)), Some(3_590)),
            (Some(Some(1_012)), Some(5)),
            (Some(Some(1)), Some(5)),
        ] {
            let expires_at = expires_at.map(|end| end.map(|end| Timestamp::from_second(end).unwrap()));
            assert_eq!(next_run(expires_at, now, five), expected.map(Duration::from_secs), "{expires_at:?}");
        }
        let end = next_run(Some(Some(Timestamp::MAX)), Timestamp::MIN, five);
        assert!(end.is_some_and(|end| end > Duration::from_secs(600_000_000_000)), "{end:?}");
    }
}
