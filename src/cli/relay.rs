//! `relay`: reads one event stream and serves it to many clients (docs/protocol.md#relay).

use std::{convert::Infallible, time::Duration};

use clap::Args;
use tracing::info;

use super::{
    access::{self, AccessArgs, ListenPlace},
    connection::CredentialArgs,
    exit::CliError,
    ingest::ValidationArgs,
    logging::{self, LogFormat},
    mqtt::{self, MqttArgs},
    otlp::{self, OtlpArgs},
    parsers::{HISTORY_EVENTS, HISTORY_MEMORY, MAX_CONNECTIONS, duration, host_port, integer_in, log_level},
    server::{self, ReadinessLine, Signals},
};
use crate::{
    client::{Client, Transport},
    http::{ServedRelay, stream},
    relay::{self, History, Limits},
};

/// Arguments of `relay`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  boilerhouse-bridge relay --upstream https://bridge.example --token-file token
  boilerhouse-bridge relay --upstream http://localhost:8080/events/stream --listen 127.0.0.1:0")]
pub(super) struct RelayCommand {
    /// The stream to read: a bridge, such as https://bridge.example, or one stream of server-sent events of any server, such
    /// as https://host/events/stream
    #[arg(long, env = "BRIDGE_UPSTREAM", value_name = "URL")]
    upstream: String,

    /// Address and port to listen on; port 0 takes a free one. An address other than loopback requires credentials or
    /// --allow-anonymous
    #[arg(long, env = "BRIDGE_LISTEN", default_value = "127.0.0.1:11234", value_name = "HOST:PORT", value_parser = host_port)]
    listen: (String, u16),

    /// Maximum number of events that are retained for clients that resume or connect later
    #[arg(long, env = "BRIDGE_HISTORY", default_value_t = 10_000, value_name = "N")]
    #[arg(value_parser = integer_in::<usize>(HISTORY_EVENTS))]
    history: usize,

    /// Maximum memory in MiB of these events
    #[arg(long, env = "BRIDGE_HISTORY_MEMORY", default_value_t = 64, value_name = "MIB")]
    #[arg(value_parser = integer_in::<usize>(HISTORY_MEMORY))]
    history_memory: usize,

    /// Time without a byte of the upstream after which its connection counts as lost, such as 60, 60s or 2m. It must be
    /// longer than the interval of the upstream's heartbeats or comment lines
    #[arg(long, env = "BRIDGE_SILENCE", default_value = "60s", value_name = "TIME", value_parser = duration)]
    silence: Duration,

    #[command(flatten)]
    mqtt: MqttArgs,

    #[command(flatten)]
    validation: ValidationArgs,

    #[command(flatten)]
    access: AccessArgs,

    #[command(flatten)]
    otlp: OtlpArgs,

    /// Maximum number of open streams. Further WebSocket requests get 503 with `Retry-After`; SSE requests get a
    /// `stream.closing` event with a retry delay
    #[arg(long, env = "BRIDGE_MAX_CONNECTIONS", default_value_t = 10_000, value_name = "N")]
    #[arg(value_parser = integer_in::<usize>(1..=MAX_CONNECTIONS))]
    max_connections: usize,

    /// Seconds over which open streams are closed on shutdown
    #[arg(long, env = "BRIDGE_DRAIN", default_value_t = 10, value_name = "SECONDS")]
    #[arg(value_parser = integer_in::<u64>(0..=3600))]
    drain: u64,

    /// Log level: error, warn, info, debug or trace. RUST_LOG, if set, replaces it by a filter for each module
    #[arg(long, env = "LOG_LEVEL", default_value = "info", value_name = "LEVEL", value_parser = log_level)]
    log_level: tracing::Level,

    /// Log format: a readable line or a JSON object for each log entry
    #[arg(long, env = "BRIDGE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, value_name = "text|json")]
    #[arg(hide_possible_values = true)]
    log_format: LogFormat,

    #[command(flatten)]
    credential: CredentialArgs,
}

impl RelayCommand {
    pub(super) async fn run(self) -> Result<u8, CliError> {
        logging::init(self.log_level, self.log_format).map_err(CliError::usage)?;
        let (host, port) = &self.listen;
        let place = ListenPlace {
            flag: format!("--listen {host}:{port}"),
            is_loopback: access::is_loopback(host, *port, "--listen").await?,
            credentials: "BOILERHOUSE_API_KEY or --keys-file",
        };
        let access = self.access.resolve(&place, false, false)?;
        let (mqtt, collector) = (self.mqtt.resolve()?, self.otlp.resolve()?);
        if mqtt.is_none() {
            // The events of the upstream are not validated.
            self.validation.refuse_without("--mqtt-url")?;
        }
        let (validator, pack_warning) = self.validation.validator()?;
        let builder = Client::builder(&self.upstream).transport(Transport::Sse).silence_timeout(self.silence);
        let client = self.credential.apply(builder).build().map_err(|error| CliError::usage(error.to_string()))?;
        // Later, an unreadable file is an outage.
        client.token().map_err(|error| CliError::usage(error.to_string()))?;
        let (listener, address) = server::bind(host, *port, "--listen HOST:PORT").await?;

        let tasks = server::tasks(Duration::from_secs(self.drain));
        let mut registry = server::registry();
        let traces = otlp::start(collector, server::bridge_metrics(&mut registry))?;
        let metrics = relay::Metrics::default();
        metrics.register(server::bridge_metrics(&mut registry));
        let limits = Limits { events: self.history, bytes: self.history_memory << 20 };
        let (writer, history) = History::new(limits, metrics);
        let signals = Signals::new()?;
        let (http, ws) = if access.tls.is_some() { ("https", "wss") } else { ("http", "ws") };
        info!(upstream = client.url(), "reading");
        info!("listening on {http}://{address}, events on {http}://{address}/events and {ws}://{address}/events/ws");
        let mut inputs: Vec<ReadinessLine> = Vec::new();
        if let Some(broker) = mqtt {
            let bridge = server::bridge_metrics(&mut registry);
            validator.metrics().register(bridge);
            let messages = history.clone();
            let publish = move |message| messages.publish_mqtt_message(&message);
            inputs.push(mqtt::start(broker, publish, &validator, &tasks, bridge));
        }
        let upstream = relay::run(client, writer, relay::Config::default());
        tasks.spawn("upstream", async move { Ok::<_, Infallible>(upstream.await) });
        let setup = server::ServerSetup {
            content: ServedRelay {
                history: history.clone(),
                readiness_details: Box::new(move || {
                    pack_warning.iter().cloned().chain(inputs.iter().map(|line| line())).collect()
                }),
            },
            log: stream::Log::Relay(history),
            access,
            registry,
            max_connections: self.max_connections,
            dedicated_watchers: 0,
            probes: None,
            heartbeat: stream::Config::default().ping_interval,
            tasks,
            drain: Duration::from_secs(self.drain),
            traces,
            signals,
        };
        server::serve(setup, listener).await
    }
}
