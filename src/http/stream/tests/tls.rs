//! Streams over TLS, behind a listener.

use std::{convert::Infallible, net::Ipv4Addr};

use http_body_util::Empty;
use hyper::{Request, body::Incoming};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;

use super::*;
use crate::{
    http::conn::{
        self, StreamStart,
        tests::tls::{SERVER_NAME, TestCertificate},
    },
    tasks::{self, Tasks},
};

/// Connects a client to a new listener whose streams send what `script` contains.
async fn client(
    script: &ScriptedOutbound,
    config: Config,
) -> (WebSocketStream<TlsStream<TcpStream>>, Arc<StreamContext>, Tasks) {
    let certified = TestCertificate::new();
    let tasks = Tasks::new(tasks::Config::default());
    let streams = StreamContext::new(config, Metrics::default(), tasks.stop().clone());
    let (script, service_context) = (script.clone(), streams.clone());
    let service = tower::service_fn(move |request: Request<Incoming>| {
        let key = request.headers()["sec-websocket-key"].to_str().unwrap().to_owned();
        let mut response = websocket_head(&key).map(|()| Empty::<Bytes>::new());
        let (script, permit) = (script.clone(), acquire_permit(&service_context));
        response.extensions_mut().insert(StreamStart::new(|socket| websocket(script, socket, permit)));
        async { Ok::<_, Infallible>(response) }
    });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let config = conn::Config { tls: Some(certified.tls()), ..conn::Config::default() };
    let served = conn::serve(listener, service, config, conn::Metrics::default(), tasks.clone());
    tasks.spawn("listener", async { Ok::<_, Infallible>(served.await) });
    // A small buffer: the kernel rarely accepts all bytes at once, and TLS buffers the rest.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = certified.connect(socket.connect(addr).await.unwrap()).await.unwrap();
    let socket = tokio_tungstenite::client_async(format!("wss://{SERVER_NAME}/"), stream).await.unwrap().0;
    (socket, streams, tasks)
}

async fn wait_for_end(streams: &StreamContext, end: StreamEnd) {
    let ended = async {
        while streams.metrics.closed(&WEBSOCKET, end) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(TIMEOUT, ended).await.unwrap_or_else(|_| panic!("the stream does not end as {end:?}"));
}

#[tokio::test]
async fn websocket_messages_round_trip_over_tls() {
    let script = ScriptedOutbound::default();
    // No ping triggers a write of bytes that wait inside TLS.
    let config = Config { ping_interval: 10 * TIMEOUT, ..Config::default() };
    let (mut client, streams, _tasks) = client(&script, config).await;
    for i in 0..100 {
        script.push_text(&i.to_string());
        client.send(Message::text("hello")).await.unwrap();
        assert_eq!(next_message(&mut client).await, Message::text(i.to_string()));
    }
    // Far more bytes than TLS buffers at once, in one frame and in many.
    let large = "x".repeat(3 << 20);
    script.push_text(&large);
    assert_eq!(next_message(&mut client).await, Message::text(large.as_str()));
    script.push_result(ReadResult::Batch((0..5000).map(|i| text_frame(&i.to_string())).collect()));
    for i in 0..5000 {
        assert_eq!(next_message(&mut client).await, Message::text(i.to_string()));
    }
    client.close(None).await.unwrap();
    assert_eq!(close_frame_of(next_message(&mut client).await), (1000, String::new()));
    // The end is `close_notify`, not an error.
    assert!(client.next().await.is_none());
    wait_for_end(&streams, StreamEnd::ClientClosed).await;
    assert_eq!(script.0.received.lock().unwrap().len(), 500);
}

#[tokio::test]
async fn stalled_reader_over_tls_is_closed_as_slow_consumer() {
    for message in [text_frame(&"x".repeat(1 << 20)), text_frame(&"x".repeat(100))] {
        let config = Config { write_timeout: Duration::from_millis(300), ..Config::default() };
        let script = ScriptedOutbound::default();
        let (mut client, streams, _tasks) = client(&script, config).await;
        let end = StreamEnd::ByBridge(CloseReason::SlowConsumer);
        let stalled = async {
            while streams.metrics.closed(&WEBSOCKET, end) == 0 {
                if script.0.reads.lock().unwrap().is_empty() {
                    script.push_result(ReadResult::Batch(vec![message.clone(); 64]));
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(TIMEOUT, stalled).await.expect("the stream ends as slow consumer");
        // The client reads the bytes in the socket buffers, and then the reset. Over TLS no last frame can be written.
        while let Some(outcome) = client.next().await {
            let Ok(Message::Text(_)) = outcome else {
                outcome.unwrap_err();
                break;
            };
        }
    }
}
