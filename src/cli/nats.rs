//! The flags of NATS, which replicas share (docs/protocol.md#replicas).

use std::{convert::Infallible, path::PathBuf, sync::Arc};

use clap::Args;
use prometheus_client::registry::Registry;

use super::{
    broker::{self, BrokerUrl},
    exit::CliError,
    parsers::List,
    server::ReadinessLine,
};
#[cfg(feature = "nats")]
use crate::backbone::nats;
use crate::{
    backbone::Backbone,
    doctor::{shell_path, shell_word},
    feed::Feed,
    tasks::Tasks,
};

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

/// Parses the name of a bucket.
fn bucket(text: &str) -> Result<String, String> {
    broker::name(text, &['-', '_'])
}

impl NatsArgs {
    /// Checks the flags together. Returns the URLs of the servers, and whether they have TLS. There may be none.
    fn check(&self) -> Result<(Vec<String>, bool), CliError> {
        // Not a value parser: clap would print a URL with a password.
        let urls: Vec<&str> = self.nats_url.iter().flat_map(|List(urls)| urls).map(String::as_str).collect();
        let parse = |url: &&str| BrokerUrl::parse(url, ["nats", "tls"], "--nats-credentials-file");
        let servers: Result<Vec<BrokerUrl>, String> = urls.iter().map(parse).collect();
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
        Ok((urls.iter().map(|url| url.trim_end_matches('/').to_owned()).collect(), has_tls))
    }

    /// Returns a command that shows the bucket with the same credentials, for `doctor`. The flags must have been checked.
    pub(super) fn show_command(&self, namespace: &str) -> String {
        let servers = self.check().map(|(servers, _)| servers.join(",")).unwrap_or_default();
        let mut command = format!("nats --server {}", shell_word(&servers));
        for (flag, file) in [("--creds", &self.nats_credentials_file), ("--tlsca", &self.nats_ca_file)] {
            command += &file.as_deref().map(|file| format!(" {flag} {}", shell_path(file))).unwrap_or_default();
        }
        command + " kv info " + &self.bucket(namespace)
    }

    fn bucket(&self, namespace: &str) -> String {
        self.nats_bucket.clone().unwrap_or_else(|| format!("boilerhouse-{namespace}"))
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
        let tls = if has_tls { Some(broker::tls_config("--nats-ca-file", self.nats_ca_file.clone())?) } else { None };
        if tls.is_none() && self.nats_credentials_file.is_some() {
            tracing::warn!("the connection to NATS is not encrypted; use a tls:// URL");
        }
        let credentials_file = self.nats_credentials_file.clone();
        Ok(Some(nats::Config { servers, tls, credentials_file, bucket: self.bucket(namespace) }))
    }

    /// See the variant with the feature.
    #[cfg(not(feature = "nats"))]
    pub(super) fn resolve(&self, _namespace: &str) -> Result<Option<Nats>, CliError> {
        let (servers, _) = self.check()?;
        if servers.is_empty() { Ok(None) } else { Err(broker::without_feature("--nats-url", "nats")) }
    }
}

/// Connects to NATS once, for `doctor`.
///
/// # Errors
/// Why the bucket cannot be used.
#[cfg(feature = "nats")]
pub(super) async fn check(nats: Nats) -> Result<String, String> {
    Ok(match nats::check(&nats).await? {
        true => format!("NATS accepts the connection, and the bucket {} can be read", nats.bucket),
        false => format!(
            "NATS accepts the connection, and JetStream answers. There is no bucket {} yet: serve creates it",
            nats.bucket
        ),
    })
}

/// See the variant with the feature.
#[cfg(not(feature = "nats"))]
pub(super) async fn check(nats: Nats) -> Result<String, String> {
    match nats {}
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
