//! Connections to a cluster: finds the kubeconfig or the service account, and builds the client (docs/architecture.md#source).
//!
//! Guarantees: connections that no longer deliver anything are detected by TCP keep-alive and a TCP user timeout. The client
//! never retries; its callers decide. This module sends nothing itself, but a credential plugin may.

use std::{
    env,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http::{HeaderValue, header::USER_AGENT};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Client, Config as KubeConfig,
    client::{Body, ConfigExt},
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use thiserror::Error;
use tower::{BoxError, ServiceBuilder};

use super::error::{RequestInfo, UpstreamError};

/// The name of the context if the bridge uses the service account of its Pod.
const IN_CLUSTER: &str = "in-cluster";

/// Which cluster to connect to, and the timeouts of its connections.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--kubeconfig`. Without it: `KUBECONFIG`, then `~/.kube/config`, then the service account of the Pod.
    pub kubeconfig: Option<PathBuf>,
    /// `--context`. Without it: the current context of the kubeconfig.
    pub context: Option<String>,
    /// `--namespace`, `K8S_NAMESPACE`: the only watched namespace.
    pub namespace: String,
    /// Maximum time to open a TCP connection. It is less than the `start_timeout` of the hub.
    pub connect_timeout: Duration,
    /// Silence before the first TCP keep-alive probe. Three probes are sent, half this time apart.
    pub keepalive: Duration,
    /// Maximum time that sent bytes stay unacknowledged before the connection is closed (RFC 5482; Linux only).
    pub user_timeout: Duration,
    /// Time that an unused connection stays open. It is short, so that a dead connection is rarely reused.
    pub pool_idle: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            kubeconfig: None,
            context: None,
            namespace: "boilerhouse".to_owned(),
            connect_timeout: Duration::from_secs(10),
            keepalive: Duration::from_secs(10),
            user_timeout: Duration::from_secs(20),
            pool_idle: Duration::from_secs(30),
        }
    }
}

/// A client for one watched namespace of one cluster.
#[derive(Clone)]
pub struct ClusterConnection {
    /// The client. Its clones share the connections.
    pub client: Client,
    /// Name of the kubeconfig context, or `in-cluster`.
    pub context: String,
    /// Name of the watched namespace.
    pub namespace: String,
    /// URL of the API server, for messages only.
    pub server: String,
}

impl std::fmt::Debug for ClusterConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ClusterConnection { client: _, context, namespace, server } = self;
        write!(f, "ClusterConnection({context}, {namespace}, {server})")
    }
}

/// Why no client for a cluster can be built.
#[derive(Debug, Error)]
pub enum Error {
    /// No kubeconfig and no service account.
    #[error(
        "no kubeconfig found (looked at {searched}) and this is not a Pod with a service account; name a file with \
         --kubeconfig or KUBECONFIG, or try `boilerhouse-bridge demo`, which needs no cluster"
    )]
    NotFound {
        /// The paths that were searched.
        searched: String,
    },
    /// A kubeconfig that cannot be read or merged.
    #[error("cannot read the kubeconfig {}", .path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A kubeconfig that cannot be parsed. The text contains the position and no content, which may be a token.
    #[error("cannot parse the kubeconfig {}: error at line {line}, column {column}", .path.display())]
    Malformed {
        /// Path of the file.
        path: PathBuf,
        /// Counted from 1; 0 if it is unknown.
        line: u64,
        /// Counted from 1; 0 if it is unknown.
        column: u64,
    },
    /// `--context` names no context of the kubeconfig.
    #[error("the kubeconfig has no context `{wanted}`; it has {known}")]
    UnknownContext {
        /// The name in `--context`.
        wanted: String,
        /// The existing contexts.
        known: String,
    },
    /// No `current-context` and no `--context`.
    #[error("the kubeconfig names no current context; choose one with --context: it has {known}")]
    NoContext {
        /// The existing contexts.
        known: String,
    },
    /// A context with missing or invalid parts.
    #[error("cannot use the context `{context}` of the kubeconfig")]
    Unusable {
        /// Name of the context.
        context: String,
        /// The cause.
        #[source]
        source: KubeconfigError,
    },
    /// A Pod without a usable service account.
    #[error("cannot use the service account of this Pod; check that `automountServiceAccountToken` is not false")]
    InCluster(#[source] InClusterError),
    /// A context with `proxy-url`.
    #[error("cannot use the context `{context}`: `proxy-url` is not supported; use a context without it")]
    Proxy {
        /// Name of the context.
        context: String,
    },
    /// Invalid credentials or certificates.
    #[error("{0}")]
    Upstream(UpstreamError),
}

/// Finds the configuration of the cluster and builds its client. It sends nothing; the hub finds out whether the API server
/// responds.
///
/// # Errors
/// When there is no configuration, or it cannot be used. Each error states what to do.
pub async fn connect(config: &Config) -> Result<ClusterConnection, Error> {
    // An error means that a provider is installed already. It is always the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (kube, context) = load_config(config).await?;
    let server = kube.cluster_url.to_string().trim_end_matches('/').to_owned();
    let request_info =
        RequestInfo { verb: "connect", resource: "".into(), namespace: "".into(), server: server.as_str().into() };
    let client = client(kube, config).map_err(|error| Error::Upstream(classify_build_error(&error, &request_info)))?;
    Ok(ClusterConnection { client, context, namespace: config.namespace.clone(), server })
}

/// Returns the configuration of the cluster and the name of its context.
async fn load_config(config: &Config) -> Result<(KubeConfig, String), Error> {
    let paths = kubeconfig_paths(config.kubeconfig.as_deref(), env::var_os("KUBECONFIG"), env::home_dir());
    let Some(kubeconfig) = read(&paths, config.kubeconfig.is_some())? else {
        return match env::var_os("KUBERNETES_SERVICE_HOST") {
            Some(_) => Ok((KubeConfig::incluster().map_err(Error::InCluster)?, IN_CLUSTER.to_owned())),
            None => Err(Error::NotFound { searched: quoted_list(paths.iter().map(|path| path.display())) }),
        };
    };
    let context = context(&kubeconfig, config.context.as_deref())?;
    let options = KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
    let proxied = is_proxied(&kubeconfig, &context);
    let mut kube = KubeConfig::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(|source| Error::Unusable { context: context.clone(), source })?;
    if proxied {
        return Err(Error::Proxy { context });
    }
    if kube.proxy_url.take().is_some() {
        tracing::warn!("HTTPS_PROXY ignored: connections to Kubernetes do not use a proxy");
    }
    Ok((kube, context))
}

/// Returns the possible paths of the kubeconfig: only the explicit file, or the files of `KUBECONFIG`, or the file in the home
/// directory.
fn kubeconfig_paths(explicit: Option<&Path>, variable: Option<OsString>, home: Option<PathBuf>) -> Vec<PathBuf> {
    if let Some(path) = explicit {
        return vec![path.to_owned()];
    }
    let listed = variable.map(|value| env::split_paths(&value).filter(|path| !path.as_os_str().is_empty()).collect());
    match listed {
        Some(listed) if !Vec::is_empty(&listed) => listed,
        _ => home.map(|home| home.join(".kube/config")).into_iter().collect(),
    }
}

/// Reads and merges the files as kubectl does. Files that do not exist are skipped, unless `must_exist` is set.
fn read(paths: &[PathBuf], must_exist: bool) -> Result<Option<Kubeconfig>, Error> {
    let mut merged: Option<Kubeconfig> = None;
    for path in paths {
        let error = |source| match source {
            KubeconfigError::Parse(error) => {
                let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
                Error::Malformed { path: path.clone(), line, column }
            }
            // The text of `ReadConfig` repeats the path.
            KubeconfigError::ReadConfig(cause, _) => Error::Read { path: path.clone(), source: cause.into() },
            source => Error::Read { path: path.clone(), source: source.into() },
        };
        let one = match Kubeconfig::read_from(path) {
            Err(KubeconfigError::ReadConfig(cause, _)) if cause.kind() == io::ErrorKind::NotFound && !must_exist => {
                continue;
            }
            other => other.map_err(error)?,
        };
        merged = Some(match merged {
            Some(earlier) => earlier.merge(one).map_err(error)?,
            None => one,
        });
    }
    Ok(merged)
}

/// Returns the name of the context to use: `wanted`, or the current one.
fn context(kubeconfig: &Kubeconfig, wanted: Option<&str>) -> Result<String, Error> {
    let known = || match kubeconfig.contexts.as_slice() {
        [] => "none".to_owned(),
        contexts => quoted_list(contexts.iter().map(|context| &context.name)),
    };
    let current = kubeconfig.current_context.as_deref().filter(|name| !name.is_empty());
    let name = wanted.or(current).ok_or_else(|| Error::NoContext { known: known() })?;
    if kubeconfig.contexts.iter().any(|context| context.name == name) {
        Ok(name.to_owned())
    } else {
        Err(Error::UnknownContext { wanted: name.to_owned(), known: known() })
    }
}

fn is_proxied(kubeconfig: &Kubeconfig, context: &str) -> bool {
    let context = kubeconfig.contexts.iter().find(|c| c.name == context).and_then(|c| c.context.as_ref());
    let cluster = context.and_then(|context| kubeconfig.clusters.iter().find(|c| c.name == context.cluster));
    let proxy = cluster.and_then(|named| named.cluster.as_ref()?.proxy_url.as_deref());
    proxy.is_some_and(|url| !url.is_empty())
}

fn quoted_list(items: impl Iterator<Item = impl std::fmt::Display>) -> String {
    items.map(|item| format!("`{item}`")).collect::<Vec<_>>().join(", ")
}

/// Builds the client from the layers of kube. The default client of kube has no TCP keep-alive and no user timeout.
fn client(mut kube: KubeConfig, config: &Config) -> Result<Client, kube::Error> {
    kube.headers
        .push((USER_AGENT, HeaderValue::from_static(concat!("boilerhouse-bridge/", env!("CARGO_PKG_VERSION")))));
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(config.connect_timeout));
    tcp.set_keepalive(Some(config.keepalive));
    tcp.set_keepalive_interval(Some(config.keepalive / 2));
    tcp.set_keepalive_retries(Some(3));
    #[cfg(target_os = "linux")]
    tcp.set_tcp_user_timeout(Some(config.user_timeout));
    let https = kube.rustls_https_connector_with_connector(tcp)?;
    let hyper: HyperClient<_, Body> = HyperClient::builder(TokioExecutor::new())
        .pool_idle_timeout(config.pool_idle)
        .pool_timer(TokioTimer::new())
        .build(https);
    let service = ServiceBuilder::new()
        .layer(kube.base_uri_layer())
        .option_layer(kube.auth_layer()?)
        .layer(kube.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(hyper);
    Ok(Client::new(service, config.namespace.clone()))
}

/// Classifies an error of building the client. Nothing was sent yet, so an error without another class is an invalid
/// certificate.
fn classify_build_error(error: &kube::Error, request_info: &RequestInfo) -> UpstreamError {
    match UpstreamError::from_client_error(error, request_info) {
        UpstreamError::Unreachable { server, detail } => UpstreamError::Tls { server, detail },
        other => other,
    }
}

#[cfg(test)]
mod tests;
