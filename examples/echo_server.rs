//! Echoes WebSocket messages through the bridge's own frame codec, sockets and transport, with higher limits, so that
//! external conformance suites can run against them: `cargo run --release --example echo_server -- 9001`
//!
//! It answers a request that is not a WebSocket handshake with 426.
#![allow(clippy::print_stderr, reason = "an example is a command line program")]
use std::{
    convert::Infallible,
    future::pending,
    net::Ipv4Addr,
    sync::Arc,
    task::{Context, Poll},
};

use anyhow::Context as _;
use boilerhouse_bridge::{
    feed::ReadResult,
    http::{
        conn::{self, StreamStart},
        stream::{self, Outbound, StreamContext, Transport, websocket, websocket_head},
    },
    tasks::{self, Tasks},
    wire::{
        CloseReason,
        websocket::{self as ws, MessagePart},
    },
};
use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, Response, StatusCode, body::Incoming};
use tokio::net::TcpListener;

/// Conformance suites send messages of up to 16 MiB.
const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// A client that sends and does not read is disconnected when this many bytes wait for it.
const MAX_WAITING_BYTES: usize = 4 * MAX_MESSAGE_BYTES;

static ENDPOINT: stream::Endpoint = stream::Endpoint { path: "/", transport: Transport::WebSocket };

#[derive(Default)]
struct Echo {
    message: Vec<u8>,
    waiting: Vec<Bytes>,
    waiting_bytes: usize,
}

impl Outbound for Echo {
    fn read(&mut self, _max_bytes: usize) -> ReadResult {
        if self.waiting_bytes > MAX_WAITING_BYTES {
            return ReadResult::End(CloseReason::SlowConsumer);
        }
        if self.waiting.is_empty() {
            return ReadResult::Idle;
        }
        self.waiting_bytes = 0;
        ReadResult::Batch(std::mem::take(&mut self.waiting))
    }

    fn poll_readable(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        // Only input adds messages, and the transport reads after each input.
        Poll::Pending
    }

    fn on_message_part(&mut self, piece: &MessagePart<'_>) {
        let MessagePart::Data { text, chunk, last, .. } = piece else { return };
        self.message.extend_from_slice(chunk);
        if !last || self.waiting_bytes > MAX_WAITING_BYTES {
            return;
        }
        let message = std::mem::take(&mut self.message);
        let mut frame = Vec::with_capacity(message.len() + 10);
        match std::str::from_utf8(&message) {
            Ok(message) if *text => ws::text(&mut frame, message),
            Ok(_) | Err(_) => ws::binary(&mut frame, &message),
        }
        self.waiting_bytes += frame.len();
        self.waiting.push(frame.into());
    }
}

fn answer(request: &Request<Incoming>, streams: &Arc<StreamContext>) -> Response<Empty<Bytes>> {
    let key = request.headers().get("sec-websocket-key").and_then(|key| key.to_str().ok());
    let Some(key) = key else {
        let mut response = Response::new(Empty::new());
        *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
        return response;
    };
    let mut response = websocket_head(key).map(|()| Empty::new());
    match streams.try_acquire(&ENDPOINT) {
        Some(permit) => {
            response.extensions_mut().insert(StreamStart::new(|socket| websocket(Echo::default(), socket, permit)));
        }
        None => *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE,
    }
    response
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let port = std::env::args().nth(1).map_or(Ok(9001), |port| port.parse()).context("the argument must be a port")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.context("cannot listen")?;
    eprintln!("echoing on ws://{}", listener.local_addr()?);
    let tasks = Tasks::new(tasks::Config::default());
    let config = stream::Config {
        max_message_bytes: MAX_MESSAGE_BYTES,
        max_frames_per_second: u32::MAX,
        ..stream::Config::default()
    };
    let streams = StreamContext::new(config, stream::Metrics::default(), tasks.stop().clone());
    let service = tower::service_fn(move |request: Request<Incoming>| {
        let response = answer(&request, &streams);
        async { Ok::<_, Infallible>(response) }
    });
    let served = conn::serve(listener, service, conn::Config::default(), conn::Metrics::default(), tasks.clone());
    tasks.spawn("listener", async { Ok::<_, Infallible>(served.await) });
    tasks
        .run_until(async || {
            // Without a signal handler, the server runs until its tasks end.
            if tokio::signal::ctrl_c().await.is_err() {
                pending().await
            }
        })
        .await?;
    Ok(())
}
