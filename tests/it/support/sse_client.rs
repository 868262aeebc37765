//! An SSE client that returns every field of every block.

use std::{collections::VecDeque, net::SocketAddr};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    http_client::{self, HttpResponse, STREAM_TIMEOUT, TEST_TIMEOUT},
    schemas,
};

/// An open event stream.
#[derive(Debug)]
pub(crate) struct SseClient {
    stream: TcpStream,
    path: String,
    /// The head of the response. Its body is empty here.
    pub(crate) head: HttpResponse,
    /// Received bytes of the body that are not decoded yet. Without chunks all of the body is decoded.
    undecoded: Vec<u8>,
    is_chunked: bool,
    /// The body has ended with the last chunk.
    pub(crate) has_last_chunk: bool,
    /// Received text that is not a complete block yet.
    partial: String,
    blocks: VecDeque<SseEvent>,
}

/// One block: the fields between two empty lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SseEvent {
    pub(crate) retry: Option<u64>,
    pub(crate) id: Option<String>,
    pub(crate) event: Option<String>,
    pub(crate) data: String,
}

impl SseEvent {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn parse(text: &str) -> SseEvent {
        let (mut block, mut has_data) = (SseEvent::default(), false);
        for line in text.lines() {
            match line.split_once(": ").unwrap_or_else(|| panic!("the line is not a field: {line:?}")) {
                ("retry", ms) => block.retry = Some(ms.parse().unwrap()),
                ("id", id) => block.id = Some(id.to_owned()),
                ("event", name) => block.event = Some(name.to_owned()),
                ("data", data) => {
                    block.data += if std::mem::replace(&mut has_data, true) { "\n" } else { "" };
                    block.data += data;
                }
                ("", _) => {}
                other => panic!("unexpected field {other:?} in {text:?}"),
            }
        }
        block
    }
}

impl SseClient {
    /// Sends the request and reads the head of the response.
    pub(crate) async fn open(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> SseClient {
        let mut request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n");
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all((request + "\r\n").as_bytes()).await.unwrap();
        SseClient::over(stream, path).await
    }

    /// Opens a stream whose receive buffer is full after a few KiB.
    pub(crate) async fn open_with_small_buffer(address: SocketAddr, path: &str) -> SseClient {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n\r\n");
        SseClient::over(http_client::small_buffer_socket(address, &request).await, path).await
    }

    /// Reads the head of the response to a request that was sent.
    async fn over(mut stream: TcpStream, path: &str) -> SseClient {
        let mut bytes = Vec::new();
        let head = timeout(TEST_TIMEOUT, async {
            while !bytes.ends_with(b"\r\n\r\n") {
                bytes.push(stream.read_u8().await.unwrap());
            }
        });
        head.await.expect("the server sends no head in time");
        let head = http_client::parse(&String::from_utf8(bytes).unwrap());
        let is_chunked = head.header("transfer-encoding") == Some("chunked");
        let (undecoded, blocks) = (Vec::new(), VecDeque::new());
        let path = path.to_owned();
        SseClient { stream, path, head, undecoded, is_chunked, has_last_chunk: false, partial: String::new(), blocks }
    }

    /// Returns the next block, or `None` at the end of the stream.
    pub(crate) async fn block(&mut self) -> Option<SseEvent> {
        loop {
            if let Some(block) = self.blocks.pop_front() {
                return Some(block);
            }
            let read = timeout(TEST_TIMEOUT, self.stream.read_buf(&mut self.undecoded))
                .await
                .expect("no block arrives in time")
                .unwrap();
            if read == 0 {
                assert_eq!(self.partial, "", "the stream ends inside a block");
                return None;
            }
            self.decode();
            while let Some((block, rest)) = self.partial.split_once("\n\n") {
                let block = SseEvent::parse(block);
                if !block.data.is_empty() {
                    schemas::check(&self.path, &block.data);
                }
                self.blocks.push_back(block);
                self.partial = rest.to_owned();
            }
        }
    }

    /// Decodes the complete chunks (RFC 9112 section 7.1), or all bytes of a body without chunks.
    fn decode(&mut self) {
        // The events of these tests are ASCII, so neither a chunk nor a read can end inside a character.
        if !self.is_chunked {
            self.partial += std::str::from_utf8(&std::mem::take(&mut self.undecoded)).unwrap();
            return;
        }
        while let Some(head) = self.undecoded.windows(2).position(|two| two == b"\r\n") {
            assert!(!self.has_last_chunk, "bytes after the last chunk: {:?}", self.undecoded);
            let size = std::str::from_utf8(&self.undecoded[..head]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("no size of a chunk: {size:?}"));
            let (data, end) = (head + 2, head + 2 + size);
            if self.undecoded.len() < end + 2 {
                return;
            }
            assert_eq!(&self.undecoded[end..end + 2], b"\r\n", "the end of a chunk");
            self.partial += std::str::from_utf8(&self.undecoded[data..end]).unwrap();
            self.has_last_chunk = size == 0;
            self.undecoded.drain(..end + 2);
        }
    }

    /// Returns the next event. Skips blocks without data.
    pub(crate) async fn event(&mut self) -> SseEvent {
        loop {
            let block = self.block().await.expect("the stream has ended");
            if !block.data.is_empty() {
                return block;
            }
        }
    }

    /// Returns the events up to and including the first that satisfies `last`.
    pub(crate) async fn until(&mut self, mut last: impl FnMut(&Value) -> bool) -> Vec<SseEvent> {
        let mut events = Vec::new();
        let reading = async {
            loop {
                let event = self.event().await;
                let done = last(&event.json());
                events.push(event);
                if done {
                    return;
                }
            }
        };
        let received = timeout(STREAM_TIMEOUT, reading).await.is_ok();
        assert!(received, "the expected event does not arrive in time: {events:#?}");
        events
    }

    /// Returns all blocks up to the end of the stream.
    pub(crate) async fn rest(&mut self) -> Vec<SseEvent> {
        let mut blocks = Vec::new();
        while let Some(block) = self.block().await {
            blocks.push(block);
        }
        blocks
    }
}
