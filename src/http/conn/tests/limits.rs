//! The limits of connections: time, size, number, and clients that do not read.

use super::*;

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
