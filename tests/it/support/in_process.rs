//! The bridge put together in this process, for tests that have to stand between it and its API server.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::feed::{self, Feed};
use boilerhouse_bridge::http::{
    self as site, App, ConnectionInfo,
    auth::{self, Authenticator, CredentialSources},
    browser_guard::GuardConfig,
    conn,
    forwarded::TrustedProxies,
    rate_limit::{self, RateLimits},
    stream,
};
use boilerhouse_bridge::source::{dedicated, hub};
use boilerhouse_bridge::tasks::{self, Tasks};
use futures::{FutureExt, StreamExt, stream as streams};
use http::Request;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use kube::{Client, client::Body};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep_until, timeout};

use super::{http_client::TEST_TIMEOUT, rng::SeededRng};

/// Pieces of an answer that may be on their way at a time.
const MAX_PENDING_CHUNKS: usize = 4096;

/// A bridge that ends with the test's runtime.
pub(crate) struct InProcessBridge {
    pub(crate) address: SocketAddr,
}

/// What a test may want to be otherwise.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    pub(crate) hub: hub::Config,
    pub(crate) dedicated: dedicated::Config,
    pub(crate) feed: feed::Config,
    pub(crate) stream: stream::Config,
    /// A keys file: without one, everybody may read.
    pub(crate) keys: Option<PathBuf>,
    pub(crate) limits: rate_limit::Config,
    pub(crate) proxies: TrustedProxies,
}

/// How late answers are: from and to how many milliseconds, drawn anew for each piece of a body.
#[derive(Clone)]
pub(crate) struct DelayedClient(Arc<Mutex<(SeededRng, RangeInclusive<u64>)>>);

/// Lists that have been asked for.
#[derive(Debug, Default)]
pub(crate) struct ListCounter {
    running: AtomicU64,
    max_concurrent: AtomicU64,
    total: AtomicU64,
}

impl InProcessBridge {
    /// Ready: the hub watches this namespace through one client, the sockets' own watchers through another.
    pub(crate) async fn start(
        namespace: &str,
        hub_client: Client,
        own_client: &Client,
        config: Config,
    ) -> InProcessBridge {
        let (writer, feed) = Feed::new(config.feed);
        let tasks = Tasks::new(tasks::Config::default());
        let watchers = dedicated::DedicatedWatchers::new(
            own_client,
            namespace,
            feed.clone(),
            config.dedicated,
            dedicated::Metrics::default(),
        );
        let hub_config = hub::Config { namespace: namespace.into(), ..config.hub };
        let hub = hub::run(hub_client, hub_config, writer, Arc::default());
        tasks.spawn("hub", async move { Ok::<_, Infallible>(hub.await) });
        let (mut registry, metrics) = (Registry::with_prefix("bridge"), stream::Metrics::default());
        feed.register_metrics(&mut registry);
        metrics.register(&mut registry);
        let site = App {
            feed: feed.clone(),
            dedicated_feeds: Box::new(move || watchers.try_open().map(|(feed, run)| (feed, run.boxed()))),
            streams: stream::StreamContext::new(config.stream, metrics, tasks.stop().clone()),
            connection: ConnectionInfo { name: "test".into(), namespace: namespace.into() },
            registry,
            metrics: site::Metrics::default(),
            guard: GuardConfig::default(),
            auth: auth_with(CredentialSources { file: config.keys, ..CredentialSources::default() }),
            rate_limits: RateLimits::new(&config.limits),
            trusted_proxies: config.proxies,
            readiness_details: Box::new(Vec::new),
            config: site::Config::default(),
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = site::service(Arc::new(site));
        let accept = conn::serve(listener, service, conn::Config::default(), conn::Metrics::default(), tasks.clone());
        tasks.spawn("listener", async move { Ok::<_, Infallible>(accept.await) });
        timeout(TEST_TIMEOUT, feed.wait_synced()).await.expect("the hub is not ready");
        InProcessBridge { address }
    }
}

/// Lets everybody in.
pub(crate) fn anonymous_auth() -> Arc<Authenticator> {
    auth_with(CredentialSources::default())
}

fn auth_with(known: CredentialSources) -> Arc<Authenticator> {
    Authenticator::new(auth::Config::default(), known, auth::Metrics::default()).unwrap().into()
}

impl DelayedClient {
    pub(crate) fn new(ms: RangeInclusive<u64>) -> DelayedClient {
        DelayedClient(Arc::new(Mutex::new((SeededRng(ms.end() + 1), ms))))
    }

    /// From now on.
    pub(crate) fn set(&self, ms: RangeInclusive<u64>) {
        self.0.lock().unwrap().1 = ms;
    }

    fn next_delay(&self) -> Duration {
        let (rng, ms) = &mut *self.0.lock().unwrap();
        Duration::from_millis(ms.start() + rng.below(ms.end() - ms.start() + 1))
    }

    /// A client whose answers come late, in order, and not the later the more there are of them.
    pub(crate) fn client(&self, client: Client) -> Client {
        let (late, namespace) = (self.clone(), client.default_namespace().to_owned());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (client, late) = (client.clone(), late.clone());
            async move {
                let response = client.send(request).await?;
                Ok::<_, kube::Error>(response.map(|body| {
                    let pieces = body.into_data_stream().map(move |piece| {
                        let due = Instant::now() + late.next_delay();
                        sleep_until(due).map(move |()| piece.map(Frame::data))
                    });
                    StreamBody::new(pieces.buffered(MAX_PENDING_CHUNKS))
                }))
            }
        });
        Client::new(service, namespace)
    }
}

impl ListCounter {
    /// How many there have been.
    pub(crate) fn total(&self) -> u64 {
        self.total.load(SeqCst)
    }

    /// How many there have been at most at a time, each from its request to the end of its answer.
    pub(crate) fn max_concurrent(&self) -> u64 {
        self.max_concurrent.load(SeqCst)
    }

    /// A client whose lists are counted.
    pub(crate) fn client(self: &Arc<Self>, client: Client) -> Client {
        let (lists, namespace) = (self.clone(), client.default_namespace().to_owned());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (client, lists) = (client.clone(), lists.clone());
            async move {
                let running = is_list(&request).then(|| RunningList::new(lists));
                let response = client.send(request).await?;
                Ok::<_, kube::Error>(response.map(|body| {
                    // Over before whoever reads it can know: the next one may follow at once.
                    let mut running = running;
                    let end = streams::poll_fn(move |_| {
                        drop(running.take());
                        std::task::Poll::Ready(None)
                    });
                    let pieces = body.into_data_stream().map(|piece| piece.map(Frame::data));
                    StreamBody::new(pieces.chain(end))
                }))
            }
        });
        Client::new(service, namespace)
    }
}

fn is_list(request: &Request<Body>) -> bool {
    !request.uri().query().is_some_and(|query| query.contains("watch=true"))
}

/// A list that is under way.
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
