//! Seeded changes of a cluster, for `demo` and tests: pools are filled, tenants claim and release instances, Pods fail
//! and are replaced.
//!
//! Owns: a random number generator.
//!
//! Guarantees:
//! - Each [`Scenario::step`] performs one action. The possible actions depend on the store, and the generator selects
//!   one. The same seed over the same store repeats the same actions, and other writes to the store are allowed.
//! - Each goal (a Pod becomes ready, a claim becomes Active, a claim becomes Released) is reached at least every 20
//!   steps. An overdue goal has priority.

use std::future::Future;
use std::time::Duration;

use serde_json::{Value, json};

use super::handle::Sim;
use super::resource::ApiResource;
use super::store::{self, Store};
use crate::api::{ANNOTATION_LAST_ACTIVITY, LABEL_MANAGED, LABEL_POOL_STATUS, LABEL_TENANT, LABEL_WORKLOAD};

mod fixtures;

/// Steps after which a goal is overdue. At most five steps lead to each of the three goals, so that each goal is
/// reached within 20 steps.
const OVERDUE_STEPS: u32 = 8;
/// Interval in steps at which [`Scenario::run`] frees memory. The store keeps the history of at least one interval and
/// at most two: 5 to 10 minutes at speed 1.
const MEMORY_STEPS: u32 = 300;
/// Number of managed Pods at the start.
const FIRST_PODS: usize = 8;
/// Number of claims above which a release becomes more likely, so that the number of claims does not grow to its
/// maximum.
const MANY_CLAIMS: usize = 4;

/// The content of the cluster.
#[derive(Clone, Debug)]
pub struct ScenarioConfig {
    /// The namespace of all objects. It must exist.
    pub namespace: String,
    /// The workloads. Each one has a pool.
    pub workloads: Vec<String>,
    /// Number of unclaimed instances (warming or ready) that each pool is filled to.
    pub pool_size: usize,
    /// The tenants. Each one has at most one claim.
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

/// The generator of actions.
#[derive(Clone, Debug)]
pub struct Scenario {
    config: ScenarioConfig,
    /// The state of the random number generator.
    random: u64,
    /// Steps since each [`Goal`] was last reached.
    since: [u32; 3],
}

/// An event that must recur.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Ready,
    Active,
    Released,
}

/// A possible action, with the name of its object, workload or tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    /// A Pod of a workload is created.
    Warm(String),
    /// A Pod becomes Running, or becomes ready.
    Advance(String),
    /// A Pod fails.
    Fail(String),
    /// A ready Pod is deleted gracefully, so that another one becomes ready.
    Rotate(String),
    /// A Pod is deleted gracefully.
    Terminate(String),
    /// A terminating Pod disappears.
    Remove(String),
    /// A Pod that is not managed changes.
    ChangeUnmanaged(String),
    /// A tenant creates a claim.
    Claim(String),
    /// A claim gets an instance.
    Activate(String),
    /// A claim's tenant is active.
    Touch(String),
    /// A claim becomes Releasing.
    Release(String),
    /// A claim becomes Released.
    Finish(String),
    /// A Released claim becomes Pending again.
    Reclaim(String),
    /// A claim is deleted.
    DeleteClaim(String),
}

impl Scenario {
    /// Creates a scenario. The same seed over the same store performs the same actions.
    #[must_use]
    pub fn new(seed: u64, config: ScenarioConfig) -> Self {
        Self { config, random: seed, since: [0; 3] }
    }

    /// Creates the objects of the start: eight managed Pods (with the default configuration, of three workloads, and
    /// three of them claimed), and one Pod that is not managed.
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

    /// Performs one action, at the current time of the store.
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

    /// Performs steps until `stop` completes: at speed 1, about one step per second. [`Scenario::populate`] must be
    /// called first.
    ///
    /// The memory of the store is bounded: it keeps the history of 300 to 600 steps (`MEMORY_STEPS`).
    pub async fn run(mut self, sim: &Sim, speed: f64, stop: impl Future<Output = ()>) {
        let pause = Duration::from_secs_f64(1.0 / speed.clamp(0.01, 1000.0));
        let (mut steps, mut mark) = (0_u32, 0);
        tokio::pin!(stop);
        loop {
            // Each pause differs from the average by up to 10 %, so that changes are not perfectly regular.
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

    /// Returns the actions that are possible now, with their weights.
    fn possible_actions(&self, store: &Store) -> Vec<(u32, Action)> {
        let namespace = Some(self.config.namespace.as_str());
        let (pods, claims) = (store.list(ApiResource::Pods, namespace), store.list(ApiResource::Claims, namespace));
        let mut actions = Vec::new();
        for pod in &pods {
            self.pod_actions(pod, &claims, &mut actions);
        }
        for workload in &self.config.workloads {
            let is_unclaimed =
                |pod: &Value| label(pod, LABEL_WORKLOAD) == workload && pool(pod) != "acquired" && is_alive(pod);
            if pods.iter().filter(|pod| is_unclaimed(pod)).count() < self.config.pool_size {
                actions.push((6, Action::Warm(workload.clone())));
            }
        }
        let has_many_claims = u32::from(claims.len() > MANY_CLAIMS);
        for claim in &claims {
            let name = text(&claim["metadata"]["name"]);
            match text(&claim["status"]["phase"]).as_str() {
                "" | "Pending" => actions.push((10, Action::Activate(name))),
                "Active" => {
                    actions.extend([(2, Action::Touch(name.clone())), (1 + 3 * has_many_claims, Action::Release(name))])
                }
                "Releasing" => actions.push((8, Action::Finish(name))),
                "Released" => actions.extend([(1, Action::Reclaim(name.clone())), (4, Action::DeleteClaim(name))]),
                _ => actions.push((4, Action::DeleteClaim(name))),
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
            return actions.push((1, Action::ChangeUnmanaged(name)));
        }
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            return actions.push((8, Action::Remove(name)));
        }
        let tenant = label(pod, LABEL_TENANT);
        let is_claimed = claims.iter().any(|claim| {
            let phase = text(&claim["status"]["phase"]);
            claim["spec"]["tenantId"] == tenant && matches!(phase.as_str(), "" | "Pending" | "Active" | "Releasing")
        });
        match (text(&pod["status"]["phase"]).as_str(), pool(pod)) {
            ("Failed", _) => actions.push((6, Action::Terminate(name))),
            (_, "warming") => actions.push((8, Action::Advance(name))),
            (_, "acquired") if !is_claimed => actions.push((6, Action::Terminate(name))),
            // Failures must be rare. With twelve Pods of this weight, about one step in twenty is a failure.
            _ if self.random.is_multiple_of(8) => actions.push((1, Action::Fail(name))),
            // The weight 0 excludes it from the random choice. `closest_action` selects it if all pools are full and
            // `Goal::Ready` is overdue.
            (_, "ready") => actions.push((0, Action::Rotate(name))),
            _ => {}
        }
    }

    /// Selects an action at random, with a probability in proportion to its weight.
    fn choose(&mut self, possible: &[(u32, Action)]) -> Option<Action> {
        let total: u32 = possible.iter().map(|(weight, _)| weight).sum();
        let mut remaining = u32::try_from(self.next_random() % u64::from(total.max(1))).unwrap_or(0);
        for (weight, action) in possible {
            if remaining < *weight {
                return Some(action.clone());
            }
            remaining -= weight;
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
            Action::ChangeUnmanaged(pod) => self.patch_pod(store, pod, &fixtures::unrelated_change(&now)),
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
                let status = json!({"phase": "Pending", "instanceId": null, "endpoint": null, "source": null,
                                    "claimedAt": null, "detail": null});
                self.patch_claim(store, claim, &json!({"spec": {"resume": true}, "status": status}));
            }
            Action::DeleteClaim(claim) => drop(store.delete(ApiResource::Claims, &self.config.namespace, claim)),
        }
    }

    /// Creates a Pod of a pool, Pending and warming, and returns its name.
    fn warm(&mut self, store: &mut Store, workload: &str) -> String {
        let name = format!("{workload}-{:05x}", self.next_random() & 0xf_ffff);
        let padding = self.next_random() % 40;
        let pod = fixtures::instance(&self.config.namespace, &name, workload, padding, store.now());
        self.create(store, ApiResource::Pods, pod);
        name
    }

    /// Changes a Pending Pod to Running, or a Running Pod to ready.
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

    /// Makes a Pod fail, and the claim that it serves.
    fn fail(&mut self, store: &mut Store, name: &str) {
        let Some(pod) = store.get(ApiResource::Pods, &self.config.namespace, name) else { return };
        self.patch_pod(store, name, &fixtures::failed(&pod, store.now()));
        for claim in store.list(ApiResource::Claims, Some(&self.config.namespace)) {
            if claim["status"]["instanceId"] == name && claim["status"]["phase"] == "Active" {
                let error = json!({"status": {"phase": "Error", "detail": format!("instance {name} failed")}});
                self.patch_claim(store, &text(&claim["metadata"]["name"]), &error);
            }
        }
    }

    /// Creates a claim of a tenant on a random workload, and returns its name.
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

    /// Assigns a Pod to a claim (the Pod that the tenant has already, one of the pool, or a new one), and makes it
    /// Active.
    fn activate(&mut self, store: &mut Store, name: &str) {
        let Some(claim) = store.get(ApiResource::Claims, &self.config.namespace, name) else { return };
        let (tenant, workload) = (text(&claim["spec"]["tenantId"]), text(&claim["spec"]["workloadRef"]));
        let data = if claim["spec"]["resume"] == true { "+data" } else { "" };
        let pods = store.list(ApiResource::Pods, Some(&self.config.namespace));
        let alive = pods.iter().filter(|pod| is_alive(pod) && label(pod, LABEL_WORKLOAD) == workload);
        let running: Vec<_> = alive.filter(|pod| pod["status"]["phase"] == "Running").collect();
        let cold = self.next_random().is_multiple_of(5);
        let existing = running.iter().find(|pod| label(pod, LABEL_TENANT) == tenant);
        let pooled = running.iter().find(|pod| pool(pod) == "ready" && !cold);
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

    // The writes below fail only if another writer changed the object in between. The action then has no effect.

    fn create(&self, store: &mut Store, resource: ApiResource, object: Value) {
        drop(store.create(resource, object));
    }

    fn patch_pod(&self, store: &mut Store, name: &str, patch: &Value) {
        drop(store.patch(ApiResource::Pods, &self.config.namespace, name, patch));
    }

    fn patch_claim(&self, store: &mut Store, name: &str, patch: &Value) {
        drop(store.patch(ApiResource::Claims, &self.config.namespace, name, patch));
    }

    /// Returns the next number of the generator (SplitMix64). The scenario is product code, and cannot use
    /// `test_support`.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Returns the possible action with the fewest further steps to a goal.
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
        (Goal::Active, Action::DeleteClaim(_)) | (Goal::Released, Action::Claim(_)) => Some(3),
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

/// Returns whether the Pod neither terminates nor has failed.
fn is_alive(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] != "Failed"
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
