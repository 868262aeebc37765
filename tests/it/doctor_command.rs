//! `doctor` as a user runs it: each check failing and passing, the report against its schema, `--fix`, exit codes
//! (docs/protocol.md#doctor).

mod bridge;
mod cluster;
mod configuration;
mod fix;
mod inputs;
mod permissions;

use std::{process::Stdio, sync::LazyLock, time::Duration};

use boilerhouse_bridge::doctor::{CHECKS, schema};
use serde_json::Value;
use tokio::time::timeout;

use crate::support::{bridge_process, golden};

/// Longer than the longest chain of checks: 15 s of watches, and a slow machine.
const BOUND: Duration = Duration::from_secs(90);

static VALIDATOR: LazyLock<jsonschema::Validator> = LazyLock::new(|| jsonschema::validator_for(&schema()).unwrap());

/// A run of `doctor -o json`.
#[derive(Debug)]
struct Run {
    code: i32,
    report: Value,
}

/// Status, severity and detail of a check.
type Found<'a> = (&'a str, &'a str, &'a str);

impl Run {
    fn check(&self, id: &str) -> &Value {
        let checks = self.report["checks"].as_array().unwrap();
        checks.iter().find(|check| check["id"] == id).unwrap_or_else(|| panic!("no check {id} in {:#}", self.report))
    }

    fn found(&self, id: &str) -> Found<'_> {
        let check = self.check(id);
        let text = |name: &str| check[name].as_str().unwrap();
        (text("status"), text("severity"), text("detail"))
    }

    #[track_caller]
    fn expect(&self, id: &str, status: &str, severity: &str, words: &str) {
        let found = self.found(id);
        assert!(
            (found.0, found.1) == (status, severity) && found.2.contains(words),
            "expected {id} {status} {severity} with {words:?}, found {:#}",
            self.check(id)
        );
    }

    #[track_caller]
    fn expect_passed(&self, id: &str, words: &str) {
        let found = self.found(id);
        assert!(found.0 == "passed" && found.2.contains(words), "{id}: {:#}", self.check(id));
    }

    fn hint(&self, id: &str) -> &str {
        self.check(id)["repair_hint"].as_str().unwrap()
    }
}

/// Runs `doctor` without a home folder and without a cluster, and returns exit code, stdout and stderr.
async fn output(args: &[&str], variables: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = bridge_process::command(&["doctor"]);
    command
        .env_remove("KUBERNETES_SERVICE_HOST")
        .env("HOME", "/nowhere")
        .envs(bridge_process::NO_ROOTS)
        .envs(variables.iter().copied())
        .args(args);
    let child = command.kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let ended = timeout(BOUND, child.wait_with_output()).await.unwrap_or_else(|_| panic!("{args:?} does not end"));
    let ended = ended.unwrap();
    let [stdout, stderr] = [ended.stdout, ended.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (ended.status.code().unwrap(), stdout, stderr)
}

/// Runs `doctor -o json`, and checks what every report must fulfil.
async fn run_with(args: &[&str], variables: &[(&str, &str)]) -> Run {
    let mut all = vec!["-o", "json"];
    all.extend(args);
    let (code, stdout, stderr) = output(&all, variables).await;
    assert_eq!(stderr, "", "{args:?}");
    let report: Value = serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"));
    let errors: Vec<_> = VALIDATOR.iter_errors(&report).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:#?} in {report:#}");
    let checks = report["checks"].as_array().unwrap();
    let is_error = |check: &&Value| check["status"] == "failed" && check["severity"] == "error";
    let is_ok = !checks.iter().any(|check| is_error(&check));
    assert_eq!((code, &report["ok"]), (i32::from(!is_ok), &Value::from(is_ok)), "{report:#}");
    let order: Vec<_> = checks.iter().map(|check| CHECKS.iter().position(|row| check["id"] == row.id)).collect();
    assert!(order.is_sorted() && !order.contains(&None), "{order:?}");
    for check in checks {
        let has_failed = check["status"] == "failed";
        assert_eq!(has_failed, check["repair_hint"].is_string(), "{check:#}");
        assert_eq!(check["ok"], check["status"] == "passed", "{check:#}");
    }
    Run { code, report }
}

async fn run(args: &[&str]) -> Run {
    run_with(args, &[]).await
}

#[test]
fn schema_of_the_report_is_published() {
    golden::check("doctor.schema.json", &(serde_json::to_string_pretty(&schema()).unwrap() + "\n"));
    jsonschema::meta::validate(&schema()).unwrap();
    let wrong = serde_json::json!({"version": "1", "ok": "yes", "checks": [], "repairs": []});
    assert!(!VALIDATOR.is_valid(&wrong), "the schema accepts everything");
}

#[tokio::test]
async fn wrong_usage_exits_with_2_and_names_what_is_accepted() {
    let usage = async |args: &[&str]| {
        let (code, stdout, stderr) = output(args, &[]).await;
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}: {stderr}");
        stderr
    };
    let unknown = usage(&["--only", "config,prot"]).await;
    assert!(unknown.contains("there is no check 'prot'; accepted: config, credentials,"), "{unknown}");
    let path = usage(&["--url", "http://localhost:3000/api/sse"]).await;
    assert!(path.contains("has a path; name the bridge alone"), "{path}");
    let path = usage(&["--url", "http://localhost:3000/api/sse?token=canary"]).await;
    assert!(path.contains("http://localhost:3000/api/sse has a path") && !path.contains("canary"), "{path}");
    let query = usage(&["--url", "http://localhost:3000/?token=canary"]).await;
    assert!(query.contains("http://localhost:3000/ has a query; name") && !query.contains("canary"), "{query}");
    let scheme = usage(&["--url", "ftp://localhost"]).await;
    assert!(scheme.contains("accepted schemes"), "{scheme}");
    usage(&["--port", "many"]).await;
}

#[tokio::test]
async fn text_fits_into_80_columns_and_has_no_color_in_a_pipe() {
    let (code, text, stderr) = output(&["--listen-host", "0.0.0.0"], &[]).await;
    assert_eq!((code, stderr.as_str()), (1, ""), "{text}");
    assert!(!text.contains('\x1b'), "{text}");
    // Hints are commands, which are not wrapped.
    let too_long: Vec<_> =
        text.lines().filter(|line| line.chars().count() > 80 && !line.trim_start().starts_with("repair:")).collect();
    assert_eq!(too_long, [""; 0], "{text}");
    for words in [
        "  FAIL  credentials         --listen-host 0.0.0.0 would give",
        "        repair: export BOILERHOUSE_API_KEY=\"$(openssl rand -hex 32)\"\n",
        "  skip  api-server          the check kubeconfig failed\n",
        "  skip  bridge-streams      the check bridge-ready was skipped\n",
    ] {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
}

#[tokio::test]
async fn only_reports_the_chosen_checks_and_failed_ones_that_they_need() {
    let run = run(&["--only", "tls,list"]).await;
    let ids: Vec<_> = run.report["checks"].as_array().unwrap().iter().map(|check| &check["id"]).collect();
    assert_eq!(ids, ["tls", "kubeconfig", "list"], "{:#}", run.report);
    assert_eq!(run.code, 1, "a check that cannot run because another one fails is no success");
    assert_eq!(run.found("list").0, "skipped");
}
