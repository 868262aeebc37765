//! Builders of objects and a seeded random number generator for tests and benches. It is not part of the product: it is
//! compiled for unit tests and with the feature `test-support` only.
//!
//! Guarantees: a builder returns the same object in both forms: the view (`event` types) and the JSON of the Kubernetes
//! API.

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value, json};

use crate::{
    api::{LABEL_MANAGED, LABEL_POOL_STATUS, LABEL_TENANT, LABEL_WORKLOAD},
    event::{Claim, Instance, ResourceVersion, Telemetry, TelemetryMetrics, View},
};

/// Builds a managed Pod. The defaults are the uid `uid-<name>`, the phase `Running`, and no other field.
#[derive(Clone, Debug)]
pub struct PodBuilder {
    instance: Instance,
    namespace: Option<String>,
}

impl PodBuilder {
    /// Creates a builder of a Pod with this name.
    #[must_use]
    pub fn new(name: &str) -> PodBuilder {
        let instance = Instance {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            phase: "Running".to_owned(),
            ..Instance::default()
        };
        PodBuilder { instance, namespace: None }.label(LABEL_MANAGED, "true")
    }

    /// Sets `metadata.uid`.
    #[must_use]
    pub fn uid(mut self, uid: &str) -> PodBuilder {
        self.instance.uid = uid.to_owned();
        self
    }

    /// Sets `metadata.namespace`, in the JSON only.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> PodBuilder {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// Sets `status.phase`.
    #[must_use]
    pub fn phase(mut self, phase: &str) -> PodBuilder {
        self.instance.phase = phase.to_owned();
        self
    }

    /// Sets `metadata.resourceVersion`. With 0, the JSON has neither it nor the uid, as an object that is to be
    /// created.
    #[must_use]
    pub fn version(mut self, version: ResourceVersion) -> PodBuilder {
        self.instance.resource_version = version;
        self
    }

    /// Sets `metadata.creationTimestamp`, RFC 3339 in UTC. Without it, the JSON has none and the view an empty one.
    #[must_use]
    pub fn created_at(mut self, time: &str) -> PodBuilder {
        self.instance.created_at = time.to_owned();
        self
    }

    /// Adds a label without setting a field of the view.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> PodBuilder {
        self.instance.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets the label of the workload, and the field of the view.
    #[must_use]
    pub fn workload(mut self, workload: &str) -> PodBuilder {
        self.instance.workload_ref = Some(workload.to_owned());
        self.label(LABEL_WORKLOAD, workload)
    }

    /// Sets the label of the tenant, and the field of the view.
    #[must_use]
    pub fn tenant(mut self, tenant: &str) -> PodBuilder {
        self.instance.tenant_id = Some(tenant.to_owned());
        self.label(LABEL_TENANT, tenant)
    }

    /// Sets the label of the pool status (`warming`, `ready`, `acquired`), and the field of the view.
    #[must_use]
    pub fn pool(mut self, status: &str) -> PodBuilder {
        self.instance.pool_status = Some(status.to_owned());
        self.label(LABEL_POOL_STATUS, status)
    }

    /// Returns the instance.
    #[must_use]
    pub fn instance(self) -> Arc<Instance> {
        Arc::new(self.instance)
    }

    /// Returns the view.
    #[must_use]
    pub fn view(self) -> View {
        View::Instance(self.instance())
    }

    /// Returns the JSON of the object in the Kubernetes API.
    #[must_use]
    pub fn json(self) -> Value {
        let created_at = self.instance.created_at.clone();
        let Instance { name, uid, phase, labels, resource_version, .. } = self.instance;
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": metadata(&name, &uid, self.namespace, resource_version, json!(labels)),
            "spec": {"containers": [{"name": "main", "image": "example.invalid/none"}]},
            "status": {"phase": phase},
        });
        if !created_at.is_empty() {
            pod["metadata"]["creationTimestamp"] = json!(created_at);
        }
        pod
    }
}

/// Builds a BoilerhouseClaim. The defaults are the uid `uid-<name>`, the tenant `alice`, the workload `web` and the
/// phase `Pending`.
#[derive(Clone, Debug)]
pub struct ClaimBuilder {
    claim: Claim,
    namespace: Option<String>,
}

impl ClaimBuilder {
    /// Creates a builder of a claim with this name.
    #[must_use]
    pub fn new(name: &str) -> ClaimBuilder {
        let claim = Claim {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            tenant_id: "alice".to_owned(),
            workload_ref: "web".to_owned(),
            phase: "Pending".to_owned(),
            ..Claim::default()
        };
        ClaimBuilder { claim, namespace: None }
    }

    /// Sets `metadata.uid`.
    #[must_use]
    pub fn uid(mut self, uid: &str) -> ClaimBuilder {
        self.claim.uid = uid.to_owned();
        self
    }

    /// Sets `metadata.namespace`, in the JSON only.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> ClaimBuilder {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// Sets `metadata.resourceVersion`. With 0, the JSON has neither it nor the uid, as an object that is to be
    /// created.
    #[must_use]
    pub fn version(mut self, version: ResourceVersion) -> ClaimBuilder {
        self.claim.resource_version = version;
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> ClaimBuilder {
        self.claim.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets `spec.tenantId`.
    #[must_use]
    pub fn tenant(mut self, tenant: &str) -> ClaimBuilder {
        self.claim.tenant_id = tenant.to_owned();
        self
    }

    /// Sets `spec.workloadRef`.
    #[must_use]
    pub fn workload(mut self, workload: &str) -> ClaimBuilder {
        self.claim.workload_ref = workload.to_owned();
        self
    }

    /// Sets `status.phase`.
    #[must_use]
    pub fn phase(mut self, phase: &str) -> ClaimBuilder {
        self.claim.phase = phase.to_owned();
        self
    }

    /// Sets `status.instanceId`.
    #[must_use]
    pub fn instance_id(mut self, instance: &str) -> ClaimBuilder {
        self.claim.instance_id = Some(instance.to_owned());
        self
    }

    /// Sets `status.source`.
    #[must_use]
    pub fn source(mut self, source: &str) -> ClaimBuilder {
        self.claim.source = Some(source.to_owned());
        self
    }

    /// Returns the claim.
    #[must_use]
    pub fn claim(self) -> Arc<Claim> {
        Arc::new(self.claim)
    }

    /// Returns the view.
    #[must_use]
    pub fn view(self) -> View {
        View::Claim(self.claim())
    }

    /// Returns the JSON of the object in the Kubernetes API.
    #[must_use]
    pub fn json(self) -> Value {
        let Claim { name, uid, tenant_id, workload_ref, phase, instance_id, source, labels, resource_version, .. } =
            self.claim;
        let mut status = Map::from_iter([("phase".to_owned(), json!(phase))]);
        let optional = [("instanceId", instance_id), ("source", source)];
        status.extend(optional.into_iter().filter_map(|(key, value)| Some((key.to_owned(), json!(value?)))));
        json!({
            "apiVersion": "boilerhouse.dev/v1alpha1", "kind": "BoilerhouseClaim",
            "metadata": metadata(&name, &uid, self.namespace, resource_version, json!(labels)),
            "spec": {"tenantId": tenant_id, "workloadRef": workload_ref},
            "status": status,
        })
    }
}

fn metadata(name: &str, uid: &str, namespace: Option<String>, version: ResourceVersion, labels: Value) -> Value {
    let mut metadata = Map::from_iter([("name".to_owned(), json!(name))]);
    if let Some(namespace) = namespace {
        metadata.insert("namespace".to_owned(), json!(namespace));
    }
    // The API server sets both fields when it creates the object.
    if version != 0 {
        metadata.insert("uid".to_owned(), json!(uid));
        metadata.insert("resourceVersion".to_owned(), json!(version.to_string()));
    }
    if labels.as_object().is_some_and(|labels| !labels.is_empty()) {
        metadata.insert("labels".to_owned(), labels);
    }
    Value::Object(metadata)
}

/// A random number generator (SplitMix64). The sequence of a seed never changes, so that a printed seed repeats a test.
#[derive(Clone, Debug)]
pub struct SeededRng(pub u64);

impl SeededRng {
    /// Returns the next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `bound`, which must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }

    /// Returns one of `items`, which must not be empty.
    pub fn choose<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// Returns a duration below `bound`, in whole milliseconds.
    pub fn duration_up_to(&mut self, bound: Duration) -> Duration {
        let bound = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(self.below(bound))
    }

    /// Returns an independent generator. Its numbers do not advance this one.
    pub fn fork(&mut self) -> SeededRng {
        SeededRng(self.below(u64::MAX))
    }
}

/// The variable that selects one seed, or a range such as `0..20000`. It is the only one, and every seeded test reads it here.
const SEED_VARIABLE: &str = "BRIDGE_SEED";

/// Returns telemetry of the tunnel with this uid, received at the Unix epoch.
#[must_use]
pub fn telemetry(uid: &str) -> Telemetry {
    let metrics = TelemetryMetrics {
        ttl: 1,
        opn: 0,
        rt1_ms: serde_json::Number::from_f64(1.5),
        rt5_ms: None,
        p50_ms: None,
        p90_ms: None,
        requests: 3,
        errors: 0,
        bytes: 9,
    };
    Telemetry { tunnel_id: uid.to_owned(), received_at_ms: 0, region: Some("eu".to_owned()), metrics }
}

/// Returns the seeds that a seeded test must run: those of the variable `BRIDGE_SEED`, or all of `seeds` without it.
///
/// # Panics
/// When `BRIDGE_SEED` is neither a decimal number nor a range of two.
#[must_use]
pub fn seeds_to_run(seeds: std::ops::Range<u64>) -> Vec<u64> {
    match std::env::var(SEED_VARIABLE) {
        Ok(text) => {
            let (first, end) = text.split_once("..").unwrap_or((&text, ""));
            let number = |text: &str| {
                text.parse::<u64>()
                    .unwrap_or_else(|_| panic!("{SEED_VARIABLE} must be a decimal number or A..B, not {text:?}"))
            };
            let first = number(first);
            (first..if end.is_empty() { first + 1 } else { number(end) }).collect()
        }
        Err(_) => seeds.collect(),
    }
}

/// Returns the seed of a test that runs one: that of the variable `BRIDGE_SEED`, or `default` without it.
///
/// # Panics
/// When `BRIDGE_SEED` is neither a decimal number nor a range of two.
#[must_use]
pub fn seed_to_run(default: u64) -> u64 {
    seeds_to_run(default..default + 1)[0]
}

/// Prints the command that repeats a seed if the test panics while this value exists. It works in `async` tests and in
/// threads of a test as well.
#[derive(Debug)]
#[must_use = "the command is printed when the value is dropped"]
pub struct ReplayCommand {
    path: &'static str,
    seed: u64,
}

impl ReplayCommand {
    /// Creates it for a test function; `path` is [`test_name!`](crate::test_name) in that function.
    pub fn on_panic(path: &'static str, seed: u64) -> ReplayCommand {
        ReplayCommand { path, seed }
    }

    fn command(&self) -> String {
        let (binary, test) = self.path.split_once("::").unwrap_or(("", self.path));
        let binary = if binary == env!("CARGO_CRATE_NAME") { "--lib" } else { "--test it" };
        format!("{SEED_VARIABLE}={} cargo test {binary} {test}", self.seed)
    }
}

impl Drop for ReplayCommand {
    #[expect(clippy::print_stderr, reason = "libtest prints it with the failure")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replays with: {}", self.command());
        }
    }
}

/// Returns the path of the enclosing test function with its crate, such as `it::seeded_ws::equal_seeds`.
#[macro_export]
macro_rules! test_name {
    () => {{
        fn inside() {}
        $crate::test_support::enclosing_function(std::any::type_name_of_val(&inside))
    }};
}

/// Returns the enclosing function of a path such as `it::module::test::{{closure}}::inside`.
#[doc(hidden)]
#[must_use]
pub fn enclosing_function(path: &'static str) -> &'static str {
    let path = path.trim_end_matches("::inside");
    path.split_once("::{{closure}}").map_or(path, |(function, _)| function)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replay_command_names_the_seed_the_binary_and_the_test() {
        let in_closure = || crate::test_name!();
        let path = "test_support::tests::replay_command_names_the_seed_the_binary_and_the_test";
        let command = ReplayCommand::on_panic(in_closure(), 7);
        assert_eq!(command.command(), format!("BRIDGE_SEED=7 cargo test --lib {path}"));
        let command = ReplayCommand::on_panic("it::resume::every_seed", 8);
        assert_eq!(command.command(), "BRIDGE_SEED=8 cargo test --test it resume::every_seed");
    }
}
