//! Objects as in a real cluster: claims, and Pods of 5 to 14 KB with all the fields that a bridge must skip.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    api::{LABEL_MANAGED, LABEL_POOL_STATUS, LABEL_TENANT, LABEL_WORKLOAD},
    sim::store::seconds,
};

/// The node of all Pods.
const NODE: &str = "worker-1";
/// Number of environment variables of every container, without the padding.
const ENVIRONMENT: u64 = 12;

/// Returns a new Pod that Boilerhouse manages: warming, Pending. It has `padding` more variables, so that sizes differ.
pub(super) fn instance(namespace: &str, name: &str, workload: &str, padding: u64, now: Timestamp) -> Value {
    let labels = json!({
        "app.kubernetes.io/managed-by": "boilerhouse", "app.kubernetes.io/name": workload,
        LABEL_MANAGED: "true", LABEL_POOL_STATUS: "warming", LABEL_WORKLOAD: workload,
    });
    pod(namespace, name, workload, &labels, padding, now)
}

/// Returns a Pod that Boilerhouse does not manage.
pub(super) fn unmanaged(namespace: &str, name: &str, now: Timestamp) -> Value {
    let mut agent = pod(namespace, name, "metrics-agent", &json!({"app": "metrics-agent"}), 20, now);
    agent["status"]["phase"] = json!("Running");
    agent
}

/// Returns a new claim, without a status.
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

/// Returns the patch with which the kubelet reports that the containers run.
pub(super) fn running(pod: &Value, address: &str, now: Timestamp) -> Value {
    let statuses = containers(pod, &json!({"running": {"startedAt": seconds(now)}}), false);
    json!({"status": {
        "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "hostIP": "10.0.0.11",
        "hostIPs": [{"ip": "10.0.0.11"}], "startTime": seconds(now), "qosClass": "Burstable",
        "conditions": conditions("False", now), "containerStatuses": statuses,
    }, "metadata": kubelet(pod, now)})
}

/// Returns the patch after the readiness probe has passed: the Pod is Ready, and the operator adds it to the pool.
pub(super) fn ready(pod: &Value, now: Timestamp) -> Value {
    let started = &pod["status"]["startTime"];
    let statuses = containers(pod, &json!({"running": {"startedAt": started}}), true);
    let mut metadata = kubelet(pod, now);
    metadata["labels"] = json!({LABEL_POOL_STATUS: "ready"});
    json!({"metadata": metadata, "status": {"conditions": conditions("True", now), "containerStatuses": statuses}})
}

/// Returns the patch with which the kubelet reports that a container failed and is not restarted.
pub(super) fn failed(pod: &Value, now: Timestamp) -> Value {
    let ended = json!({"exitCode": 137, "reason": "OOMKilled", "finishedAt": seconds(now)});
    let statuses = containers(pod, &json!({"terminated": ended}), false);
    json!({"metadata": kubelet(pod, now), "status": {
        "phase": "Failed", "reason": "OOMKilled", "message": "the container used more memory than its limit",
        "conditions": conditions("False", now), "containerStatuses": statuses,
    }})
}

/// Returns a patch that changes no published field.
pub(super) fn unrelated_change(now: &str) -> Value {
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

/// Returns the metadata with the kubelet's entry in `managedFields`, which is the last entry.
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
