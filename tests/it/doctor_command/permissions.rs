//! `doctor` on the real API server: as the account of the bridge with exactly its Role, and with one permission fewer. The
//! commands of the report repair it.

use serde_json::{Value, json};
use tokio::process::Command;

use super::{Run, run};
use crate::support::{accounts::Accounts, control_plane::ControlPlane, http_client::poll_until_async};

/// The manifest that users apply. The chart grants the same (tests/deploy/checks.py).
const MANIFEST: &str = include_str!("../../../deploy/rbac.yaml");
const ACCOUNT: &str = "boilerhouse-bridge";

/// The rules of the Role, for another namespace.
fn rules(namespace: &str) -> Vec<Value> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(MANIFEST).unwrap();
    let role = objects.into_iter().find(|object| object["kind"] == "Role").unwrap();
    let mut rules = role["rules"].as_array().unwrap().clone();
    for rule in &mut rules {
        if rule["resourceNames"].is_array() {
            rule["resourceNames"] = json!([namespace]);
        }
    }
    rules
}

/// One rule for each verb.
fn single_permissions(namespace: &str) -> Vec<Value> {
    let verbs = |rule: &Value| rule["verbs"].as_array().unwrap().clone();
    let single = |rule: Value| {
        verbs(&rule).into_iter().map(move |verb| {
            let mut one = rule.clone();
            one["verbs"] = json!([verb]);
            one
        })
    };
    rules(namespace).into_iter().flat_map(single).collect()
}

async fn apply(plane: &ControlPlane, namespace: &str, rules: &[Value]) {
    let group = "rbac.authorization.k8s.io";
    let metadata = json!({"name": ACCOUNT, "namespace": namespace});
    let role = json!({
        "apiVersion": format!("{group}/v1"), "kind": "Role", "metadata": metadata, "rules": rules,
    });
    let binding = json!({
        "apiVersion": format!("{group}/v1"), "kind": "RoleBinding", "metadata": metadata,
        "roleRef": {"apiGroup": group, "kind": "Role", "name": ACCOUNT},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}],
    });
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [role, binding]});
    plane.kubectl(&["apply", "-f", "-"], &list.to_string()).await.unwrap();
}

/// Runs a command of a report as the administrator: with another kubeconfig than the one that it names.
async fn run_command(plane: &ControlPlane, kubeconfig: &str, command: &str) {
    let flag = format!("--kubeconfig {kubeconfig} ");
    assert!(command.contains(&flag), "{command}");
    let command = &command.replace(&flag, "");
    let folder = plane.kubectl_binary().parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let output = Command::new("sh")
        .args(["-ec", command])
        .env("PATH", path)
        .env("KUBECONFIG", plane.kubeconfig())
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{command}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Waits until a report fulfils this: the caches of the API server follow within milliseconds.
async fn report(flags: &[&str], is_expected: impl Fn(&Run) -> bool) -> Run {
    poll_until_async(async || Some(run(flags).await).filter(|run| is_expected(run))).await
}

fn failed(run: &Run) -> Vec<&str> {
    let checks = run.report["checks"].as_array().unwrap();
    checks.iter().filter(|check| check["status"] == "failed").map(|check| check["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn account_with_the_role_passes_and_each_missing_permission_is_named_and_repaired() {
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace().await;
    let accounts = Accounts::Real(plane);
    accounts.create_account(&namespace, ACCOUNT).await;
    let kubeconfig = plane.kubeconfig_of(&accounts.create_token(&namespace, ACCOUNT, &[]).await);
    let kubeconfig = kubeconfig.to_string_lossy().into_owned();
    let pod = boilerhouse_bridge::test_support::PodBuilder::new("a").json();
    plane.call(http::Method::POST, &format!("/api/v1/namespaces/{namespace}/pods"), &pod).await;
    apply(plane, &namespace, &rules(&namespace)).await;

    // The whole run, as `helm test` does it.
    let flags = ["--kubeconfig", &kubeconfig, "--namespace", &namespace, "--port", "0"];
    let passed = report(&flags, |run| failed(run).is_empty()).await;
    for id in ["api-server", "api-version", "clock", "crd", "list", "watch", "first-event", "exact-list"] {
        assert_eq!(passed.found(id).0, "passed", "{:#}", passed.check(id));
    }
    passed.expect("rbac-reviews", "skipped", "info", "--token-audience");

    let permissions = single_permissions(&namespace);
    assert_eq!(permissions.len(), 5);
    let ids = ["rbac-pods-list", "rbac-pods-watch", "rbac-claims-list", "rbac-claims-watch", "rbac-namespace-get"];
    let joined = ids.join(",");
    let flags = ["--kubeconfig", &kubeconfig, "--namespace", &namespace, "--only", &joined];
    for (missing, id) in ids.iter().enumerate() {
        let mut fewer = permissions.clone();
        let removed = fewer.remove(missing);
        apply(plane, &namespace, &fewer).await;
        let named = report(&flags, |run| failed(run) == [*id]).await;
        let resource = removed["resources"][0].as_str().unwrap();
        named.expect(id, "failed", "error", &format!("cannot {} {resource}", removed["verbs"][0].as_str().unwrap()));
        // The hint is a command that repairs it.
        run_command(plane, &kubeconfig, named.hint(id)).await;
        report(&flags, |run| failed(run).is_empty()).await;
        // Its binding then grants nothing.
        plane.kubectl(&["-n", &namespace, "delete", "role", "boilerhouse-bridge-doctor"], "").await.unwrap();
    }

    // Without any permission: one command of `--fix` grants all of them.
    apply(plane, &namespace, &[]).await;
    let mut with_fix = flags.to_vec();
    with_fix.push("--fix");
    let nothing = report(&with_fix, |run| failed(run) == ids).await;
    let repairs = nothing.report["repairs"].as_array().unwrap();
    assert_eq!(repairs.len(), 1, "{repairs:#?}");
    run_command(plane, &kubeconfig, repairs[0]["text"].as_str().unwrap()).await;
    let repaired = report(&with_fix, |run| failed(run).is_empty()).await;
    assert_eq!(repaired.report["repairs"], json!([]));

    // The repair of a second account leaves the first one its permissions.
    let second = "second-account";
    accounts.create_account(&namespace, second).await;
    let of_second = plane.kubeconfig_of(&accounts.create_token(&namespace, second, &[]).await);
    let of_second = of_second.to_string_lossy().into_owned();
    let second_flags = ["--kubeconfig", &of_second, "--namespace", &namespace, "--only", &joined];
    let nothing = report(&second_flags, |run| failed(run) == ids).await;
    run_command(plane, &of_second, nothing.hint(ids[0])).await;
    report(&second_flags, |run| failed(run).is_empty()).await;
    report(&flags, |run| failed(run).is_empty()).await;

    // The reviews are cluster-wide.
    let flags = ["--kubeconfig", &kubeconfig, "--only", "rbac-reviews", "--token-audience", "x"];
    let reviews = report(&flags, |run| failed(run) == ["rbac-reviews"]).await;
    reviews.expect("rbac-reviews", "failed", "error", "cannot create tokenreviews.authentication.k8s.io");
    run_command(plane, &kubeconfig, reviews.hint("rbac-reviews")).await;
    report(&flags, |run| failed(run).is_empty()).await;
    let bindings = plane.kubectl(&["get", "clusterrolebinding", "-o", "name"], "").await.unwrap();
    for binding in bindings.lines().filter(|name| name.contains("boilerhouse-bridge-doctor-")) {
        plane.kubectl(&["delete", binding], "").await.unwrap();
    }
}
