//! The futures that run a stream from its response head to its end.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt as _;

use super::{
    end::StreamEnd,
    outbound::Outbound,
    permit::StreamPermit,
    protocol::{Peer, StreamProtocol},
    task::{self, OutboundPanicked, StreamTask},
};
use crate::{feed::FrameFormat, http::conn::HijackedSocket, wire::websocket::FrameReader};

/// Runs a WebSocket stream (RFC 6455, server side) until it ends.
pub fn websocket<O: Outbound + 'static>(
    out: O,
    socket: HijackedSocket,
    permit: StreamPermit,
) -> impl Future<Output = StreamEnd> + Send {
    let reader = FrameReader::new(permit.config.max_message_bytes);
    run(out, StreamProtocol::new(socket, Peer::WebSocket(reader), &permit.config), permit)
}

/// Runs an SSE stream in this format until it ends. Bytes that the client sends are read and dropped; the client's end of
/// file ends the stream.
pub fn sse<O: Outbound + 'static>(
    out: O,
    socket: HijackedSocket,
    format: FrameFormat,
    permit: StreamPermit,
) -> impl Future<Output = StreamEnd> + Send {
    run(out, StreamProtocol::new(socket, Peer::Sse(format), &permit.config), permit)
}

/// Runs the stream's task and counts its end. A panic of `out` closes the stream with 1011 (`internal`).
///
/// Not an `async fn`: its future would hold the arguments twice, and the memory of a connection is bounded
/// (docs/performance.md#goals).
fn run<O: Outbound + 'static>(
    out: O,
    protocol: StreamProtocol,
    permit: StreamPermit,
) -> impl Future<Output = StreamEnd> + Send {
    let stream = Arc::new(StreamTask::new(protocol, out, permit));
    async move {
        let outcome = AssertUnwindSafe(task::run(&stream)).catch_unwind().await;
        let end = match outcome {
            Ok(Ok(end)) => end,
            // Boxed: it is rare, and its state would otherwise enlarge the future of every stream.
            Ok(Err(OutboundPanicked)) | Err(_) => Box::pin(task::close_after_panic(&stream)).await,
        };
        stream.record_closed(end);
        end
    }
}
