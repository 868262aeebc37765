//! Rules of events while the API server is available.

use serde_json::json;

use crate::support::ws_matrix::WsMatrix;

pub(super) async fn current_state_is_sent_first(mut matrix: WsMatrix<'_>) {
    let cluster = &*matrix.cluster;
    cluster.create_pod("b", "workload=web pool-status=ready").await;
    cluster.create_pod("a", "pool-status=warming").await;
    cluster.create_pod("c", "workload=web pool-status=acquired tenant=alice").await;
    cluster.pod_phase("c", "Running").await;
    for (name, tenant) in [("z", "zoe"), ("pending", "paul"), ("active", "alice"), ("released", "rob")] {
        cluster.create_claim(name, tenant).await;
    }
    cluster.claim_status("active", json!({"phase": "Active", "source": "pool+data", "instanceId": "c"})).await;
    cluster.claim_phase("z", "Active").await;
    cluster.claim_phase("released", "Released").await;

    let burst = [
        "instance.state a Pending",
        "instance.state b Pending workloadRef=web",
        "pool.instance.ready b workloadRef=web",
        "instance.state c Running tenantId=alice workloadRef=web",
        "tenant.claimed active source=pool+data tenantId=alice workloadRef=web",
        "tenant.claimed z tenantId=zoe workloadRef=web",
    ];
    let mut first = matrix.listen("/ws").await;
    matrix.expect_in_order(&mut first, &burst).await;
    let mut second = matrix.listen("/ws?snapshot=state").await;
    matrix.expect_in_order(&mut second, &burst).await;
    matrix.expect(&mut first, &[], &[]).await;

    // A later client receives the current state. The earlier clients receive the changes.
    matrix.cluster.delete_pod("a").await;
    matrix.cluster.label_pod("c", "tenant- pool-status=ready").await;
    matrix.cluster.claim_phase("active", "Released").await;
    let changes = [
        "instance.state a Pending",
        "instance.state a Deleted",
        "instance.state c Running workloadRef=web",
        "pool.instance.ready c workloadRef=web",
    ];
    matrix.expect(&mut first, &changes, &["tenant.released active tenantId=alice"]).await;
    let mut late = matrix.listen("/ws").await;
    let instances = [
        "instance.state b Pending workloadRef=web",
        "pool.instance.ready b workloadRef=web",
        "instance.state c Running workloadRef=web",
        "pool.instance.ready c workloadRef=web",
    ];
    matrix.expect(&mut late, &instances, &["tenant.claimed z tenantId=zoe workloadRef=web"]).await;
    matrix.expect(&mut second, &changes, &["tenant.released active tenantId=alice"]).await;
}

pub(super) async fn snapshot_none_sends_no_state(mut matrix: WsMatrix<'_>) {
    matrix.cluster.create_pod("a", "pool-status=ready").await;
    matrix.cluster.create_claim("x", "alice").await;
    matrix.cluster.claim_phase("x", "Active").await;
    let mut listeners = matrix.listen("/ws?snapshot=none").await;
    matrix.expect(&mut listeners, &[], &[]).await;
    // The bridge has the state although it did not send it. The first two changes are no transitions of the claim; the
    // deletion is one.
    matrix.cluster.pod_phase("a", "Running").await;
    matrix.cluster.claim_status("x", json!({"detail": "still"})).await;
    matrix.expect(&mut listeners, &["instance.state a Running"], &[]).await;
    matrix.cluster.delete_claim("x").await;
    matrix.expect(&mut listeners, &[], &["tenant.released x tenantId=alice"]).await;
}

pub(super) async fn every_transition_is_sent_once(mut matrix: WsMatrix<'_>) {
    let mut listeners = matrix.listen("/ws").await;
    let cluster = &*matrix.cluster;
    cluster.create_pod("a", "workload=web pool-status=warming").await;
    cluster.pod_phase("a", "Running").await;
    cluster.label_pod("a", "pool-status=ready").await;
    cluster.label_pod("a", "color=blue").await;
    cluster.label_pod("a", "pool-status=acquired tenant=alice").await;
    cluster.label_pod("a", "pool-status=ready tenant-").await;
    cluster.label_pod("a", "pool-status=draining").await;
    cluster.pod_phase("a", "Failed").await;
    cluster.create_claim("x", "alice").await;
    cluster.claim_status("x", json!({"phase": "Active", "source": "cold"})).await;
    cluster.claim_status("x", json!({"detail": "still"})).await;
    cluster.claim_phase("x", "Releasing").await;
    cluster.claim_phase("x", "Released").await;
    cluster.claim_status("x", json!({"detail": "gone"})).await;
    cluster.claim_phase("x", "Active").await;
    cluster.claim_phase("x", "Error").await;
    cluster.claim_phase("x", "ReleaseFailed").await;
    cluster.claim_phase("x", "Active").await;
    cluster.delete_claim("x").await;
    let instances = [
        "instance.state a Pending workloadRef=web",
        "instance.state a Running workloadRef=web",
        "instance.state a Running workloadRef=web",
        "pool.instance.ready a workloadRef=web",
        "instance.state a Running workloadRef=web",
        "instance.state a Running tenantId=alice workloadRef=web",
        "instance.state a Running workloadRef=web",
        "pool.instance.ready a workloadRef=web",
        "instance.state a Running workloadRef=web",
        "instance.state a Failed workloadRef=web",
    ];
    let tenants = [
        "tenant.claimed x source=cold tenantId=alice workloadRef=web",
        "tenant.released x tenantId=alice",
        "tenant.claimed x source=cold tenantId=alice workloadRef=web",
        "tenant.claimed x source=cold tenantId=alice workloadRef=web",
        "tenant.released x tenantId=alice",
    ];
    matrix.expect(&mut listeners, &instances, &tenants).await;
}

pub(super) async fn each_uid_is_a_separate_object(mut matrix: WsMatrix<'_>) {
    let mut listeners = matrix.listen("/ws").await;
    let cluster = &*matrix.cluster;
    for _ in 0..2 {
        cluster.create_pod("a", "pool-status=ready").await;
        cluster.delete_pod("a").await;
        cluster.create_claim("x", "alice").await;
        cluster.claim_phase("x", "Active").await;
        cluster.delete_claim("x").await;
    }
    // The deletion of a released claim sends nothing more. The deletion of a claim that was never active sends a release.
    cluster.create_claim("x", "bob").await;
    cluster.claim_phase("x", "Released").await;
    cluster.delete_claim("x").await;
    cluster.create_claim("x", "carol").await;
    cluster.delete_claim("x").await;
    let incarnation = [
        "instance.state a Pending",
        "pool.instance.ready a",
        // The deletion of a Pod has two versions: with a deletion timestamp, and deleted.
        "instance.state a Pending",
        "instance.state a Deleted",
    ];
    let claimed = ["tenant.claimed x tenantId=alice workloadRef=web", "tenant.released x tenantId=alice"];
    let tenants =
        [&claimed[..], &claimed, &["tenant.released x tenantId=bob", "tenant.released x tenantId=carol"]].concat();
    matrix.expect(&mut listeners, &[incarnation, incarnation].concat(), &tenants).await;
}

pub(super) async fn managed_label_adds_and_removes_pods(mut matrix: WsMatrix<'_>) {
    let mut listeners = matrix.listen("/ws").await;
    let cluster = &*matrix.cluster;
    cluster.create_pod("a", "managed- pool-status=ready workload=web").await;
    cluster.pod_phase("a", "Running").await;
    cluster.label_pod("a", "managed=true").await;
    cluster.label_pod("a", "managed=false").await;
    cluster.pod_phase("a", "Failed").await;
    cluster.label_pod("a", "managed=true").await;
    cluster.label_pod("a", "managed-").await;
    cluster.delete_pod("a").await;
    let instances = [
        "instance.state a Running workloadRef=web",
        "pool.instance.ready a workloadRef=web",
        "instance.state a Deleted workloadRef=web",
        "instance.state a Failed workloadRef=web",
        "pool.instance.ready a workloadRef=web",
        "instance.state a Deleted workloadRef=web",
    ];
    matrix.expect(&mut listeners, &instances, &[]).await;
}

pub(super) async fn unmanaged_and_foreign_objects_are_never_sent(mut matrix: WsMatrix<'_>) {
    let other_namespace = matrix.cluster.another_namespace().await;
    matrix.cluster.create_pod("old-unmanaged", "managed- pool-status=ready").await;
    matrix.cluster.create_pod_in(&other_namespace, "old-foreign", "pool-status=ready").await;
    let mut listeners = matrix.listen("/ws").await;
    let cluster = &*matrix.cluster;
    cluster.create_pod("unmanaged", "managed- pool-status=ready").await;
    cluster.create_pod("other-value", "managed=yes pool-status=ready").await;
    cluster.create_pod_in(&other_namespace, "foreign", "pool-status=ready").await;
    cluster.create_claim_in(&other_namespace, "foreign", "mallory").await;
    cluster.pod_phase("unmanaged", "Running").await;
    cluster.delete_pod("unmanaged").await;
    matrix.expect(&mut listeners, &[], &[]).await;
}

pub(super) async fn only_requested_types_are_sent(mut matrix: WsMatrix<'_>) {
    matrix.cluster.create_pod("a", "pool-status=ready").await;
    matrix.cluster.create_claim("x", "alice").await;
    matrix.cluster.claim_phase("x", "Active").await;
    let mut states = matrix.listen_to("/ws?types=instance", &["instance.state"]).await;
    let mut transitions = matrix.listen("/ws?types=pool,tenant").await;
    let mixed_marks = ["instance.state", "tenant.claimed"];
    let mut mixed = matrix.listen_to("/ws?types=instance.state,tenant.claimed", &mixed_marks).await;
    let mut released = matrix.listen_to("/ws?types=tenant.released", &[]).await;
    let state = "instance.state a Pending";
    let claimed = "tenant.claimed x tenantId=alice workloadRef=web";
    matrix.expect(&mut states, &[state], &[]).await;
    matrix.expect(&mut transitions, &["pool.instance.ready a"], &[claimed]).await;
    matrix.expect(&mut mixed, &[state], &[claimed]).await;

    matrix.cluster.label_pod("a", "pool-status=acquired").await;
    matrix.cluster.claim_phase("x", "Released").await;
    matrix.expect(&mut states, &[state], &[]).await;
    matrix.expect(&mut transitions, &[], &["tenant.released x tenantId=alice"]).await;
    matrix.expect(&mut mixed, &[state], &[]).await;
    matrix.cluster.delete_claim("mark-1").await;
    let both = ["tenant.released x tenantId=alice", "tenant.released mark-1 tenantId=marker"];
    matrix.expect_in_order(&mut released, &both).await;
}
