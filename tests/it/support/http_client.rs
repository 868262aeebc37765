//! A WebSocket client, and a plain HTTP client that sends exactly the bytes that a test gives it.
//!
//! Guarantees: every wait has a bound, [`TEST_TIMEOUT`] unless a test passes another one.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use futures::{SinkExt, StreamExt};
use http::HeaderName;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest, protocol::CloseFrame},
};

use super::schemas;

/// How long a step may take that needs no waiting, on a busy machine.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Time after which a wait for a certain message ends. Heartbeats and pings would prolong a wait that counts from the last
/// message.
pub(crate) const STREAM_TIMEOUT: Duration = Duration::from_secs(300);

/// A connected WebSocket client.
#[derive(Debug)]
pub(crate) struct WsClient {
    socket: WebSocketStream<TcpStream>,
    path: String,
}

/// An HTTP response.
#[derive(Debug)]
pub(crate) struct HttpResponse {
    pub(crate) status: u16,
    /// The header fields, with names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl WsClient {
    /// Connects to `path` (with its query).
    pub(crate) async fn connect(address: SocketAddr, path: &str) -> WsClient {
        WsClient::try_connect(address, path).await.unwrap()
    }

    /// Connects, or returns the status of the response that rejects the request.
    pub(crate) async fn try_connect(address: SocketAddr, path: &str) -> Result<WsClient, u16> {
        WsClient::over(TcpStream::connect(address).await.unwrap(), path).await
    }

    /// Does the same with these headers.
    pub(crate) async fn with(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<WsClient, u16> {
        let stream = TcpStream::connect(address).await.unwrap();
        WsClient::handshake(stream, path, headers).await
    }

    /// Does the same on an open TCP connection.
    pub(crate) async fn over(stream: TcpStream, path: &str) -> Result<WsClient, u16> {
        WsClient::handshake(stream, path, &[]).await
    }

    async fn handshake(stream: TcpStream, path: &str, headers: &[(&str, &str)]) -> Result<WsClient, u16> {
        let address = stream.peer_addr().unwrap();
        let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        match timeout(TEST_TIMEOUT, client_async(request, stream)).await.expect("the server does not answer in time") {
            Ok((socket, _)) => Ok(WsClient { socket, path: path.to_owned() }),
            Err(Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    /// Returns the message, which must match its published schema.
    fn checked(&self, text: String) -> String {
        schemas::check(&self.path, &text);
        text
    }

    /// Returns the next text message.
    pub(crate) async fn text(&mut self) -> String {
        let reading = async {
            loop {
                match timeout(TEST_TIMEOUT, self.socket.next()).await.expect("no message arrives in time") {
                    Some(Ok(Message::Text(text))) => return text.to_string(),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    other => panic!("expected a text message: {other:?}"),
                }
            }
        };
        let text = timeout(STREAM_TIMEOUT, reading).await.expect("nothing but pings arrives in time");
        self.checked(text)
    }

    /// Returns the next text message, or `None` when the connection has ended.
    pub(crate) async fn next_text(&mut self) -> Option<String> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => return Some(self.checked(text.to_string())),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => return None,
            }
        }
    }

    /// Returns the next text message as JSON.
    pub(crate) async fn json(&mut self) -> Value {
        serde_json::from_str(&self.text().await).unwrap()
    }

    /// Waits for the next ping, and answers it. Text messages are ignored.
    pub(crate) async fn ping(&mut self) {
        loop {
            match timeout(TEST_TIMEOUT, self.socket.next()).await.expect("no ping arrives in time") {
                Some(Ok(Message::Ping(_))) => return,
                Some(Ok(Message::Text(_) | Message::Pong(_))) => {}
                other => panic!("expected a ping: {other:?}"),
            }
        }
    }

    /// Answers pings while it is polled.
    ///
    /// # Panics
    /// When any other message arrives or the connection ends.
    pub(crate) async fn expect_no_messages(&mut self) -> Infallible {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("expected no message: {other:?}"),
            }
        }
    }

    /// Opens a stream without an initial state, and waits until it is served.
    pub(crate) async fn connect_live(address: SocketAddr, path: &str) -> WsClient {
        let mut client = WsClient::connect(address, path).await;
        let first = client.json().await;
        assert_eq!(first["type"], "heartbeat", "{first}");
        client
    }

    /// Returns the next message that is no heartbeat.
    pub(crate) async fn event(&mut self) -> Value {
        let texts = self.until(|event| event["type"] != "heartbeat").await;
        serde_json::from_str(texts.last().unwrap()).unwrap()
    }

    /// Returns the messages up to and including the first that satisfies `last`.
    pub(crate) async fn until(&mut self, mut last: impl FnMut(&Value) -> bool) -> Vec<String> {
        let mut texts = Vec::new();
        let reading = async {
            loop {
                let text = self.text().await;
                let done = last(&serde_json::from_str(&text).unwrap());
                texts.push(text);
                if done {
                    return;
                }
            }
        };
        let received = timeout(STREAM_TIMEOUT, reading).await.is_ok();
        assert!(received, "the expected message does not arrive in time: {texts:#?}");
        texts
    }

    /// Reads until the server closes. Returns the number of text messages, and the code and reason of the close frame
    /// if there is one.
    pub(crate) async fn closed(&mut self, bound: Duration) -> (usize, Option<(u16, String)>) {
        let mut messages = 0;
        let close = timeout(bound, async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Text(text))) => {
                        self.checked(text.to_string());
                        messages += 1;
                    }
                    Some(Ok(Message::Close(Some(CloseFrame { code, reason })))) => {
                        return Some((u16::from(code), reason.to_string()));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return None,
                }
            }
        });
        let close = close.await.expect("the connection is still open");
        (messages, close)
    }

    /// Sends a text message.
    pub(crate) async fn send(&mut self, text: String) {
        // The server may have closed the connection. The caller reads the close frame.
        let _ = self.socket.send(Message::text(text)).await;
    }

    /// Sends these messages or frames.
    pub(crate) async fn send_all(&mut self, messages: impl IntoIterator<Item = Message>) {
        for message in messages {
            // The server may have closed the connection, as in `send`.
            let _ = self.socket.send(message).await;
        }
    }

    /// Sends a close frame, and nothing after it.
    pub(crate) async fn close(&mut self) {
        self.socket.close(None).await.unwrap();
    }

    /// Returns the TCP stream. Bytes that are already read from it are lost.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.socket.into_inner()
    }
}

impl HttpResponse {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

/// Returns the request that opens a WebSocket, as text.
pub(crate) fn upgrade(address: SocketAddr, path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// Opens a connection with a receive buffer of 4096 bytes and sends this request. The caller can leave the response
/// unread, so that the buffer fills.
pub(crate) async fn small_buffer_socket(address: SocketAddr, request: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Sends these bytes and reads until the server ends the connection, by a close or by a reset.
pub(crate) async fn send_raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may answer and close before it has read all bytes. The response is the result.
    let _ = timeout(TEST_TIMEOUT, stream.write_all(bytes)).await.expect("the server neither reads nor closes");
    let mut answer = Vec::new();
    let _ = timeout(TEST_TIMEOUT, stream.read_to_end(&mut answer)).await.expect("the server does not close");
    answer
}

/// Returns a metric of the bridge by its name and labels, as `/metrics` spells them. It is 0 if the sample does not exist.
pub(crate) async fn metric(address: SocketAddr, name: &str) -> u64 {
    let answer = get(address, "/metrics").await;
    let value = answer.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().unwrap())
}

/// Waits until a metric has a value for which `reached` is true, and returns the value.
///
/// # Panics
/// When that does not happen within [`TEST_TIMEOUT`].
pub(crate) async fn wait_for_metric(address: SocketAddr, name: &str, reached: impl Fn(u64) -> bool) -> u64 {
    let start = tokio::time::Instant::now();
    loop {
        let value = metric(address, name).await;
        if reached(value) {
            return value;
        }
        assert!(start.elapsed() < TEST_TIMEOUT, "{name} stays {value}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The sum of the samples of a metric that have all these labels, each written as `name="value"`.
pub(crate) async fn metric_sum(address: SocketAddr, name: &str, labels: &[&str]) -> u64 {
    let metrics = get(address, "/metrics").await.body;
    let samples = metrics.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} "));
    let matching = samples
        .filter(|(of_sample, _)| labels.iter().all(|label| of_sample.split(',').any(|of_sample| of_sample == *label)));
    matching.map(|(_, value)| value.parse::<u64>().unwrap()).sum()
}

/// Sends a request with exactly these headers and reads the response until the server closes. `Host` and `Connection:
/// close` are added if they are missing.
pub(crate) async fn request(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> HttpResponse {
    let named = |name: &str| headers.iter().any(|(have, _)| have.eq_ignore_ascii_case(name));
    let mut request = format!("{method} {path} HTTP/1.1\r\n");
    if !named("host") {
        request += &format!("Host: {address}\r\n");
    }
    if !named("connection") {
        request += "Connection: close\r\n";
    }
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += "\r\n";
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    timeout(TEST_TIMEOUT, stream.read_to_end(&mut bytes)).await.expect("the response does not end in time").unwrap();
    parse(&String::from_utf8(bytes).unwrap())
}

/// Sends a GET request without further headers.
pub(crate) async fn get(address: SocketAddr, path: &str) -> HttpResponse {
    request(address, "GET", path, &[]).await
}

/// Parses a response. The body is the text after the head; chunked bodies are not decoded.
pub(crate) fn parse(text: &str) -> HttpResponse {
    let (head, body) =
        text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("the response has no complete head: {text:?}"));
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.map(|line| line.split_once(':').unwrap());
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
    HttpResponse { status, headers, body: body.to_owned() }
}

/// Sends a request as text and reads the response until the server closes. After a 101 it reads the head only.
pub(crate) async fn request_raw(address: SocketAddr, request: &str) -> HttpResponse {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let response = timeout(TEST_TIMEOUT, async {
        loop {
            let switched = bytes.starts_with(b"HTTP/1.1 101") && bytes.windows(4).any(|four| four == b"\r\n\r\n");
            if switched || stream.read_buf(&mut bytes).await.unwrap() == 0 {
                return;
            }
        }
    });
    let ended = response.await.is_ok();
    assert!(ended, "the response to {request:?} does not end in time: {}", String::from_utf8_lossy(&bytes));
    parse(&String::from_utf8_lossy(&bytes))
}

/// Calls `poll` every 10 ms until it returns a value.
///
/// # Panics
/// When it returns no value within [`TEST_TIMEOUT`].
pub(crate) async fn poll_until<T>(mut poll: impl FnMut() -> Option<T>) -> T {
    let found = timeout(TEST_TIMEOUT, async {
        loop {
            if let Some(found) = poll() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    found.await.expect("the awaited state is not reached in time")
}

/// As [`poll_until`], for a state that a request reports.
pub(crate) async fn poll_until_async<T>(poll: impl AsyncFn() -> Option<T>) -> T {
    let found = timeout(TEST_TIMEOUT, async {
        loop {
            if let Some(found) = poll().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    found.await.expect("the awaited state is not reached in time")
}
