//! `demo`: the whole bridge on a simulated cluster in the same process.

use std::time::Duration;

use clap::Args;

use super::{
    CliError, PORTS,
    access::ResolvedAccess,
    init_logging,
    parsers::{integer_in, log_level},
    print, server,
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

/// Fastest and slowest scenario: a thousand events a second, and one in two minutes.
const SPEEDS: std::ops::RangeInclusive<f64> = 0.01..=1000.0;
/// A demo's listeners are few and at the same desk: they need not leave one by one.
const DRAIN: Duration = Duration::from_secs(1);

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Port to listen on, on loopback; 0 takes a free one
    #[arg(long, env = "PORT", default_value_t = 3000, value_parser = integer_in::<u16>(PORTS))]
    port: u16,

    /// How fast things happen: 1 is about one a second
    #[arg(long, default_value_t = 1.0, value_parser = speed)]
    speed: f64,

    /// Another number, another story; the same number, the same story
    #[arg(long, default_value_t = 1, value_parser = integer_in::<u64>(0..=u64::MAX))]
    seed: u64,

    /// What to log: error, warn, info, debug, trace
    #[arg(long, env = "LOG_LEVEL", default_value = "warn", value_name = "LEVEL", value_parser = log_level)]
    log_level: tracing::Level,
}

impl Demo {
    pub(super) async fn run(self) -> Result<u8, CliError> {
        init_logging(self.log_level);
        let access = ResolvedAccess::open()?;
        let (listener, address) = server::bind("127.0.0.1", self.port).await?;
        let scenario = ScenarioConfig::default();
        let namespace = scenario.namespace.clone();
        let sim = Sim::new(SimConfig { seed: self.seed, ..SimConfig::default() });
        let mut story = Scenario::new(self.seed, scenario);
        // Before anybody looks, so that the first answer shows a cluster at work.
        sim.store(|store| story.populate(store));

        let (writer, feed) = Feed::new(feed::Config::default());
        let tasks = server::tasks(DRAIN);
        let mut registry = server::registry();
        let metrics = std::sync::Arc::new(hub::Metrics::default());
        metrics.register(&mut registry);
        let config = hub::Config {
            namespace: namespace.as_str().into(),
            server: "the simulated cluster".into(),
            ..hub::Config::default()
        };
        let client = sim.client(&namespace);
        let own_metrics = dedicated::Metrics::default();
        own_metrics.register(&mut registry);
        let watchers = dedicated::DedicatedWatchers::new(
            &client,
            &namespace,
            feed.clone(),
            dedicated::Config::default(),
            own_metrics,
        );
        let readiness_details = server::readiness_details(metrics.clone());
        let watch = hub::run(client, config, writer, metrics);
        tasks.spawn("hub", async move { Ok::<_, std::convert::Infallible>(watch.await) });
        let (stop, speed) = (tasks.stop().clone(), self.speed);
        tasks.spawn("scenario", async move {
            story.run(&sim, speed, stop.cancelled()).await;
            // It ends when the process does; returning first would look like a failure.
            std::future::pending::<Result<(), std::convert::Infallible>>().await
        });

        feed.wait_synced().await;
        print(&welcome(&address.to_string()))?;
        let setup = server::ServerSetup {
            feed,
            dedicated_feeds: server::dedicated_feed_factory(watchers),
            access,
            registry,
            readiness_details,
            connection: ConnectionInfo { name: "demo".into(), namespace },
            max_connections: stream::Config::default().max_streams,
            rate: stream_rate::Config::default(),
            tasks,
            drain: DRAIN,
        };
        server::serve(setup, listener).await
    }
}

fn speed(text: &str) -> Result<f64, String> {
    let speed = text.parse().ok().filter(|speed| SPEEDS.contains(speed));
    speed.ok_or_else(|| format!("expected a number from {} to {}", SPEEDS.start(), SPEEDS.end()))
}

fn welcome(address: &str) -> String {
    format!(
        "boilerhouse-bridge demo: a simulated cluster, listening on http://{address}\n\
         \n\
         \x20 live      npx wscat -c ws://{address}/ws\n\
         \x20           curl -N http://{address}/api/sse\n\
         \x20 state     curl http://{address}/api/v1/instances\n\
         \x20           curl http://{address}/api/v1/tenants\n\
         \x20           curl http://{address}/api/v1/pools\n\
         \x20 health    curl 'http://{address}/readyz?verbose'\n\
         \n\
         Ctrl-C ends it.\n"
    )
}
