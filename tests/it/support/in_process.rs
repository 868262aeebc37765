//! A bridge in the process of the test, for tests that intercept its requests to the API server: delays, holds, counts.
//!
//! Guarantees: the bridge ends with the runtime of the test.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::feed::{self, Feed};
use boilerhouse_bridge::http::{
    self as site, App, ConnectionInfo, Ingest, ServedFeed,
    auth::{self, Authenticator, CredentialSources},
    browser_guard::{GuardConfig, RefusedOrigins},
    conn,
    filter_limit::{self, FilterLimit},
    forwarded::TrustedProxies,
    rate_limit::{self, RateLimits},
    response_budget::{self, ResponseBudget},
    stream,
};
use boilerhouse_bridge::source::{dedicated, hub};
use boilerhouse_bridge::tasks::{self, Tasks};
use boilerhouse_bridge::test_support::SeededRng;
use boilerhouse_bridge::traces::Tracer;
use futures::{FutureExt, StreamExt, stream as streams};
use http::Request;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use kube::{Client, client::Body};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::http_client::TEST_TIMEOUT;

/// Maximum number of chunks of one response that are delayed at once.
const MAX_PENDING_CHUNKS: usize = 4096;

/// A bridge that serves on loopback.
pub(crate) struct InProcessBridge {
    pub(crate) address: SocketAddr,
}

/// Settings that a test can change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    pub(crate) hub: hub::Config,
    pub(crate) dedicated: dedicated::Config,
    pub(crate) feed: feed::Config,
    pub(crate) stream: stream::Config,
    /// Path of a keys file. Without one, anonymous callers may read everything.
    pub(crate) keys: Option<PathBuf>,
    pub(crate) limits: rate_limit::Config,
    pub(crate) proxies: TrustedProxies,
}

/// Delays responses. Each chunk of a body has a random delay of its own, and chunks can be held until they are released.
#[derive(Clone)]
pub(crate) struct DelayedClient {
    rng: Arc<Mutex<SeededRng>>,
    delay_ms: RangeInclusive<u64>,
    held: watch::Sender<bool>,
}

/// Counts list requests.
#[derive(Debug, Default)]
pub(crate) struct ListCounter {
    running: AtomicU64,
    max_concurrent: AtomicU64,
    total: AtomicU64,
}

impl InProcessBridge {
    /// Starts a bridge and waits until it is ready. The hub watches this namespace through one client, and the dedicated
    /// watchers through the other.
    pub(crate) async fn start(
        namespace: &str,
        hub_client: Client,
        dedicated_client: &Client,
        config: Config,
    ) -> InProcessBridge {
        let (writer, feed) = Feed::new(config.feed);
        let tasks = Tasks::new(tasks::Config::default());
        let (hub_metrics, dedicated_metrics) = (Arc::new(hub::Metrics::default()), dedicated::Metrics::default());
        let (mut registry, metrics) = (Registry::with_prefix("bridge"), stream::Metrics::default());
        hub_metrics.register(&mut registry);
        dedicated_metrics.register(&mut registry);
        let watchers = dedicated::DedicatedWatchers::new(
            dedicated_client,
            namespace,
            feed.clone(),
            config.dedicated,
            dedicated_metrics,
        );
        let hub_config = hub::Config { namespace: namespace.into(), ..config.hub };
        let hub = hub::run(hub_client, hub_config, writer, hub_metrics);
        tasks.spawn("hub", async move { Ok::<_, Infallible>(hub.await) });
        let rate_limits = RateLimits::new(&config.limits);
        rate_limits.register(&mut registry);
        feed.register_metrics(&mut registry);
        metrics.register(&mut registry);
        let content = ServedFeed {
            feed: feed.clone(),
            dedicated_feeds: Box::new(move || watchers.try_open().map(|(feed, run)| (feed, run.boxed()))),
            connection: ConnectionInfo { name: "test".into(), namespace: namespace.into() },
            filters: FilterLimit::new(filter_limit::DEFAULT_MAX),
            ingest: Ingest::new(Arc::new(feed.clone()), Arc::default()),
            responses: ResponseBudget::new(response_budget::Config::default()),
            readiness_details: Box::new(Vec::new),
            config: site::Config::default(),
        };
        let app = App {
            content,
            streams: stream::StreamContext::new(config.stream, metrics, tasks.stop().clone()),
            registry,
            metrics: site::Metrics::default(),
            guard: GuardConfig::default(),
            refused_origins: RefusedOrigins::default(),
            auth: auth_with(CredentialSources { file: config.keys, ..CredentialSources::default() }),
            rate_limits,
            trusted_proxies: config.proxies,
            tracer: Tracer::default(),
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = site::service(Arc::new(app), site::Listener::Main);
        let accept = conn::serve(listener, service, conn::Config::default(), conn::Metrics::default(), tasks.clone());
        tasks.spawn("listener", async move { Ok::<_, Infallible>(accept.await) });
        timeout(TEST_TIMEOUT, feed.wait_synced()).await.expect("the hub is not ready");
        InProcessBridge { address }
    }
}

/// Returns an authenticator that accepts anonymous callers.
pub(crate) fn anonymous_auth() -> Arc<Authenticator> {
    auth_with(CredentialSources::default())
}

fn auth_with(sources: CredentialSources) -> Arc<Authenticator> {
    Authenticator::new(auth::Config::default(), sources, auth::Metrics::default()).unwrap().into()
}

impl DelayedClient {
    /// Creates it with this range of delays in milliseconds.
    pub(crate) fn new(delay_ms: RangeInclusive<u64>) -> DelayedClient {
        let rng = Arc::new(Mutex::new(SeededRng(delay_ms.end() + 1)));
        DelayedClient { rng, delay_ms, held: watch::Sender::new(false) }
    }

    /// Holds all chunks that are not delivered yet until [`DelayedClient::release`].
    pub(crate) fn hold(&self) {
        self.held.send_replace(true);
    }

    /// Delivers the held chunks, and later ones after their delay only.
    pub(crate) fn release(&self) {
        self.held.send_replace(false);
    }

    fn next_delay(&self) -> Duration {
        let (start, end) = (*self.delay_ms.start(), *self.delay_ms.end());
        Duration::from_millis(start + self.rng.lock().unwrap().below(end - start + 1))
    }

    /// Returns a client whose response bodies are delayed. Chunks stay in order, and their delays do not add up.
    pub(crate) fn client(&self, client: Client) -> Client {
        let (delayed, namespace) = (self.clone(), client.default_namespace().to_owned());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (client, delayed) = (client.clone(), delayed.clone());
            async move {
                let response = client.send(request).await?;
                Ok::<_, kube::Error>(response.map(|body| {
                    let chunks = body.into_data_stream().map(move |chunk| {
                        let (due, mut held) = (Instant::now() + delayed.next_delay(), delayed.held.subscribe());
                        async move {
                            sleep_until(due).await;
                            // An error means that the test has ended.
                            let _ = held.wait_for(|held| !held).await;
                            chunk.map(Frame::data)
                        }
                    });
                    StreamBody::new(chunks.buffered(MAX_PENDING_CHUNKS))
                }))
            }
        });
        Client::new(service, namespace)
    }
}

impl ListCounter {
    /// Returns the number of lists so far.
    pub(crate) fn total(&self) -> u64 {
        self.total.load(SeqCst)
    }

    /// Returns the maximum number of concurrent lists so far. A list runs from its request to the end of its response.
    pub(crate) fn max_concurrent(&self) -> u64 {
        self.max_concurrent.load(SeqCst)
    }

    /// Returns a client whose lists are counted.
    pub(crate) fn client(self: &Arc<Self>, client: Client) -> Client {
        let (lists, namespace) = (self.clone(), client.default_namespace().to_owned());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (client, lists) = (client.clone(), lists.clone());
            async move {
                let running = is_list(&request).then(|| RunningList::new(lists));
                let response = client.send(request).await?;
                Ok::<_, kube::Error>(response.map(|body| {
                    // The count decreases before the reader sees the end of the body, because it may send the next list
                    // at once.
                    let mut running = running;
                    let end = streams::poll_fn(move |_| {
                        drop(running.take());
                        std::task::Poll::Ready(None)
                    });
                    let chunks = body.into_data_stream().map(|chunk| chunk.map(Frame::data));
                    StreamBody::new(chunks.chain(end))
                }))
            }
        });
        Client::new(service, namespace)
    }
}

fn is_list(request: &Request<Body>) -> bool {
    !request.uri().query().is_some_and(|query| query.contains("watch=true"))
}

/// A running list. Dropping it ends the list.
struct RunningList(Arc<ListCounter>);

impl RunningList {
    fn new(lists: Arc<ListCounter>) -> RunningList {
        lists.total.fetch_add(1, SeqCst);
        let running = lists.running.fetch_add(1, SeqCst) + 1;
        lists.max_concurrent.fetch_max(running, SeqCst);
        RunningList(lists)
    }
}

impl Drop for RunningList {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
    }
}
