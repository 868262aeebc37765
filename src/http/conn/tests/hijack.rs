//! The hand-over of a socket from hyper to a stream.

use super::*;

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
