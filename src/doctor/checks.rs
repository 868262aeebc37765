//! The table of all checks. A new check is a row here, a function in one of the modules below, and a row in
//! docs/protocol.md#doctor.

mod bridge;
mod cluster;
mod configuration;
mod objects;
mod permissions;

use std::time::Duration;

use futures::future::BoxFuture;

use super::check::{Check, Outcome, Subject};

/// Time of a check that reads files or resolves names.
const LOCAL: Duration = Duration::from_secs(5);
/// Time of a check that sends one or two requests to the API server. A credential plugin may run before.
const REQUEST: Duration = Duration::from_secs(15);
/// Time of a check that reads a watch until its end.
const WATCH: Duration = Duration::from_secs(objects::WATCH_SECONDS as u64 + 10);
/// Time of a check of the running bridge.
const BRIDGE: Duration = Duration::from_secs(20);

type Run = fn(&Subject) -> BoxFuture<'_, Outcome>;

const fn row(
    id: &'static str,
    category: &'static str,
    name: &'static str,
    needs: &'static [&'static str],
    limit: Duration,
    run: Run,
) -> Check {
    Check { id, category, name, needs, limit, run }
}

/// All checks, in the order of the report. A check needs only earlier ones.
#[rustfmt::skip]
pub const CHECKS: &[Check] = &[
    row("config", "configuration", "the configuration can be used", &[], LOCAL, configuration::config),
    row("credentials", "configuration", "credentials and their expiry", &["config"], LOCAL, configuration::credentials),
    row("tls", "configuration", "certificate and key", &["config"], LOCAL, configuration::tls),
    row("origins", "configuration", "web origins that may read", &["config"], LOCAL, configuration::origins),
    row("allowed-hosts", "configuration", "accepted host names", &["config"], LOCAL, configuration::allowed_hosts),
    row("port", "configuration", "the ports are free, or a bridge uses them", &["config"], LOCAL, configuration::port),
    row("kubeconfig", "cluster", "kubeconfig or service account", &["config"], LOCAL, cluster::kubeconfig),
    row("api-server", "cluster", "the API server answers", &["kubeconfig"], REQUEST, cluster::api_server),
    row("api-version", "cluster", "version of the API server", &["api-server"], REQUEST, cluster::api_version),
    row("clock", "cluster", "clocks agree", &["api-server"], REQUEST, cluster::clock),
    row("rbac-pods-list", "permissions", "list pods", &["api-server"], REQUEST, permissions::pods_list),
    row("rbac-pods-watch", "permissions", "watch pods", &["api-server"], REQUEST, permissions::pods_watch),
    row("rbac-claims-list", "permissions", "list claims", &["api-server"], REQUEST, permissions::claims_list),
    row("rbac-claims-watch", "permissions", "watch claims", &["api-server"], REQUEST, permissions::claims_watch),
    row("rbac-namespace-get", "permissions", "get the namespace", &["api-server"], REQUEST, permissions::namespace_get),
    row("rbac-reviews", "permissions", "create reviews", &["api-server"], REQUEST, permissions::reviews),
    row("crd", "objects", "the claims are defined", &["api-server"], REQUEST, objects::crd),
    row("list", "objects", "lists deliver", &["crd", "rbac-pods-list", "rbac-claims-list", "rbac-namespace-get"], REQUEST, objects::list),
    row("watch", "objects", "watches start", &["list", "rbac-pods-watch", "rbac-claims-watch"], REQUEST, objects::watch),
    row("first-event", "objects", "time to the first event", &["watch"], REQUEST, objects::first_event),
    row("bookmarks", "objects", "watch bookmarks", &["watch"], WATCH, objects::bookmarks),
    row("exact-list", "objects", "lists at an exact version", &["list"], REQUEST, objects::exact_list),
    row("bridge-ready", "bridge", "the bridge is ready", &[], BRIDGE, bridge::ready),
    row("bridge-streams", "bridge", "streams deliver a heartbeat", &["bridge-ready"], BRIDGE, bridge::streams),
    row("bridge-rate", "bridge", "rate limits", &["bridge-ready"], BRIDGE, bridge::rate),
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
        let rows: Vec<&str> = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
        assert_eq!(rows, CHECKS.iter().map(|check| check.id).collect::<Vec<_>>());
    }
}
