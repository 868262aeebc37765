//! What a check is, what it gets, and how all checks run: as early as possible, and none before those that it needs.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use rustls::ClientConfig;
use tokio::time::timeout;

use super::{
    command::{self, CommandLine, shell_path, shell_word},
    report::{CheckResult, Severity, Status},
};
use crate::{
    client,
    source::{connect, diagnose::Diagnosis},
};

/// A check: one row of the table in docs/protocol.md#doctor.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Stable id.
    pub id: &'static str,
    /// Group in the report.
    pub category: &'static str,
    /// What is checked, in a few words.
    pub name: &'static str,
    /// What a failure means. A check with `Warning` never fails as an error, also not at its time limit; one with `Error` can
    /// fail with a warning.
    pub severity: Severity,
    /// Checks that must have passed, have failed with a warning only, or could not decide. They are earlier in the table.
    pub needs: &'static [&'static str],
    /// Maximum time. A check without a result by then has failed.
    pub limit: Duration,
    /// Runs the check.
    pub run: fn(&Subject) -> BoxFuture<'_, Outcome>,
}

/// What a check has found.
#[derive(Clone, Debug)]
pub struct Outcome {
    status: Status,
    severity: Severity,
    detail: String,
    repair_hint: Option<String>,
    fix: Option<String>,
    is_cluster_command: bool,
    is_undecided: bool,
}

impl Outcome {
    /// Nothing is wrong.
    pub fn passed(detail: impl Into<String>) -> Outcome {
        Outcome {
            status: Status::Passed,
            severity: Severity::Error,
            detail: detail.into(),
            repair_hint: None,
            fix: None,
            is_cluster_command: false,
            is_undecided: false,
        }
    }

    /// The bridge does not work. `hint` says what to do, if possible as a command.
    pub fn failed(detail: impl Into<String>, hint: impl Into<String>) -> Outcome {
        Outcome { status: Status::Failed, repair_hint: Some(hint.into()), ..Outcome::passed(detail) }
    }

    /// The bridge works with a limitation.
    pub fn warning(detail: impl Into<String>, hint: impl Into<String>) -> Outcome {
        Outcome { severity: Severity::Warning, ..Outcome::failed(detail, hint) }
    }

    /// The check does not apply.
    pub fn skipped(reason: impl Into<String>) -> Outcome {
        Outcome { status: Status::Skipped, severity: Severity::Info, ..Outcome::passed(reason) }
    }

    /// The check cannot find out. Unlike after [`Outcome::skipped`], the checks that need it run.
    pub(super) fn undecided(reason: impl Into<String>) -> Outcome {
        Outcome { is_undecided: true, ..Outcome::skipped(reason) }
    }

    /// Says what `doctor --fix` does about it on this machine.
    #[must_use]
    pub fn with_fix(self, fix: impl Into<String>) -> Outcome {
        Outcome { fix: Some(fix.into()), ..self }
    }

    /// Says that the hint is a command that changes the cluster.
    pub(super) fn with_cluster_command(self) -> Outcome {
        Outcome { is_cluster_command: true, ..self }
    }

    fn into_result(self, check: &Check, duration: Duration) -> CheckResult {
        let Outcome { status, severity, detail, repair_hint, fix, is_cluster_command, is_undecided } = self;
        let severity =
            if status == Status::Failed && check.severity == Severity::Warning { check.severity } else { severity };
        CheckResult {
            id: check.id,
            category: check.category,
            name: check.name,
            ok: status == Status::Passed,
            status,
            severity,
            detail,
            duration_ms: duration.as_millis().try_into().unwrap_or(u64::MAX),
            repair_hint,
            fix,
            is_cluster_command,
            is_undecided,
        }
    }
}

/// A check of the flags, as a function: `doctor` does not know them.
pub type LocalCheck = Arc<dyn Fn() -> BoxFuture<'static, Outcome> + Send + Sync>;

/// The checks of the flags.
#[derive(Clone)]
#[expect(missing_docs, reason = "the names are those of the checks in docs/protocol.md#doctor")]
pub struct LocalChecks {
    pub config: LocalCheck,
    pub origins: LocalCheck,
    pub credentials: LocalCheck,
    pub tls: LocalCheck,
    pub schema_pack: LocalCheck,
    pub wasm: LocalCheck,
    pub mqtt: LocalCheck,
    pub nats: LocalCheck,
}

impl std::fmt::Debug for LocalChecks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalChecks").finish_non_exhaustive()
    }
}

/// An address of `serve`.
#[derive(Clone, Debug)]
pub struct Listener {
    /// The flag that sets it, without `--`.
    pub flag: &'static str,
    /// Address or name.
    pub host: String,
    /// Port; 0 takes a free one.
    pub port: u16,
    /// Connections use TLS.
    pub is_tls: bool,
}

impl Listener {
    /// Returns the value of the flag for another port.
    pub(super) fn value(&self, port: u16) -> String {
        match self.flag {
            "port" => port.to_string(),
            _ if self.host.contains(':') => format!("[{}]:{port}", self.host),
            _ => format!("{}:{port}", self.host),
        }
    }
}

/// The running bridge of `--url`.
#[derive(Clone, Debug)]
pub struct Target {
    /// Scheme, host and port, without a path.
    pub base_url: String,
    /// The settings of a client of this bridge.
    pub client: client::Builder,
    /// TLS for requests that are no streams.
    pub tls: Arc<ClientConfig>,
    /// `--ca-file`
    pub ca_file: Option<PathBuf>,
    /// `--token-file`
    pub token_file: Option<PathBuf>,
}

impl Target {
    /// Returns the URL of a path.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base_url)
    }

    /// Returns a `curl` command for a path, with the certificates of this run.
    pub(super) fn curl(&self, flags: &str, path: &str) -> String {
        let ca = self.ca_file.as_deref().map(|file| format!(" --cacert {}", shell_path(file))).unwrap_or_default();
        format!("curl {flags}{ca} {}", shell_word(&self.url(path)))
    }

    /// As [`Target::curl`], with the credential of this run.
    pub(super) fn curl_with_token(&self, flags: &str, path: &str) -> String {
        match &self.token_file {
            Some(file) => self.curl(&format!("{flags} -H \"Authorization: Bearer $(cat {})\"", shell_path(file)), path),
            None => self.curl(flags, path),
        }
    }
}

/// What is checked.
pub struct Subject {
    /// The flags.
    pub local: LocalChecks,
    /// The addresses to listen on.
    pub listeners: Vec<Listener>,
    /// `--allowed-hosts`
    pub allowed_hosts: Vec<String>,
    /// The cluster.
    pub cluster: connect::Config,
    /// Kubernetes tokens are accepted, so that reviews are needed.
    pub reviews_tokens: bool,
    /// The running bridge.
    pub bridge: Option<Target>,
    /// The flags of this run.
    pub command: CommandLine,
    /// The connection that the check `kubeconfig` has built.
    pub(super) diagnosis: OnceLock<Diagnosis>,
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject").field("listeners", &self.listeners).finish_non_exhaustive()
    }
}

impl Subject {
    /// Creates a subject without a running bridge.
    #[must_use]
    pub fn new(local: LocalChecks, listeners: Vec<Listener>, cluster: connect::Config) -> Subject {
        Subject {
            local,
            listeners,
            allowed_hosts: Vec::new(),
            cluster,
            reviews_tokens: false,
            bridge: None,
            command: CommandLine::default(),
            diagnosis: OnceLock::new(),
        }
    }

    /// Returns `kubectl` with the flags for the cluster of this run.
    pub(super) fn kubectl_command(&self) -> String {
        command::kubectl(&self.cluster)
    }

    /// Returns a `kubectl` command for the cluster of this run.
    pub(super) fn kubectl(&self, arguments: &str) -> String {
        format!("{} {arguments}", self.kubectl_command())
    }
}

/// Returns the checks of these ids and the checks that they need, in the order of the table. No ids are all checks.
///
/// # Errors
/// The unknown id.
pub fn select(checks: &[Check], ids: &[String]) -> Result<Vec<Check>, String> {
    if let Some(unknown) = ids.iter().find(|id| !checks.iter().any(|check| check.id == **id)) {
        return Err(unknown.clone());
    }
    let mut wanted: Vec<&str> = ids.iter().map(String::as_str).collect();
    // A check needs only earlier ones.
    for check in checks.iter().rev() {
        if wanted.contains(&check.id) {
            wanted.extend(check.needs);
        }
    }
    Ok(checks.iter().filter(|check| ids.is_empty() || wanted.contains(&check.id)).copied().collect())
}

/// Runs checks, each as soon as those that it needs have a result. Returns the results in the order of `checks`.
pub async fn run(subject: &Subject, checks: &[Check]) -> Vec<CheckResult> {
    let mut results: BTreeMap<&str, CheckResult> = BTreeMap::new();
    let mut waiting: Vec<&Check> = checks.iter().collect();
    let mut running = FuturesUnordered::new();
    loop {
        waiting.retain(|check| {
            // A needed check that is not among `checks` does not count.
            let is_pending = |id: &&str| checks.iter().any(|other| other.id == *id) && !results.contains_key(*id);
            if check.needs.iter().any(is_pending) {
                return true;
            }
            let blocker = check.needs.iter().filter_map(|id| results.get(id)).find(|needed| blocks(needed));
            match blocker {
                Some(needed) => {
                    let state = if needed.has_failed() { "failed" } else { "was skipped" };
                    let skipped = Outcome::skipped(format!("the check {} {state}", needed.id));
                    results.insert(check.id, skipped.into_result(check, Duration::ZERO));
                }
                None => running.push(run_one(subject, check).map(|result| (check.id, result))),
            }
            false
        });
        // Each pass starts or skips at least the first waiting check, because it needs only earlier ones.
        match running.next().await {
            Some((id, result)) => {
                results.insert(id, result);
            }
            None if waiting.is_empty() => break,
            None => {}
        }
    }
    checks.iter().filter_map(|check| results.remove(check.id)).collect()
}

/// Returns whether checks that need this one cannot run.
fn blocks(result: &CheckResult) -> bool {
    match result.status {
        Status::Passed => false,
        Status::Failed => result.severity == Severity::Error,
        Status::Skipped => !result.is_undecided,
    }
}

async fn run_one(subject: &Subject, check: &Check) -> CheckResult {
    let start = Instant::now();
    let outcome = timeout(check.limit, (check.run)(subject)).await.unwrap_or_else(|_| {
        let detail = format!("no result within {} s", check.limit.as_secs());
        Outcome::failed(detail, subject.command.with(&[("only", Some(check.id))]))
    });
    outcome.into_result(check, start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::{super::command::Flag, *};

    fn local(outcome: fn() -> Outcome) -> LocalCheck {
        Arc::new(move || async move { outcome() }.boxed())
    }

    fn subject() -> Subject {
        let passed = local(|| Outcome::passed(""));
        let checks = LocalChecks {
            config: passed.clone(),
            origins: passed.clone(),
            credentials: passed.clone(),
            tls: passed.clone(),
            schema_pack: passed.clone(),
            wasm: passed.clone(),
            mqtt: passed.clone(),
            nats: passed,
        };
        Subject::new(checks, Vec::new(), connect::Config::default())
    }

    fn check(id: &'static str, needs: &'static [&'static str], run: fn(&Subject) -> BoxFuture<'_, Outcome>) -> Check {
        let severity = Severity::Error;
        Check { id, category: "test", name: "test", severity, needs, limit: Duration::from_secs(5), run }
    }

    fn passes(_: &Subject) -> BoxFuture<'_, Outcome> {
        async { Outcome::passed("") }.boxed()
    }

    fn warns(_: &Subject) -> BoxFuture<'_, Outcome> {
        async { Outcome::warning("w", "h") }.boxed()
    }

    fn fails(_: &Subject) -> BoxFuture<'_, Outcome> {
        async { Outcome::failed("f", "h") }.boxed()
    }

    fn cannot_decide(_: &Subject) -> BoxFuture<'_, Outcome> {
        async { Outcome::undecided("u") }.boxed()
    }

    fn hangs(_: &Subject) -> BoxFuture<'_, Outcome> {
        std::future::pending().boxed()
    }

    #[tokio::test(start_paused = true)]
    async fn checks_without_their_precondition_are_skipped_and_a_hanging_one_fails() {
        let checks = [
            check("a", &[], fails),
            check("b", &["a"], passes),
            check("c", &["b"], passes),
            check("d", &[], hangs),
            check("e", &[], warns),
            check("f", &["e"], passes),
            check("g", &[], cannot_decide),
            check("h", &["g"], passes),
        ];
        let results = run(&subject(), &checks).await;
        let found: Vec<_> = results.iter().map(|result| (result.id, result.status, result.ok)).collect();
        use Status::{Failed, Passed, Skipped};
        assert_eq!(
            found,
            [
                ("a", Failed, false),
                ("b", Skipped, false),
                ("c", Skipped, false),
                ("d", Failed, false),
                ("e", Failed, false),
                ("f", Passed, true),
                ("g", Skipped, false),
                ("h", Passed, true)
            ]
        );
        let detail = |at: usize| results[at].detail.as_str();
        assert_eq!(
            (detail(1), detail(2), detail(3)),
            ("the check a failed", "the check b was skipped", "no result within 5 s")
        );
        assert!(results.iter().all(|result| result.has_failed() == result.repair_hint.is_some()));
    }

    #[tokio::test(start_paused = true)]
    async fn check_at_its_limit_has_its_severity_and_names_the_flags_of_the_run() {
        let checks = [
            check("a", &[], hangs),
            Check { severity: Severity::Warning, ..check("b", &[], hangs) },
            Check { severity: Severity::Warning, ..check("c", &[], fails) },
        ];
        let mut subject = subject();
        let context =
            Flag { name: "context".to_owned(), value: Some("prod".to_owned()), requires_equals: false, is_url: false };
        subject.command = CommandLine::new([context]);
        let results = run(&subject, &checks).await;
        let found: Vec<_> = results.iter().map(|result| (result.status, result.severity)).collect();
        use Severity::{Error, Warning};
        assert_eq!(found, [Error, Warning, Warning].map(|severity| (Status::Failed, severity)));
        assert_eq!(results[1].repair_hint.as_deref(), Some("boilerhouse-bridge doctor --context prod --only b"));
    }

    #[test]
    fn listeners_keep_their_host_with_another_port() {
        let listener = |flag, host: &str| Listener { flag, host: host.to_owned(), port: 80, is_tls: false };
        assert_eq!(listener("port", "::").value(8080), "8080");
        assert_eq!(listener("probe-listen", "::").value(8080), "[::]:8080");
        assert_eq!(listener("probe-listen", "0.0.0.0").value(8080), "0.0.0.0:8080");
    }

    #[test]
    fn selected_checks_bring_those_that_they_need() {
        let checks = [check("a", &[], passes), check("b", &["a"], passes), check("c", &["b"], passes)];
        let ids = |ids: &[&str]| {
            let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
            select(&checks, &ids).map(|found| found.iter().map(|check| check.id).collect::<String>())
        };
        assert_eq!(ids(&[]).as_deref(), Ok("abc"));
        assert_eq!(ids(&["b"]).as_deref(), Ok("ab"));
        assert_eq!(ids(&["c", "a"]).as_deref(), Ok("abc"));
        assert_eq!(ids(&["b", "x"]), Err("x".to_owned()));
    }
}
