//! Checks of the way to the API server.

use futures::{FutureExt as _, future::BoxFuture};

use crate::{
    doctor::check::{Outcome, Subject},
    source::{
        connect::{Error, connect},
        diagnose::{Diagnosis, ServerVersion},
        error::{UpstreamError, error_chain},
    },
};

/// The oldest minor version of Kubernetes 1 that the chart supports (`kubeVersion` in deploy/chart/Chart.yaml).
const MIN_MINOR: u32 = 30;
/// Maximum difference of the clocks in seconds. Kubernetes accepts tokens for 60 s after their expiry.
const MAX_CLOCK_DIFFERENCE_S: u64 = 5;

/// Arguments of `kubectl` that show whether the API server works.
pub(super) const SHOW_READY: &str = "get --raw '/readyz?verbose'";

pub(super) fn kubeconfig(subject: &Subject) -> BoxFuture<'_, Outcome> {
    async move {
        match connect(&subject.cluster).await {
            Ok(connection) => {
                let found = format!(
                    "context {}, server {}, namespace {}",
                    connection.context, connection.server, connection.namespace
                );
                // Only this check sets it, and it runs once.
                let _ = subject.diagnosis.set(Diagnosis::new(&connection));
                Outcome::passed(found)
            }
            Err(error) => {
                let hint = match &error {
                    Error::NotFound { .. } | Error::Read { .. } => {
                        subject.command.with(&[("kubeconfig", Some("FILE"))])
                    }
                    Error::InCluster(_) => "kubectl get serviceaccounts -o yaml".to_owned(),
                    _ => subject.kubectl("config get-contexts"),
                };
                Outcome::failed(error_chain(&error), hint)
            }
        }
    }
    .boxed()
}

/// The Namespace comes before what is in it: the Role of the bridge, too, can be created only when it exists.
pub(super) fn namespace<'a>(subject: &'a Subject) -> BoxFuture<'a, Outcome> {
    with_diagnosis(subject, move |diagnosis: &'a Diagnosis| async move {
        let namespace = diagnosis.namespace();
        match diagnosis.namespace_exists().await {
            Ok(()) => Ok(Outcome::passed(format!("namespace {namespace} exists"))),
            Err(UpstreamError::Forbidden(_)) => {
                let reason = format!(
                    "the account cannot get namespace {namespace}: whether it exists is not known. If it is the wrong one, --namespace selects another"
                );
                Ok(Outcome::undecided(reason))
            }
            Err(error) => Err(error),
        }
    })
}

pub(super) fn api_server(subject: &Subject) -> BoxFuture<'_, Outcome> {
    with_version(subject, |_, ServerVersion { round_trip, .. }| {
        Outcome::passed(format!("it answers, and accepts the credential, within {} ms", round_trip.as_millis()))
    })
}

pub(super) fn api_version(subject: &Subject) -> BoxFuture<'_, Outcome> {
    with_version(subject, |subject, version| judge_version(version.version.as_deref(), subject.kubectl("version")))
}

pub(super) fn clock(subject: &Subject) -> BoxFuture<'_, Outcome> {
    with_version(subject, |_, version| judge_clock(version.clock_difference_s))
}

fn judge_version(version: Option<&str>, hint: String) -> Outcome {
    let Some(version) = version else {
        return Outcome::warning("this account may not read the version of the API server", hint);
    };
    let mut parts = version.trim_start_matches('v').split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    match (major.parse::<u32>(), minor.parse::<u32>()) {
        (Ok(1), Ok(minor)) if minor < MIN_MINOR => {
            Outcome::warning(format!("{version} is older than 1.{MIN_MINOR}, the oldest tested version"), hint)
        }
        (Ok(_), Ok(_)) => Outcome::passed(version),
        _ => Outcome::warning(format!("{version} is not a version of Kubernetes"), hint),
    }
}

fn judge_clock(difference_s: Option<i64>) -> Outcome {
    match difference_s {
        None => Outcome::skipped("the API server does not send its time"),
        Some(seconds) if seconds.unsigned_abs() <= MAX_CLOCK_DIFFERENCE_S => {
            Outcome::passed("the clocks of this machine and of the API server agree")
        }
        Some(seconds) => Outcome::warning(
            format!(
                "the clock of this machine is {} s {} that of the API server: tokens, sessions and certificates expire too \
                 early or too late",
                seconds.unsigned_abs(),
                if seconds > 0 { "behind" } else { "ahead of" }
            ),
            "timedatectl status",
        ),
    }
}

fn with_version<'a>(subject: &'a Subject, judge: fn(&Subject, &ServerVersion) -> Outcome) -> BoxFuture<'a, Outcome> {
    with_diagnosis(subject, move |diagnosis: &'a Diagnosis| async move {
        diagnosis.version().await.map(|version| judge(subject, &version))
    })
}

/// Runs a check that sends requests. An error of a request fails it.
pub(super) fn with_diagnosis<'a, F>(
    subject: &'a Subject,
    run: impl FnOnce(&'a Diagnosis) -> F + Send + 'a,
) -> BoxFuture<'a, Outcome>
where
    F: Future<Output = Result<Outcome, UpstreamError>> + Send + 'a,
{
    async move {
        let Some(diagnosis) = subject.diagnosis.get() else {
            return Outcome::skipped("there is no connection to a cluster");
        };
        run(diagnosis).await.unwrap_or_else(|error| failed(&error, diagnosis.namespace(), subject))
    }
    .boxed()
}

/// Returns the outcome of a failed request.
fn failed(error: &UpstreamError, namespace: &str, subject: &Subject) -> Outcome {
    let is_grant = matches!(error, UpstreamError::NoNamespace(_) | UpstreamError::NoCrd);
    let hint = match error {
        UpstreamError::Unauthorized { .. } | UpstreamError::Credentials(_) => subject.kubectl("auth whoami"),
        UpstreamError::Forbidden(_) => subject.kubectl(&format!("auth can-i --list -n {namespace}")),
        UpstreamError::NoNamespace(_) => subject.kubectl(&format!("create namespace {namespace}")),
        UpstreamError::NoCrd => format!("boilerhouse-bridge crd | {}", subject.kubectl("apply -f -")),
        UpstreamError::Throttled { .. } | UpstreamError::Timeout { .. } | UpstreamError::ErrorStatus { .. } => {
            subject.kubectl(SHOW_READY)
        }
        _ => subject.kubectl("cluster-info"),
    };
    let outcome = Outcome::failed(error.to_string(), hint);
    if is_grant { outcome.with_cluster_command() } else { outcome }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debug(outcome: &Outcome) -> String {
        format!("{outcome:?}")
    }

    #[test]
    fn versions_before_the_oldest_tested_one_are_a_warning() {
        for passed in ["v1.30.0", "v1.36.3+k3s1", "v2.0.0"] {
            assert!(debug(&judge_version(Some(passed), String::new())).contains("Passed"), "{passed}");
        }
        for warned in ["v1.29.9", "unknown", ""] {
            assert!(debug(&judge_version(Some(warned), String::new())).contains("Warning"), "{warned}");
        }
        assert!(debug(&judge_version(None, String::new())).contains("may not read"));
    }

    #[test]
    fn clocks_may_differ_by_five_seconds() {
        for passed in [0, 5, -5] {
            assert!(debug(&judge_clock(Some(passed))).contains("Passed"), "{passed}");
        }
        assert!(debug(&judge_clock(Some(6))).contains("6 s behind"));
        assert!(debug(&judge_clock(Some(-60))).contains("60 s ahead of"));
        assert!(debug(&judge_clock(None)).contains("Skipped"));
    }
}
