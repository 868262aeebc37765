//! The messages of `/ws` byte for byte (docs/protocol.md#boilerhouse-stream). kubectl makes the changes on the real API
//! server.

use std::fmt::Write as _;

use boilerhouse_bridge::test_support::{ClaimBuilder, PodBuilder};
use serde_json::{Value, json};

use crate::support::{bridge_process::BridgeProcess, control_plane::ControlPlane, golden, http_client::WsClient};

/// One namespace of the shared control plane. All changes are made with kubectl.
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

    /// Creates a Pod with exactly these labels, so that it is managed only if they say so.
    async fn create_pod(&self, name: &str, labels: Value) {
        let mut pod = PodBuilder::new(name).json();
        pod["metadata"]["labels"] = labels;
        self.kubectl("create -f -", &pod.to_string()).await;
    }

    async fn pod_phase(&self, name: &str, phase: &str) {
        let status = json!({"status": {"phase": phase}}).to_string();
        self.kubectl(&format!("patch pod {name} --subresource=status --type=merge -p {status}"), "").await;
    }

    async fn create_claim(&self, name: &str, tenant: &str) {
        let claim = ClaimBuilder::new(name).tenant(tenant).json();
        self.kubectl("create -f -", &claim.to_string()).await;
    }

    async fn claim_status(&self, name: &str, status: Value) {
        let status = json!({ "status": status }).to_string();
        self.kubectl(&format!("patch bhc {name} --subresource=status --type=merge -p {status}"), "").await;
    }

    /// Creates a Pod that marks a position in the stream. A client that has received its event has received all earlier
    /// events of Pods.
    async fn mark(&self, name: &str) {
        self.create_pod(name, json!({"boilerhouse.dev/managed": "true"})).await;
    }
}

/// Creates a mark and appends all messages up to it, under a heading. Pods and claims are watched separately, and the
/// order between them is undefined. If claims have changed, `last_claim_event` is the type of their last event, which
/// must arrive before the mark is created.
async fn record(
    text: &mut String,
    listener: &mut WsClient,
    heading: &str,
    last_claim_event: &str,
    mark: (&Cluster, &str),
) {
    writeln!(text, "# {heading}").unwrap();
    let (cluster, name) = mark;
    let mut messages = Vec::new();
    if !last_claim_event.is_empty() {
        messages = listener.until(|event| event["type"] == last_claim_event).await;
    }
    cluster.mark(name).await;
    messages.extend(up_to(listener, name).await);
    append(text, &messages);
}

async fn up_to(listener: &mut WsClient, mark: &str) -> Vec<String> {
    listener.until(|event| event["name"] == mark).await
}

fn append(text: &mut String, messages: &[String]) {
    for message in messages {
        writeln!(text, "{message}").unwrap();
    }
}

#[tokio::test]
async fn every_message_matches_the_golden_file() {
    let cluster = Cluster::new().await;
    let other = Cluster::new().await;
    let bridge = BridgeProcess::serve(cluster.plane, &cluster.namespace, &[]).await;
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
    cluster.kubectl("label pod pod-a color=blue", "").await;
    cluster
        .kubectl("label pod pod-a --overwrite boilerhouse.dev/pool-status=acquired boilerhouse.dev/tenant=alice", "")
        .await;
    cluster.create_pod("pod-b", managed(json!({"boilerhouse.dev/pool-status": "ready"}))).await;
    record(
        &mut text,
        &mut listener,
        "a pod from warming to acquired; one that is ready at first sight",
        "",
        (&cluster, "mark-1"),
    )
    .await;

    cluster.create_claim("claim-a", "alice").await;
    cluster.claim_status("claim-a", json!({"phase": "Active", "source": "pool", "instanceId": "pod-a"})).await;
    cluster.claim_status("claim-a", json!({"phase": "Active", "detail": "still"})).await;
    cluster.claim_status("claim-a", json!({"phase": "Releasing"})).await;
    cluster.claim_status("claim-a", json!({"phase": "Released"})).await;
    record(&mut text, &mut listener, "a claim from Pending to Released", "tenant.released", (&cluster, "mark-2")).await;

    cluster.claim_status("claim-a", json!({"phase": "Active"})).await;
    cluster.kubectl("delete bhc claim-a", "").await;
    record(&mut text, &mut listener, "revived, then deleted while active", "tenant.released", (&cluster, "mark-3"))
        .await;

    cluster.create_claim("claim-a", "bob").await;
    cluster.claim_status("claim-a", json!({"phase": "Released"})).await;
    cluster.kubectl("delete bhc claim-a", "").await;
    cluster.create_claim("claim-a", "carol").await;
    cluster.claim_status("claim-a", json!({"phase": "Active"})).await;
    record(
        &mut text,
        &mut listener,
        "the same name again: released from Pending and deleted; then active, without a source",
        "tenant.claimed",
        (&cluster, "mark-4"),
    )
    .await;

    cluster.kubectl("delete pod pod-a --grace-period=0 --force", "").await;
    cluster.create_pod("pod-a", managed(warming)).await;
    cluster.kubectl("label pod pod-a boilerhouse.dev/managed-", "").await;
    cluster.kubectl("label pod pod-a boilerhouse.dev/managed=true", "").await;
    record(
        &mut text,
        &mut listener,
        "a pod deleted and created again; unlabelled and labelled",
        "",
        (&cluster, "mark-5"),
    )
    .await;

    cluster.create_pod("unmanaged", json!({"app": "else"})).await;
    cluster.create_pod("false", json!({"boilerhouse.dev/managed": "false"})).await;
    other.create_pod("elsewhere", managed(json!({"boilerhouse.dev/pool-status": "ready"}))).await;
    other.create_claim("elsewhere", "mallory").await;
    other.claim_status("elsewhere", json!({"phase": "Active"})).await;
    record(&mut text, &mut listener, "unmanaged pods and other namespaces", "", (&cluster, "mark-6")).await;

    let mut late = bridge.listen("/ws").await;
    let mut none = bridge.listen("/ws?snapshot=none").await;
    let mut some = bridge.listen("/ws?types=tenant,pool.instance.ready").await;
    cluster.mark("mark-7").await;
    for (listener, heading) in [(&mut late, "at connect: the current state"), (&mut none, "at connect, snapshot=none")]
    {
        writeln!(text, "# {heading}").unwrap();
        append(&mut text, &up_to(listener, "mark-7").await);
    }
    writeln!(text, "# types=tenant,pool.instance.ready").unwrap();
    cluster.claim_status("claim-a", json!({"phase": "Released"})).await;
    let released = |event: &Value| event["type"] == "tenant.released";
    append(&mut text, &some.until(released).await);
    // The first client has received nothing else since its last mark, also no event of a claim in the other namespace.
    let rest = [up_to(&mut listener, "mark-7").await, listener.until(released).await];
    assert!(rest.iter().all(|messages| messages.len() == 1), "{rest:?}");
    golden::check("ws.txt", &text);
}
