//! Rules of events after a restart of the API server, which loses the watch history.

use serde_json::json;

use crate::support::{cluster::Cluster, ws_matrix::WsMatrix};

pub(super) async fn api_server_restart_sends_no_event(mut matrix: WsMatrix<'_>) {
    let cluster = &*matrix.cluster;
    cluster.create_pod("a", "pool-status=ready").await;
    for (name, phase) in [("active", "Active"), ("released", "Released")] {
        cluster.create_claim(name, "alice").await;
        cluster.claim_phase(name, phase).await;
    }
    let mut listeners = matrix.listen("/ws").await;
    let instances = ["instance.state a Pending", "pool.instance.ready a"];
    matrix.expect(&mut listeners, &instances, &["tenant.claimed active tenantId=alice workloadRef=web"]).await;
    // The bridges run meanwhile: they detect the loss of the API server and reconnect.
    matrix.cluster.down().await;
    matrix.cluster.up().await;
    matrix.expect(&mut listeners, &[], &[]).await;
    matrix.cluster.pod_phase("a", "Running").await;
    matrix.expect(&mut listeners, &["instance.state a Running"], &[]).await;
}

pub(super) async fn lost_watch_history_sends_the_diff(mut matrix: WsMatrix<'_>) {
    let cluster = &*matrix.cluster;
    for name in ["same", "changed", "deleted-z", "deleted-a", "again", "ready", "unlabeled"] {
        cluster.create_pod(name, "pool-status=warming").await;
    }
    for name in ["same", "released", "deleted", "both", "back"] {
        cluster.create_claim(name, name).await;
        cluster.claim_phase(name, "Active").await;
    }
    for name in ["claimed", "ended"] {
        cluster.create_claim(name, name).await;
    }
    cluster.claim_phase("ended", "Released").await;
    let mut listeners = matrix.listen("/ws?snapshot=none").await;
    let mut transitions = matrix.listen("/ws?types=pool,tenant&snapshot=none").await;
    matrix.expect(&mut listeners, &[], &[]).await;

    matrix.while_disconnected(change_everything).await;

    // Deletions are first, in the order of names. New and changed objects follow in the order of their versions. An
    // object that was created and deleted meanwhile sends nothing. An object that changed twice sends its last state
    // only. An unchanged object sends nothing.
    let instances = [
        "instance.state again Deleted",
        "instance.state deleted-a Deleted",
        "instance.state deleted-z Deleted",
        "instance.state unlabeled Deleted",
        "instance.state changed Failed",
        "instance.state again Pending",
        "pool.instance.ready again",
        "instance.state new Pending tenantId=nina",
        "instance.state ready Pending",
        "pool.instance.ready ready",
    ];
    let ready: Vec<_> = instances.into_iter().filter(|line| line.starts_with("pool.")).collect();
    let tenants = [
        "tenant.released both tenantId=both",
        "tenant.released deleted tenantId=deleted",
        "tenant.released released tenantId=released",
        "tenant.claimed claimed source=cold tenantId=claimed workloadRef=web",
        "tenant.claimed both tenantId=heir workloadRef=web",
    ];
    matrix.expect(&mut listeners, &instances, &tenants).await;
    matrix.expect(&mut transitions, &ready, &tenants).await;
    // The difference is sent once. Only later changes follow.
    matrix.cluster.delete_claim("back").await;
    matrix.expect(&mut listeners, &[], &["tenant.released back tenantId=back"]).await;
}

async fn change_everything(cluster: &Cluster) {
    cluster.pod_phase("changed", "Running").await;
    cluster.pod_phase("changed", "Failed").await;
    cluster.delete_pod("deleted-z").await;
    cluster.delete_pod("deleted-a").await;
    cluster.label_pod("unlabeled", "managed-").await;
    cluster.delete_pod("again").await;
    cluster.create_pod("again", "pool-status=ready").await;
    cluster.create_pod("new", "tenant=nina").await;
    cluster.label_pod("ready", "pool-status=ready").await;
    cluster.create_pod("guest", "pool-status=ready").await;
    cluster.delete_pod("guest").await;

    cluster.claim_phase("released", "Releasing").await;
    cluster.claim_phase("released", "Released").await;
    cluster.delete_claim("deleted").await;
    cluster.delete_claim("ended").await;
    cluster.claim_status("claimed", json!({"phase": "Active", "source": "cold"})).await;
    cluster.delete_claim("both").await;
    cluster.create_claim("both", "heir").await;
    cluster.claim_phase("both", "Active").await;
    cluster.claim_phase("back", "Released").await;
    cluster.claim_phase("back", "Active").await;
    // Neither a claim whose first observed phase is Released nor a claim that is never observed sends a transition.
    cluster.create_claim("late", "larry").await;
    cluster.claim_phase("late", "Released").await;
    cluster.create_claim("guest", "gus").await;
    cluster.claim_phase("guest", "Active").await;
    cluster.delete_claim("guest").await;
}

pub(super) async fn each_uid_is_a_separate_object_after_an_outage(mut matrix: WsMatrix<'_>) {
    let cluster = &*matrix.cluster;
    cluster.create_pod("a", "pool-status=ready").await;
    for (name, phase) in [("active", "Active"), ("released", "Released"), ("pending", "Pending")] {
        cluster.create_claim(name, "first").await;
        cluster.claim_phase(name, phase).await;
    }
    let mut listeners = matrix.listen("/ws?snapshot=none").await;
    matrix.expect(&mut listeners, &[], &[]).await;
    matrix
        .while_disconnected(async |cluster| {
            cluster.delete_pod("a").await;
            cluster.create_pod("a", "pool-status=ready").await;
            // An object with the same name and the same state, but with another uid.
            for (name, phase) in [("active", "Active"), ("released", "Released"), ("pending", "Active")] {
                cluster.delete_claim(name).await;
                cluster.create_claim(name, "second").await;
                cluster.claim_phase(name, phase).await;
            }
        })
        .await;
    let instances = ["instance.state a Deleted", "instance.state a Pending", "pool.instance.ready a"];
    let tenants = [
        "tenant.released active tenantId=first",
        "tenant.released pending tenantId=first",
        "tenant.claimed active tenantId=second workloadRef=web",
        "tenant.claimed pending tenantId=second workloadRef=web",
    ];
    matrix.expect(&mut listeners, &instances, &tenants).await;
}
