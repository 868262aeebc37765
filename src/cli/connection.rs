//! The arguments that lead to a stream, for every subcommand that reads events: a URL, or the Service of a bridge in a
//! cluster (docs/protocol.md#events-1).

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tokio::time::Instant;

use super::{
    exit::{CANNOT_CONNECT, CREDENTIAL, CliError, FAILED, USAGE},
    parsers::{duration, namespace},
};
use crate::{
    client::{Builder, CONNECT_TIMEOUT, Client, Error, Transport},
    source::{connect, port_forward::PortForward},
};

/// The transport of `--transport`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TransportName {
    /// WebSocket
    Websocket,
    /// Server-sent events
    Sse,
}

/// Arguments that a client of a server needs beside its URL.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(super) struct CredentialArgs {
    /// File with the API key, Kubernetes token or stream ticket. It is read for each connection
    #[arg(long, env = "BRIDGE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// File with the certificates to trust, in PEM, instead of those of the system
    #[arg(long, env = "BRIDGE_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// Send the token over plain HTTP to a host that is not loopback
    #[arg(long, env = "EP_ALLOW_INSECURE")]
    allow_insecure: bool,
}

impl CredentialArgs {
    /// Adds the arguments to the settings of a client.
    pub(super) fn apply(&self, builder: Builder) -> Builder {
        let mut builder = builder.allow_insecure(self.allow_insecure);
        if let Some(file) = &self.token_file {
            builder = builder.token_file(file);
        }
        if let Some(file) = &self.ca_file {
            builder = builder.ca_file(file);
        }
        builder
    }

    /// Returns the file with the certificates to trust.
    pub(super) fn ca_file(&self) -> Option<&Path> {
        self.ca_file.as_deref()
    }

    /// Returns the file with the credential.
    pub(super) fn token_file(&self) -> Option<&Path> {
        self.token_file.as_deref()
    }
}

/// Arguments that lead to a cluster, as kubectl has them.
#[derive(Clone, Debug, Args)]
pub(super) struct ContextArgs {
    /// Path of the kubeconfig. Without it: the files in KUBECONFIG, then ~/.kube/config, then the service account of the
    /// Pod
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Name of the kubeconfig context. Without it: the current context
    #[arg(long, env = "BRIDGE_CONTEXT", value_name = "NAME")]
    context: Option<String>,
}

impl ContextArgs {
    /// Returns the configuration of a connection for this namespace.
    pub(super) fn config(&self, namespace: &str) -> connect::Config {
        connect::Config {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
            namespace: namespace.to_owned(),
            ..connect::Config::default()
        }
    }
}

/// Arguments that lead to the Service of a bridge in a cluster.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(super) struct ServiceArgs {
    /// Service of the bridge. Without it: the one with the label app.kubernetes.io/name=boilerhouse-bridge
    #[arg(long, env = "BRIDGE_SERVICE", value_name = "NAME")]
    service: Option<String>,

    /// Namespace of that Service
    #[arg(short, long, env = "K8S_NAMESPACE", default_value = "boilerhouse", value_parser = namespace)]
    namespace: String,

    #[command(flatten)]
    context: ContextArgs,
}

impl ServiceArgs {
    /// Finds the Service in the cluster of the kubeconfig. Each request may take `limit`.
    ///
    /// # Errors
    /// There is no cluster or no such Service: exit code 5.
    pub(super) async fn port_forward(&self, limit: Duration) -> Result<PortForward, CliError> {
        let config = self.context.config(&self.namespace);
        let failed = |error: anyhow::Error| CliError { code: CANNOT_CONNECT, error };
        let connection = connect::connect(&config).await;
        let connection = connection.context("no cluster to find the bridge in").map_err(failed)?;
        let found = PortForward::find(&connection, self.service.as_deref(), limit).await;
        let context = || format!("no bridge found with context {}", connection.context);
        found.with_context(context).map_err(failed)
    }
}

/// Arguments that lead to a stream.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(super) struct ConnectionArgs {
    /// The bridge, such as http://localhost:3000, or one stream of any server, such as https://host/events/stream. Without
    /// it, the command forwards a port to the Service of the bridge in the cluster of the kubeconfig
    #[arg(long, env = "BRIDGE_URL", value_name = "URL")]
    url: Option<String>,

    #[command(flatten)]
    service: ServiceArgs,

    /// Transport of the stream; by default SSE if the path of the URL is one of a bridge's SSE streams, and WebSocket
    /// otherwise
    #[arg(long, env = "BRIDGE_TRANSPORT", value_enum, value_name = "websocket|sse", hide_possible_values = true)]
    transport: Option<TransportName>,

    #[command(flatten)]
    pub(super) credential: CredentialArgs,

    /// Time for the first connection
    #[arg(long, env = "BRIDGE_CONNECT_TIMEOUT", default_value = "15s", value_name = "TIME", value_parser = duration)]
    pub(super) connect_timeout: Duration,
}

impl ConnectionArgs {
    /// Returns the settings of a client of this bridge. Without a URL it finds the Service first.
    ///
    /// # Errors
    /// No bridge is found: exit code 5.
    pub(super) async fn client(&self) -> Result<Builder, CliError> {
        let builder = match &self.url {
            Some(url) => Client::builder(url),
            None => {
                // Half, so that the request that hangs is named.
                let found = self.service.port_forward(self.connect_timeout / 2).await;
                let forward = found.map_err(|CliError { code, error }| CliError {
                    code,
                    error: error.context("no --url (such as --url http://localhost:3000)"),
                })?;
                let url = forward.url();
                let connect_by = Instant::now() + self.connect_timeout;
                let (first, later) = (self.connect_timeout / 2, self.time_for_one() / 2);
                Client::builder(url).connector(move || {
                    let limit = if Instant::now() < connect_by { first } else { later };
                    let forward = forward.clone().with_limit(limit);
                    async move { forward.open().await.map_err(io::Error::other) }
                })
            }
        };
        let mut builder = self.credential.apply(builder.connect_timeout(self.time_for_one()));
        if let Some(transport) = self.transport {
            builder = builder.transport(match transport {
                TransportName::Websocket => Transport::WebSocket,
                TransportName::Sse => Transport::Sse,
            });
        }
        Ok(builder)
    }

    /// Returns the time for one connection. `--connect-timeout` is that until the first one: the command itself ends then. A
    /// short one must not end a later connection to a bridge that reads its first lists.
    fn time_for_one(&self) -> Duration {
        self.connect_timeout.max(CONNECT_TIMEOUT)
    }

    /// Returns the error with which a command ends that got no stream within `--connect-timeout`.
    pub(super) fn cannot_connect(&self, last: Option<Error>) -> CliError {
        let reason = last.map_or_else(|| "no answer".to_owned(), |error| error.to_string());
        let error = anyhow::anyhow!("no stream within {:?} (--connect-timeout): {reason}", self.connect_timeout);
        CliError { code: CANNOT_CONNECT, error }
    }

    /// Returns the error with which a command ends after a final error of the client ([`Error::is_final`]).
    pub(super) fn final_error(&self, error: Error) -> CliError {
        let code = match &error {
            Error::Status { status: 401, .. } => CREDENTIAL,
            Error::Token { .. } => USAGE,
            Error::Status { status: 403, .. } if self.credential.token_file.is_some() => CREDENTIAL,
            _ => FAILED,
        };
        let needs_token = matches!(error, Error::Status { status: 401, .. }) && self.credential.token_file.is_none();
        let error = anyhow::Error::from(error);
        let error = if needs_token {
            anyhow::anyhow!("{error}; pass the file that contains it with --token-file")
        } else {
            error
        };
        CliError { code, error }
    }
}
