//! Clients that end their side of the connection after a request (RFC 9112 section 9.6 lets them).

use super::{tls::TestCertificate, *};

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n";
const UPGRADE: &[u8] = b"GET /stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// Sends `request`, half-closes, and returns the answer.
async fn half_close(mut client: TcpStream, request: &[u8]) -> String {
    client.write_all(request).await.unwrap();
    client.shutdown().await.unwrap();
    read_all(client).await
}

/// Waits before it responds, so that the server sees the end of the input first.
async fn respond_late(request: Request<Incoming>) -> TestResponse {
    tokio::time::sleep(Duration::from_millis(20)).await;
    stream_or_text(&request)
}

#[tokio::test]
async fn half_closing_client_gets_the_complete_answer() {
    let body = Bytes::from(vec![b'x'; 4 << 20]);
    let server = start_server(Config::default(), move |request: Request<Incoming>| {
        let body = body.clone();
        async move { if request.uri().path() == "/large" { text_response(body) } else { respond_late(request).await } }
    })
    .await;
    let answers = (0..100).map(|_| async { half_close(server.connect().await, GET).await });
    for answer in futures::future::join_all(answers).await {
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n</a>"), "{answer:?}");
    }
    let answer = half_close(server.connect().await, &GET.repeat(40)).await;
    assert_eq!(answer.matches("</a>").count(), 40, "answers to 40 pipelined requests");
    let answer = half_close(server.connect().await, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(answer.split_once("\r\n\r\n").unwrap().1.len(), 4 << 20);
    // A body that never arrives does not keep the answer back.
    let answer = half_close(server.connect().await, b"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nbo").await;
    assert!(answer.ends_with("</a>"), "{answer:?}");
    server.wait_until_idle().await;
}

#[tokio::test]
async fn half_closing_client_gets_the_complete_answer_over_tls() {
    let certified = TestCertificate::new();
    let config = Config { tls: Some(certified.tls()), ..Config::default() };
    let server = start_server(config, respond_late).await;
    for _ in 0..10 {
        let mut client = certified.connect(server.connect().await).await.unwrap();
        client.write_all(GET).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        timeout(TIMEOUT, client.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.ends_with("</a>"), "{answer:?}");
    }
    server.wait_until_idle().await;
}

/// An idle connection and one with half a request head end at once. They have no request to answer.
#[tokio::test]
async fn half_close_without_a_request_ends_the_connection() {
    let server = start_server(Config { header_read_timeout: 2 * TIMEOUT, ..Config::default() }, respond_late).await;
    assert_eq!(half_close(server.connect().await, b"").await, "");
    assert_eq!(half_close(server.connect().await, b"GET / HTTP/1.1\r\nHo").await, "");
    let mut kept_alive = server.connect().await;
    kept_alive.write_all(GET).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"</a>") {
        assert_ne!(timeout(TIMEOUT, kept_alive.read_buf(&mut answer)).await.unwrap().unwrap(), 0);
    }
    assert_eq!(half_close(kept_alive, b"GET /b HT").await, "");
    server.wait_until_idle().await;
}

/// A client without input cannot use a WebSocket. An upgrade that is decided at once is answered; one that waits is
/// abandoned, so that it does not keep its permit.
#[tokio::test]
async fn half_closed_upgrade_that_waits_is_dropped() {
    let server = start_server(Config::default(), async |request| stream_or_text(&request)).await;
    let mut client = server.connect().await;
    client.write_all(UPGRADE).await.unwrap();
    client.shutdown().await.unwrap();
    let mut head = [0; 12];
    timeout(TIMEOUT, client.read_exact(&mut head)).await.unwrap().unwrap();
    assert_eq!(&head, b"HTTP/1.1 101");

    let (dropped, mut is_dropped) = mpsc::channel::<()>(1);
    let dropped = Arc::new(Mutex::new(Some(dropped)));
    let server = start_server(Config::default(), move |_| {
        let permit = dropped.lock().unwrap().take();
        async move {
            let _permit = permit;
            std::future::pending().await
        }
    })
    .await;
    assert_eq!(half_close(server.connect().await, UPGRADE).await, "");
    assert!(timeout(TIMEOUT, is_dropped.recv()).await.expect("the request is dropped").is_none());
    server.wait_until_idle().await;
}
