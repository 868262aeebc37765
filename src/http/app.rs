//! The state that all requests of a server share.
//!
//! Owns the handles to what a server serves, the streams, the authenticator, the limits and the metrics of one server.

use std::{convert::Infallible, fmt, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use prometheus_client::registry::Registry;

use super::{
    auth::Authenticator,
    browser_guard::{GuardConfig, RefusedOrigins},
    filter_limit::FilterLimit,
    forwarded::TrustedProxies,
    ingest::Ingest,
    metrics::Metrics,
    paced_body,
    rate_limit::RateLimits,
    response_budget::ResponseBudget,
    stream::StreamContext,
    stream_rate,
};
use crate::{feed::Feed, relay::History, traces::Tracer};

/// The state that all requests of a server share. `C` is what it serves: [`ServedFeed`] or [`ServedRelay`].
pub struct App<C = ServedFeed> {
    /// What the endpoints of this kind of server read.
    pub content: C,
    /// Configuration, metrics and permits of streams.
    pub streams: Arc<StreamContext>,
    /// The metrics that `/metrics` prints.
    pub registry: Registry,
    /// The metrics of requests. The caller must also register them in `registry`.
    pub metrics: Metrics,
    /// Allowed hosts and origins.
    pub guard: GuardConfig,
    /// The refusals of origins that were logged.
    pub refused_origins: RefusedOrigins,
    /// Authenticates requests. The caller must run [`Authenticator::run_watchdog`].
    pub auth: Arc<Authenticator>,
    /// Rate budgets and stream slots of all callers.
    pub rate_limits: RateLimits,
    /// Proxies whose `X-Forwarded-*` headers count.
    pub trusted_proxies: TrustedProxies,
    /// Starts the spans of requests.
    pub tracer: Tracer,
}

/// What a bridge serves.
pub struct ServedFeed {
    /// The feed that endpoints read.
    pub feed: Feed,
    /// Creates the dedicated feed of a `/ws` connection.
    pub dedicated_feeds: DedicatedFeedFactory,
    /// The names of the watched namespace and its cluster.
    pub connection: ConnectionInfo,
    /// The number of different filters of each caller.
    pub filters: FilterLimit,
    /// The bodies of snapshot responses, and their bound.
    pub responses: ResponseBudget,
    /// What telemetry posts share.
    pub ingest: Ingest,
    /// Returns further lines for `/readyz?verbose`.
    pub readiness_details: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// Timeouts and limits of the endpoints.
    pub config: Config,
}

/// What a relay serves.
pub struct ServedRelay {
    /// The events that the streams read.
    pub history: History,
    /// Returns the lines about the inputs that `/readyz?verbose` adds.
    pub readiness_details: Box<dyn Fn() -> Vec<String> + Send + Sync>,
}

/// The names of a watched namespace, as `/api/v1/connections` lists it.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// The context of the kubeconfig, or `in-cluster`, or `demo`.
    pub name: String,
    /// The namespace.
    pub namespace: String,
}

/// Returns a feed for one connection and the future that fills it while it is polled, or `None` if the connection must read
/// the shared feed. It is a function value, so that this module does not depend on a source.
pub type DedicatedFeedFactory = Box<dyn Fn() -> Option<(Feed, BoxFuture<'static, Infallible>)> + Send + Sync>;

/// Timeouts and limits of the endpoints.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Maximum time that a WebSocket upgrade waits for the first lists (docs/protocol.md#boilerhouse-stream: 10 s).
    pub sync_timeout: Duration,
    /// Maximum number of events for each client of the full stream (`--stream-rate`).
    pub stream_rate: stream_rate::Config,
    /// Minimum pace at which clients read snapshot responses.
    pub reader_pace: paced_body::Config,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            sync_timeout: Duration::from_secs(10),
            stream_rate: stream_rate::Config::default(),
            reader_pace: paced_body::Config::default(),
        }
    }
}

impl<C: fmt::Debug> fmt::Debug for App<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("content", &self.content).field("guard", &self.guard).finish_non_exhaustive()
    }
}

impl fmt::Debug for ServedRelay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServedRelay").field("history", &self.history).finish_non_exhaustive()
    }
}

impl fmt::Debug for ServedFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServedFeed").field("feed", &self.feed).finish_non_exhaustive()
    }
}
