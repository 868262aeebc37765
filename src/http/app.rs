//! The shared state of all endpoints.
//!
//! Owns: the feed handle, the authenticator, the limits and the metrics of one server.

use std::{convert::Infallible, fmt, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use prometheus_client::registry::Registry;

use super::{auth, browser_guard, forwarded, rate_limit, stream, stream_rate};
use crate::feed::Feed;

/// What the routes need.
pub struct App {
    /// Where the facts are read.
    pub feed: Feed,
    /// Gives a `/ws` connection watchers of its own.
    pub dedicated_feeds: DedicatedFeedFactory,
    /// What is watched, as people call it.
    pub connection: ConnectionInfo,
    /// What all streams share.
    pub streams: Arc<stream::StreamContext>,
    /// What `/metrics` shows.
    pub registry: Registry,
    /// Hosts and origins beyond the safe ones.
    pub guard: browser_guard::GuardConfig,
    /// Who asks. Its loop is run by whoever makes this.
    pub auth: Arc<auth::Authenticator>,
    /// How much of it.
    pub rate_limits: rate_limit::RateLimits,
    /// Whose word is taken for where a request came from.
    pub trusted_proxies: forwarded::TrustedProxies,
    /// Lines for `/readyz?verbose` that only others can know.
    pub readiness_details: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// Waits and limits.
    pub config: Config,
}

/// The names of what a bridge watches, as `/api/v1/connections` shows them.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// The kubeconfig's context, or `in-cluster`, or `demo`.
    pub name: String,
    /// The namespace.
    pub namespace: String,
}

/// A feed for one connection, and the future that fills it for as long as it is polled; `None` when the connection is to
/// read the feed that all share. A function value, so that nothing here knows where facts come from.
pub type DedicatedFeedFactory = Box<dyn Fn() -> Option<(Feed, BoxFuture<'static, Infallible>)> + Send + Sync>;

/// Waits and limits of the routes.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How long a WebSocket upgrade waits for the first lists (docs/protocol.md#boilerhouse-stream: 10 s).
    pub sync_timeout: Duration,
    /// How many events a client of the full stream gets.
    pub stream_rate: stream_rate::Config,
}

impl Default for Config {
    fn default() -> Self {
        Config { sync_timeout: Duration::from_secs(10), stream_rate: stream_rate::Config::default() }
    }
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("feed", &self.feed).field("guard", &self.guard).finish_non_exhaustive()
    }
}
