//! Objects as they look in a real cluster: Pods of 5 to 14 KB with all that a bridge has to skip, and claims.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    api::{LABEL_MANAGED, LABEL_POOL_STATUS, LABEL_TENANT, LABEL_WORKLOAD},
    sim::store::seconds,
};

/// The node that everything runs on.
const NODE: &str = "worker-1";
/// Environment variables that every container has, before the padding.
const ENVIRONMENT: u64 = 12;

/// A Pod that Boilerhouse manages, just created: warming, Pending. `padding` more variables make it larger.
pub(super) fn instance(namespace: &str, name: &str, workload: &str, padding: u64, now: Timestamp) -> Value {
    let labels = json!({
        "app.kubernetes.io/managed-by": "boilerhouse", "app.kubernetes.io/name": workload,
        LABEL_MANAGED: "true", LABEL_POOL_STATUS: "warming", LABEL_WORKLOAD: workload,
    });
    pod(namespace, name, workload, &labels, padding, now)
}

/// A Pod of somebody else.
pub(super) fn unmanaged(namespace: &str, name: &str, now: Timestamp) -> Value {
    let mut agent = pod(namespace, name, "metrics-agent", &json!({"app": "metrics-agent"}), 20, now);
    agent["status"]["phase"] = json!("Running");
    agent
}

/// A claim that asks, without a status yet.
pub(super) fn claim(namespace: &str, name: &str, tenant: &str, workload: &str, resume: bool, now: Timestamp) -> Value {
    let mut spec = json!({"tenantId": tenant, "workloadRef": workload});
    if resume {
        spec["resume"] = json!(true);
    }
    let fields = json!({"f:spec": {".": {}, "f:resume": {}, "f:tenantId": {}, "f:workloadRef": {}}});
    let metadata = json!({
        "name": name, "namespace": namespace, "labels": {LABEL_TENANT: tenant},
        "managedFields": [managed("boilerhouse-api", &fields, now)],
    });
    json!({"metadata": metadata, "spec": spec})
}

/// The kubelet has started the containers.
pub(super) fn running(pod: &Value, address: &str, now: Timestamp) -> Value {
    let statuses = containers(pod, &json!({"running": {"startedAt": seconds(now)}}), false);
    json!({"status": {
        "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "hostIP": "10.0.0.11",
        "hostIPs": [{"ip": "10.0.0.11"}], "startTime": seconds(now), "qosClass": "Burstable",
        "conditions": conditions("False", now), "containerStatuses": statuses,
    }, "metadata": kubelet(pod, now)})
}

/// The readiness probe has passed and the operator has put the Pod into the pool.
pub(super) fn ready(pod: &Value, now: Timestamp) -> Value {
    let started = &pod["status"]["startTime"];
    let statuses = containers(pod, &json!({"running": {"startedAt": started}}), true);
    let mut metadata = kubelet(pod, now);
    metadata["labels"] = json!({LABEL_POOL_STATUS: "ready"});
    json!({"metadata": metadata, "status": {"conditions": conditions("True", now), "containerStatuses": statuses}})
}

/// A container has ended with an error and is not started again.
pub(super) fn failed(pod: &Value, now: Timestamp) -> Value {
    let ended = json!({"exitCode": 137, "reason": "OOMKilled", "finishedAt": seconds(now)});
    let statuses = containers(pod, &json!({"terminated": ended}), false);
    json!({"metadata": kubelet(pod, now), "status": {
        "phase": "Failed", "reason": "OOMKilled", "message": "the container used more memory than its limit",
        "conditions": conditions("False", now), "containerStatuses": statuses,
    }})
}

/// What changes in a Pod when nothing that matters happens to it.
pub(super) fn stirred(now: &str) -> Value {
    json!({"metadata": {"annotations": {"example.com/last-scrape": now}}})
}

fn pod(namespace: &str, name: &str, image: &str, labels: &Value, padding: u64, now: Timestamp) -> Value {
    let environment: Vec<Value> = (0..ENVIRONMENT + padding)
        .map(|index| json!({"name": format!("SETTING_{index:02}"), "value": format!("{image}-{index:02}-of-{name}")}))
        .collect();
    let fields: serde_json::Map<String, Value> = (0..ENVIRONMENT + padding)
        .map(|index| (format!("k:{{\"name\":\"SETTING_{index:02}\"}}"), json!({".": {}, "f:name": {}, "f:value": {}})))
        .collect();
    let spec_fields = json!({"f:spec": {"f:containers": {"k:{\"name\":\"main\"}": {".": {}, "f:env": fields,
        "f:image": {}, "f:ports": {}, "f:readinessProbe": {}, "f:resources": {}, "f:securityContext": {}}}}});
    let limits = json!({"limits": {"cpu": "1", "memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "128Mi"}});
    let locked = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true});
    let probe = json!({"httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"}, "periodSeconds": 2});
    let container = |name: &str| {
        json!({
            "name": name, "image": format!("registry.example.com/boilerhouse/{image}:1.4.2"), "env": environment,
            "imagePullPolicy": "IfNotPresent", "ports": [{"containerPort": 8080, "name": "http", "protocol": "TCP"}],
            "readinessProbe": probe, "resources": limits, "securityContext": locked,
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            "volumeMounts": [{"mountPath": "/data", "name": "data"}, {"mountPath": "/tmp", "name": "scratch"}],
        })
    };
    json!({
        "metadata": {
            "name": name, "namespace": namespace, "labels": labels,
            "annotations": {"boilerhouse.dev/template-hash": "7d4f8c9b5d", "kubernetes.io/config.source": "api"},
            "managedFields": [managed("boilerhouse-operator", &spec_fields, now)],
        },
        "spec": {
            "containers": [container("main")], "dnsPolicy": "ClusterFirst", "enableServiceLinks": false,
            "nodeName": NODE, "preemptionPolicy": "PreemptLowerPriority", "priority": 0, "restartPolicy": "Never",
            "schedulerName": "default-scheduler", "securityContext": {"fsGroup": 1000, "runAsUser": 1000},
            "serviceAccountName": "default", "terminationGracePeriodSeconds": 30, "tolerations": tolerations(),
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": format!("{name}-data")}},
                        {"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}}],
        },
        "status": {"phase": "Pending", "qosClass": "Burstable", "conditions": conditions("False", now)},
    })
}

fn tolerations() -> Value {
    let taint = |key: &str| {
        json!({"effect": "NoExecute", "key": format!("node.kubernetes.io/{key}"), "operator": "Exists",
               "tolerationSeconds": 300})
    };
    json!([taint("not-ready"), taint("unreachable")])
}

fn conditions(ready: &str, now: Timestamp) -> Value {
    let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": seconds(now)});
    let always = ["PodReadyToStartContainers", "Initialized", "PodScheduled"].map(|kind| condition(kind, "True"));
    let ready = ["Ready", "ContainersReady"].map(|kind| condition(kind, ready));
    Value::Array(always.into_iter().chain(ready).collect())
}

fn containers(pod: &Value, state: &Value, ready: bool) -> Value {
    let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
    let image = &pod["spec"]["containers"][0]["image"];
    json!([{
        "name": "main", "image": image, "imageID": format!("{}@sha256:{uid}", image.as_str().unwrap_or_default()),
        "containerID": format!("containerd://{uid}"), "ready": ready, "started": ready, "restartCount": 0,
        "state": state, "lastState": {},
    }])
}

/// The kubelet takes note of what it owns; its entry is the last one.
fn kubelet(pod: &Value, now: Timestamp) -> Value {
    let owned = ["Ready", "ContainersReady", "Initialized", "PodReadyToStartContainers"];
    let conditions: serde_json::Map<String, Value> = owned
        .iter()
        .map(|kind| {
            let owned =
                json!({".": {}, "f:lastProbeTime": {}, "f:lastTransitionTime": {}, "f:status": {}, "f:type": {}});
            (format!("k:{{\"type\":\"{kind}\"}}"), owned)
        })
        .collect();
    let fields = json!({"f:status": {"f:conditions": conditions, "f:containerStatuses": {}, "f:hostIP": {},
        "f:hostIPs": {}, "f:phase": {}, "f:podIP": {}, "f:podIPs": {}, "f:startTime": {}}});
    let mut entry = managed("kubelet", &fields, now);
    entry["subresource"] = json!("status");
    json!({"managedFields": [pod["metadata"]["managedFields"][0], entry]})
}

fn managed(manager: &str, fields: &Value, now: Timestamp) -> Value {
    json!({"manager": manager, "operation": "Update", "apiVersion": "v1", "time": seconds(now),
           "fieldsType": "FieldsV1", "fieldsV1": fields})
}
