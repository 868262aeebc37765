//! A cluster that lives: pools warm and fill, tenants claim and release, pods fail and are replaced.
//!
//! One [`Scenario::step`] is one thing that happens. What can happen is read from the store, what does happen is drawn
//! from a seeded generator, so that a seed replays and a hand that meddles with the objects does no harm. Whatever has
//! not happened for a while (a pod turning ready, a claim becoming Active, one becoming Released) goes first.

use std::future::Future;
use std::time::Duration;

use serde_json::{Value, json};

use super::handle::Sim;
use super::resource::ApiResource;
use super::store::{self, Store};
use crate::api::{ANNOTATION_LAST_ACTIVITY, LABEL_MANAGED, LABEL_POOL_STATUS, LABEL_TENANT, LABEL_WORKLOAD};

mod fixtures;

/// Steps after which something that has not happened goes first; a chain of at most five steps leads to each, and there
/// are three, so that all of them come within 20.
const OVERDUE_STEPS: u32 = 8;
/// How many steps the store remembers at least when [`Scenario::run`] gives memory back: five minutes of them, twice.
const MEMORY_STEPS: u32 = 300;
/// How many managed pods there are at the beginning.
const FIRST_PODS: usize = 8;
/// Above this many claims releasing is favoured, so that the cluster breathes instead of filling up.
const MANY_CLAIMS: usize = 4;

/// Who lives in the cluster.
#[derive(Clone, Debug)]
pub struct ScenarioConfig {
    /// The namespace of everything; it has to exist.
    pub namespace: String,
    /// The workloads, each with a pool of its own.
    pub workloads: Vec<String>,
    /// How many instances each pool keeps warm.
    pub pool_size: usize,
    /// The tenants; each has at most one claim.
    pub tenants: Vec<String>,
}

impl Default for ScenarioConfig {
    fn default() -> Self {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            namespace: "boilerhouse".to_owned(),
            workloads: list(&["python-repl", "node-sandbox", "browser"]),
            pool_size: 2,
            tenants: list(&["alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi"]),
        }
    }
}

/// The generator of what happens.
#[derive(Clone, Debug)]
pub struct Scenario {
    config: ScenarioConfig,
    random: u64,
    /// Steps since each [`Goal`] was last reached.
    since: [u32; 3],
}

/// What must happen again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Ready,
    Active,
    Released,
}

/// One thing that can happen, to the object of that name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Warm(String),
    Advance(String),
    Fail(String),
    Rotate(String),
    Terminate(String),
    Remove(String),
    Stir(String),
    Claim(String),
    Activate(String),
    Touch(String),
    Release(String),
    Finish(String),
    Reclaim(String),
    Reap(String),
}

impl Scenario {
    /// A scenario; the same seed over the same store does the same things.
    #[must_use]
    pub fn new(seed: u64, config: ScenarioConfig) -> Self {
        Self { config, random: seed, since: [0; 3] }
    }

    /// The beginning: about eight pods in three workloads, three of them claimed, and one that is not managed.
    pub fn populate(&mut self, store: &mut Store) {
        for workload in self.config.workloads.clone() {
            let name = self.warm(store, &workload);
            self.advance(store, &name);
            self.advance(store, &name);
        }
        for index in 0..self.config.tenants.len().min(3) {
            let name = self.claim(store, &self.config.tenants[index].clone());
            self.activate(store, &name);
        }
        let workloads = self.config.workloads.clone();
        for (index, workload) in workloads.iter().cycle().enumerate() {
            if store.list(ApiResource::Pods, Some(&self.config.namespace)).len() >= FIRST_PODS {
                break;
            }
            let name = self.warm(store, workload);
            for _ in 0..=index % 2 {
                self.advance(store, &name);
            }
        }
        let name = format!("metrics-agent-{:05x}", self.next_random() & 0xf_ffff);
        self.create(store, ApiResource::Pods, fixtures::unmanaged(&self.config.namespace, &name, store.now()));
        self.since = [0; 3];
    }

    /// Makes one thing happen, at the time that the store was last told.
    pub fn step(&mut self, store: &mut Store) {
        for steps in &mut self.since {
            *steps += 1;
        }
        let possible = self.possible_actions(store);
        let overdue = [Goal::Ready, Goal::Active, Goal::Released].into_iter();
        let overdue = overdue.filter(|goal| self.since[*goal as usize] > OVERDUE_STEPS);
        let urgent = overdue.max_by_key(|goal| self.since[*goal as usize]);
        let action = urgent.and_then(|goal| closest_action(goal, &possible)).or_else(|| self.choose(&possible));
        if let Some(action) = action {
            self.perform(store, &action);
        }
    }

    /// Lets an API that has been [populated](Self::populate) live until `stop`: at speed 1 about one step a second. The
    /// store's memory is bounded: it remembers five to ten minutes of this.
    pub async fn run(mut self, sim: &Sim, speed: f64, stop: impl Future<Output = ()>) {
        let pause = Duration::from_secs_f64(1.0 / speed.clamp(0.01, 1000.0));
        let (mut steps, mut mark) = (0_u32, 0);
        tokio::pin!(stop);
        loop {
            // A tenth either way, so that it does not look like a metronome.
            let jitter = 0.9 + 0.2 * f64::from(u16::try_from(self.next_random() & 0xffff).unwrap_or(0)) / 65_536.0;
            tokio::select! {
                () = &mut stop => return,
                () = tokio::time::sleep(pause.mul_f64(jitter)) => {}
            }
            steps += 1;
            sim.store(|store| {
                self.step(store);
                if steps.is_multiple_of(MEMORY_STEPS) {
                    store.discard_before(mark);
                    mark = store.revision();
                }
            });
        }
    }

    /// Everything that could happen now, with its weight.
    fn possible_actions(&self, store: &Store) -> Vec<(u32, Action)> {
        let namespace = Some(self.config.namespace.as_str());
        let (pods, claims) = (store.list(ApiResource::Pods, namespace), store.list(ApiResource::Claims, namespace));
        let mut actions = Vec::new();
        for pod in &pods {
            self.pod_actions(pod, &claims, &mut actions);
        }
        for workload in &self.config.workloads {
            let pooled =
                |pod: &Value| label(pod, LABEL_WORKLOAD) == workload && pool(pod) != "acquired" && is_alive(pod);
            if pods.iter().filter(|pod| pooled(pod)).count() < self.config.pool_size {
                actions.push((6, Action::Warm(workload.clone())));
            }
        }
        let crowded = u32::from(claims.len() > MANY_CLAIMS);
        for claim in &claims {
            let name = text(&claim["metadata"]["name"]);
            match text(&claim["status"]["phase"]).as_str() {
                "" | "Pending" => actions.push((10, Action::Activate(name))),
                "Active" => {
                    actions.extend([(2, Action::Touch(name.clone())), (1 + 3 * crowded, Action::Release(name))])
                }
                "Releasing" => actions.push((8, Action::Finish(name))),
                "Released" => actions.extend([(1, Action::Reclaim(name.clone())), (4, Action::Reap(name))]),
                _ => actions.push((4, Action::Reap(name))),
            }
        }
        for tenant in &self.config.tenants {
            if !claims.iter().any(|claim| claim["spec"]["tenantId"] == **tenant) {
                actions.push((1, Action::Claim(tenant.clone())));
            }
        }
        actions
    }

    fn pod_actions(&self, pod: &Value, claims: &[std::sync::Arc<Value>], actions: &mut Vec<(u32, Action)>) {
        let name = text(&pod["metadata"]["name"]);
        if label(pod, LABEL_MANAGED) != "true" {
            return actions.push((1, Action::Stir(name)));
        }
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            return actions.push((8, Action::Remove(name)));
        }
        let tenant = label(pod, LABEL_TENANT);
        let wanted = claims.iter().any(|claim| {
            let phase = text(&claim["status"]["phase"]);
            claim["spec"]["tenantId"] == tenant && matches!(phase.as_str(), "" | "Pending" | "Active" | "Releasing")
        });
        match (text(&pod["status"]["phase"]).as_str(), pool(pod)) {
            ("Failed", _) => actions.push((6, Action::Terminate(name))),
            (_, "warming") => actions.push((8, Action::Advance(name))),
            (_, "acquired") if !wanted => actions.push((6, Action::Terminate(name))),
            // Failing is rare beside everything else; twelve pods of this weight make it one step in twenty.
            _ if self.random.is_multiple_of(8) => actions.push((1, Action::Fail(name))),
            // Weight nothing: only where every pool is full and a Pod has to turn ready all the same.
            (_, "ready") => actions.push((0, Action::Rotate(name))),
            _ => {}
        }
    }

    fn choose(&mut self, possible: &[(u32, Action)]) -> Option<Action> {
        let total: u32 = possible.iter().map(|(weight, _)| weight).sum();
        let mut ticket = u32::try_from(self.next_random() % u64::from(total.max(1))).unwrap_or(0);
        for (weight, action) in possible {
            if ticket < *weight {
                return Some(action.clone());
            }
            ticket -= weight;
        }
        None
    }

    fn perform(&mut self, store: &mut Store, action: &Action) {
        let now = store::seconds(store.now());
        match action {
            Action::Warm(workload) => drop(self.warm(store, workload)),
            Action::Advance(pod) => self.advance(store, pod),
            Action::Fail(pod) => self.fail(store, pod),
            Action::Rotate(pod) | Action::Terminate(pod) => {
                drop(store.terminate(ApiResource::Pods, &self.config.namespace, pod, 30))
            }
            Action::Remove(pod) => drop(store.delete(ApiResource::Pods, &self.config.namespace, pod)),
            Action::Stir(pod) => self.patch_pod(store, pod, &fixtures::stirred(&now)),
            Action::Claim(tenant) => drop(self.claim(store, tenant)),
            Action::Activate(claim) => self.activate(store, claim),
            Action::Touch(claim) => {
                let touched = json!({"metadata": {"annotations": {ANNOTATION_LAST_ACTIVITY: now}}});
                self.patch_claim(store, claim, &touched);
            }
            Action::Release(claim) => self.patch_claim(store, claim, &json!({"status": {"phase": "Releasing"}})),
            Action::Finish(claim) => {
                self.patch_claim(store, claim, &json!({"status": {"phase": "Released", "endpoint": null}}));
                self.since[Goal::Released as usize] = 0;
            }
            Action::Reclaim(claim) => {
                let fresh = json!({"phase": "Pending", "instanceId": null, "endpoint": null, "source": null,
                                   "claimedAt": null, "detail": null});
                self.patch_claim(store, claim, &json!({"spec": {"resume": true}, "status": fresh}));
            }
            Action::Reap(claim) => drop(store.delete(ApiResource::Claims, &self.config.namespace, claim)),
        }
    }

    /// A new pod of a pool, Pending and warming.
    fn warm(&mut self, store: &mut Store, workload: &str) -> String {
        let name = format!("{workload}-{:05x}", self.next_random() & 0xf_ffff);
        let padding = self.next_random() % 40;
        let pod = fixtures::instance(&self.config.namespace, &name, workload, padding, store.now());
        self.create(store, ApiResource::Pods, pod);
        name
    }

    /// Pending becomes Running, Running becomes ready.
    fn advance(&mut self, store: &mut Store, name: &str) {
        let Some(pod) = store.get(ApiResource::Pods, &self.config.namespace, name) else { return };
        let now = store.now();
        if pod["status"]["phase"] == "Running" {
            self.patch_pod(store, name, &fixtures::ready(&pod, now));
            self.since[Goal::Ready as usize] = 0;
        } else {
            let address = format!("10.244.{}.{}", self.next_random() % 16, 2 + self.next_random() % 250);
            self.patch_pod(store, name, &fixtures::running(&pod, &address, now));
        }
    }

    fn fail(&mut self, store: &mut Store, name: &str) {
        let Some(pod) = store.get(ApiResource::Pods, &self.config.namespace, name) else { return };
        self.patch_pod(store, name, &fixtures::failed(&pod, store.now()));
        for claim in store.list(ApiResource::Claims, Some(&self.config.namespace)) {
            if claim["status"]["instanceId"] == name && claim["status"]["phase"] == "Active" {
                let broken = json!({"status": {"phase": "Error", "detail": format!("instance {name} failed")}});
                self.patch_claim(store, &text(&claim["metadata"]["name"]), &broken);
            }
        }
    }

    fn claim(&mut self, store: &mut Store, tenant: &str) -> String {
        let index = usize::try_from(self.next_random()).unwrap_or(0) % self.config.workloads.len().max(1);
        let workload = self.config.workloads.get(index).cloned().unwrap_or_default();
        let name = format!("{tenant}-{workload}");
        let resume = self.next_random().is_multiple_of(3);
        self.create(
            store,
            ApiResource::Claims,
            fixtures::claim(&self.config.namespace, &name, tenant, &workload, resume, store.now()),
        );
        name
    }

    /// Finds a Pod for a claim (the tenant's own, one of the pool, or a cold one) and makes the claim Active.
    fn activate(&mut self, store: &mut Store, name: &str) {
        let Some(claim) = store.get(ApiResource::Claims, &self.config.namespace, name) else { return };
        let (tenant, workload) = (text(&claim["spec"]["tenantId"]), text(&claim["spec"]["workloadRef"]));
        let data = if claim["spec"]["resume"] == true { "+data" } else { "" };
        let pods = store.list(ApiResource::Pods, Some(&self.config.namespace));
        let mine = pods.iter().filter(|pod| is_alive(pod) && label(pod, LABEL_WORKLOAD) == workload);
        let mine: Vec<_> = mine.filter(|pod| pod["status"]["phase"] == "Running").collect();
        let cold = self.next_random().is_multiple_of(5);
        let existing = mine.iter().find(|pod| label(pod, LABEL_TENANT) == tenant);
        let pooled = mine.iter().find(|pod| pool(pod) == "ready" && !cold);
        let (pod, source) = match (existing, pooled) {
            (Some(pod), _) => (text(&pod["metadata"]["name"]), "existing".to_owned()),
            (None, Some(pod)) => (text(&pod["metadata"]["name"]), format!("pool{data}")),
            (None, None) => {
                let pod = self.warm(store, &workload);
                self.advance(store, &pod);
                (pod, format!("cold{data}"))
            }
        };
        let labels = json!({LABEL_POOL_STATUS: "acquired", LABEL_TENANT: tenant});
        self.patch_pod(store, &pod, &json!({"metadata": {"labels": labels}}));
        let now = store::seconds(store.now());
        let host = store.get(ApiResource::Pods, &self.config.namespace, &pod).map(|pod| text(&pod["status"]["podIP"]));
        let status = json!({"phase": "Active", "instanceId": pod, "source": source, "claimedAt": now,
                            "endpoint": {"host": host, "port": 8080}});
        let annotations = json!({ANNOTATION_LAST_ACTIVITY: now});
        self.patch_claim(store, name, &json!({"metadata": {"annotations": annotations}, "status": status}));
        self.since[Goal::Active as usize] = 0;
    }

    // The writes below cannot be refused but for what a meddling hand did in between, and then there is nothing to do.

    fn create(&self, store: &mut Store, resource: ApiResource, object: Value) {
        drop(store.create(resource, object));
    }

    fn patch_pod(&self, store: &mut Store, name: &str, patch: &Value) {
        drop(store.patch(ApiResource::Pods, &self.config.namespace, name, patch));
    }

    fn patch_claim(&self, store: &mut Store, name: &str, patch: &Value) {
        drop(store.patch(ApiResource::Claims, &self.config.namespace, name, patch));
    }

    /// The next number of the generator (SplitMix64).
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// What brings a goal nearest: its last step where that is possible, else the one before, and so on.
fn closest_action(goal: Goal, possible: &[(u32, Action)]) -> Option<Action> {
    let distance = |action: &Action| match (goal, action) {
        (Goal::Ready, Action::Advance(_))
        | (Goal::Active, Action::Activate(_))
        | (Goal::Released, Action::Finish(_)) => Some(0),
        (Goal::Ready, Action::Warm(_)) | (Goal::Active, Action::Claim(_)) | (Goal::Released, Action::Release(_)) => {
            Some(1)
        }
        (Goal::Ready, Action::Rotate(_))
        | (Goal::Active, Action::Reclaim(_))
        | (Goal::Released, Action::Activate(_)) => Some(2),
        (Goal::Active, Action::Reap(_)) | (Goal::Released, Action::Claim(_)) => Some(3),
        _ => None,
    };
    let ranked = possible.iter().filter_map(|(_, action)| distance(action).map(|distance| (distance, action)));
    ranked.min_by_key(|(distance, _)| *distance).map(|(_, action)| action.clone())
}

fn label<'a>(pod: &'a Value, key: &str) -> &'a str {
    pod["metadata"]["labels"][key].as_str().unwrap_or_default()
}

fn pool(pod: &Value) -> &str {
    label(pod, LABEL_POOL_STATUS)
}

fn is_alive(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] != "Failed"
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
