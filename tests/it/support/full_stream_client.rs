//! A client of the full stream on either transport. It reports the end of a connection instead of panicking.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

use super::{
    http_client::{TEST_TIMEOUT, WsClient},
    schemas,
};

/// One connection to a full stream.
#[allow(clippy::large_enum_variant, reason = "a test has one value per client")]
pub(crate) enum FullStreamClient {
    /// `/api/websocket`
    WebSocket(WsClient),
    /// `/api/sse`, after the head of the response.
    Sse(BufReader<TcpStream>),
}

impl FullStreamClient {
    /// Connects to `/api/websocket` or `/api/sse` with this query (`a=b&c=d`) and resumes after the id `last`. Returns
    /// `None` if the connection fails.
    pub(crate) async fn connect(
        address: SocketAddr,
        sse: bool,
        query: &str,
        last: Option<&str>,
    ) -> Option<FullStreamClient> {
        FullStreamClient::over(TcpStream::connect(address).await.ok()?, sse, query, last).await
    }

    /// Does the same on an open TCP connection.
    pub(crate) async fn over(
        mut stream: TcpStream,
        sse: bool,
        query: &str,
        last: Option<&str>,
    ) -> Option<FullStreamClient> {
        if !sse {
            let last = last.map(|id| format!("lastEventId={id}"));
            let query: Vec<&str> =
                [Some(query), last.as_deref()].into_iter().flatten().filter(|q| !q.is_empty()).collect();
            let path = format!("/api/websocket?{}", query.join("&"));
            return Some(FullStreamClient::WebSocket(WsClient::over(stream, &path).await.ok()?));
        }
        let address = stream.peer_addr().ok()?;
        let last = last.map_or(String::new(), |id| format!("Last-Event-ID: {id}\r\n"));
        let request = format!("GET /api/sse?{query} HTTP/1.1\r\nHost: {address}\r\n{last}\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let read =
                timeout(TEST_TIMEOUT, reader.read_line(&mut head)).await.expect("the server sends no head in time");
            if read.ok()? == 0 {
                return None;
            }
        }
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        Some(FullStreamClient::Sse(reader))
    }

    /// Returns the next event, or `None` when the connection has ended.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        Some(serde_json::from_str(&self.text().await?).unwrap())
    }

    /// Returns the text of the next event, or `None` when the connection has ended.
    pub(crate) async fn text(&mut self) -> Option<String> {
        match self {
            FullStreamClient::WebSocket(listener) => listener.next_text().await,
            FullStreamClient::Sse(reader) => {
                let mut line = String::new();
                loop {
                    line.clear();
                    if reader.read_line(&mut line).await.ok()? == 0 {
                        return None;
                    }
                    if let Some(data) = line.strip_prefix("data: ") {
                        schemas::check("/api/sse", data);
                        return Some(data.trim_end().to_owned());
                    }
                }
            }
        }
    }

    /// Passes events to `consume` for this duration, or until the connection ends.
    pub(crate) async fn read_for(&mut self, duration: Duration, mut consume: impl FnMut(Value)) {
        let reading = async {
            while let Some(event) = self.next().await {
                consume(event);
            }
        };
        // The timeout can interrupt the reading inside a line. An incomplete line does not count as received.
        let _ = timeout(duration, reading).await;
    }
}
