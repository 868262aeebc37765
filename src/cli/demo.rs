//! `demo`: the bridge with a simulated cluster in the same process.

use std::{sync::Arc, time::Duration};

use clap::Args;

use super::{
    access::bridge::ResolvedBridgeAccess,
    exit::{CliError, print},
    logging::{self, LogFormat},
    otlp::Traces,
    parsers::{PORTS, integer_in, log_level},
    server,
};
use crate::{
    feed::{self, Feed},
    http::{ConnectionInfo, stream, stream_rate},
    sim::{
        Sim, SimConfig,
        scenario::{Scenario, ScenarioConfig},
    },
    source::{dedicated, hub},
};

/// Accepted `--speed`: 1 is about one change a second, so from about one change in 100 s to 1,000 changes a second.
const SPEEDS: std::ops::RangeInclusive<f64> = 0.01..=1000.0;
/// Drain time: a demo has few clients on the same machine, so that their reconnects need not be spread.
const DRAIN: Duration = Duration::from_secs(1);

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Port to listen on, on loopback; 0 takes a free port
    #[arg(long, env = "PORT", default_value_t = 3000, value_parser = integer_in::<u16>(PORTS))]
    port: u16,

    /// Speed of the changes; 1 is about one change a second
    #[arg(long, env = "BRIDGE_DEMO_SPEED", default_value_t = 1.0, value_parser = speed)]
    speed: f64,

    /// Seed of the random changes. The same seed repeats the same changes
    #[arg(long, env = "BRIDGE_DEMO_SEED", default_value_t = 1, value_parser = integer_in::<u64>(0..=u64::MAX))]
    seed: u64,

    /// Log level: error, warn, info, debug or trace. RUST_LOG, if set, replaces it by a filter for each module
    #[arg(long, env = "LOG_LEVEL", default_value = "warn", value_name = "LEVEL", value_parser = log_level)]
    log_level: tracing::Level,

    /// Log format: a readable line or a JSON object for each log entry
    #[arg(long, env = "BRIDGE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, value_name = "text|json")]
    #[arg(hide_possible_values = true)]
    log_format: LogFormat,
}

impl Demo {
    pub(super) async fn run(self) -> Result<u8, CliError> {
        logging::init(self.log_level, self.log_format).map_err(CliError::usage)?;
        let access = ResolvedBridgeAccess::open()?;
        let (listener, address) = server::bind("127.0.0.1", self.port, "--port").await?;
        let scenario = ScenarioConfig::default();
        let namespace = scenario.namespace.clone();
        let sim = Sim::new(SimConfig { seed: self.seed, ..SimConfig::default() });
        let mut scenario = Scenario::new(self.seed, scenario);
        // Before the first list, so that the first response shows a cluster with objects.
        sim.store(|store| scenario.populate(store));

        let (writer, feed) = Feed::new(feed::Config::default());
        let tasks = server::tasks(DRAIN);
        let mut registry = server::registry();
        let metrics = std::sync::Arc::new(hub::Metrics::default());
        metrics.register(server::bridge_metrics(&mut registry));
        let config = hub::Config {
            namespace: namespace.as_str().into(),
            server: "the simulated cluster".into(),
            ..hub::Config::default()
        };
        let client = sim.client(&namespace);
        let dedicated_metrics = dedicated::Metrics::default();
        dedicated_metrics.register(server::bridge_metrics(&mut registry));
        let watchers = dedicated::DedicatedWatchers::new(
            &client,
            &namespace,
            feed.clone(),
            dedicated::Config::default(),
            dedicated_metrics,
        );
        let readiness_details = server::readiness_details(metrics.clone(), None, Vec::new(), || None);
        let watch = hub::run(client, config, writer, metrics);
        tasks.spawn("hub", async move { Ok::<_, std::convert::Infallible>(watch.await) });
        let (stop, speed) = (tasks.stop().clone(), self.speed);
        tasks.spawn("scenario", async move {
            scenario.run(&sim, speed, stop.cancelled()).await;
            // The end of a process task counts as a failure, so this one waits for the end of the process.
            std::future::pending::<Result<(), std::convert::Infallible>>().await
        });

        feed.wait_synced().await;
        let signals = server::Signals::new()?;
        // As it was called, so that the commands can be copied.
        let program = std::env::args().next().unwrap_or_else(|| "boilerhouse-bridge".to_owned());
        print(&welcome(&address.to_string(), &program))?;
        let setup = server::BridgeSetup {
            backbone: Arc::new(feed.clone()),
            feed,
            dedicated_feeds: server::dedicated_feed_factory(watchers),
            validator: Arc::default(),
            access,
            registry,
            readiness_details,
            connection: ConnectionInfo { name: "demo".into(), namespace },
            max_connections: stream::Config::default().max_streams,
            dedicated_watchers: dedicated::Config::default().max_connections,
            probes: None,
            rate: stream_rate::Config::default(),
            heartbeat: stream::Config::default().ping_interval,
            tasks,
            drain: DRAIN,
            traces: Traces::default(),
            signals,
        };
        server::serve_bridge(setup, listener).await
    }
}

fn speed(text: &str) -> Result<f64, String> {
    let speed = text.parse().ok().filter(|speed| SPEEDS.contains(speed));
    speed.ok_or_else(|| format!("expected a number from {} to {}", SPEEDS.start(), SPEEDS.end()))
}

fn welcome(address: &str, program: &str) -> String {
    format!(
        "boilerhouse-bridge demo: a simulated cluster, listening on http://{address}\n\
         \n\
         \x20 browser   http://{address}/\n\
         \x20 terminal  {program} top --url http://{address}\n\
         \x20           {program} events --url http://{address}\n\
         \x20 streams   npx wscat -c ws://{address}/ws\n\
         \x20           curl -N http://{address}/api/sse\n\
         \x20 state     curl http://{address}/api/v1/instances\n\
         \x20           curl http://{address}/api/v1/tenants\n\
         \x20           curl http://{address}/api/v1/pools\n\
         \x20 health    curl 'http://{address}/readyz?verbose'\n\
         \n\
         Ctrl-C ends it.\n"
    )
}
