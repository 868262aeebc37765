//! `serve`: watches a namespace of a cluster and serves its events.

use std::{num::NonZeroU32, path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use tracing::info;

use super::{
    access::{self, bridge::BridgeAccessArgs},
    connection::ContextArgs,
    exit::{CANNOT_CONNECT, CliError},
    ingest::IngestArgs,
    logging::{self, LogFormat},
    mqtt::{self, MqttArgs},
    nats::{self, NatsArgs},
    otlp::{self, OtlpArgs},
    parsers::{HEARTBEATS, MAX_CONNECTIONS, PORTS, RATES, host_port, integer_in, listen_host, log_level, namespace},
    server,
};
use crate::{
    backbone::Backbone,
    feed::{self, Feed},
    http::{ConnectionInfo, stream_rate},
    source::{
        connect, dedicated, hub,
        review::{self, Reviewer},
    },
};

/// Arguments of `serve`.
#[derive(Clone, Debug, Args)]
pub(super) struct Serve {
    /// Path of a YAML file with values for these flags, such as `port: 3000`
    #[arg(long, env = super::config::ENV, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,

    /// Port to listen on; 0 takes a free port
    #[arg(long, env = "PORT", default_value_t = 3000, value_parser = integer_in::<u16>(PORTS))]
    pub(super) port: u16,

    /// Address to listen on. An address other than loopback requires credentials or --allow-anonymous
    #[arg(long, env = "LISTEN_HOST", default_value = "127.0.0.1", value_name = "HOST", value_parser = listen_host)]
    pub(super) listen_host: String,

    /// Address and port of a listener of its own for /livez, /readyz and /api/v1/health, such as 0.0.0.0:9090. Clients of
    /// the other endpoints cannot take its connections. Without it, probes use --port only
    #[arg(long, env = "BRIDGE_PROBE_LISTEN", value_name = "HOST:PORT", value_parser = host_port)]
    pub(super) probe_listen: Option<(String, u16)>,

    #[command(flatten)]
    pub(super) access: BridgeAccessArgs,

    #[command(flatten)]
    pub(super) ingest: IngestArgs,

    #[command(flatten)]
    pub(super) mqtt: MqttArgs,

    #[command(flatten)]
    pub(super) nats: NatsArgs,

    #[command(flatten)]
    pub(super) otlp: OtlpArgs,

    /// Maximum number of /ws connections with Kubernetes watchers of their own. Further connections share the watches of
    /// the bridge and receive the same events
    #[arg(long, alias = "own-watchers", env = dedicated_watchers_env(), default_value_t = 50, value_name = "N")]
    #[arg(value_parser = integer_in::<usize>(0..=MAX_CONNECTIONS))]
    dedicated_watchers: usize,

    /// Maximum number of open streams. Further WebSocket requests get 503 with `Retry-After`; SSE requests get a
    /// `stream.closing` event with a retry delay
    #[arg(long, env = "BRIDGE_MAX_CONNECTIONS", default_value_t = 10_000, value_name = "N")]
    #[arg(value_parser = integer_in::<usize>(1..=MAX_CONNECTIONS))]
    max_connections: usize,

    /// Maximum number of events per minute for each client, except on /ws; a stream pauses at the limit. Without it there
    /// is no limit
    #[arg(long, env = "BRIDGE_STREAM_RATE", value_name = "N", value_parser = integer_in::<NonZeroU32>(RATES))]
    stream_rate: Option<NonZeroU32>,

    /// Seconds between two heartbeats of a stream, between two comment lines where it has no heartbeat, and between two
    /// WebSocket pings, on /ws too
    #[arg(long, env = "BRIDGE_HEARTBEAT", default_value_t = 15, value_name = "SECONDS")]
    #[arg(value_parser = integer_in::<u64>(HEARTBEATS))]
    heartbeat: u64,

    /// Seconds over which open streams are closed on shutdown
    #[arg(long, env = "BRIDGE_DRAIN", default_value_t = 10, value_name = "SECONDS")]
    #[arg(value_parser = integer_in::<u64>(0..=3600))]
    drain: u64,

    /// Namespace to watch
    #[arg(short, long, env = "K8S_NAMESPACE", default_value = "boilerhouse", value_parser = namespace)]
    pub(super) namespace: String,

    #[command(flatten)]
    pub(super) cluster: ContextArgs,

    /// Log level: error, warn, info, debug or trace. RUST_LOG, if set, replaces it by a filter for each module
    #[arg(long, env = "LOG_LEVEL", default_value = "info", value_name = "LEVEL", value_parser = log_level)]
    log_level: tracing::Level,

    /// Log format: a readable line or a JSON object for each log entry
    #[arg(long, env = "BRIDGE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, value_name = "text|json")]
    #[arg(hide_possible_values = true)]
    log_format: LogFormat,
}

/// Returns the variable of `--dedicated-watchers`. The name that it had before is read when the new one is not set.
fn dedicated_watchers_env() -> &'static str {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let [new, old] = ["BRIDGE_DEDICATED_WATCHERS", "BRIDGE_OWN_WATCHERS"];
    if !is_set(new) && is_set(old) { old } else { new }
}

impl Serve {
    pub(super) async fn run(self) -> Result<u8, CliError> {
        logging::init(self.log_level, self.log_format).map_err(CliError::usage)?;
        let loopback = access::is_loopback(&self.listen_host, self.port, "--listen-host").await?;
        let mut access = self.access.resolve(&self.listen_host, loopback)?;
        access.common.limits = access.common.limits.with_dedicated_watchers(self.dedicated_watchers);
        let (validator, pack_warning) = self.ingest.validation.validator()?;
        let (mqtt, nats) = (self.mqtt.resolve()?, self.nats.resolve(&self.namespace)?);
        let collector = self.otlp.resolve()?;
        let drain = Duration::from_secs(self.drain);
        let (listener, address) = server::bind(&self.listen_host, self.port, "--port").await?;
        let probes = match &self.probe_listen {
            None => None,
            Some((host, port)) => {
                let (listener, address) = server::bind(host, *port, "--probe-listen").await?;
                info!("probes at http://{address}/livez and http://{address}/readyz");
                Some(listener)
            }
        };
        let config = self.cluster.config(&self.namespace);
        let connection =
            connect::connect(&config).await.map_err(|error| CliError { code: CANNOT_CONNECT, error: error.into() })?;
        info!(context = connection.context, server = connection.server, namespace = connection.namespace, "watching");

        let feed_config = feed::Config { telemetry_ttl: self.ingest.telemetry_ttl(), ..feed::Config::default() };
        let (writer, feed) = Feed::new(feed_config);
        let tasks = server::tasks(drain);
        let mut registry = server::registry();
        let traces = otlp::start(collector, server::bridge_metrics(&mut registry))?;
        let metrics = Arc::new(hub::Metrics::default());
        metrics.register(server::bridge_metrics(&mut registry));
        let config = hub::Config {
            namespace: connection.namespace.as_str().into(),
            server: connection.server.as_str().into(),
            ..hub::Config::default()
        };
        let dedicated_metrics = dedicated::Metrics::default();
        dedicated_metrics.register(server::bridge_metrics(&mut registry));
        let dedicated_config =
            dedicated::Config { max_connections: self.dedicated_watchers, ..dedicated::Config::default() };
        let watchers = dedicated::DedicatedWatchers::new(
            &connection.client,
            &connection.namespace,
            feed.clone(),
            dedicated_config,
            dedicated_metrics,
        );
        let mut inputs = Vec::new();
        let mut backbone: Arc<dyn Backbone> = Arc::new(feed.clone());
        if let Some(nats) = nats {
            let (replicated, line) = nats::start(nats, &feed, &tasks, server::bridge_metrics(&mut registry));
            backbone = replicated;
            inputs.push(line);
        }
        if let Some(broker) = mqtt {
            let backbone = backbone.clone();
            let publish = move |message| backbone.publish_mqtt_message(message);
            inputs.push(mqtt::start(broker, publish, &validator, &tasks, server::bridge_metrics(&mut registry)));
        }
        let awaited = connection.clone();
        let readiness_details =
            server::readiness_details(metrics.clone(), pack_warning, inputs, move || awaited.awaited());
        if let Some(audience) = access.audience.take() {
            let (namespace, server) = (config.namespace.clone(), config.server.clone());
            let config = review::Config { namespace, server, audience, ..review::Config::default() };
            access = access.with_reviews(Reviewer::new(connection.client.clone(), config));
        }
        let watch = hub::run(connection.client, config, writer, metrics);
        tasks.spawn("hub", async move { Ok::<_, std::convert::Infallible>(watch.await) });
        // Not earlier: a signal ends the process while it waits for the cluster.
        let signals = server::Signals::new()?;
        let (http, ws) = if access.common.tls.is_some() { ("https", "wss") } else { ("http", "ws") };
        info!("listening on {http}://{address}, events on {ws}://{address}/ws");
        let max_connections = self.max_connections;
        let dedicated_feeds = server::dedicated_feed_factory(watchers);
        let connection = ConnectionInfo { name: connection.context, namespace: connection.namespace };
        let rate = stream_rate::Config { limit: self.stream_rate, ..stream_rate::Config::default() };
        let setup = server::BridgeSetup {
            feed,
            dedicated_feeds,
            backbone,
            validator,
            access,
            registry,
            readiness_details,
            connection,
            max_connections,
            dedicated_watchers: self.dedicated_watchers,
            probes,
            rate,
            heartbeat: Duration::from_secs(self.heartbeat),
            tasks,
            drain,
            traces,
            signals,
        };
        server::serve_bridge(setup, listener).await
    }
}
