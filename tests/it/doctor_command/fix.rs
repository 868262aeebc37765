//! `--fix`: it creates what is missing, once, and changes nothing else.

use std::{collections::BTreeMap, path::Path, process::Stdio, time::SystemTime};

use boilerhouse_bridge::sim::{ApiResource, Verb};
use serde_json::Value;

use super::{output, run};
use crate::support::{bridge_process, sim_cluster::SimCluster};

/// Path → content and time of the last change, for all files below a folder.
fn files(folder: &Path) -> BTreeMap<String, (String, SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            let (text, time) = (std::fs::read_to_string(entry.path()).unwrap(), entry.metadata().unwrap().modified());
            found.insert(entry.path().to_string_lossy().into_owned(), (text, time.unwrap()));
        }
    }
    found
}

#[tokio::test]
async fn second_repair_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    std::fs::write(path("mine"), "mine").unwrap();
    let (config, keys, session) = (path("state/config.yaml"), path("state/keys.yaml"), path("state/session"));
    let ids = "config,credentials";
    let flags = ["--only", ids, "--config", &config, "--keys-file", &keys, "--session-key-file", &session];

    let before = run(&flags).await;
    before.expect("config", "failed", "error", "cannot read the config file");
    assert_eq!(before.report["repairs"], serde_json::json!([]));
    assert_eq!(files(folder.path()).len(), 1, "without --fix nothing is created");

    let with_fix: Vec<&str> = flags.into_iter().chain(["--fix"]).collect();
    let first = run(&with_fix).await;
    first.expect_passed("config", "config.yaml can be used");
    first.expect_passed("credentials", "1 keys in");
    let repairs = first.report["repairs"].as_array().unwrap();
    assert!(repairs.len() == 3 && repairs.iter().all(|repair| repair["done"] == true), "{repairs:#?}");
    let created = files(folder.path());
    assert_eq!(created.len(), 5, "{created:#?}");
    assert_eq!(created[&path("mine")].0, "mine");
    let key = created[&path("state/keys.yaml.key")].0.trim();
    assert!(!first.report.to_string().contains(key), "the report has no key");

    let second = run(&with_fix).await;
    assert_eq!(second.report["repairs"], serde_json::json!([]));
    second.expect_passed("credentials", "1 keys in");
    assert_eq!(files(folder.path()), created, "the second run changes nothing");

    // What was created works: `serve` accepts the files, and the key opens it.
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&["--config", &config, "--keys-file", &keys, "--session-key-file", &session]).await;
    let (url, token) = (format!("http://{}", bridge.address), path("state/keys.yaml.key"));
    let works = run(&["--only", "bridge-streams", "--url", &url, "--token-file", &token]).await;
    works.expect_passed("bridge-streams", "heartbeat");
}

/// A full disk, here as a limit of the size of files. The next run must not find half a file.
#[tokio::test]
async fn a_failed_repair_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (config, keys, session) = (path("config.yaml"), path("keys.yaml"), path("session"));
    let flags =
        ["--only", "config", "--fix", "--config", &config, "--keys-file", &keys, "--session-key-file", &session];
    let doctor = bridge_process::command(&[]);
    // The shell replaces itself. Without SIGXFSZ a write beyond the limit is an error.
    let script = "trap '' XFSZ; ulimit -f 0; exec \"$0\" doctor -o json \"$@\"";
    let mut limited = tokio::process::Command::new("sh");
    limited.args(["-c", script]).arg(doctor.as_std().get_program()).args(flags).envs(bridge_process::NO_ROOTS);
    let output = limited.env("HOME", "/nowhere").stdin(Stdio::null()).output().await.unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let repairs = report["repairs"].as_array().unwrap();
    assert!(repairs.len() == 3 && repairs.iter().all(|repair| repair["done"] == false), "{report:#}");
    assert_eq!(files(folder.path()), BTreeMap::new());

    let again = run(&flags).await;
    let repairs = again.report["repairs"].as_array().unwrap();
    assert!(repairs.len() == 3 && repairs.iter().all(|repair| repair["done"] == true), "{:#}", again.report);
}

#[tokio::test]
async fn commands_for_the_cluster_are_printed_and_not_run() {
    let cluster = SimCluster::new().await;
    for (verb, resource) in [(Verb::List, ApiResource::Pods), (Verb::Watch, ApiResource::Claims)] {
        cluster.sim.deny(verb, resource);
    }
    cluster.sim.set_crd(false);
    let kubeconfig = cluster.kubeconfig();
    let before = cluster.sim.store(|store| store.revision());
    let flags = ["--fix", "--kubeconfig", &kubeconfig, "--only", "rbac-pods-list,rbac-claims-watch,crd"];
    let run = run(&flags).await;
    let repairs = run.report["repairs"].as_array().unwrap();
    let texts: Vec<_> = repairs.iter().map(|repair| repair["text"].as_str().unwrap()).collect();
    assert!(texts.len() == 2 && repairs.iter().all(|repair| repair["done"] == false), "{repairs:#?}");
    let apply = format!("| kubectl --kubeconfig {kubeconfig} apply -f -");
    assert!(texts[0].starts_with("printf %s '{") && texts[0].ends_with(&apply), "{}", texts[0]);
    assert_eq!(texts[1], format!("boilerhouse-bridge crd {apply}"));
    assert_eq!(cluster.sim.store(|store| store.revision()), before, "nothing was written");
    let (_, text, _) = output(&flags, &[]).await;
    assert!(text.contains("\ncommands to run\nprintf %s '{"), "{text}");
    assert!(text.contains("        repair: as for rbac-pods-list\n"), "{text}");
}
