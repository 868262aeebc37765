//! Hostile and faulty clients: they must not affect other clients (G11, docs/guarantees.md#guarantees).

mod half_heads;
mod idle_connections;
mod tiny_frames;

use std::{net::SocketAddr, time::Duration};

use futures::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::support::{
    self,
    bridge_process::BridgeProcess,
    http_client::{self, TEST_TIMEOUT, WsClient},
    proc_net_tcp,
    sim_cluster::SimCluster,
};

/// Number of healthy clients.
const HEALTHY: usize = 100;
/// Maximum memory for one client that stops reading, in the kernel and in the process together.
const STALLED_BYTES: u64 = 64 * 1024;
/// Maximum bytes in the receive buffer of a connection that the bridge does not read: twice the default of the kernel.
/// The buffer grows only while the application reads.
const RECEIVE_BUFFER: u64 = 256 * 1024;
/// A stream whose client reads nothing for this time is closed (docs/protocol.md#boilerhouse-stream).
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// A cluster with one Pod that changes, a bridge that watches it, and healthy clients that receive every change.
struct Fixture {
    cluster: SimCluster,
    bridge: BridgeProcess,
    healthy: Vec<JoinHandle<usize>>,
    step: usize,
}

impl Fixture {
    async fn new(args: &[&str]) -> Fixture {
        let cluster = SimCluster::new().await;
        // Few dedicated watchers, because the simulator runs in the thread of the test.
        let bridge = cluster.bridge(&[&["--dedicated-watchers", "10"], args].concat()).await;
        cluster.create_pod("pod");
        // A stream that opens after the hub has received the Pod starts after the first event.
        let listed = timeout(TEST_TIMEOUT, async {
            while !http_client::get(bridge.address, "/api/v1/instances").await.body.contains(r#""name":"pod""#) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        listed.await.expect("GET does not list the Pod");
        let mut healthy = Vec::new();
        for _ in 0..HEALTHY {
            healthy.push(tokio::spawn(reads_every_change(bridge.listen("/ws?snapshot=none").await)));
        }
        Fixture { cluster, bridge, healthy, step: 0 }
    }

    /// Changes the Pod this often.
    async fn change(&mut self, times: usize) {
        for _ in 0..times {
            self.cluster.pod_phase("pod", &phase(self.step));
            self.step += 1;
            // The simulator and the healthy clients run in the same thread.
            tokio::task::yield_now().await;
        }
    }

    /// Makes the last change, and asserts that every healthy client received each change once, in order, and nothing
    /// else.
    async fn finish(mut self) -> BridgeProcess {
        self.cluster.pod_phase("pod", LAST);
        for healthy in &mut self.healthy {
            assert_eq!(
                timeout(TEST_TIMEOUT, healthy).await.expect("a healthy client has not received all changes").unwrap(),
                self.step
            );
        }
        assert_eq!(http_client::metric(self.bridge.address, "bridge_http_connection_panics_total").await, 0);
        self.bridge
    }

    async fn slow_consumers(&self) -> u64 {
        let labels = [r#"transport="websocket""#, r#"reason="slow_consumer""#];
        http_client::metric_sum(self.bridge.address, "bridge_streams_closed_total", &labels).await
    }
}

const LAST: &str = "Last";

/// Returns a phase of 400 bytes, so that a few hundred changes fill all buffers.
fn phase(step: usize) -> String {
    format!("{step:0>400}")
}

fn event(phase: &str) -> String {
    format!(r#"{{"type":"instance.state","name":"pod","phase":"{phase}","workloadRef":"web"}}"#)
}

/// Reads up to the last change, and returns the number of changes before it.
async fn reads_every_change(mut client: WsClient) -> usize {
    for step in 0.. {
        let text = client.text().await;
        if text == event(LAST) {
            return step;
        }
        assert_eq!(text, event(&phase(step)));
    }
    unreachable!("the loop ends by a return")
}

/// Writes requests until the server closes the connection, without reading a response. Returns the time of the end.
async fn pipeline_without_reading(mut stream: TcpStream, request: String) -> Instant {
    let requests = request.repeat(100);
    while stream.write_all(requests.as_bytes()).await.is_ok() {}
    Instant::now()
}

#[tokio::test]
async fn stalled_reader_is_closed_after_10_s_without_affecting_others() {
    const STALLED: usize = 200;
    const PIPELINING: usize = 20;
    let full = support::long_form();
    let mut fixture = Fixture::new(&[]).await;
    let address = fixture.bridge.address;
    let pings = tokio::spawn(check_pings(address, full));
    // The log and the allocator grow once, independent of the number of clients.
    fixture.change(2000).await;
    let before = fixture.bridge.memory();
    let started = Instant::now();
    // This GET never waits. A GET of the state waits until the hub has reached the delivered watermark. On a busy
    // machine it would be 503 after 1 s, and too few responses would arrive to fill the buffers.
    let get = format!("GET /api/v1/health HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let (mut pipelining, mut pipelining_ports) = (Vec::new(), Vec::new());
    for _ in 0..PIPELINING {
        let stream = http_client::small_buffer_socket(address, "").await;
        pipelining_ports.push(port(&stream));
        pipelining.push(tokio::spawn(pipeline_without_reading(stream, get.clone())));
    }
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        stalled
            .push(http_client::small_buffer_socket(address, &http_client::upgrade(address, "/ws?snapshot=none")).await);
    }
    let ports: Vec<u16> = stalled.iter().map(port).collect();

    let (mut max_requests, mut max_responses) = (0, 0);
    let (mut kernel, mut max_of_one, mut memory) = (0, 0, before);
    let mut bursts = 20;
    while fixture.slow_consumers().await < STALLED as u64 {
        assert!(
            started.elapsed() < WRITE_TIMEOUT + TEST_TIMEOUT,
            "only {} streams are closed",
            fixture.slow_consumers().await
        );
        assert!(fixture.slow_consumers().await == 0 || started.elapsed() >= WRITE_TIMEOUT, "a stream closed too early");
        // The first 1000 changes exceed all buffers. Later changes come one at a time.
        fixture.change(if bursts > 0 { 50 } else { 1 }).await;
        bursts -= i32::from(bursts > 0);
        let table = proc_net_tcp::queues_by_client_port(address);
        let queued: Vec<u64> = ports.iter().filter_map(|port| table.get(port)).map(|queues| queues.sent).collect();
        max_of_one = max_of_one.max(queued.iter().copied().max().unwrap_or(0));
        kernel = kernel.max(queued.iter().sum());
        for queues in pipelining_ports.iter().filter_map(|port| table.get(port)) {
            (max_requests, max_responses) = (max_requests.max(queues.received), max_responses.max(queues.sent));
        }
        memory = memory.max(fixture.bridge.memory());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let process = memory - before;
    let ended = started.elapsed();
    println!(
        "{STALLED} stalled: kernel {kernel} bytes, at most {max_of_one} each; process {process}; closed at {ended:?}"
    );
    println!(
        "{PIPELINING} pipelining: at most {max_requests} bytes of requests and {max_responses} of responses queued"
    );
    assert!(max_responses > 0 && max_responses <= STALLED_BYTES, "{max_responses} bytes of responses are queued");
    assert!(max_requests <= RECEIVE_BUFFER, "{max_requests} bytes of requests are queued");
    assert!(kernel > 0 && max_of_one <= STALLED_BYTES, "the kernel holds {max_of_one} bytes for one client");
    let limit = (STALLED + PIPELINING) as u64 * STALLED_BYTES;
    assert!(kernel + process <= limit, "kernel {kernel} + process {process} bytes, at most {limit} expected");
    for end in join_all(pipelining).await {
        let elapsed = end.unwrap() - started;
        assert!(
            elapsed >= WRITE_TIMEOUT && elapsed < WRITE_TIMEOUT + TEST_TIMEOUT,
            "a pipelining client was closed after {elapsed:?}"
        );
    }
    pings.await.unwrap();
    fixture.finish().await;
}

fn port(stream: &TcpStream) -> u16 {
    stream.local_addr().unwrap().port()
}

/// Asserts that a silent client gets a ping after 15 s and, in the long form, a close frame after 45 s.
async fn check_pings(address: SocketAddr, full: bool) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let started = Instant::now();
    stream.write_all(http_client::upgrade(address, "/ws?types=tenant").as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let mut ping = [0; 2];
    let bound = Duration::from_secs(15) + TEST_TIMEOUT;
    timeout(bound, stream.read_exact(&mut ping)).await.expect("no ping").unwrap();
    assert_eq!(ping, *b"\x89\x00");
    assert!(started.elapsed() >= Duration::from_secs(15), "ping after {:?}", started.elapsed());
    if full {
        let mut rest = Vec::new();
        timeout(bound, stream.read_to_end(&mut rest)).await.expect("the stream of a silent client is open").unwrap();
        assert_eq!(rest, b"\x89\x00\x88\x06\x03\xf5idle");
        assert!(started.elapsed() >= Duration::from_secs(45), "closed after {:?}", started.elapsed());
    }
}

/// Reads a response head byte by byte, so that no byte after it is consumed.
async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(TEST_TIMEOUT, stream.read_u8()).await.expect("no head").unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn stream_over_the_limit_is_rejected_and_others_continue() {
    let mut fixture = Fixture::new(&["--max-connections", "110"]).await;
    let address = fixture.bridge.address;
    let wait_for_connections = async |count: usize| {
        let reached = timeout(TEST_TIMEOUT, async {
            while proc_net_tcp::queues_by_client_port(address).len() != count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(
            reached.await.is_ok(),
            "{} connections, expected {count}",
            proc_net_tcp::queues_by_client_port(address).len()
        );
    };
    // The connection of the last GET can still be open.
    wait_for_connections(HEALTHY).await;
    let mut held = Vec::new();
    for _ in HEALTHY..110 {
        held.push(fixture.bridge.listen("/ws").await);
    }
    for _ in 0..20 {
        let response = http_client::send_raw(address, http_client::upgrade(address, "/ws").as_bytes()).await;
        let response = http_client::parse(&String::from_utf8(response).unwrap());
        assert_eq!((response.status, &response.json()["code"]), (503, &"TOO_MANY_CONNECTIONS".into()));
    }
    fixture.change(50).await;
    drop(held);
    wait_for_connections(HEALTHY).await;
    let rejected = http_client::metric_sum(address, "bridge_streams_rejected_total", &[r#"reason="max_streams""#]);
    assert_eq!(rejected.await, 20);
    let mut late = fixture.bridge.listen("/ws").await;
    late.text().await;
    fixture.finish().await;
}

#[tokio::test]
async fn client_messages_over_64_kib_are_rejected() {
    use tokio_tungstenite::tungstenite::{
        Message,
        protocol::frame::{
            Frame,
            coding::{Data, OpCode},
        },
    };
    let (cluster, limit) = (SimCluster::new().await, 64 * 1024);
    let bridge = cluster.bridge(&[]).await;
    let fragments = |sizes: &[usize]| -> Vec<Message> {
        let last = sizes.len() - 1;
        let frames = sizes.iter().enumerate().map(|(index, size)| {
            let data = if index == 0 { Data::Text } else { Data::Continue };
            Message::Frame(Frame::message(vec![b'x'; *size], OpCode::Data(data), index == last))
        });
        frames.collect()
    };
    let mut valid = bridge.listen("/ws").await;
    for _ in 0..3 {
        valid.send_all([Message::text("x".repeat(limit)), Message::binary(vec![0xff; limit])]).await;
        valid.send_all(fragments(&[limit / 2, 0, limit / 2])).await;
    }
    let too_big = [
        vec![Message::text("x".repeat(65 * 1024))],
        vec![Message::binary(vec![0; limit + 1])],
        fragments(&[limit, 1]),
        fragments(&[33 * 1024, 32 * 1024]),
    ];
    for messages in too_big {
        let mut client = bridge.listen("/ws").await;
        client.send_all(messages).await;
        assert_eq!(client.closed(TEST_TIMEOUT).await, (0, Some((1009, "message too big".to_owned()))));
    }
    // The client with valid messages still receives events.
    cluster.create_pod("pod");
    assert_eq!(valid.text().await, event("Unknown"));
}

#[tokio::test]
async fn pipelined_gets_before_an_upgrade_are_answered_in_order() {
    let cluster = SimCluster::new().await;
    cluster.create_pod("pod");
    let bridge = cluster.bridge(&[]).await;
    let address = bridge.address;
    let alone = http_client::get(address, "/api/v1/instances").await;
    assert!(alone.body.contains(r#""name":"pod""#), "{}", alone.body);
    let mut requests = format!("GET /api/v1/instances HTTP/1.1\r\nHost: {address}\r\n\r\n").repeat(40);
    requests += &http_client::upgrade(address, "/ws");
    let mut bytes = requests.into_bytes();
    // A ping "hello", then a close frame, masked with zeros.
    bytes.extend(b"\x89\x85\0\0\0\0hello\x88\x82\0\0\0\0\x03\xe8");
    let responses = String::from_utf8_lossy(&http_client::send_raw(address, &bytes).await).into_owned();
    let mut rest = responses.as_str();
    for index in 0..40 {
        let (head, body) = rest.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{index}: {head}");
        rest =
            body.strip_prefix(alone.body.as_str()).unwrap_or_else(|| panic!("response {index} is incomplete: {body}"));
    }
    let (head, frames) = rest.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    assert!(head.contains("\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    // A client that closes at once always gets the pong and the close frame. The initial events may be missing.
    assert!(frames.contains("\u{fffd}\u{5}hello") && frames.ends_with("\u{fffd}\u{2}\u{3}\u{fffd}"), "{frames:?}");
}

/// A request that does not parse gets a response with an empty body, every other one a normal response. Both leave the
/// bridge intact for the next client.
#[tokio::test]
async fn malformed_requests_get_a_status_and_a_closed_connection() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let address = bridge.address;
    let close = "Connection: close";
    let head = |more: &str| format!("GET /livez HTTP/1.1\r\nHost: {address}\r\n{close}\r\n{more}\r\n").into_bytes();
    let line = |method, path: &str| format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n{close}\r\n\r\n").into();
    let upgrade = http_client::upgrade(address, "/ws").replace("Connection: Upgrade", "Connection: Upgrade, close");
    let upgrade = upgrade.trim_end();
    // A close frame, masked with zeros, ends the stream.
    let upgrade_with =
        |key: &str| [upgrade.replace("dGhlIHNhbXBsZSBub25jZQ==", key).as_bytes(), b"\r\n\r\n\x88\x80\0\0\0\0"].concat();
    let (name, cookie, path) = ("a".repeat(64 * 1024), "c".repeat(64 * 1024), "p".repeat(64 * 1024));
    let headers: String = (0..200).map(|index| format!("x-{index}: y\r\n")).collect();
    // The start of a TLS ClientHello (RFC 8446 section 5.1).
    let tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let empty = Some("");
    let cases: Vec<(&str, Vec<u8>, u16, Option<&str>)> = vec![
        ("HTTP/1.0", format!("GET /livez HTTP/1.0\r\nHost: {address}\r\n\r\n").into(), 200, Some("ok\n")),
        ("a probe with HTTP/1.0 without Host", b"GET /livez HTTP/1.0\r\n\r\n".into(), 200, Some("ok\n")),
        ("HTTP/1.0 without Host", b"GET /api/v1/stats HTTP/1.0\r\n\r\n".into(), 400, None),
        ("HTTP/1.1 without Host", format!("GET /livez HTTP/1.1\r\n{close}\r\n\r\n").into(), 400, None),
        ("two Hosts", head(&format!("Host: {address}\r\n")), 400, None),
        ("an absolute URI", line("GET", &format!("http://{address}/livez")), 200, Some("ok\n")),
        ("an absolute URI of another host", line("GET", "http://example.com/livez"), 403, None),
        ("a chunked body on GET", head("Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"), 200, Some("ok\n")),
        ("a body on GET", head("Content-Length: 3\r\n\r\nabc"), 200, Some("ok\n")),
        ("Expect", head("Expect: 100-continue\r\nContent-Length: 3\r\n"), 200, Some("ok\n")),
        ("two lengths", head("Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc"), 400, empty),
        ("a body on an upgrade", format!("{upgrade}\r\nContent-Length: 3\r\n\r\nabc").into(), 400, None),
        ("the example key of RFC 6455", upgrade_with("AQIDBAUGBwgJCgsMDQ4PEC=="), 101, None),
        ("a key of 15 bytes", upgrade_with("AQIDBAUGBwgJCgsMDQ4P"), 400, None),
        ("a chunked upgrade", format!("{upgrade}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").into(), 400, None),
        ("an upgrade of HTTP/1.0", format!("{upgrade}\r\n\r\n").replace("HTTP/1.1", "HTTP/1.0").into(), 426, None),
        ("no such path", line("GET", &format!("/{}", &path[..2000])), 404, None),
        ("CONNECT", line("CONNECT", &address.to_string()), 405, None),
        ("a head of 64 KiB", head(&format!("Cookie: {cookie}\r\n")), 431, empty),
        ("a name of 64 KiB", head(&format!("{name}: x\r\n")), 431, empty),
        ("a path of 64 KiB", format!("GET /{path} HTTP/1.1\r\n\r\n").into(), 431, empty),
        ("200 headers", head(&headers), 431, empty),
        ("garbage", b"\x00\xff\xfe{}\r\n\r\n".into(), 400, empty),
        ("no version", b"GET /livez\r\n\r\n".into(), 400, empty),
        ("an unknown version", b"GET /livez HTTP/3.0\r\n\r\n".into(), 400, empty),
        ("a header without a colon", head("nonsense\r\n"), 400, empty),
        ("a folded header", head("a: b\r\n c\r\n"), 400, empty),
        ("a control character in a header", head("a: \x01\r\n"), 400, empty),
        ("TLS", tls.into(), 400, empty),
    ];
    let mut wrong = Vec::new();
    for (title, request, status, body) in cases {
        let response = http_client::send_raw(address, &request).await;
        let response = String::from_utf8_lossy(&response);
        let response = response.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&response);
        let (head, actual) = response.split_once("\r\n\r\n").unwrap_or(("", response));
        let matches = head.split(' ').nth(1) == Some(&status.to_string()) && body.is_none_or(|body| body == actual);
        if !matches {
            wrong.push(format!("{title}: {response:?}, expected {status} {body:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The preface of HTTP/2 (RFC 9113 section 3.4): hyper closes the connection without a response.
    assert_eq!(http_client::send_raw(address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await, b"");
    assert_eq!(http_client::metric(address, "bridge_http_connection_panics_total").await, 0);
    cluster.create_pod("pod");
    assert_eq!(bridge.listen("/ws").await.text().await, event("Unknown"));
}

/// The bridge ignores the body of an SSE request. The stream starts as without it.
#[tokio::test]
async fn sse_request_with_a_body_starts_a_stream() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let mut stream = TcpStream::connect(bridge.address).await.unwrap();
    let request = format!("GET /api/sse HTTP/1.1\r\nHost: {}\r\nContent-Length: 4\r\n\r\nbody", bridge.address);
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("text/event-stream"), "{head}");
}

/// A client such as `nc -N` ends its output after the request. It gets the answer to a GET, and the first events of a
/// stream.
#[tokio::test]
async fn half_closing_clients_are_answered() {
    let cluster = SimCluster::new().await;
    cluster.create_pod("pod");
    let bridge = cluster.bridge(&[]).await;
    let address = bridge.address;
    let half_close = async |request: String| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        timeout(TEST_TIMEOUT, stream.read_to_string(&mut answer)).await.expect("the answer does not end").unwrap();
        answer
    };
    for path in ["/livez", "/api/v1/instances", "/metrics"] {
        let gets = (0..50).map(|_| half_close(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n")));
        for answer in join_all(gets).await {
            let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{path}: no answer"));
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            assert!(head.starts_with("HTTP/1.1 200 ") && body.len().to_string() == length, "{path}: {answer}");
        }
    }
    for _ in 0..50 {
        let answer = half_close(format!("GET /api/sse HTTP/1.1\r\nHost: {address}\r\n\r\n")).await;
        assert!(answer.contains(r#""type":"state.initial""#), "the stream starts: {answer}");
    }
}
