//! `/ws` to the letter (protocol.md section 2), on the real API server, driven by kubectl.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::support::{bridge::Bridge, golden, plane::ControlPlane, web::Listener};

/// One namespace of the shared control plane, spoken to with kubectl.
struct Cluster {
    plane: &'static ControlPlane,
    namespace: String,
}

impl Cluster {
    async fn new() -> Cluster {
        let plane = ControlPlane::shared().await;
        Cluster { plane, namespace: plane.namespace().await }
    }

    async fn kubectl(&self, args: &str, stdin: &str) {
        let mut all = vec!["-n", &self.namespace];
        all.extend(args.split(' '));
        self.plane.kubectl(&all, stdin).await.unwrap();
    }

    async fn create_pod(&self, name: &str, labels: Value) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
            "spec": {"containers": [{"name": "main", "image": "none"}]},
        });
        self.kubectl("create -f -", &pod.to_string()).await;
    }

    async fn pod_phase(&self, name: &str, phase: &str) {
        let status = json!({"status": {"phase": phase}}).to_string();
        self.kubectl(&format!("patch pod {name} --subresource=status --type=merge -p {status}"), "").await;
    }

    async fn create_claim(&self, name: &str, tenant: &str) {
        let claim = json!({
            "apiVersion": "boilerhouse.dev/v1alpha1", "kind": "BoilerhouseClaim", "metadata": {"name": name},
            "spec": {"tenantId": tenant, "workloadRef": "web"},
        });
        self.kubectl("create -f -", &claim.to_string()).await;
    }

    async fn claim_status(&self, name: &str, status: Value) {
        let status = json!({ "status": status }).to_string();
        self.kubectl(&format!("patch bhc {name} --subresource=status --type=merge -p {status}"), "").await;
    }

    /// A pod that only marks a place in the stream: everything before it has been told once it is seen.
    async fn mark(&self, name: &str) {
        self.create_pod(name, json!({"boilerhouse.dev/managed": "true"})).await;
    }
}

/// Everything up to the mark, under a heading.
async fn record(text: &mut String, listener: &mut Listener, heading: &str, mark: &str) {
    writeln!(text, "# {heading}").unwrap();
    for message in listener.until(|event| event["name"] == mark).await {
        writeln!(text, "{message}").unwrap();
    }
}

#[tokio::test]
async fn every_message_is_as_documented() {
    let cluster = Cluster::new().await;
    let other = Cluster::new().await;
    let bridge = Bridge::serve(cluster.plane, &cluster.namespace, &[]).await;
    let mut listener = bridge.listen("/ws").await;
    let mut text = String::new();
    let managed = |more: Value| {
        let mut labels = json!({"boilerhouse.dev/managed": "true"});
        labels.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        labels
    };

    let warming = json!({"boilerhouse.dev/workload": "web", "boilerhouse.dev/pool-status": "warming"});
    cluster.create_pod("pod-a", managed(warming.clone())).await;
    cluster.pod_phase("pod-a", "Running").await;
    cluster.kubectl("label pod pod-a --overwrite boilerhouse.dev/pool-status=ready", "").await;
    cluster.kubectl("label pod pod-a colour=blue", "").await;
    cluster
        .kubectl("label pod pod-a --overwrite boilerhouse.dev/pool-status=acquired boilerhouse.dev/tenant=alice", "")
        .await;
    cluster.create_pod("pod-b", managed(json!({"boilerhouse.dev/pool-status": "ready"}))).await;
    cluster.mark("mark-1").await;
    record(&mut text, &mut listener, "a pod from warming to acquired; one that is ready at first sight", "mark-1")
        .await;

    cluster.create_claim("claim-a", "alice").await;
    cluster.claim_status("claim-a", json!({"phase": "Active", "source": "pool", "instanceId": "pod-a"})).await;
    cluster.claim_status("claim-a", json!({"phase": "Active", "detail": "still"})).await;
    cluster.claim_status("claim-a", json!({"phase": "Releasing"})).await;
    cluster.claim_status("claim-a", json!({"phase": "Released"})).await;
    cluster.mark("mark-2").await;
    record(&mut text, &mut listener, "a claim from Pending to Released", "mark-2").await;

    cluster.claim_status("claim-a", json!({"phase": "Active"})).await;
    cluster.kubectl("delete bhc claim-a", "").await;
    cluster.mark("mark-3").await;
    record(&mut text, &mut listener, "revived, then deleted while active", "mark-3").await;

    cluster.create_claim("claim-a", "bob").await;
    cluster.claim_status("claim-a", json!({"phase": "Released"})).await;
    cluster.kubectl("delete bhc claim-a", "").await;
    cluster.create_claim("claim-a", "carol").await;
    cluster.claim_status("claim-a", json!({"phase": "Active"})).await;
    cluster.mark("mark-4").await;
    record(
        &mut text,
        &mut listener,
        "the same name again: released from Pending and deleted; then active, without a source",
        "mark-4",
    )
    .await;

    cluster.kubectl("delete pod pod-a --grace-period=0 --force", "").await;
    cluster.create_pod("pod-a", managed(warming)).await;
    cluster.kubectl("label pod pod-a boilerhouse.dev/managed-", "").await;
    cluster.kubectl("label pod pod-a boilerhouse.dev/managed=true", "").await;
    cluster.mark("mark-5").await;
    record(&mut text, &mut listener, "a pod deleted and created again; unlabelled and labelled", "mark-5").await;

    cluster.create_pod("stranger", json!({"app": "else"})).await;
    cluster.create_pod("false", json!({"boilerhouse.dev/managed": "false"})).await;
    other.create_pod("elsewhere", managed(json!({"boilerhouse.dev/pool-status": "ready"}))).await;
    other.create_claim("elsewhere", "mallory").await;
    other.claim_status("elsewhere", json!({"phase": "Active"})).await;
    cluster.mark("mark-6").await;
    record(&mut text, &mut listener, "unmanaged pods and other namespaces", "mark-6").await;

    let mut late = bridge.listen("/ws").await;
    let mut none = bridge.listen("/ws?snapshot=none").await;
    let mut some = bridge.listen("/ws?types=tenant,pool.instance.ready").await;
    cluster.mark("mark-7").await;
    cluster.claim_status("claim-a", json!({"phase": "Released"})).await;
    record(&mut text, &mut late, "at connect: the current state", "mark-7").await;
    record(&mut text, &mut none, "at connect, snapshot=none", "mark-7").await;
    writeln!(text, "# types=tenant,pool.instance.ready").unwrap();
    for message in some.until(|event| event["type"] == "tenant.released").await {
        writeln!(text, "{message}").unwrap();
    }
    golden::check("ws.txt", &text);
}
