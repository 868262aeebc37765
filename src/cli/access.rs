//! Who may connect, what they see and how much: the flags of `serve`, and what is made of them.

use std::{num::NonZeroU32, path::PathBuf, str::FromStr, sync::Arc};

use anyhow::Context;
use clap::{Args, ValueEnum};
use futures::FutureExt;
use tracing::warn;

use super::{
    CliError, MAX_CONNECTIONS, RATES,
    parsers::{List, integer_in},
};
use crate::{
    http::{
        auth::{
            self, Authenticator, CredentialSources,
            keys::ApiKeys,
            review_cache::{self, ReviewBackend, ReviewUnavailable},
            secret::Secret,
            signed_token::TokenSigner,
            user::KubernetesUser,
        },
        browser_guard::{GuardConfig, HostName, Origin},
        conn::ReloadingTls,
        forwarded::{IpNetwork, TrustedProxies},
        rate_limit,
    },
    source::review::{self, Reviewer},
};

/// Characters of a key that is worth its name: a shorter one can be guessed from its hash, if not by asking.
const MIN_KEY_CHARS: usize = 16;

/// Flags about who may connect.
#[derive(Debug, Args)]
pub(super) struct AccessArgs {
    /// Let anybody who reaches the port read everything, beyond loopback too
    #[arg(long, env = "BRIDGE_ALLOW_ANONYMOUS", num_args = 0..=1, require_equals = true, value_name = "true|false")]
    #[arg(
        default_value_t = false,
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true
    )]
    allow_anonymous: bool,

    /// API keys, by their hashes; read again when it changes. BOILERHOUSE_API_KEY is one more key
    #[arg(long, env = "BRIDGE_KEYS_FILE", value_name = "FILE")]
    keys_file: Option<PathBuf>,

    /// Accept Kubernetes tokens that are made for this audience, of users who may list and watch
    #[arg(long, env = "BRIDGE_TOKEN_AUDIENCE", value_name = "AUDIENCE")]
    token_audience: Option<String>,

    /// Whether /ws needs a credential. It always does once a key sees one tenant only
    #[arg(long, env = "BRIDGE_WS_AUTH", value_enum, default_value_t = WsAuth::Open, value_name = "open|required")]
    #[arg(hide_possible_values = true)]
    ws_auth: WsAuth,

    /// What signs sessions and tickets, the same for all replicas; else each replica knows its own only
    #[arg(long, env = "BRIDGE_SESSION_KEY_FILE", value_name = "FILE")]
    session_key_file: Option<PathBuf>,

    /// Web origins that may read, besides the bridge's own (comma list), like `https://app.example`; `*` for all, where
    /// credentials are asked for
    #[arg(long, env = "CORS_ORIGIN", value_name = "ORIGIN")]
    cors_origin: Vec<List<CorsOrigin>>,

    /// Names, besides localhost and IP addresses, by which clients may call this bridge (comma list)
    #[arg(long, env = "BRIDGE_ALLOWED_HOSTS", value_name = "NAME")]
    allowed_hosts: Vec<List<HostName>>,

    /// Networks whose X-Forwarded-For and X-Forwarded-Proto are believed (comma list), like `10.0.0.0/8`
    #[arg(long, env = "BRIDGE_TRUSTED_PROXIES", value_name = "NETWORK")]
    trusted_proxies: Vec<List<IpNetwork>>,

    /// Certificate in PEM, to serve https and wss
    #[arg(long, env = "BRIDGE_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,

    /// Its private key in PEM
    #[arg(long, env = "BRIDGE_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,

    /// GETs a minute for each principal
    #[arg(long, env = "BRIDGE_REQUEST_RATE", value_name = "N", default_value_t = rate_limit::Config::default().requests)]
    #[arg(value_parser = integer_in::<NonZeroU32>(RATES))]
    request_rate: NonZeroU32,

    /// New streams a minute for each principal; any number without it
    #[arg(long, env = "BRIDGE_CONNECT_RATE", value_name = "N", value_parser = integer_in::<NonZeroU32>(RATES))]
    connect_rate: Option<NonZeroU32>,

    /// Open streams for each principal; any number without it
    #[arg(long, env = "BRIDGE_MAX_CONNECTIONS_PER_PRINCIPAL", value_name = "N")]
    #[arg(value_parser = integer_in::<NonZeroU32>(1..=MAX_CONNECTIONS))]
    max_connections_per_principal: Option<NonZeroU32>,
}

/// A place of `--cors-origin`.
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

/// `--ws-auth`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WsAuth {
    Open,
    Required,
}

/// What the flags came to.
pub(super) struct ResolvedAccess {
    pub(super) allowed: GuardConfig,
    pub(super) limits: rate_limit::Config,
    pub(super) proxies: TrustedProxies,
    pub(super) tls: Option<ReloadingTls>,
    /// The audience of Kubernetes tokens.
    pub(super) audience: Option<String>,
    pub(super) auth: Authenticator,
    pub(super) auth_metrics: auth::Metrics,
}

impl AccessArgs {
    /// Refuses what would be unsafe or cannot be used, before anything is opened; `loopback`: only this machine can connect.
    pub(super) fn resolve(self, listen_host: &str, loopback: bool) -> Result<ResolvedAccess, CliError> {
        let environment = env_api_key()?;
        let audience = self.token_audience.map(|audience| audience.trim().to_owned());
        if audience.as_deref() == Some("") {
            return Err(CliError::usage("--token-audience is empty: every token of the cluster would do"));
        }
        let closed = environment.is_some() || self.keys_file.is_some() || audience.is_some();
        if !closed && !loopback && !self.allow_anonymous {
            return Err(CliError::usage(format!(
                "--listen-host {listen_host} would let anybody on the network read everything: set BOILERHOUSE_API_KEY, \
                 --keys-file or --token-audience, or pass --allow-anonymous if that is meant"
            )));
        }
        if !closed && self.ws_auth == WsAuth::Required {
            let message = "--ws-auth required needs credentials: BOILERHOUSE_API_KEY, --keys-file or --token-audience";
            return Err(CliError::usage(message));
        }
        let allowed = allowed(flatten_lists(self.cors_origin), flatten_lists(self.allowed_hosts), closed)?;
        let tls = match (self.tls_cert, self.tls_key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            // Not left to clap, for which what the file says is a default, and a default requires nothing.
            (Some(_), None) => return Err(CliError::usage("--tls-cert needs --tls-key, its private key")),
            (None, Some(_)) => return Err(CliError::usage("--tls-key needs --tls-cert, its certificate")),
        };
        if !closed && !loopback {
            warn!("anybody who reaches this port can read everything (--allow-anonymous)");
        }
        if closed && !loopback && self.ws_auth == WsAuth::Open {
            warn!("/ws needs no credential until a key sees one tenant only: --ws-auth required is for all others");
        }
        let seal = self.session_key_file.as_ref().map(|path| {
            let key = std::fs::read(path).map_err(anyhow::Error::from);
            let seal = key.and_then(|key| Ok(TokenSigner::from_key(&key)?));
            seal.with_context(|| format!("the session key file {} cannot be used", path.display()))
        });
        let tls = tls.map(|(certificate, key)| ReloadingTls::read(&certificate, &key).context("cannot serve TLS"));
        let limits = rate_limit::Config {
            requests: self.request_rate,
            stream_opens: self.connect_rate,
            max_open_streams: self.max_connections_per_principal,
            ..rate_limit::Config::default()
        };
        let ws_auth = self.ws_auth == WsAuth::Required;
        let config = auth::Config { ws_auth, require_credentials: allowed.any_origin, ..auth::Config::default() };
        let sources = CredentialSources { environment, file: self.keys_file, signer: seal.transpose()? };
        let auth_metrics = auth::Metrics::default();
        Ok(ResolvedAccess {
            auth: Authenticator::new(config, sources, auth_metrics.clone())?,
            auth_metrics,
            allowed,
            limits,
            proxies: TrustedProxies::new(flatten_lists(self.trusted_proxies)),
            tls: tls.transpose()?,
            audience,
        })
    }
}

impl ResolvedAccess {
    /// What a demo has: everybody at this machine may read.
    pub(super) fn open() -> anyhow::Result<ResolvedAccess> {
        let auth_metrics = auth::Metrics::default();
        Ok(ResolvedAccess {
            allowed: GuardConfig::default(),
            limits: rate_limit::Config::default(),
            proxies: TrustedProxies::default(),
            tls: None,
            audience: None,
            auth: Authenticator::new(auth::Config::default(), CredentialSources::default(), auth_metrics.clone())?,
            auth_metrics,
        })
    }

    /// With the cluster's help.
    pub(super) fn with_reviews(self, review: Reviewer) -> ResolvedAccess {
        ResolvedAccess { auth: self.auth.with_reviews(review_backend(review)), ..self }
    }
}

/// The key of the environment. An empty variable is as none, as with all others, but worth a word.
fn env_api_key() -> Result<Option<Secret>, CliError> {
    let name = ApiKeys::ENVIRONMENT;
    let Some(key) = std::env::var_os(name) else { return Ok(None) };
    if key.is_empty() {
        warn!("{name} is empty, which is as if it were not set");
        return Ok(None);
    }
    let key = key.into_string().map_err(|_| CliError::usage(format!("{name} is not UTF-8")))?;
    match key.trim() {
        "" => Err(CliError::usage(format!("{name} is blank, and would let nobody in: unset it where no key is meant"))),
        key if key.contains(char::is_whitespace) => {
            Err(CliError::usage(format!("{name} has white space in it, which no client can send")))
        }
        key => {
            if key.chars().count() < MIN_KEY_CHARS {
                warn!("{name} is short enough to be guessed: take 32 random characters");
            }
            Ok(Some(Secret::new(key)))
        }
    }
}

/// What a list that may be given several times has in it.
fn flatten_lists<T>(lists: Vec<List<T>>) -> Vec<T> {
    lists.into_iter().flat_map(|List(places)| places).collect()
}

fn allowed(origins: Vec<CorsOrigin>, hosts: Vec<HostName>, closed: bool) -> Result<GuardConfig, CliError> {
    let mut allowed = GuardConfig { hosts, ..GuardConfig::default() };
    for origin in origins {
        match origin {
            CorsOrigin::Origin(origin) => allowed.origins.push(origin),
            CorsOrigin::Any if closed => allowed.any_origin = true,
            CorsOrigin::Any => {
                let message = "CORS_ORIGIN=* is possible only with credentials: name the origins instead";
                return Err(CliError::usage(message));
            }
        }
    }
    Ok(allowed)
}

/// Hands the cluster's answers to whoever decides by them.
fn review_backend(review: Reviewer) -> ReviewBackend {
    let for_users = review.clone();
    ReviewBackend {
        token: Box::new(move |token| {
            let review = review.clone();
            let ask = async move {
                // Why not is in the log already.
                let user = review.token(token.expose()).await.map_err(|_| ReviewUnavailable)?;
                Ok(user.map(|review::User { name, uid, groups, extra }| KubernetesUser { name, uid, groups, extra }))
            };
            ask.boxed()
        }),
        access: Box::new(move |user: Arc<KubernetesUser>| {
            let review = for_users.clone();
            let ask = async move {
                let KubernetesUser { name, uid, groups, extra } = (*user).clone();
                let user = review::User { name, uid, groups, extra };
                let denied = review.first_denied(&user).await.map_err(|_| ReviewUnavailable)?;
                Ok(denied.map_or(review_cache::AccessDecision::Granted, |what| {
                    review_cache::AccessDecision::Denied(what.into())
                }))
            };
            ask.boxed()
        }),
    }
}
