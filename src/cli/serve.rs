//! `serve`: the bridge itself.

use std::{num::NonZeroU32, path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use tracing::info;

use super::{
    CliError, MAX_CONNECTIONS, PORTS, RATES,
    access::AccessArgs,
    exit, init_logging,
    parsers::{integer_in, log_level, namespace},
    server,
};
use crate::{
    feed::{self, Feed},
    http::{ConnectionInfo, stream_rate},
    source::{
        connect, dedicated, hub,
        review::{self, Reviewer},
    },
};

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// File with values for these flags, in YAML: `port: 3000`
    #[arg(long, env = super::config::ENV, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Port to listen on; 0 takes a free one
    #[arg(long, env = "PORT", default_value_t = 3000, value_parser = integer_in::<u16>(PORTS))]
    pub(super) port: u16,

    /// Address to listen on. Beyond loopback only with credentials, or --allow-anonymous
    #[arg(long, env = "LISTEN_HOST", default_value = "127.0.0.1", value_name = "HOST")]
    listen_host: String,

    #[command(flatten)]
    access: AccessArgs,

    /// How many /ws connections have Kubernetes watchers of their own; later ones share the bridge's
    #[arg(long, env = "BRIDGE_OWN_WATCHERS", default_value_t = 50, value_name = "N")]
    #[arg(value_parser = integer_in::<usize>(0..=MAX_CONNECTIONS))]
    own_watchers: usize,

    /// Most streams at a time; who comes then is told to come back
    #[arg(long, env = "BRIDGE_MAX_CONNECTIONS", default_value_t = 10_000, value_name = "N")]
    #[arg(value_parser = integer_in::<usize>(1..=MAX_CONNECTIONS))]
    max_connections: usize,

    /// Most events a minute for each client, whose stream then pauses; not on /ws. Without it there is no limit
    #[arg(long, env = "BRIDGE_STREAM_RATE", value_name = "N", value_parser = integer_in::<NonZeroU32>(RATES))]
    stream_rate: Option<NonZeroU32>,

    /// Seconds over which clients are sent away when the bridge ends
    #[arg(long, env = "BRIDGE_DRAIN", default_value_t = 10, value_name = "SECONDS")]
    #[arg(value_parser = integer_in::<u64>(0..=3600))]
    drain: u64,

    /// Namespace to watch
    #[arg(short, long, env = "K8S_NAMESPACE", default_value = "boilerhouse", value_parser = namespace)]
    namespace: String,

    /// Kubeconfig file; else what KUBECONFIG names, else ~/.kube/config, else the Pod's service account
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig
    #[arg(long, env = "BRIDGE_CONTEXT", value_name = "NAME")]
    context: Option<String>,

    /// What to log: error, warn, info, debug, trace
    #[arg(long, env = "LOG_LEVEL", default_value = "info", value_name = "LEVEL", value_parser = log_level)]
    log_level: tracing::Level,
}

impl Serve {
    pub(super) async fn run(self) -> Result<u8, CliError> {
        init_logging(self.log_level);
        let loopback = self.is_loopback().await?;
        let mut access = self.access.resolve(&self.listen_host, loopback)?;
        let drain = Duration::from_secs(self.drain);
        let (listener, address) = server::bind(&self.listen_host, self.port).await?;
        let config = connect::Config {
            kubeconfig: self.kubeconfig,
            context: self.context,
            namespace: self.namespace,
            ..connect::Config::default()
        };
        let connection = connect::connect(&config)
            .await
            .map_err(|error| CliError { code: exit::CANNOT_CONNECT, error: error.into() })?;
        info!(context = connection.context, server = connection.server, namespace = connection.namespace, "watching");

        let (writer, feed) = Feed::new(feed::Config::default());
        let tasks = server::tasks(drain);
        let mut registry = server::registry();
        let metrics = Arc::new(hub::Metrics::default());
        metrics.register(&mut registry);
        let config = hub::Config {
            namespace: connection.namespace.as_str().into(),
            server: connection.server.as_str().into(),
            ..hub::Config::default()
        };
        let review_metrics = review::Metrics::default();
        review_metrics.register(&mut registry);
        let own_metrics = dedicated::Metrics::default();
        own_metrics.register(&mut registry);
        let own_config = dedicated::Config { max_connections: self.own_watchers, ..dedicated::Config::default() };
        let watchers = dedicated::DedicatedWatchers::new(
            &connection.client,
            &connection.namespace,
            feed.clone(),
            own_config,
            own_metrics,
        );
        let readiness_details = server::readiness_details(metrics.clone());
        if let Some(audience) = access.audience.take() {
            let (namespace, server) = (config.namespace.clone(), config.server.clone());
            let config = review::Config { namespace, server, audience, ..review::Config::default() };
            access = access.with_reviews(Reviewer::new(connection.client.clone(), config).with_metrics(review_metrics));
        }
        let watch = hub::run(connection.client, config, writer, metrics);
        tasks.spawn("hub", async move { Ok::<_, std::convert::Infallible>(watch.await) });
        let (http, ws) = if access.tls.is_some() { ("https", "wss") } else { ("http", "ws") };
        info!("listening on {http}://{address}, events on {ws}://{address}/ws");
        let max_connections = self.max_connections;
        let dedicated_feeds = server::dedicated_feed_factory(watchers);
        let connection = ConnectionInfo { name: connection.context, namespace: connection.namespace };
        let rate = stream_rate::Config { limit: self.stream_rate, ..stream_rate::Config::default() };
        let setup = server::ServerSetup {
            feed,
            dedicated_feeds,
            access,
            registry,
            readiness_details,
            connection,
            max_connections,
            rate,
            tasks,
            drain,
        };
        server::serve(setup, listener).await
    }

    /// Whether only this machine can connect to where we listen.
    async fn is_loopback(&self) -> Result<bool, CliError> {
        let addresses = tokio::net::lookup_host((self.listen_host.as_str(), self.port)).await;
        let mut addresses = addresses.map_err(|error| {
            CliError::usage(format!(
                "--listen-host '{}' is neither an address nor a known name: {error}",
                self.listen_host
            ))
        })?;
        Ok(addresses.all(|address| address.ip().is_loopback()))
    }
}
