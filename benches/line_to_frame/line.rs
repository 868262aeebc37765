//! A watch line of a Pod as a real API server writes it, 14 KB of text: two containers, their status from the kubelet,
//! and the managed fields. Each next line is a newer version of the Pod in another phase.

use serde_json::{Map, Value, json};

/// Environment variables of each container. With this number, the line is as long as those of a busy cluster.
const VARIABLES: usize = 37;
/// Both phases have the same length, so that a line is made from the previous one without moving its other bytes.
const PHASES: [&[u8]; 2] = [b"Pending", b"Running"];
/// The first version. It has as many digits as all later ones.
const FIRST_VERSION: u64 = 20_000_000;

/// The line, and the offsets at which the next one differs.
pub(crate) struct Line {
    text: Vec<u8>,
    version: u64,
    version_at: usize,
    phase_at: usize,
}

impl Line {
    /// Returns the state before the first line.
    pub(crate) fn new() -> Line {
        let text = text().into_bytes();
        let after = |what: &str| {
            let at = text.windows(what.len()).position(|window| window == what.as_bytes());
            at.expect("the line contains it") + what.len()
        };
        let (version_at, phase_at) = (after(r#""resourceVersion":""#), after(r#""phase":""#));
        Line { text, version: FIRST_VERSION, version_at, phase_at }
    }

    /// Returns the next line.
    pub(crate) fn next(&mut self) -> &[u8] {
        self.version += 1;
        let mut rest = self.version;
        for digit in self.text[self.version_at..][..8].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        let phase = PHASES[usize::from(self.version % 2 == 1)];
        self.text[self.phase_at..][..phase.len()].copy_from_slice(phase);
        &self.text
    }
}

/// Returns the text. Down to the metadata, keys are in the order of Go's structs, as an API server writes them.
fn text() -> String {
    let labels = json!({
        "app.kubernetes.io/managed-by": "boilerhouse", "app.kubernetes.io/name": "web", "boilerhouse.dev/managed": "true",
        "boilerhouse.dev/pool-status": "acquired", "boilerhouse.dev/tenant": "alice", "boilerhouse.dev/workload": "web",
    });
    let annotations = json!({
        "boilerhouse.dev/template-hash": "7d4f8c9b5d", "kubernetes.io/config.source": "api",
        "example.com/owner": "team \"web\" <web@example.com>",
    });
    let owners = json!([{"apiVersion": "boilerhouse.dev/v1alpha1", "kind": "BoilerhousePool", "name": "web",
        "uid": "5f0c3a52-3c0b-4a86-9f43-0b7a30a5d9b0", "controller": true, "blockOwnerDeletion": true}]);
    let managed = json!([
        managed("boilerhouse-operator", &operator_fields(), None),
        managed("kubelet", &kubelet_fields(), Some("status")),
    ]);
    let metadata = format!(
        r#""labels":{labels},"annotations":{annotations},"ownerReferences":{owners},"managedFields":{managed}"#
    );
    let names = concat!(
        r#""name":"web-7d4f8c9b5d-x2x9k","generateName":"web-7d4f8c9b5d-","namespace":"boilerhouse","#,
        r#""uid":"0b3c2b1a-7d1e-4e62-8f5d-2a9f5c1d7e44","resourceVersion":"20000000","generation":1,"#,
        r#""creationTimestamp":"2026-05-04T09:12:44Z""#,
    );
    let object = format!(
        r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{{names},{metadata}}},"spec":{},"status":{}}}"#,
        spec(),
        status()
    );
    format!(r#"{{"type":"MODIFIED","object":{object}}}"#)
}

fn managed(manager: &str, fields: &Value, subresource: Option<&str>) -> Value {
    let mut entry = json!({"manager": manager, "operation": "Update", "apiVersion": "v1",
        "time": "2026-05-04T09:12:47Z", "fieldsType": "FieldsV1", "fieldsV1": fields});
    if let Some(subresource) = subresource {
        entry["subresource"] = subresource.into();
    }
    entry
}

fn operator_fields() -> Value {
    let variables = (0..VARIABLES)
        .map(|n| (format!(r#"k:{{"name":"SETTING_{n:02}"}}"#), json!({".": {}, "f:name": {}, "f:value": {}})));
    let variables = Value::Object(variables.collect());
    let container = json!({".": {}, "f:env": variables, "f:image": {}, "f:imagePullPolicy": {}, "f:name": {}, "f:ports":
        {".": {}, "k:{\"containerPort\":8080,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}, "f:name": {}, "f:protocol": {}}},
        "f:readinessProbe": {".": {}, "f:failureThreshold": {}, "f:httpGet": {".": {}, "f:path": {}, "f:port": {}, "f:scheme": {}},
        "f:periodSeconds": {}, "f:successThreshold": {}, "f:timeoutSeconds": {}}, "f:resources": {".": {}, "f:limits":
        {".": {}, "f:cpu": {}, "f:memory": {}}, "f:requests": {".": {}, "f:cpu": {}, "f:memory": {}}},
        "f:terminationMessagePath": {}, "f:terminationMessagePolicy": {}, "f:volumeMounts": {".": {},
        "k:{\"mountPath\":\"/data\"}": {".": {}, "f:mountPath": {}, "f:name": {}}}});
    json!({
        "f:metadata": {"f:annotations": {".": {}, "f:boilerhouse.dev/template-hash": {}}, "f:generateName": {},
            "f:labels": {".": {}, "f:boilerhouse.dev/managed": {}, "f:boilerhouse.dev/pool-status": {},
                "f:boilerhouse.dev/tenant": {}, "f:boilerhouse.dev/workload": {}},
            "f:ownerReferences": {".": {}, "k:{\"uid\":\"5f0c3a52-3c0b-4a86-9f43-0b7a30a5d9b0\"}": {}}},
        "f:spec": {"f:containers": {"k:{\"name\":\"main\"}": container, "k:{\"name\":\"proxy\"}": {".": {}, "f:image": {},
                "f:imagePullPolicy": {}, "f:name": {}, "f:resources": {}, "f:terminationMessagePath": {}}},
            "f:dnsPolicy": {}, "f:enableServiceLinks": {}, "f:restartPolicy": {}, "f:schedulerName": {},
            "f:securityContext": {".": {}, "f:fsGroup": {}, "f:runAsUser": {}}, "f:terminationGracePeriodSeconds": {},
            "f:volumes": {".": {}, "k:{\"name\":\"data\"}": {".": {}, "f:name": {}, "f:persistentVolumeClaim":
                {".": {}, "f:claimName": {}}}}},
    })
}

fn kubelet_fields() -> Value {
    let condition = json!({".": {}, "f:lastProbeTime": {}, "f:lastTransitionTime": {}, "f:observedGeneration": {},
        "f:status": {}, "f:type": {}});
    let types = ["ContainersReady", "Initialized", "PodReadyToStartContainers", "Ready"];
    let conditions: Map<String, Value> =
        types.iter().map(|kind| (format!(r#"k:{{"type":"{kind}"}}"#), condition.clone())).collect();
    json!({"f:status": {"f:conditions": conditions, "f:containerStatuses": {}, "f:hostIP": {}, "f:hostIPs": {},
        "f:phase": {}, "f:podIP": {}, "f:podIPs": {".": {}, "k:{\"ip\":\"10.244.3.17\"}": {".": {}, "f:ip": {}}},
        "f:startTime": {}}})
}

fn spec() -> Value {
    let mounts = json!([{"name": "data", "mountPath": "/data"}, {"name": "scratch", "mountPath": "/tmp"},
        {"name": "kube-api-access-7x2mn", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]);
    let resources = json!({"limits": {"cpu": "1", "memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "128Mi"}});
    let container = |name: &str| {
        let variables = (0..VARIABLES)
            .map(|n| json!({"name": format!("SETTING_{n:02}"), "value": format!("{name}-{n:02} of web")}));
        json!({
            "name": name, "image": format!("registry.example.com/boilerhouse/{name}:1.4.2"), "env": variables.collect::<Vec<_>>(),
            "command": ["/bin/sh", "-c", "exec /app/server --listen=:8080 \\\n  --data=/data \"$@\""],
            "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}], "resources": resources,
            "volumeMounts": mounts, "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"},
                "timeoutSeconds": 1, "periodSeconds": 2, "successThreshold": 1, "failureThreshold": 3},
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            "imagePullPolicy": "IfNotPresent", "securityContext": {"capabilities": {"drop": ["ALL"]},
                "runAsNonRoot": true, "allowPrivilegeEscalation": false},
        })
    };
    let taint = |key: &str| {
        json!({"key": format!("node.kubernetes.io/{key}"), "operator": "Exists", "effect": "NoExecute",
        "tolerationSeconds": 300})
    };
    json!({
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "web-x2x9k-data"}},
            {"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}},
            {"name": "kube-api-access-7x2mn", "projected": {"sources": [{"serviceAccountToken":
                {"expirationSeconds": 3607, "path": "token"}}, {"configMap": {"name": "kube-root-ca.crt",
                "items": [{"key": "ca.crt", "path": "ca.crt"}]}}, {"downwardAPI": {"items": [{"path": "namespace",
                "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}}], "defaultMode": 420}}],
        "containers": [container("main"), container("proxy")], "restartPolicy": "Never", "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst", "serviceAccountName": "default", "serviceAccount": "default", "nodeName": "worker-1",
        "securityContext": {"runAsUser": 1000, "fsGroup": 1000}, "schedulerName": "default-scheduler",
        "tolerations": [taint("not-ready"), taint("unreachable")], "priority": 0, "enableServiceLinks": false,
        "preemptionPolicy": "PreemptLowerPriority",
    })
}

fn status() -> Value {
    let condition = |kind: &str| {
        json!({"type": kind, "observedGeneration": 1, "status": "True", "lastProbeTime": null,
        "lastTransitionTime": "2026-05-04T09:12:47Z"})
    };
    let container = |name: &str| {
        let image = format!("registry.example.com/boilerhouse/{name}:1.4.2");
        let digest = "9b2cf7d3e1a04d6f8b57c1e2a3d4f5061728394a5b6c7d8e9f00112233445566";
        json!({"name": name, "state": {"running": {"startedAt": "2026-05-04T09:12:46Z"}}, "lastState": {}, "ready": true,
            "restartCount": 0, "image": image, "imageID": format!("{image}@sha256:{digest}"),
            "containerID": format!("containerd://{digest}"), "started": true, "resources":
            {"limits": {"cpu": "1", "memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "128Mi"}}})
    };
    let types = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    json!({
        "observedGeneration": 1, "phase": "Running", "conditions": types.map(condition), "hostIP": "10.0.0.11",
        "hostIPs": [{"ip": "10.0.0.11"}], "podIP": "10.244.3.17", "podIPs": [{"ip": "10.244.3.17"}],
        "startTime": "2026-05-04T09:12:44Z", "containerStatuses": [container("main"), container("proxy")],
        "qosClass": "Burstable",
    })
}
