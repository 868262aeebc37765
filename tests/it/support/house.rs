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
    self as site, Connection, Site,
    auth::{self, Auth, Known},
    browser_guard::Allowed,
    conn,
    forwarded::Proxies,
    rate_limit::{self, Limits},
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

use super::{dice::Dice, web::BOUND};

/// Pieces of an answer that may be on their way at a time.
const PIECES: usize = 4096;

/// A bridge that ends with the test's runtime.
pub(crate) struct House {
    pub(crate) address: SocketAddr,
}

/// What a test may want to be otherwise.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    pub(crate) hub: hub::Config,
    pub(crate) own: dedicated::Config,
    pub(crate) feed: feed::Config,
    pub(crate) stream: stream::Config,
    /// A keys file: without one, everybody may read.
    pub(crate) keys: Option<PathBuf>,
    pub(crate) limits: rate_limit::Config,
    pub(crate) proxies: Proxies,
}

/// How late answers are: from and to how many milliseconds, drawn anew for each piece of a body.
#[derive(Clone)]
pub(crate) struct Late(Arc<Mutex<(Dice, RangeInclusive<u64>)>>);

/// Lists that have been asked for.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    running: AtomicU64,
    most: AtomicU64,
    all: AtomicU64,
}

impl House {
    /// Ready: the hub watches this namespace through one client, the sockets' own watchers through another.
    pub(crate) async fn open(namespace: &str, hub_client: Client, own_client: &Client, config: Config) -> House {
        let (writer, feed) = Feed::new(config.feed);
        let tasks = Tasks::new(tasks::Config::default());
        let watchers =
            dedicated::Watchers::new(own_client, namespace, feed.clone(), config.own, dedicated::Metrics::default());
        let hub_config = hub::Config { namespace: namespace.into(), ..config.hub };
        let hub = hub::run(hub_client, hub_config, writer, Arc::default());
        tasks.spawn("hub", async move { Ok::<_, Infallible>(hub.await) });
        let (mut registry, metrics) = (Registry::with_prefix("bridge"), stream::Metrics::default());
        feed.metrics().register(&mut registry);
        metrics.register(&mut registry);
        let site = Site {
            feed: feed.clone(),
            own: Box::new(move || watchers.open().map(|(feed, run)| (feed, run.boxed()))),
            streams: stream::Streams::new(config.stream, metrics, tasks.stop().clone()),
            connection: Connection { name: "test".into(), namespace: namespace.into() },
            registry,
            allowed: Allowed::default(),
            auth: known(Known { file: config.keys, ..Known::default() }),
            limits: Limits::new(&config.limits),
            proxies: config.proxies,
            verbose: Box::new(Vec::new),
            config: site::Config::default(),
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = site::service(Arc::new(site));
        let accept = conn::serve(listener, service, conn::Config::default(), conn::Metrics::default(), tasks.clone());
        tasks.spawn("listener", async move { Ok::<_, Infallible>(accept.await) });
        timeout(BOUND, feed.ready()).await.expect("the hub is not ready");
        House { address }
    }
}

/// Lets everybody in.
pub(crate) fn anybody() -> Arc<Auth> {
    known(Known::default())
}

fn known(known: Known) -> Arc<Auth> {
    Auth::new(auth::Config::default(), known, auth::Metrics::default()).unwrap().into()
}

impl Late {
    pub(crate) fn new(ms: RangeInclusive<u64>) -> Late {
        Late(Arc::new(Mutex::new((Dice(ms.end() + 1), ms))))
    }

    /// From now on.
    pub(crate) fn set(&self, ms: RangeInclusive<u64>) {
        self.0.lock().unwrap().1 = ms;
    }

    fn draw(&self) -> Duration {
        let (dice, ms) = &mut *self.0.lock().unwrap();
        Duration::from_millis(ms.start() + dice.roll(ms.end() - ms.start() + 1))
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
                        let due = Instant::now() + late.draw();
                        sleep_until(due).map(move |()| piece.map(Frame::data))
                    });
                    StreamBody::new(pieces.buffered(PIECES))
                }))
            }
        });
        Client::new(service, namespace)
    }
}

impl Lists {
    /// How many there have been.
    pub(crate) fn all(&self) -> u64 {
        self.all.load(SeqCst)
    }

    /// How many there have been at most at a time, each from its request to the end of its answer.
    pub(crate) fn most(&self) -> u64 {
        self.most.load(SeqCst)
    }

    /// A client whose lists are counted.
    pub(crate) fn client(self: &Arc<Self>, client: Client) -> Client {
        let (lists, namespace) = (self.clone(), client.default_namespace().to_owned());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (client, lists) = (client.clone(), lists.clone());
            async move {
                let running = is_list(&request).then(|| Running::new(lists));
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
struct Running(Arc<Lists>);

impl Running {
    fn new(lists: Arc<Lists>) -> Running {
        lists.all.fetch_add(1, SeqCst);
        let running = lists.running.fetch_add(1, SeqCst) + 1;
        lists.most.fetch_max(running, SeqCst);
        Running(lists)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
    }
}
