//! The checks of the cluster and of its objects, on the simulator.

use std::time::Duration;

use boilerhouse_bridge::sim::{
    ApiResource, SimConfig, Verb,
    fault::{Answer, ConnectionEnd, Fault, WatchFault},
};
use jiff::{SignedDuration, Timestamp};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::{Run, run};
use crate::support::sim_cluster::{SimCluster, kubeconfig};

async fn check(cluster: &SimCluster, ids: &str, args: &[&str]) -> Run {
    let kubeconfig = cluster.kubeconfig();
    let mut all = vec!["--only", ids, "--kubeconfig", &kubeconfig];
    all.extend(args);
    run(&all).await
}

#[tokio::test]
async fn way_to_the_api_server_is_checked() {
    let none = run(&["--only", "kubeconfig,api-server"]).await;
    none.expect("kubeconfig", "failed", "error", "no kubeconfig");
    none.expect("api-server", "skipped", "info", "the check kubeconfig failed");
    let missing = run(&["--only", "kubeconfig", "--kubeconfig", "/nowhere/config"]).await;
    missing.expect("kubeconfig", "failed", "error", "/nowhere/config");

    let cluster = SimCluster::new().await;
    let ids = "kubeconfig,api-server,api-version,clock";
    let works = check(&cluster, ids, &[]).await;
    works.expect_passed("kubeconfig", "context simulated, server http://127.0.0.1:");
    works.expect_passed("api-server", "accepts the credential");
    works.expect_passed("api-version", "v1.36.0+simulated");
    works.expect_passed("clock", "agree");

    cluster.sim.set_unauthorized(true);
    let rejected = check(&cluster, ids, &[]).await;
    rejected.expect("api-server", "failed", "error", "rejects the credentials");
    rejected.expect("clock", "skipped", "info", "the check api-server failed");
    cluster.sim.set_unauthorized(false);
    cluster.sim.down();
    check(&cluster, ids, &[]).await.expect("api-server", "failed", "error", "");

    let start = Timestamp::now() - SignedDuration::from_hours(1);
    let late = SimCluster::with(SimConfig { start, ..SimConfig::default() }).await;
    let clock = check(&late, "clock", &[]).await;
    clock.expect("clock", "failed", "warning", "s ahead of that of the API server");
    assert_eq!(clock.code, 0);
}

/// A server that hangs fails the check within its limit.
#[tokio::test]
async fn api_server_without_an_answer_fails_within_the_limit() {
    let cluster = SimCluster::new().await;
    cluster.sim.black_hole();
    let hangs = check(&cluster, "api-server", &[]).await;
    hangs.expect("api-server", "failed", "error", "no result within 15 s");
    let command = format!("boilerhouse-bridge doctor --kubeconfig {} --only api-server", cluster.kubeconfig());
    assert_eq!(hangs.hint("api-server"), command);
    cluster.sim.up();
}

/// Answers every request with an old version.
#[tokio::test]
async fn old_api_server_is_a_warning() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let file = kubeconfig(&format!("http://{}", listener.local_addr().unwrap()));
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            let body = r#"{"gitVersion":"v1.20.1"}"#;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
        }
    });
    let old = run(&["--only", "api-version,clock", "--kubeconfig", &file.path().to_string_lossy()]).await;
    old.expect("api-version", "failed", "warning", "v1.20.1 is older than 1.30");
    assert_eq!(old.hint("api-version"), format!("kubectl --kubeconfig {} version", file.path().display()));
    old.expect("clock", "skipped", "info", "does not send its time");
    server.abort();
}

#[tokio::test]
async fn each_missing_permission_is_named() {
    let cluster = SimCluster::new().await;
    let permissions = [
        ("rbac-pods-list", Verb::List, ApiResource::Pods),
        ("rbac-pods-watch", Verb::Watch, ApiResource::Pods),
        ("rbac-claims-list", Verb::List, ApiResource::Claims),
        ("rbac-claims-watch", Verb::Watch, ApiResource::Claims),
        ("rbac-namespace-get", Verb::Get, ApiResource::Namespaces),
        ("rbac-reviews", Verb::Create, ApiResource::TokenReviews),
        ("rbac-reviews", Verb::Create, ApiResource::AccessReviews),
    ];
    let ids = permissions.map(|(id, ..)| id).join(",");
    let all = check(&cluster, &ids, &["--token-audience", "x"]).await;
    for (missing, verb, resource) in permissions {
        all.expect_passed(missing, "can");
        cluster.sim.deny(verb, resource);
        let found = check(&cluster, &ids, &["--token-audience", "x"]).await;
        for (id, ..) in permissions {
            let expected = if id == missing { "failed" } else { "passed" };
            assert_eq!(found.found(id).0, expected, "{id} without {verb:?} {resource:?}");
        }
        let kubectl = format!("| kubectl --kubeconfig {} apply -f -", cluster.kubeconfig());
        assert!(found.hint(missing).ends_with(&kubectl), "{}", found.hint(missing));
        cluster.sim.allow_all();
    }
    check(&cluster, "rbac-reviews", &[]).await.expect("rbac-reviews", "skipped", "info", "--token-audience");
}

#[tokio::test]
async fn definition_and_lists_are_checked() {
    let cluster = SimCluster::new().await;
    cluster.create_pod("a");
    let works = check(&cluster, "crd,list,watch,first-event,exact-list", &[]).await;
    works.expect_passed("crd", "their schema is compatible");
    works.expect_passed("list", "1 instances and 0 claims");
    works.expect_passed("watch", "both watches start");
    works.expect_passed("first-event", "the first event of pods comes after");
    works.expect_passed("exact-list", "clients resume");

    cluster.sim.set_crd(false);
    let missing = check(&cluster, "crd,list", &["--context", "simulated"]).await;
    missing.expect("crd", "failed", "error", "no BoilerhouseClaim resource");
    let kubectl = format!("kubectl --kubeconfig {} --context simulated", cluster.kubeconfig());
    assert_eq!(missing.hint("crd"), format!("boilerhouse-bridge crd | {kubectl} apply -f -"));
    missing.expect("list", "skipped", "info", "the check crd failed");
    cluster.sim.set_crd(true);

    cluster.sim.arm(Fault::answer(Answer::Unavailable).on_verb(Verb::List).on(ApiResource::Claims));
    check(&cluster, "list", &[]).await.expect("list", "failed", "error", "cannot list boilerhouseclaims");
}

#[tokio::test]
async fn missing_namespace_comes_first_and_is_reported_once() {
    let cluster = SimCluster::new().await;
    let kubeconfig = cluster.kubeconfig();
    let all = ["--kubeconfig", &kubeconfig, "--namespace", "other", "--port", "0", "--fix"];
    let other = run(&all).await;
    other.expect("namespace", "failed", "error", "namespace other does not exist");
    let command = format!("kubectl --kubeconfig {kubeconfig} create namespace other");
    assert_eq!(other.hint("namespace"), command);
    let checks = other.report["checks"].as_array().unwrap();
    let failed: Vec<_> = checks.iter().filter(|check| check["status"] == "failed").map(|check| &check["id"]).collect();
    assert_eq!(failed, ["namespace"]);
    other.expect("rbac-pods-list", "skipped", "info", "the check namespace failed");
    other.expect("list", "skipped", "info", "the check namespace failed");
    assert_eq!(other.report["repairs"][0]["text"], command);

    check(&cluster, "namespace", &[]).await.expect_passed("namespace", "exists");
    // An account that cannot get it cannot know, and its permissions are checked.
    cluster.sim.deny(Verb::Get, ApiResource::Namespaces);
    let unknown = check(&cluster, "namespace,rbac-pods-list,rbac-namespace-get", &[]).await;
    unknown.expect("namespace", "skipped", "info", "whether it exists is not known");
    unknown.expect_passed("rbac-pods-list", "can list pods");
    unknown.expect("rbac-namespace-get", "failed", "error", "cannot get namespaces");
}

#[tokio::test]
async fn watches_that_do_not_deliver_are_reported() {
    let cluster = SimCluster::new().await;
    let empty = check(&cluster, "first-event", &[]).await;
    empty.expect("first-event", "skipped", "info", "no event is due");
    cluster.claim("alice");
    check(&cluster, "first-event", &[]).await.expect_passed("first-event", "the first event of boilerhouseclaims");

    cluster.sim.arm(Fault::answer(Answer::Internal).on_verb(Verb::Watch).on(ApiResource::Pods));
    let refused = check(&cluster, "watch,first-event", &[]).await;
    refused.expect("watch", "failed", "error", "cannot watch pods");
    refused.expect("first-event", "skipped", "info", "the check watch failed");
    // The first watch of claims is that of the check `watch`, which drops it.
    let ends = || Fault::watch(0, WatchFault::Cut(ConnectionEnd::Eof)).on(ApiResource::Claims);
    cluster.sim.arm(ends());
    cluster.sim.arm(ends());
    check(&cluster, "first-event", &[]).await.expect("first-event", "failed", "error", "without an event");
}

#[tokio::test]
async fn exact_lists_that_have_expired_are_a_warning() {
    let cluster = SimCluster::new().await;
    // The check `list` sends one list for each resource, and `exact-list` two: the version of the answer is then gone.
    for _ in 0..4 {
        cluster.sim.arm(
            Fault::with_concurrent_change(|store| {
                let name = format!("written-at-{}", store.revision());
                let namespace = serde_json::json!({"metadata": {"name": name}});
                store.create(ApiResource::Namespaces, namespace).unwrap();
                store.compact(store.revision());
            })
            .on_verb(Verb::List),
        );
    }
    let expired = check(&cluster, "exact-list", &[]).await;
    expired.expect("exact-list", "failed", "warning", "resumes start with a new state");
    assert_eq!(cluster.sim.pending_faults(), 0);
}

/// Writes to the cluster while `doctor` runs, so that the version moves.
async fn with_writes(cluster: &SimCluster, ids: &str) -> Run {
    let writes = async {
        for number in 0.. {
            cluster.create_pod(&format!("pod-{number}"));
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        run = check(cluster, ids, &[]) => run,
        () = writes => unreachable!("the writes have no end"),
    }
}

#[tokio::test]
async fn bookmarks_are_expected_only_after_a_change() {
    let (quiet, busy) = (SimCluster::new().await, SimCluster::new().await);
    let config = SimConfig { bookmark_min_watch: Duration::from_secs(3600), ..SimConfig::default() };
    let silent = SimCluster::with(config).await;
    // Each of them waits for the time limit of the check.
    let (quiet, busy, silent) = tokio::join!(
        check(&quiet, "bookmarks", &[]),
        with_writes(&busy, "bookmarks"),
        with_writes(&silent, "bookmarks")
    );
    quiet.expect("bookmarks", "skipped", "info", "no bookmark was due");
    busy.expect_passed("bookmarks", "the watches sent");
    silent.expect("bookmarks", "failed", "warning", "events and no bookmark within 15 s");
}
