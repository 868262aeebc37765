//! The bounds of connections that wait for a request, on sockets.

use super::{tls::TestCertificate, *};

/// Half a request head.
const HALF: &[u8] = b"GET / HTTP/1.1\r\nHost: lo";
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

fn config(max_waiting: usize, max_waiting_per_address: usize) -> Config {
    Config { max_waiting, max_waiting_per_address, header_read_timeout: 2 * TIMEOUT, ..Config::default() }
}

async fn send(server: &Server, bytes: &[u8]) -> TcpStream {
    let mut client = server.connect().await;
    client.write_all(bytes).await.unwrap();
    client
}

/// Sends a GET and waits for its answer. The connection stays open.
async fn get(client: &mut TcpStream) {
    client.write_all(GET).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"hello") {
        assert_ne!(
            timeout(TIMEOUT, client.read_buf(&mut answer)).await.unwrap().unwrap(),
            0,
            "the connection is closed"
        );
    }
}

/// Waits until this many connections were closed while they waited.
async fn wait_closed(server: &Server, count: u64) {
    let closed = async {
        while server.metrics.rejected(RejectReason::Waiting) < count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(TIMEOUT, closed).await.expect("the connections are closed");
    assert_eq!(server.metrics.rejected(RejectReason::Waiting), count);
}

/// Returns whether the server has closed the connection.
async fn is_closed(client: &mut TcpStream) -> bool {
    let read = timeout(Duration::from_millis(50), client.read(&mut [0; 16])).await;
    read.is_ok_and(|read| matches!(read, Ok(0) | Err(_)))
}

#[tokio::test]
async fn half_heads_give_way_to_each_other_and_not_to_requests() {
    let server = start_server(config(100, 5), async |_| text_response("hello")).await;
    let mut half: Vec<TcpStream> = Vec::new();
    for _ in 0..20 {
        half.push(send(&server, HALF).await);
    }
    wait_closed(&server, 15).await;
    for (index, client) in half.iter_mut().enumerate() {
        assert_eq!(is_closed(client).await, index < 15, "connection {index}");
    }
    // A connection that had to wait is served when its request is complete.
    half[19].write_all(b"calhost\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    timeout(TIMEOUT, half[19].read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[tokio::test]
async fn kept_alive_connections_wait_too_and_running_requests_do_not() {
    let (release, hold) = tokio::sync::watch::channel(false);
    let server = start_server(config(3, 100), move |request: Request<Incoming>| {
        let mut hold = hold.clone();
        async move {
            if request.uri().path() == "/hold" {
                hold.wait_for(|release| *release).await.unwrap();
            }
            text_response("hello")
        }
    })
    .await;
    let mut running = send(&server, b"GET /hold HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    let mut kept_alive = server.connect().await;
    get(&mut kept_alive).await;
    for _ in 0..3 {
        get(&mut server.connect().await).await;
    }
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(send(&server, HALF).await);
    }
    wait_closed(&server, 1).await;
    assert!(is_closed(&mut kept_alive).await, "it has waited longest");
    release.send(true).unwrap();
    let mut answer = String::new();
    timeout(TIMEOUT, running.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.ends_with("hello"), "{answer}");
}

/// Connections of a trusted proxy come from many clients, and count in total only.
#[tokio::test]
async fn connections_that_count_for_no_address_are_bounded_in_total() {
    let exempt = Config { counted_address: CountedAddress::new(|_| None), ..config(8, 2) };
    let server = start_server(exempt, async |_| text_response("hello")).await;
    let mut half = Vec::new();
    for _ in 0..8 {
        half.push(send(&server, HALF).await);
    }
    // A request is neither counted nor refused.
    let mut client = server.connect().await;
    get(&mut client).await;
    drop(client);
    half.push(send(&server, HALF).await);
    half.push(send(&server, HALF).await);
    let closed = async {
        while server.metrics.rejected(RejectReason::Waiting) < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(TIMEOUT, closed).await.expect("the connections are closed");
    assert!(is_closed(&mut half[0]).await && !is_closed(&mut half[9]).await);
}

/// At the maximum number of connections a new one takes the place of the one that has waited longest.
#[tokio::test]
async fn new_connection_replaces_a_waiting_one_at_the_connection_limit() {
    let config = Config { max_connections: 3, ..config(100, 100) };
    let server = start_server(config, async |_| text_response("hello")).await;
    let mut half = Vec::new();
    for _ in 0..3 {
        half.push(send(&server, HALF).await);
    }
    for _ in 0..20 {
        let mut client = server.connect().await;
        get(&mut client).await;
        // The next connection replaces this one or a half one.
        half.push(client);
    }
    assert_eq!(server.metrics.rejected(RejectReason::Limit), 0);
    assert!(is_closed(&mut half[0]).await && is_closed(&mut half[1]).await && is_closed(&mut half[2]).await);
}

#[tokio::test]
async fn tls_handshakes_wait_too() {
    let certified = TestCertificate::new();
    let config = Config { tls: Some(certified.tls()), ..config(100, 2) };
    let server = start_server(config, async |_| text_response("hello")).await;
    let mut silent = Vec::new();
    for _ in 0..5 {
        // The start of a ClientHello.
        silent.push(send(&server, b"\x16\x03\x01\x02").await);
    }
    wait_closed(&server, 3).await;
    let mut client = certified.connect(server.connect().await).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(TIMEOUT, client.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.ends_with("hello"), "{answer}");
}
