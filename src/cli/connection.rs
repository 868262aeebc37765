//! The arguments that lead to a stream, for every subcommand that reads events: a URL, or the Service of a bridge in a
//! cluster (docs/protocol.md#events-1).

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use super::{
    exit::{CANNOT_CONNECT, CREDENTIAL, CliError, FAILED},
    parsers::duration,
};
use crate::client::{Builder, Client, Error, Transport};

/// The transport of `--transport`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TransportName {
    /// WebSocket
    Websocket,
    /// Server-sent events
    Sse,
}

/// Arguments that lead to a stream.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(super) struct ConnectionArgs {
    /// The bridge, such as http://localhost:3000, or one stream of any server, such as https://host/events/stream
    #[arg(long, env = "BRIDGE_URL", value_name = "URL")]
    url: String,

    /// Transport of the stream; by default WebSocket
    #[arg(long, env = "BRIDGE_TRANSPORT", value_enum, value_name = "websocket|sse", hide_possible_values = true)]
    transport: Option<TransportName>,

    /// File with the API key, Kubernetes token or stream ticket. It is read for each connection
    #[arg(long, env = "BRIDGE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// File with the certificates to trust, in PEM, instead of those of the system
    #[arg(long, env = "BRIDGE_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// Send the token over plain HTTP to a host that is not loopback
    #[arg(long, env = "EP_ALLOW_INSECURE")]
    allow_insecure: bool,

    /// Time for the first connection
    #[arg(long, env = "BRIDGE_CONNECT_TIMEOUT", default_value = "10s", value_name = "TIME", value_parser = duration)]
    pub(super) connect_timeout: Duration,
}

impl ConnectionArgs {
    /// Returns the settings of a client of this bridge.
    ///
    /// # Errors
    /// No bridge is found, with the exit code.
    pub(super) async fn client(&self) -> Result<Builder, CliError> {
        let mut builder =
            Client::builder(&self.url).allow_insecure(self.allow_insecure).connect_timeout(self.connect_timeout);
        if let Some(transport) = self.transport {
            builder = builder.transport(match transport {
                TransportName::Websocket => Transport::WebSocket,
                TransportName::Sse => Transport::Sse,
            });
        }
        if let Some(file) = &self.token_file {
            builder = builder.token_file(file);
        }
        if let Some(file) = &self.ca_file {
            builder = builder.ca_file(file);
        }
        Ok(builder)
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
            Error::Status { status: 401, .. } | Error::Token { .. } => CREDENTIAL,
            Error::Status { status: 403, .. } if self.token_file.is_some() => CREDENTIAL,
            _ => FAILED,
        };
        CliError { code, error: error.into() }
    }
}
