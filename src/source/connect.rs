//! Connections to a cluster: finds the kubeconfig or the service account, and builds the client (docs/architecture.md#source).
//!
//! Guarantees:
//! - The bridge accepts the kubeconfigs that kubectl accepts, with the exceptions of docs/reference.md#kubeconfigs.
//! - Connections that no longer deliver anything are detected by TCP keep-alive and a TCP user timeout.
//! - The client never retries; its callers decide. [`connect`] sends nothing and runs no credential plugin.

mod api_service;
mod contents;
mod error;
mod field;
mod headers;
mod kubeconfig;
mod plugin;
mod plugin_runs;
mod server_url;
mod single_flight;
mod target;
mod tls;
mod yaml;

use std::{env, path::PathBuf, sync::Arc, time::Duration};

use hyper_util::client::legacy::connect::HttpConnector;
use kube::Client;

use self::{
    api_service::ApiService,
    field::shown_name,
    kubeconfig::{Kubeconfig, search_paths},
    target::Target,
};
pub use self::{error::Error, field::FieldError};

/// The name of the context if the bridge uses the service account of its Pod.
const IN_CLUSTER: &str = "in-cluster";

/// Which cluster to connect to, and the bounds of its connections and credentials.
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
    /// Time after which the files that the kubeconfig names are read again, when a request is sent. client-go reads a token
    /// again after 50 s and a client certificate for each new connection.
    pub reload_interval: Duration,
    /// The same after the API server has rejected the credentials (401).
    pub reload_after_rejection: Duration,
    /// Maximum time that a request waits for these files. It then uses what was read before.
    pub file_wait: Duration,
    /// Time without an answer of the API server after which a log line reports it.
    pub answer_notice: Duration,
    /// Time after which a log line reports that a credential plugin runs.
    pub plugin_notice: Duration,
    /// Maximum time that a request waits for a credential plugin. The request then fails, and the plugin continues. It is less
    /// than the shortest time limit of a request, so that the error names the plugin.
    pub plugin_wait: Duration,
    /// Time after which a credential plugin is killed.
    pub plugin_timeout: Duration,
    /// The same if the bridge runs in a terminal and the plugin may ask the user.
    pub plugin_interactive_timeout: Duration,
    /// Minimum time between the end of a run of the plugin and the start of the next one.
    pub plugin_min_interval: Duration,
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
            reload_interval: Duration::from_secs(10),
            reload_after_rejection: Duration::from_secs(1),
            file_wait: Duration::from_secs(1),
            answer_notice: Duration::from_secs(5),
            plugin_notice: Duration::from_secs(2),
            plugin_wait: Duration::from_secs(3),
            plugin_timeout: Duration::from_secs(60),
            plugin_interactive_timeout: Duration::from_secs(300),
            plugin_min_interval: Duration::from_secs(5),
        }
    }
}

impl Config {
    fn limits(&self) -> api_service::Limits {
        api_service::Limits {
            reload_interval: self.reload_interval,
            reload_after_rejection: self.reload_after_rejection,
            file_wait: self.file_wait,
            answer_notice: self.answer_notice,
            pool_idle: self.pool_idle,
            plugin: plugin_runs::Limits {
                run: plugin::Limits {
                    notice: self.plugin_notice,
                    timeout: self.plugin_timeout,
                    interactive_timeout: self.plugin_interactive_timeout,
                },
                wait: self.plugin_wait,
                min_interval: self.plugin_min_interval,
            },
        }
    }

    /// Returns a connector. That of kube has no TCP keep-alive and no user timeout.
    fn tcp(&self) -> HttpConnector {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(self.connect_timeout));
        tcp.set_keepalive(Some(self.keepalive));
        tcp.set_keepalive_interval(Some(self.keepalive / 2));
        tcp.set_keepalive_retries(Some(3));
        #[cfg(target_os = "linux")]
        tcp.set_tcp_user_timeout(Some(self.user_timeout));
        tcp
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
    service: Arc<ApiService>,
}

impl ClusterConnection {
    /// Returns what requests wait for, for people: a credential plugin that runs, or the first answer of the API server.
    /// `None` otherwise.
    #[must_use]
    pub fn awaited(&self) -> Option<&'static str> {
        self.service.awaited()
    }
}

impl std::fmt::Debug for ClusterConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ClusterConnection { client: _, context, namespace, server, service: _ } = self;
        write!(f, "ClusterConnection({context}, {namespace}, {server})")
    }
}

/// Finds the configuration of the cluster, reads the files that it names, and builds its client. It sends nothing and runs no
/// credential plugin; the hub finds out whether the API server responds.
///
/// # Errors
/// When there is no configuration, or it cannot be used. Each error states what to do.
pub async fn connect(config: &Config) -> Result<ClusterConnection, Error> {
    let paths = search_paths(config.kubeconfig.as_deref(), env::var_os("KUBECONFIG"), env::home_dir());
    let Some(kubeconfig) = Kubeconfig::read(&paths, config.kubeconfig.is_some())? else {
        let Some(host) = env::var_os("KUBERNETES_SERVICE_HOST") else {
            let searched: Vec<_> = paths.iter().map(|path| format!("`{}`", path.display())).collect();
            return Err(Error::NotFound { searched: searched.join(", ") });
        };
        let target = Target::in_cluster(Some(host), env::var_os("KUBERNETES_SERVICE_PORT"));
        return target.and_then(|target| build(target, config, IN_CLUSTER)).map_err(Error::InCluster);
    };
    let context = kubeconfig.context_name(config.context.as_deref())?;
    let connection = kubeconfig
        .cluster_and_user(&context)
        .and_then(|(cluster, user)| build(Target::new(&cluster, &user)?, config, &context));
    connection.map_err(|source| Error::Unusable { context: shown_name(&context), source })
}

fn build(target: Target, config: &Config, context: &str) -> Result<ClusterConnection, FieldError> {
    // An error means that a provider is installed already. It is always the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    for warning in &target.warnings {
        tracing::warn!("{warning}");
    }
    let ignored =
        ["HTTPS_PROXY", "https_proxy"].iter().any(|name| env::var_os(name).is_some_and(|url| !url.is_empty()));
    if ignored {
        tracing::warn!("HTTPS_PROXY ignored: connections to Kubernetes do not use a proxy");
    }
    let server = target.server.to_string();
    let service = Arc::new(ApiService::new(target, config.tcp(), config.limits())?);
    let sender = service.clone();
    let send = tower::service_fn(move |request| {
        let sender = sender.clone();
        async move { sender.send(request).await }
    });
    let namespace = config.namespace.clone();
    let client = Client::new(send, namespace.clone());
    Ok(ClusterConnection { client, context: context.to_owned(), namespace, server, service })
}

#[cfg(test)]
mod tests;
