//! Who writes, and a book of what was written: what a client must have been told, by rules of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    time::Duration,
};

use http::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use crate::support::{cluster::Cluster, rng::SeededRng};

/// What has been written so far.
#[derive(Default)]
pub(super) struct WriteLedger(Mutex<LedgerState>);

#[derive(Default)]
struct LedgerState {
    writes: usize,
    versions: BTreeSet<String>,
    /// By uid: `<version> <type>` in order; `end` for the version of a deletion, which nobody tells the writer.
    expected: BTreeMap<String, Vec<String>>,
    /// By uid: the view's keys that this test sets.
    state: BTreeMap<String, Value>,
}

impl WriteLedger {
    pub(super) fn knows(&self, version: &str) -> bool {
        self.0.lock().unwrap().versions.contains(version)
    }

    pub(super) fn writes(&self) -> usize {
        self.0.lock().unwrap().writes
    }

    pub(super) fn expected(&self) -> BTreeMap<String, Vec<String>> {
        self.0.lock().unwrap().expected.clone()
    }

    /// The views that there must be.
    pub(super) fn state(&self) -> BTreeMap<String, Value> {
        self.0.lock().unwrap().state.clone()
    }

    pub(super) fn is_state(&self, fold: &BTreeMap<String, Value>) -> bool {
        self.0.lock().unwrap().state == *fold
    }

    /// Reads what the API server holds: a writer that was stopped in the middle of a request does not know.
    pub(super) async fn finish(&self, cluster: &Cluster) {
        for plural in ["pods", "boilerhouseclaims"] {
            let list = cluster.write(Method::GET, plural, "", &Value::Null).await;
            let items = list["items"].as_array().unwrap();
            let mut inner = self.0.lock().unwrap();
            let live: BTreeSet<&str> = items.iter().map(|item| item["metadata"]["uid"].as_str().unwrap()).collect();
            let is_pod = plural == "pods";
            let gone: Vec<String> = inner
                .state
                .iter()
                .filter(|(uid, view)| view["createdAt"].is_string() == is_pod && !live.contains(uid.as_str()))
                .map(|(uid, _)| uid.clone())
                .collect();
            for uid in gone {
                inner.delete(&uid);
            }
            for item in items {
                inner.write(plural, item);
            }
        }
    }
}

impl LedgerState {
    /// Notes an object as the API server returned it after a write.
    fn write(&mut self, plural: &str, object: &Value) {
        let meta = &object["metadata"];
        let [uid, version] = ["uid", "resourceVersion"].map(|key| meta[key].as_str().unwrap().to_owned());
        let view = if plural == "pods" { instance(object) } else { claim(object) };
        let old = self.state.insert(uid.clone(), view.clone());
        if old.as_ref() == Some(&view) {
            return;
        }
        let mut lines = vec![if plural == "pods" { "instance.state" } else { "claim.state" }];
        lines.extend(edge(plural, old.as_ref(), &view));
        self.versions.insert(version.clone());
        let received = self.expected.entry(uid).or_default();
        received.extend(lines.into_iter().map(|line| format!("{version} {line}")));
    }

    fn delete(&mut self, uid: &str) {
        let Some(old) = self.state.remove(uid) else { return };
        let received = self.expected.entry(uid.to_owned()).or_default();
        if old["createdAt"].is_string() {
            received.push("end instance.state".into());
        } else {
            received.push("end claim.state".into());
            if old["phase"] != "Released" {
                received.push("end tenant.released".into());
            }
        }
    }
}

fn instance(pod: &Value) -> Value {
    let labels = &pod["metadata"]["labels"];
    let mut view = json!({
        "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"], "phase": pod["status"]["phase"],
        "createdAt": pod["metadata"]["creationTimestamp"], "labels": labels,
    });
    for (key, label) in [("workloadRef", "workload"), ("tenantId", "tenant"), ("poolStatus", "pool-status")] {
        if let Some(value) = labels[format!("boilerhouse.dev/{label}")].as_str() {
            view[key] = value.into();
        }
    }
    view
}

fn claim(claim: &Value) -> Value {
    json!({
        "name": claim["metadata"]["name"], "uid": claim["metadata"]["uid"],
        "tenantId": claim["spec"]["tenantId"], "workloadRef": claim["spec"]["workloadRef"],
        "phase": claim["status"]["phase"].as_str().unwrap_or("Pending"),
    })
}

fn edge(plural: &str, old: Option<&Value>, new: &Value) -> Option<&'static str> {
    let became = |key: &str, value: &str| new[key] == value && old.is_none_or(|old| old[key] != value);
    if plural == "pods" {
        became("poolStatus", "ready").then_some("pool.instance.ready")
    } else if became("phase", "Active") {
        Some("tenant.claimed")
    } else {
        (old.is_some() && became("phase", "Released")).then_some("tenant.released")
    }
}

/// One writer, with objects of its own.
pub(super) struct Writer {
    rng: SeededRng,
    tag: u64,
    made: u64,
    /// Plural, name, uid.
    objects: Vec<(&'static str, String, String)>,
}

impl Writer {
    pub(super) fn new(tag: u64) -> Writer {
        Writer { rng: SeededRng(tag), tag, made: 0, objects: Vec::new() }
    }

    /// Writes on and on, at this pace.
    pub(super) async fn run(mut self, cluster: &Cluster, ledger: &WriteLedger, pause: Duration) {
        let mut next = Instant::now();
        loop {
            self.write(cluster, ledger).await;
            next += pause;
            sleep_until(next).await;
        }
    }

    /// Writes so often.
    pub(super) async fn some(&mut self, cluster: &Cluster, ledger: &WriteLedger, writes: usize) {
        for _ in 0..writes {
            self.write(cluster, ledger).await;
        }
    }

    async fn write(&mut self, cluster: &Cluster, ledger: &WriteLedger) {
        let many = self.objects.len() as u64;
        match self.rng.below(10) {
            0..2 if many > 3 => self.delete(cluster, ledger).await,
            2..8 if many > 0 => self.change(cluster, ledger).await,
            _ => self.create(cluster, ledger).await,
        }
        ledger.0.lock().unwrap().writes += 1;
    }

    async fn create(&mut self, cluster: &Cluster, ledger: &WriteLedger) {
        self.made += 1;
        let name = format!("o-{}-{}", self.tag, self.made);
        let plural = *self.rng.choose(&["pods", "boilerhouseclaims"]);
        let object = if plural == "pods" {
            let labels = json!({"boilerhouse.dev/managed": "true", "boilerhouse.dev/workload": "web"});
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
                   "spec": {"containers": [{"name": "main", "image": "none"}]}})
        } else {
            json!({"apiVersion": "boilerhouse.dev/v1alpha1", "kind": "BoilerhouseClaim", "metadata": {"name": name},
                   "spec": {"tenantId": "alice", "workloadRef": "web"}})
        };
        let made = cluster.write(Method::POST, plural, "", &object).await;
        ledger.0.lock().unwrap().write(plural, &made);
        self.objects.push((plural, name, made["metadata"]["uid"].as_str().unwrap().into()));
    }

    async fn change(&mut self, cluster: &Cluster, ledger: &WriteLedger) {
        let which = self.rng.below(self.objects.len() as u64) as usize;
        let (plural, name, _) = &self.objects[which];
        let choice = if *plural == "pods" {
            *self.rng.choose(&["Running", "Failed", "+warming", "+ready", "+acquired"])
        } else {
            *self.rng.choose(&["Active", "Releasing", "Released", "Error"])
        };
        let (rest, patch) = match choice.strip_prefix('+') {
            Some(status) => {
                (format!("/{name}"), json!({"metadata": {"labels": {"boilerhouse.dev/pool-status": status}}}))
            }
            None => (format!("/{name}/status"), json!({"status": {"phase": choice}})),
        };
        let changed = cluster.write(Method::PATCH, plural, &rest, &patch).await;
        ledger.0.lock().unwrap().write(plural, &changed);
    }

    async fn delete(&mut self, cluster: &Cluster, ledger: &WriteLedger) {
        let which = self.rng.below(self.objects.len() as u64) as usize;
        let (plural, name, uid) = self.objects.swap_remove(which);
        cluster.write(Method::DELETE, plural, &format!("/{name}"), &json!({"gracePeriodSeconds": 0})).await;
        ledger.0.lock().unwrap().delete(&uid);
    }
}
