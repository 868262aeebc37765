//! Connections on loopback sockets, because the design depends on the behavior of hyper and of the kernel.

mod half_close;
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

#[tokio::test]
async fn pipelined_gets_are_answered_before_the_upgrade_response() {
    let server = start_server(Config::default(), async |request| stream_or_text(&request)).await;
    let mut client = server.connect().await;
    let mut requests = String::new();
    for i in 0..40 {
        requests += &format!("GET /{i} HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    requests += "GET /stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly";
    client.write_all(requests.as_bytes()).await.unwrap();
    let mut rest = Vec::new();
    let read_until_early_bytes = async {
        while !rest.ends_with(b"\r\n\r\nearly") {
            assert_ne!(client.read_buf(&mut rest).await.unwrap(), 0, "{}", String::from_utf8_lossy(&rest));
        }
    };
    timeout(TIMEOUT, read_until_early_bytes).await.unwrap();
    client.write_all(b"late").await.unwrap();
    let mut received = String::from_utf8(rest).unwrap();
    received += &read_all(client).await;
    let mut rest = received.as_str();
    for i in 0..40 {
        let (head, body) = rest.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        rest = body.strip_prefix(&format!("</{i}>")).unwrap_or_else(|| panic!("response {i} is not complete: {body}"));
    }
    let (head, rest) = rest.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    let date = head.lines().find_map(|line| line.strip_prefix("date: ")).unwrap();
    assert_eq!((date.len(), &date[26..]), (29, "GMT"), "{date}");
    assert!(!head.contains("never sent") && !head.contains("content-length"), "{head}");
    assert_eq!(rest, "earlylate");
    server.wait_until_idle().await;
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

/// hyper reads the next request while the last response is still in its buffer if that response came before the end of
/// its request's body, and if hyper copies its writes into one buffer (as over TLS).
///
/// `Cargo.toml` names hyper's exact version. A change of the version must keep this test.
#[tokio::test]
async fn hijack_waits_until_hyper_has_flushed_earlier_responses() {
    // The capacity of the pipe decides after which part of a response a write blocks. It holds the body at least.
    for capacity in [7, 64, 100, 512, 4096, 8000, 8192, 16 * 1024] {
        let (body, read_ahead) = responses_around_a_hijack(capacity).await;
        let after_body = body
            .strip_prefix(&"x".repeat(8000))
            .unwrap_or_else(|| panic!("pipe of {capacity} bytes: the body is cut after {} bytes", body.len()));
        assert!(after_body.starts_with("HTTP/1.1 101 "), "pipe of {capacity} bytes: {after_body}");
        assert!(read_ahead.starts_with("earl"), "pipe of {capacity} bytes: {read_ahead}");
    }
}

/// Sends a request whose response comes before the end of its body, then a request that starts a stream. Returns what
/// the client reads after the first response head, and the read-ahead bytes that the stream has sent back.
async fn responses_around_a_hijack(capacity: usize) -> (String, String) {
    let tasks = Tasks::new(tasks::Config::default());
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).writev(false);
    let (mut client, server) = tokio::io::duplex(capacity);
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let service = tower::service_fn(move |request: Request<Incoming>| {
        let long = request.uri().path() == "/long";
        let response = if long { text_response("x".repeat(8000)) } else { stream_or_text(&request) };
        // The handler responds before it reads the body: hyper keeps the connection open for the body.
        bodies.lock().unwrap().push(request.into_body());
        async { Ok::<_, Infallible>(response) }
    });
    let peer = Peer { address: (Ipv4Addr::LOCALHOST, 1).into(), tls: false };
    let context = ConnContext {
        http,
        service,
        tasks: tasks.clone(),
        metrics: Metrics::default(),
        handshake_timeout: TIMEOUT,
        write_timeout: TIMEOUT,
        drain_request_grace: Duration::ZERO,
    };
    tasks.connection(context.serve(Conn::Duplex(server), peer, WaitingConns::new(1, 1).connection(None)));
    let (mut read, mut write) = tokio::io::split(&mut client);
    let exchange = async {
        write.write_all(b"POST /long HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n").await.unwrap();
        let mut received = vec![read.read_u8().await.unwrap()];
        let send = write.write_all(b"bodyGET /stream HTTP/1.1\r\nHost: x\r\n\r\nearly");
        let receive = async {
            // The stream sends four bytes back in any case, and those that were read before it started.
            while !received.windows(4).any(|part| part == b"earl") {
                assert_ne!(read.read_buf(&mut received).await.unwrap(), 0, "{}", String::from_utf8_lossy(&received));
            }
        };
        let (sent, ()) = tokio::join!(send, receive);
        sent.unwrap();
        received
    };
    let received = timeout(TIMEOUT, exchange).await;
    let received = received.unwrap_or_else(|_| panic!("no stream over a pipe of {capacity} bytes"));
    let received = String::from_utf8(received).unwrap();
    let (_, body) = received.split_once("\r\n\r\n").unwrap();
    let (_, read_ahead) = body.rsplit_once("\r\n\r\n").unwrap();
    (body.to_owned(), read_ahead.to_owned())
}

#[tokio::test]
async fn hijacked_socket_does_not_retain_hyper_buffers() {
    let (send, mut sockets) = mpsc::channel(1);
    let server = start_server(Config::default(), move |_| {
        let send = send.clone();
        async move {
            let mut response = text_response("");
            response
                .extensions_mut()
                .insert(StreamStart::new(move |socket| async move { send.send(socket).await.unwrap() }));
            response
        }
    })
    .await;
    let mut client = server.connect().await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nabc").await.unwrap();
    let socket = timeout(TIMEOUT, sockets.recv()).await.unwrap().unwrap();
    let read_ahead: Vec<u8> =
        socket.read_ahead.try_into_mut().expect("the stream owns the only reference to the bytes").into();
    assert_eq!((read_ahead.as_slice(), read_ahead.capacity()), (&b"abc"[..], 3));
    let head = String::from_utf8(socket.head.to_vec()).unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("\r\nconnection: close\r\n"), "{head}");
    assert!(!head.contains("transfer-encoding") && head.ends_with("\r\n\r\n"), "{head}");
}

/// The listener does not accept while this test does not wait, so that the kernel queues all connections.
#[tokio::test]
async fn listen_backlog_holds_500_simultaneous_connects() {
    let server = start_server(Config::default(), async |request| stream_or_text(&request)).await;
    let mut first = server.connect().await;
    first.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    read_all(first).await;
    let connect = || std::net::TcpStream::connect_timeout(&server.addr, Duration::from_millis(500));
    let clients: Vec<_> = (0..500).map(|_| connect().expect("the backlog has capacity")).collect();
    let accepted = async {
        while server.metrics.accepted() < 501 {
            tokio::task::yield_now().await;
        }
    };
    timeout(TIMEOUT, accepted).await.expect("all connections are accepted");
    drop(clients);
}

/// hyper or the stream drops the body of a request that starts a stream. An upgrade with a body is rejected before
/// (`upgrade::key`), because its stream would parse the body.
#[tokio::test]
async fn body_of_a_request_does_not_prevent_its_stream() {
    for head in
        ["Content-Length: 9\r\n", "Content-Length: 9\r\nExpect: 100-continue\r\n", "Transfer-Encoding: chunked\r\n"]
    {
        let server = start_server(Config::default(), async |request| stream_or_text(&request)).await;
        let mut client = server.connect().await;
        client.write_all(format!("GET /stream HTTP/1.1\r\nHost: x\r\n{head}\r\n").as_bytes()).await.unwrap();
        client.write_all(b"4\r\nbody\r\n0\r\n\r\n").await.unwrap();
        let mut received = Vec::new();
        while !received.ends_with(b"late") {
            client.write_all(b"late").await.unwrap();
            assert_ne!(timeout(TIMEOUT, client.read_buf(&mut received)).await.unwrap().unwrap_or(0), 0, "{received:?}");
        }
        assert!(received.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&received));
        drop(client);
        server.wait_until_idle().await;
    }
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
async fn pipelining_client_that_does_not_read_is_closed_after_write_timeout() {
    let config = Config { write_timeout: Duration::from_millis(300), ..Config::default() };
    let responses = Arc::new(Mutex::new(0_usize));
    let count = responses.clone();
    let body = Bytes::from(vec![b'x'; 64 * 1024]);
    let server = start_server(config, move |request: Request<Incoming>| {
        if request.uri().path() != "/stream" {
            *count.lock().unwrap() += 1;
        }
        let body = body.clone();
        async move { if request.uri().path() == "/stream" { stream_or_text(&request) } else { text_response(body) } }
    })
    .await;
    let mut client = server.connect().await;
    let mut requests = "GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(4000);
    requests += "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n";
    // The server stops reading as well, so that the requests do not all fit into the kernel's buffers.
    let _ = timeout(TIMEOUT, client.write_all(requests.as_bytes()))
        .await
        .expect("the server reads or closes the connection");
    server.wait_until_idle().await;
    // The server produces only what the socket buffers hold, and not the 256 MiB that were requested.
    let produced = *responses.lock().unwrap();
    assert!((1..1000).contains(&produced), "{produced} responses of 64 KiB for a client that reads none");
}

#[tokio::test]
async fn blocked_response_is_reset_after_write_timeout() {
    let config = Config { write_timeout: Duration::from_millis(300), ..Config::default() };
    let body = Bytes::from(vec![b'x'; 64 << 20]);
    let server = start_server(config, move |_| {
        let body = body.clone();
        async move { text_response(body) }
    })
    .await;
    let mut client = server.connect().await;
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    client.readable().await.unwrap();
    server.wait_until_idle().await;
    let mut received = Vec::new();
    let err = timeout(TIMEOUT, client.read_to_end(&mut received)).await.unwrap().unwrap_err();
    assert_eq!(err.kind(), std::io::ErrorKind::ConnectionReset, "the connection is reset");
}

#[tokio::test]
async fn request_head_over_time_or_size_limit_is_rejected() {
    let config = Config { header_read_timeout: Duration::from_millis(200), ..Config::default() };
    let server = start_server(config, async |_| text_response("")).await;
    let mut slow = server.connect().await;
    slow.write_all(b"GET / HTTP/1.1\r\nHost").await.unwrap();
    let idle = server.connect().await;
    for client in [slow, idle] {
        let received = read_all(client).await;
        assert!(received.is_empty() || received.starts_with("HTTP/1.1 408 "), "{received}");
    }
    let mut big = server.connect().await;
    let head = format!("GET / HTTP/1.1\r\nHost: x\r\nCookie: {}", "c".repeat(16 * 1024));
    big.write_all(&head.as_bytes()[..16 * 1024]).await.unwrap();
    let received = read_all(big).await;
    assert!(received.starts_with("HTTP/1.1 431 ") && received.ends_with("\r\n\r\n"), "{received}");
    server.wait_until_idle().await;
}

/// Connections with a running request are not closed for others.
#[tokio::test]
async fn connections_over_the_limit_are_closed_and_counted() {
    let (release, hold) = tokio::sync::watch::channel(false);
    let config = Config { max_connections: 2, ..Config::default() };
    let server = start_server(config, move |_| {
        let mut hold = hold.clone();
        async move {
            hold.wait_for(|release| *release).await.unwrap();
            text_response("hello")
        }
    })
    .await;
    let mut running = Vec::new();
    for _ in 0..2 {
        let mut client = server.connect().await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        running.push(client);
    }
    assert_eq!(read_all(server.connect().await).await, "");
    assert_eq!((server.metrics.accepted(), server.metrics.rejected(RejectReason::Limit)), (3, 1));
    release.send(true).unwrap();
    for client in running {
        assert!(read_all(client).await.ends_with("hello"));
    }
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
