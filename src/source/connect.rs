//! The way to the API server: kubeconfig or service account, and a client that notices when nobody answers.
//!
//! Nothing is sent from here but what a credential plugin does. The client never retries by itself: who asks knows
//! better when to ask again.

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

/// What the context is called when the bridge runs with a Pod's service account.
const IN_CLUSTER: &str = "in-cluster";

/// What to connect to and how.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--kubeconfig`; otherwise `KUBECONFIG`, then `~/.kube/config`, then the Pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// `--context`; otherwise the kubeconfig's current one.
    pub context: Option<String>,
    /// `--namespace`, `K8S_NAMESPACE`: the only one that is looked at.
    pub namespace: String,
    /// How long a TCP connection may take to be made. Less than the hub waits for a watch to start.
    pub connect_timeout: Duration,
    /// Silence on a connection before TCP asks whether the peer is there, and between three such questions.
    pub keepalive: Duration,
    /// How long bytes may stay unacknowledged before the connection is given up (RFC 5482; Linux only).
    pub user_timeout: Duration,
    /// How long an unused connection is kept. Short, so that one that died unnoticed is rarely picked up.
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

/// A way to one cluster.
#[derive(Clone)]
pub struct ClusterConnection {
    /// Clones share the connections.
    pub client: Client,
    /// The kubeconfig context's name, or `in-cluster`.
    pub context: String,
    /// The namespace to watch.
    pub namespace: String,
    /// The API server's URL, for messages.
    pub server: String,
}

impl std::fmt::Debug for ClusterConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ClusterConnection { client: _, context, namespace, server } = self;
        write!(f, "ClusterConnection({context}, {namespace}, {server})")
    }
}

/// Why there is no way to a cluster.
#[derive(Debug, Error)]
pub enum Error {
    /// Nothing to go by.
    #[error(
        "no kubeconfig found (looked at {searched}) and this is not a Pod with a service account; name a file with \
         --kubeconfig or KUBECONFIG, or try `boilerhouse-bridge demo`, which needs no cluster"
    )]
    NotFound {
        /// The files looked for.
        searched: String,
    },
    /// A kubeconfig that cannot be read or merged.
    #[error("cannot read the kubeconfig {}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A kubeconfig that is none. Where, and not what stands there: tokens do.
    #[error("the kubeconfig {} cannot be understood: something is wrong at line {line}, column {column}", .path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// From 1; 0 where it is not known.
        line: u64,
        /// From 1.
        column: u64,
    },
    /// `--context` names none.
    #[error("the kubeconfig has no context `{wanted}`; it has {known}")]
    UnknownContext {
        /// The one asked for.
        wanted: String,
        /// Those that exist.
        known: String,
    },
    /// No `current-context` and no `--context`.
    #[error("the kubeconfig names no current context; choose one with --context: it has {known}")]
    NoContext {
        /// Those that exist.
        known: String,
    },
    /// A context with missing or broken parts.
    #[error("the context `{context}` of the kubeconfig cannot be used")]
    Unusable {
        /// Its name.
        context: String,
        /// What is wrong with it.
        #[source]
        source: KubeconfigError,
    },
    /// A Pod without a usable service account.
    #[error("this Pod's service account cannot be used; is `automountServiceAccountToken` off?")]
    InCluster(#[source] InClusterError),
    /// A `proxy-url`.
    #[error(
        "the context `{context}` goes through a proxy (`proxy-url`), which is not supported; use a context without one"
    )]
    Proxy {
        /// The context's name.
        context: String,
    },
    /// Credentials or certificates that do not work.
    #[error("{0}")]
    Upstream(UpstreamError),
}

/// Finds the cluster and builds its client. Sends nothing to it: whether it answers is the hub's to find out and to say.
///
/// # Errors
/// When there is no configuration, or it cannot be used; each says what to do.
pub async fn connect(config: &Config) -> Result<ClusterConnection, Error> {
    // A provider that is already there stays; it is the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (kube, context) = load_config(config).await?;
    let server = kube.cluster_url.to_string().trim_end_matches('/').to_owned();
    let request_info =
        RequestInfo { verb: "connect", resource: "".into(), namespace: "".into(), server: server.as_str().into() };
    let client = client(kube, config).map_err(|error| Error::Upstream(classify_build_error(&error, &request_info)))?;
    Ok(ClusterConnection { client, context, namespace: config.namespace.clone(), server })
}

async fn load_config(config: &Config) -> Result<(KubeConfig, String), Error> {
    let places = kubeconfig_paths(config.kubeconfig.as_deref(), env::var_os("KUBECONFIG"), env::home_dir());
    let Some(kubeconfig) = read(&places, config.kubeconfig.is_some())? else {
        return match env::var_os("KUBERNETES_SERVICE_HOST") {
            Some(_) => Ok((KubeConfig::incluster().map_err(Error::InCluster)?, IN_CLUSTER.to_owned())),
            None => Err(Error::NotFound { searched: quoted_list(places.iter().map(|path| path.display())) }),
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
        tracing::warn!("HTTPS_PROXY is not used for Kubernetes");
    }
    Ok((kube, context))
}

/// Where a kubeconfig may be: an explicit file alone, else the files of `KUBECONFIG`, else the one at home.
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

/// All of them merged as kubectl does: files that do not exist are passed over, unless asked for by name.
fn read(places: &[PathBuf], must_exist: bool) -> Result<Option<Kubeconfig>, Error> {
    let mut merged: Option<Kubeconfig> = None;
    for path in places {
        let error = |source| match source {
            KubeconfigError::Parse(error) => {
                let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
                Error::Malformed { path: path.clone(), line, column }
            }
            // Its own text names the file once more.
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

/// kube's own stack has no TCP keep-alive and no user timeout, so this one is put together from its layers.
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

/// A client that cannot be built has broken credentials or a broken certificate.
fn classify_build_error(error: &kube::Error, request_info: &RequestInfo) -> UpstreamError {
    match UpstreamError::from_client_error(error, request_info) {
        UpstreamError::Unreachable { server, detail } => UpstreamError::Tls { server, detail },
        other => other,
    }
}

#[cfg(test)]
mod tests;
