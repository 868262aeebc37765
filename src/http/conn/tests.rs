//! Connections on loopback sockets, because the design depends on the behavior of hyper and of the kernel.

mod half_close;
mod hijack;
mod limits;
pub(in crate::http) mod tls;
mod waiting;

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1};
use hyper_util::rt::TokioTimer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};

use super::{
    Config, Conn, CountedAddress, HijackedSocket, Metrics, Peer, RejectReason, ReloadingTls, StreamStart,
    connection::ConnContext, hyper_io::HyperIo, serve, waiting::WaitingConns,
};
use crate::tasks::{self, Tasks};

/// Maximum time of each wait in these tests.
const TIMEOUT: Duration = Duration::from_secs(20);

type TestResponse = Response<Full<Bytes>>;

/// Starts a listener whose service calls `respond`. It ends with the runtime of the test.
async fn start_server<F>(config: Config, respond: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static) -> Server
where
    F: Future<Output = TestResponse> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let tasks = Tasks::new(tasks::Config::default());
    let metrics = Metrics::default();
    let service = tower::service_fn(move |request| {
        let response = respond(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let (serving_metrics, serving_tasks) = (metrics.clone(), tasks.clone());
    tasks.spawn("listener", async move {
        Ok::<Infallible, std::io::Error>(serve(listener, service, config, serving_metrics, serving_tasks).await)
    });
    Server { addr, tasks, metrics }
}

struct Server {
    addr: SocketAddr,
    tasks: Tasks,
    metrics: Metrics,
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    /// Waits until at least one connection was accepted and none is open.
    async fn wait_until_idle(&self) {
        let idle = async {
            while self.metrics.accepted() == 0 || self.tasks.connections() > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(TIMEOUT, idle).await.expect("no connection stays open");
    }
}

fn text_response(body: impl Into<Bytes>) -> TestResponse {
    Response::new(Full::new(body.into()))
}

/// Responds to `/stream` with a 101 whose stream sends its read-ahead bytes and four more bytes back and then ends. The
/// response to other paths contains the path.
fn stream_or_text(request: &Request<Incoming>) -> TestResponse {
    if request.uri().path() != "/stream" {
        return text_response(format!("<{}>", request.uri().path()));
    }
    let mut response = text_response("never sent");
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.extensions_mut().insert(StreamStart::new(|mut socket: HijackedSocket| async move {
        socket.conn.write_all(&socket.head).await.unwrap();
        socket.conn.write_all(&socket.read_ahead).await.unwrap();
        let mut late = [0; 4];
        socket.conn.read_exact(&mut late).await.unwrap();
        socket.conn.write_all(&late).await.unwrap();
        socket.conn.shutdown().await.unwrap();
    }));
    response
}

async fn read_all(mut client: TcpStream) -> String {
    let mut received = Vec::new();
    // A reset ends the read as well. The bytes received before it count.
    let _ = timeout(TIMEOUT, client.read_to_end(&mut received)).await.expect("the server closes the connection");
    String::from_utf8(received).unwrap()
}

/// A connection that is closed without a response gives the client no notice of the drain.
#[tokio::test]
async fn connection_accepted_before_drain_gets_one_response() {
    let server = start_server(Config::default(), async |request| stream_or_text(&request)).await;
    let (mut silent, mut idle) = (server.connect().await, server.connect().await);
    idle.write_all(b"GET /one HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut first = Vec::new();
    while !first.ends_with(b"</one>") {
        assert_ne!(timeout(TIMEOUT, idle.read_buf(&mut first)).await.unwrap().unwrap(), 0);
    }
    // The task of the silent connection was polled before, because it connected first.
    server.tasks.stop().cancel();
    assert_eq!(read_all(idle).await, "", "a connection that received a response is closed");
    silent.write_all(b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let response = read_all(silent).await;
    assert!(response.ends_with("</late>"), "{response}");
    server.wait_until_idle().await;
}

/// tower's contract: a service is called only after it was ready.
#[tokio::test]
async fn service_is_called_only_when_it_is_ready() {
    #[derive(Clone)]
    struct NeedsReady(bool);
    impl tower::Service<Request<Incoming>> for NeedsReady {
        type Response = TestResponse;
        type Error = Infallible;
        type Future = std::future::Ready<Result<TestResponse, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            self.0 = true;
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Incoming>) -> Self::Future {
            assert!(self.0, "called before it was ready");
            std::future::ready(Ok(text_response("ready")))
        }
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let tasks = Tasks::new(tasks::Config::default());
    let serving = serve(listener, NeedsReady(false), Config::default(), Metrics::default(), tasks.clone());
    tasks.spawn("listener", async move { Ok::<_, Infallible>(serving.await) });
    let mut client = TcpStream::connect(addr).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    assert!(read_all(client).await.ends_with("ready"));
}

#[tokio::test]
async fn request_extensions_contain_the_peer_address() {
    let server = start_server(Config::default(), async |request| {
        text_response(request.extensions().get::<Peer>().unwrap().address.to_string())
    })
    .await;
    let mut client = server.connect().await;
    let addr = client.local_addr().unwrap().to_string();
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    assert!(read_all(client).await.ends_with(&addr));
}

#[tokio::test]
async fn drain_closes_idle_connections_and_completes_responses() {
    let (release, hold) = tokio::sync::oneshot::channel::<()>();
    let hold = Arc::new(Mutex::new(Some(hold)));
    let (arrived, mut has_arrived) = mpsc::channel(2);
    let server = start_server(Config::default(), move |_| {
        let (hold, arrived) = (hold.lock().unwrap().take(), arrived.clone());
        async move {
            arrived.send(()).await.unwrap();
            if let Some(hold) = hold {
                hold.await.unwrap();
            }
            text_response("done")
        }
    })
    .await;
    let idle = server.connect().await;
    let mut busy = server.connect().await;
    busy.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    has_arrived.recv().await.unwrap();
    server.tasks.stop().cancel();
    assert_eq!(read_all(idle).await, "");
    let mut late = server.connect().await;
    late.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let received = read_all(late).await;
    assert!(received.contains("connection: close") && received.ends_with("done"), "{received}");
    release.send(()).unwrap();
    let received = read_all(busy).await;
    assert!(received.contains("connection: close") && received.ends_with("done"), "{received}");
    server.wait_until_idle().await;
}
