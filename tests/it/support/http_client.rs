//! A WebSocket listener and a plain HTTP client that sends exactly what it is told to.

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

/// How long anything may take that should come at once, on a busy machine.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A connected WebSocket client.
#[derive(Debug)]
pub(crate) struct WsClient {
    socket: WebSocketStream<TcpStream>,
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct HttpResponse {
    pub(crate) status: u16,
    /// The head's lines after the status line, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl WsClient {
    /// Connects to `path` (with its query).
    pub(crate) async fn connect(address: SocketAddr, path: &str) -> WsClient {
        WsClient::try_connect(address, path).await.unwrap()
    }

    /// Connects, or says with which status it was refused.
    pub(crate) async fn try_connect(address: SocketAddr, path: &str) -> Result<WsClient, u16> {
        WsClient::over(TcpStream::connect(address).await.unwrap(), path).await
    }

    /// The same with these headers.
    pub(crate) async fn with(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<WsClient, u16> {
        let stream = TcpStream::connect(address).await.unwrap();
        WsClient::handshake(stream, path, headers).await
    }

    /// The same over a connection that is there.
    pub(crate) async fn over(stream: TcpStream, path: &str) -> Result<WsClient, u16> {
        WsClient::handshake(stream, path, &[]).await
    }

    async fn handshake(stream: TcpStream, path: &str, headers: &[(&str, &str)]) -> Result<WsClient, u16> {
        let address = stream.peer_addr().unwrap();
        let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        match timeout(TEST_TIMEOUT, client_async(request, stream)).await.expect("no answer in time") {
            Ok((socket, _)) => Ok(WsClient { socket }),
            Err(Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    /// The next text message, as it came.
    pub(crate) async fn text(&mut self) -> String {
        loop {
            match timeout(TEST_TIMEOUT, self.socket.next()).await.expect("no message in time") {
                Some(Ok(Message::Text(text))) => return text.to_string(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("expected a text message: {other:?}"),
            }
        }
    }

    /// The next text message; `None` when the connection has ended.
    pub(crate) async fn next_text(&mut self) -> Option<String> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => return Some(text.to_string()),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => return None,
            }
        }
    }

    /// The next message.
    pub(crate) async fn json(&mut self) -> Value {
        serde_json::from_str(&self.text().await).unwrap()
    }

    /// Answers pings for as long as it is polled.
    ///
    /// # Panics
    /// When anything else comes.
    pub(crate) async fn expect_no_messages(&mut self) -> Infallible {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("expected nothing: {other:?}"),
            }
        }
    }

    /// Messages up to and including the first that satisfies `last`.
    pub(crate) async fn until(&mut self, mut last: impl FnMut(&Value) -> bool) -> Vec<String> {
        let mut texts = Vec::new();
        loop {
            let text = self.text().await;
            let done = last(&serde_json::from_str(&text).unwrap());
            texts.push(text);
            if done {
                return texts;
            }
        }
    }

    /// Reads on, counting messages, until the server closes; code and reason.
    pub(crate) async fn closed(&mut self, bound: Duration) -> (usize, Option<(u16, String)>) {
        let mut messages = 0;
        let close = timeout(bound, async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Text(_))) => messages += 1,
                    Some(Ok(Message::Close(Some(CloseFrame { code, reason })))) => {
                        return Some((u16::from(code), reason.to_string()));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return None,
                }
            }
        });
        let close = close.await.expect("still open");
        (messages, close)
    }

    /// Sends a text message.
    pub(crate) async fn send(&mut self, text: String) {
        // The server may have closed already: what it said is read by the caller.
        let _ = self.socket.send(Message::text(text)).await;
    }

    /// Sends these messages or frames.
    pub(crate) async fn send_all(&mut self, messages: impl IntoIterator<Item = Message>) {
        for message in messages {
            // As above.
            let _ = self.socket.send(message).await;
        }
    }

    /// Sends a close frame, and nothing after it.
    pub(crate) async fn close(&mut self) {
        self.socket.close(None).await.unwrap();
    }

    /// The bare stream, with nothing read ahead that matters to the caller.
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

/// The request that begins a WebSocket, as clients without a library write it.
pub(crate) fn upgrade(address: SocketAddr, path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// A connection on which this has been sent, whose kernel takes in only a few KiB that nobody reads.
pub(crate) async fn small_buffer_socket(address: SocketAddr, request: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Sends these bytes and reads until the server ends the connection, in order or not.
pub(crate) async fn send_raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may refuse before it has read everything; what it says is what counts.
    let _ = timeout(TEST_TIMEOUT, stream.write_all(bytes)).await.expect("it neither reads nor ends");
    let mut answer = Vec::new();
    let _ = timeout(TEST_TIMEOUT, stream.read_to_end(&mut answer)).await.expect("it does not end");
    answer
}

/// A metric of the bridge, by its name and labels as `/metrics` spells them; 0 where it has not been counted yet.
pub(crate) async fn metric(address: SocketAddr, name: &str) -> u64 {
    let answer = get(address, "/metrics").await;
    let value = answer.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().unwrap())
}

/// The sum of the samples of a metric that have all these labels, each written as `name="value"`.
pub(crate) async fn metric_sum(address: SocketAddr, name: &str, labels: &[&str]) -> u64 {
    let metrics = get(address, "/metrics").await.body;
    let samples = metrics.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} "));
    let matching = samples
        .filter(|(of_sample, _)| labels.iter().all(|label| of_sample.split(',').any(|of_sample| of_sample == *label)));
    matching.map(|(_, value)| value.parse::<u64>().unwrap()).sum()
}

/// Sends a request with exactly these headers (`Host` and `Connection: close` are added where they are not named) and
/// reads the answer until the server closes.
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
    timeout(TEST_TIMEOUT, stream.read_to_end(&mut bytes)).await.expect("no end of the answer").unwrap();
    parse(&String::from_utf8(bytes).unwrap())
}

/// A GET like curl's.
pub(crate) async fn get(address: SocketAddr, path: &str) -> HttpResponse {
    request(address, "GET", path, &[]).await
}

/// Reads an answer's text. Bodies of known length or to the end; nothing here is chunked.
pub(crate) fn parse(text: &str) -> HttpResponse {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text:?}"));
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.map(|line| line.split_once(':').unwrap());
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
    HttpResponse { status, headers, body: body.to_owned() }
}

/// Sends a request that is written out whole, and reads the answer until the server closes, or the head alone where the
/// connection is handed over (101).
pub(crate) async fn request_raw(address: SocketAddr, request: &str) -> HttpResponse {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let whole = timeout(TEST_TIMEOUT, async {
        loop {
            let handed_over = bytes.starts_with(b"HTTP/1.1 101") && bytes.windows(4).any(|four| four == b"\r\n\r\n");
            if handed_over || stream.read_buf(&mut bytes).await.unwrap() == 0 {
                return;
            }
        }
    });
    whole.await.unwrap_or_else(|_| panic!("no end of the answer to {request:?}: {}", String::from_utf8_lossy(&bytes)));
    parse(&String::from_utf8_lossy(&bytes))
}

/// Asks until there is an answer.
pub(crate) async fn poll_until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let found = timeout(TEST_TIMEOUT, async {
        loop {
            if let Some(found) = ask() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    found.await.expect("it does not come")
}
