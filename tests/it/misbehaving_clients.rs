//! Clients that mean harm or do not care, and what the others notice of it: nothing (docs/guarantees.md, G11).

mod idle_connections;

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

/// The clients that behave.
const GOOD: usize = 100;
/// What one client that stops reading may cost, in the kernel and in the process (issue 3).
const STALLED_BYTES: u64 = 64 * 1024;
/// What the kernel takes in of a connection that nobody reads: twice its default, which grows only under a reader.
const RECEIVE_BUFFER: u64 = 256 * 1024;
/// docs/protocol.md#boilerhouse-stream.
const WRITE_STALL: Duration = Duration::from_secs(10);

/// A cluster with one Pod that changes, a bridge that watches it, and clients that see every change.
struct Fixture {
    cluster: SimCluster,
    bridge: BridgeProcess,
    good: Vec<JoinHandle<usize>>,
    step: usize,
}

impl Fixture {
    async fn new(args: &[&str]) -> Fixture {
        let cluster = SimCluster::new().await;
        // Some with watchers of their own, most without; the simulated cluster has to keep up with them.
        let bridge = cluster.bridge(&[&["--own-watchers", "10"], args].concat()).await;
        cluster.create_pod("pod");
        // Whoever subscribes once the bridge's own watch knows the Pod does so after its first event.
        let known = timeout(TEST_TIMEOUT, async {
            while !http_client::get(bridge.address, "/api/v1/instances").await.body.contains(r#""name":"pod""#) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        known.await.expect("the Pod is not there");
        let mut good = Vec::new();
        for _ in 0..GOOD {
            good.push(tokio::spawn(sees_everything(bridge.listen("/ws?snapshot=none").await)));
        }
        Fixture { cluster, bridge, good, step: 0 }
    }

    /// The Pod changes this often.
    async fn change(&mut self, times: usize) {
        for _ in 0..times {
            self.cluster.pod_phase("pod", &phase(self.step));
            self.step += 1;
            // The cluster and the good clients live in this thread too.
            tokio::task::yield_now().await;
        }
    }

    /// The last change: every good client has seen all of them, in order, once, and nothing else.
    async fn end(mut self) -> BridgeProcess {
        self.cluster.pod_phase("pod", LAST);
        for good in &mut self.good {
            assert_eq!(timeout(TEST_TIMEOUT, good).await.expect("a good client waits").unwrap(), self.step);
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

/// A name so long that a few hundred changes fill any buffer.
fn phase(step: usize) -> String {
    format!("{step:0>400}")
}

fn event(phase: &str) -> String {
    format!(r#"{{"type":"instance.state","name":"pod","phase":"{phase}","workloadRef":"web"}}"#)
}

/// Reads to the last change; how many came before it.
async fn sees_everything(mut listener: WsClient) -> usize {
    for step in 0.. {
        let text = listener.text().await;
        if text == event(LAST) {
            return step;
        }
        assert_eq!(text, event(&phase(step)));
    }
    unreachable!("more steps than there are numbers")
}

/// Writes for as long as the server takes it; the answers are read by nobody.
async fn pipelines(mut stream: TcpStream, request: String) -> Instant {
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
    let pings = tokio::spawn(is_pinged(address, full));
    // The log and the allocator grow once for everybody: that is nobody's cost.
    fixture.change(2000).await;
    let before = fixture.bridge.memory();
    let begun = Instant::now();
    // Answered at once, always: a GET of the state waits for the bridge's own watch to know what any client has been told,
    // and on a machine that is busy enough that is 503 after a second, of which too few come to fill anything.
    let get = format!("GET /api/v1/health HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let (mut pipelining, mut asking) = (Vec::new(), Vec::new());
    for _ in 0..PIPELINING {
        let stream = http_client::small_buffer_socket(address, "").await;
        asking.push(port(&stream));
        pipelining.push(tokio::spawn(pipelines(stream, get.clone())));
    }
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        stalled
            .push(http_client::small_buffer_socket(address, &http_client::upgrade(address, "/ws?snapshot=none")).await);
    }
    let ports: Vec<u16> = stalled.iter().map(port).collect();

    let (mut asked, mut answered) = (0, 0);
    let (mut kernel, mut worst, mut memory) = (0, 0, before);
    let mut burst = 20;
    while fixture.slow_consumers().await < STALLED as u64 {
        assert!(begun.elapsed() < WRITE_STALL + TEST_TIMEOUT, "only {} are closed", fixture.slow_consumers().await);
        assert!(fixture.slow_consumers().await == 0 || begun.elapsed() >= WRITE_STALL, "closed too early");
        // A thousand changes at once are more than any buffer holds; then they go on slowly.
        fixture.change(if burst > 0 { 50 } else { 1 }).await;
        burst -= i32::from(burst > 0);
        let table = proc_net_tcp::queues_by_client_port(address);
        let waiting: Vec<u64> = ports.iter().filter_map(|port| table.get(port)).map(|waiting| waiting.sent).collect();
        worst = worst.max(waiting.iter().copied().max().unwrap_or(0));
        kernel = kernel.max(waiting.iter().sum());
        for waiting in asking.iter().filter_map(|port| table.get(port)) {
            (asked, answered) = (asked.max(waiting.received), answered.max(waiting.sent));
        }
        memory = memory.max(fixture.bridge.memory());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let process = memory - before;
    let ended = begun.elapsed();
    println!("{STALLED} stalled: kernel {kernel} bytes in all, {worst} at worst; process {process}; over at {ended:?}");
    println!("{PIPELINING} pipelining: {asked} bytes of requests and {answered} of answers wait at worst");
    assert!(answered > 0 && answered <= STALLED_BYTES && asked <= RECEIVE_BUFFER, "more waits for those who only ask");
    assert!(kernel > 0 && worst <= STALLED_BYTES, "one of them holds {worst} bytes of the kernel");
    assert!(kernel + process <= (STALLED + PIPELINING) as u64 * STALLED_BYTES, "{kernel} + {process} bytes");
    for end in join_all(pipelining).await {
        let took = end.unwrap() - begun;
        assert!(
            took >= WRITE_STALL && took < WRITE_STALL + TEST_TIMEOUT,
            "a client that only asks was ended after {took:?}"
        );
    }
    pings.await.unwrap();
    fixture.end().await;
}

fn port(stream: &TcpStream) -> u16 {
    stream.local_addr().unwrap().port()
}

/// A client that says nothing hears a ping every 15 s; under full it is gone after 45.
async fn is_pinged(address: SocketAddr, full: bool) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let begun = Instant::now();
    stream.write_all(http_client::upgrade(address, "/ws?types=tenant").as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let mut ping = [0; 2];
    let bound = Duration::from_secs(15) + TEST_TIMEOUT;
    timeout(bound, stream.read_exact(&mut ping)).await.expect("no ping").unwrap();
    assert_eq!(ping, *b"\x89\x00");
    assert!(begun.elapsed() >= Duration::from_secs(15), "{:?}", begun.elapsed());
    if full {
        let mut rest = Vec::new();
        timeout(bound, stream.read_to_end(&mut rest)).await.expect("a silent client is kept").unwrap();
        assert_eq!(rest, b"\x89\x00\x88\x06\x03\xf5idle");
        assert!(begun.elapsed() >= Duration::from_secs(45), "{:?}", begun.elapsed());
    }
}

/// Reads byte by byte up to the empty line, so that nothing after it is lost.
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
    let open = async |want: usize| {
        let reached = timeout(TEST_TIMEOUT, async {
            while proc_net_tcp::queues_by_client_port(address).len() != want {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(
            reached.await.is_ok(),
            "{} connections, not {want}",
            proc_net_tcp::queues_by_client_port(address).len()
        );
    };
    // The last GET may still be on its way out.
    open(GOOD).await;
    let mut held = Vec::new();
    for _ in GOOD..110 {
        held.push(fixture.bridge.listen("/ws").await);
    }
    for _ in 0..20 {
        let answer = http_client::send_raw(address, http_client::upgrade(address, "/ws").as_bytes()).await;
        let answer = http_client::parse(&String::from_utf8(answer).unwrap());
        assert_eq!((answer.status, &answer.json()["code"]), (503, &"TOO_MANY_CONNECTIONS".into()));
    }
    fixture.change(50).await;
    drop(held);
    open(GOOD).await;
    let rejected = http_client::metric_sum(address, "bridge_streams_rejected_total", &[r#"reason="max_streams""#]);
    assert_eq!(rejected.await, 20);
    let mut late = fixture.bridge.listen("/ws").await;
    late.text().await;
    fixture.end().await;
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
    let mut fine = bridge.listen("/ws").await;
    for _ in 0..3 {
        fine.send_all([Message::text("x".repeat(limit)), Message::binary(vec![0xff; limit])]).await;
        fine.send_all(fragments(&[limit / 2, 0, limit / 2])).await;
    }
    let too_big = [
        vec![Message::text("x".repeat(65 * 1024))],
        vec![Message::binary(vec![0; limit + 1])],
        fragments(&[limit, 1]),
        fragments(&[33 * 1024, 32 * 1024]),
    ];
    for messages in too_big {
        let mut listener = bridge.listen("/ws").await;
        listener.send_all(messages).await;
        assert_eq!(listener.closed(TEST_TIMEOUT).await, (0, Some((1009, "message too big".to_owned()))));
    }
    // What it sent is behind it: it is still served.
    cluster.create_pod("pod");
    assert_eq!(fine.text().await, event("Unknown"));
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
    let answer = String::from_utf8_lossy(&http_client::send_raw(address, &bytes).await).into_owned();
    let mut rest = answer.as_str();
    for index in 0..40 {
        let (head, body) = rest.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{index}: {head}");
        rest = body.strip_prefix(alone.body.as_str()).unwrap_or_else(|| panic!("answer {index} is not whole: {body}"));
    }
    let (head, frames) = rest.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    assert!(head.contains("\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    // A client that closes at once may or may not get the burst, but always its pong and the answer to its close.
    assert!(frames.contains("\u{fffd}\u{5}hello") && frames.ends_with("\u{fffd}\u{2}\u{3}\u{fffd}"), "{frames:?}");
}

/// What the parser refuses has an empty body; what it understands is answered; nothing of it hurts the next client.
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
    let (name, cookie, path) = ("a".repeat(64 * 1024), "c".repeat(64 * 1024), "p".repeat(64 * 1024));
    let headers: String = (0..200).map(|index| format!("x-{index}: y\r\n")).collect();
    // How a TLS ClientHello begins (RFC 8446 section 5.1).
    let tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let empty = Some("");
    let cases: Vec<(&str, Vec<u8>, u16, Option<&str>)> = vec![
        ("HTTP/1.0", format!("GET /livez HTTP/1.0\r\nHost: {address}\r\n\r\n").into(), 200, Some("ok\n")),
        ("HTTP/1.0 without Host", b"GET /livez HTTP/1.0\r\n\r\n".into(), 403, None),
        ("HTTP/1.1 without Host", format!("GET /livez HTTP/1.1\r\n{close}\r\n\r\n").into(), 403, None),
        ("the whole URI", line("GET", &format!("http://{address}/livez")), 200, Some("ok\n")),
        ("another's URI", line("GET", "http://example.com/livez"), 403, None),
        ("a chunked body on GET", head("Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"), 200, Some("ok\n")),
        ("a body on GET", head("Content-Length: 3\r\n\r\nabc"), 200, Some("ok\n")),
        ("Expect", head("Expect: 100-continue\r\nContent-Length: 3\r\n"), 200, Some("ok\n")),
        ("two lengths", head("Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc"), 400, empty),
        ("a body on an upgrade", format!("{upgrade}\r\nContent-Length: 3\r\n\r\nabc").into(), 400, None),
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
        ("a version of tomorrow", b"GET /livez HTTP/3.0\r\n\r\n".into(), 400, empty),
        ("a header without a colon", head("nonsense\r\n"), 400, empty),
        ("a folded header", head("a: b\r\n c\r\n"), 400, empty),
        ("a control character in a header", head("a: \x01\r\n"), 400, empty),
        ("TLS", tls.into(), 400, empty),
    ];
    let mut wrong = Vec::new();
    for (what, request, status, body) in cases {
        let answer = http_client::send_raw(address, &request).await;
        let answer = String::from_utf8_lossy(&answer);
        let answer = answer.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&answer);
        let (head, got) = answer.split_once("\r\n\r\n").unwrap_or(("", answer));
        let fine = head.split(' ').nth(1) == Some(&status.to_string()) && body.is_none_or(|body| body == got);
        if !fine {
            wrong.push(format!("{what}: {answer:?}, not {status} {body:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // The preface of HTTP/2 (RFC 9113 section 3.4): hyper ends it without a word.
    assert_eq!(http_client::send_raw(address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await, b"");
    assert_eq!(http_client::metric(address, "bridge_http_connection_panics_total").await, 0);
    cluster.create_pod("pod");
    assert_eq!(bridge.listen("/ws").await.text().await, event("Unknown"));
}
