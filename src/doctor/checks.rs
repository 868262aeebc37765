//! The table of all checks. A new check is a row here, a function in one of the modules below, and a row in
//! docs/protocol.md#doctor.

mod bridge;
mod cluster;
mod configuration;
mod objects;
mod permissions;

use std::time::Duration;

use futures::future::BoxFuture;

use super::{
    check::{Check, Outcome, Subject},
    report::Severity::{self, Error, Warning},
};

/// Time of a check that reads files or resolves names.
const LOCAL: Duration = Duration::from_secs(5);
/// Time of a check that sends one or two requests to the API server. A credential plugin may run before.
const REQUEST: Duration = Duration::from_secs(15);
/// Time of a check that reads a watch until its end.
const WATCH: Duration = Duration::from_secs(objects::WATCH_SECONDS as u64 + 10);
/// Time of a check that connects to a broker.
const BROKER: Duration = Duration::from_secs(20);
/// Time of a check of the running bridge.
const BRIDGE: Duration = Duration::from_secs(20);

type Run = fn(&Subject) -> BoxFuture<'_, Outcome>;

const fn row(
    id: &'static str,
    category: &'static str,
    name: &'static str,
    severity: Severity,
    needs: &'static [&'static str],
    limit: Duration,
    run: Run,
) -> Check {
    Check { id, category, name, severity, needs, limit, run }
}

/// All checks, in the order of the report. A check needs only earlier ones.
#[rustfmt::skip]
pub const CHECKS: &[Check] = &[
    row("config", "configuration", "the configuration can be used", Error, &[], LOCAL, configuration::config),
    row("credentials", "configuration", "credentials and their expiry", Error, &["config"], LOCAL, configuration::credentials),
    row("tls", "configuration", "TLS certificate and key", Error, &["config"], LOCAL, configuration::tls),
    row("origins", "configuration", "web origins that may read", Error, &["config"], LOCAL, configuration::origins),
    row("allowed-hosts", "configuration", "accepted host names", Warning, &["config"], LOCAL, configuration::allowed_hosts),
    row("port", "configuration", "the ports are free, or a bridge uses them", Error, &["config"], LOCAL, configuration::port),
    row("schema-pack", "inputs", "the schema pack can be used", Warning, &["config"], LOCAL, configuration::schema_pack),
    row("wasm", "inputs", "the WebAssembly module can be used", Error, &["config"], LOCAL, configuration::wasm),
    row("mqtt", "inputs", "the MQTT broker accepts the bridge", Warning, &["config"], BROKER, configuration::mqtt),
    row("nats", "inputs", "NATS accepts the bridge", Warning, &["config"], BROKER, configuration::nats),
    row("kubeconfig", "cluster", "kubeconfig or service account of the Pod", Error, &["config"], LOCAL, cluster::kubeconfig),
    row("api-server", "cluster", "the API server answers", Error, &["kubeconfig"], REQUEST, cluster::api_server),
    row("api-version", "cluster", "version of the API server", Warning, &["api-server"], REQUEST, cluster::api_version),
    row("clock", "cluster", "the clocks agree", Warning, &["api-server"], REQUEST, cluster::clock),
    row("namespace", "cluster", "the namespace exists", Error, &["api-server"], REQUEST, cluster::namespace),
    row("rbac-pods-list", "permissions", "list pods", Error, &["namespace"], REQUEST, permissions::pods_list),
    row("rbac-pods-watch", "permissions", "watch pods", Error, &["namespace"], REQUEST, permissions::pods_watch),
    row("rbac-claims-list", "permissions", "list claims", Error, &["namespace"], REQUEST, permissions::claims_list),
    row("rbac-claims-watch", "permissions", "watch claims", Error, &["namespace"], REQUEST, permissions::claims_watch),
    row("rbac-namespace-get", "permissions", "get the Namespace", Error, &["namespace"], REQUEST, permissions::namespace_get),
    row("rbac-reviews", "permissions", "review tokens and access", Error, &["api-server"], REQUEST, permissions::reviews),
    row("crd", "objects", "the CustomResourceDefinition of the claims", Error, &["api-server"], REQUEST, objects::crd),
    row("list", "objects", "lists of instances and claims", Error, &["namespace", "crd", "rbac-pods-list", "rbac-claims-list", "rbac-namespace-get"], REQUEST, objects::list),
    row("watch", "objects", "watches start", Error, &["list", "rbac-pods-watch", "rbac-claims-watch"], REQUEST, objects::watch),
    row("first-event", "objects", "time to the first event", Error, &["watch"], REQUEST, objects::first_event),
    row("bookmarks", "objects", "watch bookmarks", Warning, &["watch"], WATCH, objects::bookmarks),
    row("exact-list", "objects", "lists at an exact version", Error, &["list"], REQUEST, objects::exact_list),
    row("bridge-ready", "bridge", "the bridge is ready", Error, &[], BRIDGE, bridge::ready),
    row("bridge-streams", "bridge", "streams deliver a heartbeat", Error, &["bridge-ready"], BRIDGE, bridge::streams),
    row("bridge-rate", "bridge", "rate limits", Error, &["bridge-ready"], BRIDGE, bridge::rate),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_checks_need_earlier_ones_only() {
        for (at, check) in CHECKS.iter().enumerate() {
            assert!(CHECKS[..at].iter().all(|other| other.id != check.id), "{} twice", check.id);
            for needed in check.needs {
                assert!(CHECKS[..at].iter().any(|other| other.id == *needed), "{} needs {needed}", check.id);
            }
        }
    }

    #[test]
    fn each_check_stands_in_the_protocol() {
        let protocol = include_str!("../../docs/protocol.md");
        let table =
            protocol.split("\n| Id | It fails when ").nth(1).and_then(|rest| rest.split("\n\n").next()).unwrap();
        let rows: Vec<String> = table.lines().filter(|line| line.starts_with("| `")).map(str::to_owned).collect();
        let cells = |row: &String| {
            // `|` does not occur in the texts.
            let [_, id, _, severity, needs, limit, _] = row.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
                panic!("{row}")
            };
            [id, severity, needs, limit].map(str::to_owned)
        };
        let expected = CHECKS.iter().map(|Check { id, severity, needs, limit, .. }| {
            let severity = if *severity == Warning { "warning" } else { "error" };
            let needs: Vec<String> = needs.iter().map(|id| format!("`{id}`")).collect();
            let needs = if needs.is_empty() { "–".to_owned() } else { needs.join(", ") };
            [format!("`{id}`"), severity.to_owned(), needs, format!("{} s", limit.as_secs())]
        });
        assert_eq!(rows.iter().map(cells).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    }
}
