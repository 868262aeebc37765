//! Flags for credentials, browser origins, proxies, TLS and rate limits (docs/protocol.md#access).

pub(super) mod bridge;
pub(super) mod checks;
mod environment_key;

use std::{num::NonZeroU32, path::PathBuf, str::FromStr};

use anyhow::Context;
use clap::Args;
use tracing::warn;

use self::environment_key::env_api_key;
use super::{
    exit::CliError,
    parsers::{List, MAX_CONNECTIONS, RATES, flatten_lists, integer_in},
};
use crate::http::{
    auth::{self, Authenticator, CredentialSources, signed_token::TokenSigner},
    browser_guard::{GuardConfig, HostName, Origin},
    conn::ReloadingTls,
    forwarded::{IpNetwork, TrustedProxies},
    rate_limit,
};

/// Flags for credentials, origins, proxies, TLS and limits of every server.
#[derive(Clone, Debug, Args)]
pub(super) struct AccessArgs {
    /// Allow requests without credentials on addresses other than loopback
    #[arg(long, env = "BRIDGE_ALLOW_ANONYMOUS", num_args = 0..=1, require_equals = true, value_name = "true|false")]
    #[arg(
        default_value_t = false,
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true
    )]
    allow_anonymous: bool,

    /// Path of the file with hashed API keys; reloaded when it changes. BOILERHOUSE_API_KEY adds one key
    #[arg(long, env = "BRIDGE_KEYS_FILE", value_name = "FILE")]
    keys_file: Option<PathBuf>,

    /// Path of the key that signs session cookies and stream tickets. Use the same key on all replicas; without it, a replica
    /// accepts only the cookies and tickets that it issued
    #[arg(long, env = "BRIDGE_SESSION_KEY_FILE", value_name = "FILE")]
    session_key_file: Option<PathBuf>,

    /// Web origins that may read responses, beside the bridge's own (comma-separated), such as `https://app.example`; `*`
    /// allows all origins and requires credentials
    #[arg(long, env = "CORS_ORIGIN", value_name = "ORIGIN")]
    cors_origin: Vec<List<CorsOrigin>>,

    /// Host names that requests may use, beside localhost, IP addresses and names of Services (comma-separated)
    #[arg(long, env = "BRIDGE_ALLOWED_HOSTS", value_name = "NAME")]
    allowed_hosts: Vec<List<HostName>>,

    /// Networks of proxies whose X-Forwarded-For, X-Forwarded-Proto and X-Forwarded-Host headers are used (comma-separated),
    /// such as `10.0.0.0/8`
    #[arg(long, env = "BRIDGE_TRUSTED_PROXIES", value_name = "NETWORK")]
    trusted_proxies: Vec<List<IpNetwork>>,

    /// Path of the TLS certificate in PEM format, to serve https and wss
    #[arg(long, env = "BRIDGE_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,

    /// Path of the certificate's private key in PEM format
    #[arg(long, env = "BRIDGE_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,

    /// Maximum number of requests per minute for each caller (API key, user or address), except probes and streams
    #[arg(long, env = "BRIDGE_REQUEST_RATE", value_name = "N", default_value_t = rate_limit::Config::default().requests)]
    #[arg(value_parser = integer_in::<NonZeroU32>(RATES))]
    request_rate: NonZeroU32,

    /// Maximum number of new streams per minute for each caller. Without it there is no limit
    #[arg(long, env = "BRIDGE_CONNECT_RATE", value_name = "N", value_parser = integer_in::<NonZeroU32>(RATES))]
    connect_rate: Option<NonZeroU32>,

    /// Maximum number of open streams for each caller. Without it there is no limit
    #[arg(long, env = "BRIDGE_MAX_CONNECTIONS_PER_PRINCIPAL", value_name = "N")]
    #[arg(value_parser = integer_in::<NonZeroU32>(1..=MAX_CONNECTIONS))]
    max_connections_per_principal: Option<NonZeroU32>,
}

/// One element of `--cors-origin`.
#[derive(Clone, Debug)]
enum CorsOrigin {
    Any,
    Origin(Origin),
}

impl FromStr for CorsOrigin {
    type Err = String;

    fn from_str(text: &str) -> Result<CorsOrigin, String> {
        if text == "*" { Ok(CorsOrigin::Any) } else { text.parse().map(CorsOrigin::Origin) }
    }
}

/// Where a server listens.
#[derive(Debug)]
pub(super) struct ListenPlace<'a> {
    /// The flag with its value.
    pub(super) flag: String,
    /// Only this machine can connect.
    pub(super) is_loopback: bool,
    /// The settings that configure credentials, for messages.
    pub(super) credentials: &'a str,
}

/// The flags of every server, checked and loaded.
pub(super) struct ResolvedAccess {
    pub(super) allowed: GuardConfig,
    pub(super) limits: rate_limit::Config,
    pub(super) proxies: TrustedProxies,
    pub(super) tls: Option<ReloadingTls>,
    pub(super) auth: Authenticator,
    pub(super) auth_metrics: auth::Metrics,
    /// Credentials are configured.
    is_closed: bool,
}

/// Returns whether a server on `host` can be reached from this machine only: every address is a loopback address. `flag` is
/// the flag that sets it.
///
/// # Errors
/// A usage error for a name that cannot be resolved.
pub(super) async fn is_loopback(host: &str, port: u16, flag: &str) -> Result<bool, CliError> {
    let mut addresses = tokio::net::lookup_host((host, port)).await.map_err(|error| {
        CliError::usage(format!("{flag} '{host}' is not an IP address or a name that can be resolved: {error}"))
    })?;
    // An IPv4 address can be written as an IPv6 address: `::ffff:127.0.0.1`.
    Ok(addresses.all(|address| address.ip().to_canonical().is_loopback()))
}

impl AccessArgs {
    /// Checks the flags and loads the files that they name, before a port is opened. `has_audience` says that Kubernetes
    /// tokens are accepted, `ws_auth` that `/ws` requires a credential.
    ///
    /// # Errors
    /// A usage error for a combination that is unsafe or contradictory; a failure for a file that cannot be used.
    pub(super) fn resolve(
        self,
        place: &ListenPlace<'_>,
        has_audience: bool,
        ws_auth: bool,
    ) -> Result<ResolvedAccess, CliError> {
        let environment = env_api_key()?;
        let is_closed = self.check_exposure(place, environment.is_some() || has_audience, ws_auth)?;
        if !is_closed && !place.is_loopback {
            warn!("clients without credentials can read everything on this address (--allow-anonymous)");
        }
        let allowed = self.allowed(is_closed)?;
        let tls = self.tls_files()?;
        let signer = self.signer();
        let tls = tls.map(|[certificate, key]| ReloadingTls::read(&certificate, &key).context("cannot serve TLS"));
        let limits = rate_limit::Config {
            requests: self.request_rate,
            stream_opens: self.connect_rate,
            max_open_streams: self.max_connections_per_principal,
            ..rate_limit::Config::default()
        };
        let config = auth::Config { ws_auth, require_credentials: allowed.any_origin, ..auth::Config::default() };
        let sources = CredentialSources { environment, file: self.keys_file, signer: signer? };
        let auth_metrics = auth::Metrics::default();
        Ok(ResolvedAccess {
            auth: Authenticator::new(config, sources, auth_metrics.clone())?,
            auth_metrics,
            allowed,
            limits,
            proxies: TrustedProxies::new(flatten_lists(self.trusted_proxies)),
            tls: tls.transpose()?,
            is_closed,
        })
    }

    /// Returns whether credentials are configured: other ones than keys in a file (`has_other`), or those.
    fn has_credentials(&self, has_other: bool) -> bool {
        has_other || self.keys_file.is_some()
    }

    /// As [`AccessArgs::has_credentials`].
    ///
    /// # Errors
    /// A usage error where the network would get access without credentials, or `/ws` requires one that no client has.
    pub(super) fn check_exposure(
        &self,
        place: &ListenPlace<'_>,
        has_other: bool,
        ws_auth: bool,
    ) -> Result<bool, CliError> {
        let is_closed = self.has_credentials(has_other);
        let ListenPlace { flag, is_loopback, credentials } = place;
        if !is_closed && !is_loopback && !self.allow_anonymous {
            return Err(CliError::usage(format!(
                "{flag} would give the network access without credentials: set {credentials}, or pass --allow-anonymous"
            )));
        }
        if !is_closed && ws_auth {
            let message = format!("--ws-auth required needs credentials: set {credentials}");
            return Err(CliError::usage(message));
        }
        Ok(is_closed)
    }

    /// Returns the hosts and origins that are allowed.
    ///
    /// # Errors
    /// A usage error for `*` without credentials.
    pub(super) fn allowed(&self, is_closed: bool) -> Result<GuardConfig, CliError> {
        allowed(flatten_lists(self.cors_origin.clone()), flatten_lists(self.allowed_hosts.clone()), is_closed)
    }

    /// Returns the files of the certificate and of the key.
    ///
    /// # Errors
    /// A usage error if one of them is missing.
    pub(super) fn tls_files(&self) -> Result<Option<[PathBuf; 2]>, CliError> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Ok(Some([certificate.clone(), key.clone()])),
            (None, None) => Ok(None),
            // clap cannot check this: it takes the values of the config file for defaults, and a default requires nothing.
            (Some(_), None) => Err(CliError::usage("--tls-cert needs --tls-key: set the path of the private key")),
            (None, Some(_)) => Err(CliError::usage("--tls-key needs --tls-cert: set the path of the certificate")),
        }
    }

    /// Reads the key that signs session cookies and stream tickets.
    ///
    /// # Errors
    /// The file cannot be read, or the key is too short.
    pub(super) fn signer(&self) -> anyhow::Result<Option<TokenSigner>> {
        let signer = self.session_key_file.as_ref().map(|path| {
            let key = std::fs::read(path).map_err(anyhow::Error::from);
            let signer = key.and_then(|key| Ok(TokenSigner::from_key(&key)?));
            signer.with_context(|| format!("cannot use the session key file {}", path.display()))
        });
        signer.transpose()
    }
}

fn allowed(origins: Vec<CorsOrigin>, hosts: Vec<HostName>, closed: bool) -> Result<GuardConfig, CliError> {
    let mut allowed = GuardConfig { hosts, ..GuardConfig::default() };
    for origin in origins {
        match origin {
            CorsOrigin::Origin(origin) => allowed.origins.push(origin),
            CorsOrigin::Any if closed => allowed.any_origin = true,
            CorsOrigin::Any => {
                let message = "CORS_ORIGIN=* requires credentials: name the origins instead";
                return Err(CliError::usage(message));
            }
        }
    }
    Ok(allowed)
}
