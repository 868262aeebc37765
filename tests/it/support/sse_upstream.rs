//! A server of event streams that sends exactly what a test writes.
//!
//! Owns the listener. It closes when the value is dropped, or by [`SseUpstream::refuse`].

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::http_client::TEST_TIMEOUT;

/// A listening server.
#[derive(Debug)]
pub(crate) struct SseUpstream {
    listener: Option<TcpListener>,
    pub(crate) address: SocketAddr,
}

/// A request that waits for its response, or a stream that has started.
#[derive(Debug)]
pub(crate) struct UpstreamConnection {
    socket: TcpStream,
    /// The head of the request.
    pub(crate) head: String,
}

impl SseUpstream {
    pub(crate) async fn new() -> SseUpstream {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        SseUpstream { listener: Some(listener), address }
    }

    /// Returns the URL of the stream.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/events/stream", self.address)
    }

    /// Waits for the next request.
    pub(crate) async fn accept(&mut self) -> UpstreamConnection {
        let listener = self.listener.as_ref().unwrap();
        let (mut socket, _) = timeout(TEST_TIMEOUT, listener.accept()).await.expect("no connection in time").unwrap();
        let mut head = Vec::new();
        let reading = timeout(TEST_TIMEOUT, async {
            while !head.ends_with(b"\r\n\r\n") {
                head.push(socket.read_u8().await.unwrap());
            }
        });
        reading.await.expect("no request in time");
        UpstreamConnection { socket, head: String::from_utf8(head).unwrap() }
    }

    /// Waits for the next request and starts its stream.
    pub(crate) async fn stream(&mut self) -> UpstreamConnection {
        let mut connection = self.accept().await;
        connection.start().await;
        connection
    }

    /// Returns the number of connections that the kernel has accepted and the test has not. It does not wait.
    pub(crate) fn into_waiting(self) -> usize {
        let listener = self.listener.unwrap().into_std().unwrap();
        std::iter::from_fn(|| listener.accept().ok()).count()
    }

    /// Refuses connections from now on.
    pub(crate) fn refuse(&mut self) {
        self.listener = None;
    }

    /// Accepts connections again, at the same address.
    pub(crate) async fn listen(&mut self) {
        self.listener = Some(TcpListener::bind(self.address).await.unwrap());
    }
}

impl UpstreamConnection {
    /// Returns a header of the request.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Starts the stream.
    pub(crate) async fn start(&mut self) {
        self.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n").await;
    }

    /// Sends bytes of the stream.
    pub(crate) async fn send(&mut self, text: &str) {
        self.socket.write_all(text.as_bytes()).await.unwrap();
        self.socket.flush().await.unwrap();
    }

    /// Answers with this status and body, and closes the connection.
    pub(crate) async fn answer(mut self, status: &str, body: &str) {
        let length = body.len();
        self.send(&format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")).await;
    }
}
