//! The flags of NATS, which replicas share (docs/protocol.md#replicas).

use std::{convert::Infallible, path::PathBuf, str::FromStr, sync::Arc};

use clap::Args;
use http::Uri;
use prometheus_client::registry::Registry;

#[cfg(not(feature = "nats"))]
use super::mqtt::without_feature;
use super::{exit::CliError, parsers::List, server::ReadinessLine};
use crate::{backbone::Backbone, feed::Feed, tasks::Tasks};
#[cfg(feature = "nats")]
use crate::{backbone::nats, client};

/// What is needed for NATS. Without the feature it does not exist.
#[cfg(feature = "nats")]
pub(super) type Nats = nats::Config;
/// See the variant with the feature.
#[cfg(not(feature = "nats"))]
pub(super) type Nats = Infallible;

/// Maximum number of servers.
const MAX_SERVERS: usize = 16;

/// Arguments of NATS.
#[derive(Clone, Debug, Args)]
pub(super) struct NatsArgs {
    /// NATS server with JetStream, through which several replicas serve the same telemetry and MQTT messages:
    /// nats://host[:4222], or tls://host[:4222] (comma-separated for a cluster). It needs a binary with the feature `nats`
    #[arg(long, env = "BRIDGE_NATS_URL", value_name = "URL")]
    nats_url: Vec<List<String>>,

    /// Path of a NATS credentials file (.creds). It is read before each connection
    #[arg(long, env = "BRIDGE_NATS_CREDENTIALS_FILE", value_name = "FILE")]
    nats_credentials_file: Option<PathBuf>,

    /// Path of a file with the certificates (PEM) that issue the certificate of NATS. Without it, those of the operating
    /// system
    #[arg(long, env = "BRIDGE_NATS_CA_FILE", value_name = "FILE")]
    nats_ca_file: Option<PathBuf>,

    /// Key-value bucket of the telemetry. All replicas of one namespace share it, bridges of other namespaces and clusters must
    /// not. Without it, boilerhouse-<namespace>
    #[arg(long, env = "BRIDGE_NATS_BUCKET", value_name = "NAME", value_parser = bucket)]
    nats_bucket: Option<String>,
}

/// The URL of a server: with TLS or without.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ServerUrl {
    url: String,
    has_tls: bool,
}

impl FromStr for ServerUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<ServerUrl, String> {
        let expected = || "expected nats://host:port or tls://host:port".to_owned();
        let uri: Uri = text.parse().map_err(|_| expected())?;
        let has_tls = match uri.scheme_str() {
            Some("nats") => false,
            Some("tls") => true,
            _ => return Err(expected()),
        };
        let authority = uri.authority().ok_or_else(expected)?;
        if authority.as_str().contains('@') {
            return Err("user and password are not part of the URL; use --nats-credentials-file".to_owned());
        }
        let has_path = uri.path_and_query().is_some_and(|rest| !["", "/"].contains(&rest.as_str()));
        let has_port = authority.as_str().len() > authority.host().len();
        let is_wrong_port = has_port && authority.port_u16().is_none_or(|port| port == 0);
        if has_path || is_wrong_port || authority.host().is_empty() {
            return Err(expected());
        }
        Ok(ServerUrl { url: text.trim_end_matches('/').to_owned(), has_tls })
    }
}

/// Parses the name of a bucket.
fn bucket(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    if (1..=128).contains(&text.len()) && text.chars().all(is_plain) {
        return Ok(text.to_owned());
    }
    Err("expected 1 to 128 letters, digits, '-' and '_'".to_owned())
}

impl NatsArgs {
    /// Checks the flags together. Returns the URLs of the servers, and whether they have TLS. There may be none.
    fn check(&self) -> Result<(Vec<String>, bool), CliError> {
        // Not a value parser: clap would print a URL with a password.
        let servers = self.nats_url.iter().flat_map(|List(servers)| servers).map(|url| url.parse());
        let servers: Result<Vec<ServerUrl>, String> = servers.collect();
        let servers = servers.map_err(|error| CliError::usage(format!("--nats-url: {error}")))?;
        let has_tls = servers.first().is_some_and(|server| server.has_tls);
        if servers.is_empty() {
            let others = [
                ("--nats-credentials-file", self.nats_credentials_file.is_some()),
                ("--nats-ca-file", self.nats_ca_file.is_some()),
                ("--nats-bucket", self.nats_bucket.is_some()),
            ];
            if let Some((flag, _)) = others.into_iter().find(|(_, is_set)| *is_set) {
                return Err(CliError::usage(format!("{flag} needs --nats-url")));
            }
        }
        if servers.len() > MAX_SERVERS {
            return Err(CliError::usage(format!("--nats-url: at most {MAX_SERVERS} servers are accepted")));
        }
        if servers.iter().any(|server| server.has_tls != has_tls) {
            return Err(CliError::usage("--nats-url: use nats:// for all servers, or tls:// for all"));
        }
        if self.nats_ca_file.is_some() && !has_tls {
            return Err(CliError::usage("--nats-ca-file needs a tls:// URL"));
        }
        Ok((servers.into_iter().map(|server| server.url).collect(), has_tls))
    }

    /// Returns what is needed for NATS, if it is used. `namespace` is the namespace that is watched.
    ///
    /// # Errors
    /// A flag lacks another one, a file cannot be used, or this binary has no NATS support.
    #[cfg(feature = "nats")]
    pub(super) fn resolve(&self, namespace: &str) -> Result<Option<Nats>, CliError> {
        let (servers, has_tls) = self.check()?;
        if servers.is_empty() {
            return Ok(None);
        }
        let ca_file = self.nats_ca_file.clone();
        let tls: nats::TlsConfig =
            Arc::new(move || client::tls_config(ca_file.as_deref()).map_err(|error| error.to_string()));
        if has_tls {
            // Later, an unreadable file is an outage.
            tls().map_err(|reason| CliError::usage(format!("--nats-ca-file: {reason}")))?;
        } else if self.nats_credentials_file.is_some() {
            tracing::warn!("the connection to NATS is not encrypted; use a tls:// URL");
        }
        let bucket = self.nats_bucket.clone().unwrap_or_else(|| format!("boilerhouse-{namespace}"));
        let credentials_file = self.nats_credentials_file.clone();
        Ok(Some(nats::Config { servers, tls: has_tls.then_some(tls), credentials_file, bucket }))
    }

    /// See the variant with the feature.
    #[cfg(not(feature = "nats"))]
    pub(super) fn resolve(&self, _namespace: &str) -> Result<Option<Nats>, CliError> {
        let (servers, _) = self.check()?;
        if servers.is_empty() { Ok(None) } else { Err(without_feature("--nats-url", "nats")) }
    }
}

/// Starts the connection to NATS. Returns the backbone, and the line for `/readyz?verbose`.
#[cfg(feature = "nats")]
pub(super) fn start(
    nats: Nats,
    feed: &Feed,
    tasks: &Tasks,
    registry: &mut Registry,
) -> (Arc<dyn Backbone>, ReadinessLine) {
    let (backbone, run) = nats::start(nats, feed.clone());
    backbone.metrics().register(registry);
    tasks.spawn("nats", async move { Ok::<_, Infallible>(run.await) });
    let status = backbone.clone();
    (backbone, Box::new(move || status.line()))
}

/// See the variant with the feature.
#[cfg(not(feature = "nats"))]
pub(super) fn start(nats: Nats, _: &Feed, _: &Tasks, _: &mut Registry) -> (Arc<dyn Backbone>, ReadinessLine) {
    match nats {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_url_has_a_scheme_and_no_user() {
        for (good, has_tls) in
            [("nats://n", false), ("nats://n:4222/", false), ("tls://[::1]:4222", true), ("tls://n", true)]
        {
            let url: ServerUrl = good.parse().unwrap();
            assert_eq!((url.url.as_str(), url.has_tls), (good.trim_end_matches('/'), has_tls));
        }
        for wrong in [
            "n",
            "n:4222",
            "http://n",
            "nats://",
            "nats://n:0",
            "nats://n:x",
            "nats://n:",
            "nats://u:secret@n",
            "nats://n/x",
            "ws://n",
        ] {
            let error = wrong.parse::<ServerUrl>().unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
        assert_eq!(bucket("a-b_C1").as_deref(), Ok("a-b_C1"));
        for wrong in ["", "a.b", "a b", "*", &"x".repeat(129)] {
            bucket(wrong).unwrap_err();
        }
    }
}
