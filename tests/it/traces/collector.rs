//! A collector of OTLP/HTTP that decodes what it receives.
//!
//! Owns its listener and connections. They end when the value is dropped.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

use crate::support::http_client::poll_until;

/// How a request is answered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    /// With 200.
    Ok,
    /// With this status.
    Status(&'static str),
    /// Not at all.
    Hang,
}

/// What has arrived.
#[derive(Clone, Debug, Default)]
pub(super) struct Received {
    pub(super) heads: Vec<String>,
    pub(super) bodies: Vec<Vec<u8>>,
    pub(super) resource: Vec<KeyValue>,
    pub(super) spans: Vec<Span>,
}

/// A running collector.
pub(super) struct Collector {
    pub(super) address: SocketAddr,
    received: Arc<Mutex<Received>>,
    serving: JoinHandle<()>,
}

impl Collector {
    pub(super) async fn new(answer: Answer) -> Collector {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::new(Mutex::new(Received::default()));
        let shared = received.clone();
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, answer, shared.clone()));
            }
        });
        Collector { address, received, serving }
    }

    /// Returns the URL for `--otlp-endpoint`.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn received(&self) -> Received {
        self.received.lock().unwrap().clone()
    }

    /// Waits for a request.
    pub(super) async fn wait_for_request(&self) {
        poll_until(|| (!self.received().heads.is_empty()).then_some(())).await;
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Answers the requests of a connection until it ends.
async fn serve(mut stream: TcpStream, answer: Answer, received: Arc<Mutex<Received>>) {
    let mut bytes = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break String::from_utf8(bytes.drain(..end + 4).collect()).unwrap();
            }
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let length: usize = length.unwrap_or_else(|| panic!("no length: {head}"));
        while bytes.len() < length {
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let body: Vec<u8> = bytes.drain(..length).collect();
        let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
        {
            let mut received = received.lock().unwrap();
            received.heads.push(head);
            received.bodies.push(body);
            for resource_spans in request.resource_spans {
                received.resource = resource_spans.resource.unwrap().attributes;
                received.spans.extend(resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
        let status = match answer {
            Answer::Ok => "200 OK",
            Answer::Status(status) => status,
            Answer::Hang => std::future::pending().await,
        };
        let response = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        if stream.write_all(response.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Returns the value of an attribute as text.
pub(super) fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found: Vec<&KeyValue> = attributes.iter().filter(|attribute| attribute.key == key).collect();
    assert!(found.len() <= 1, "{key} is repeated: {attributes:?}");
    Some(match found.first()?.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(flag) => flag.to_string(),
        other => panic!("unexpected value of {key}: {other:?}"),
    })
}
