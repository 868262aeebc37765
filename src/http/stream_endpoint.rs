//! An endpoint that sends a stream over one transport: what all such endpoints share.

use http::{HeaderMap, Version};
use warp::reply::Response;

use super::{
    app::App,
    conn::StreamStart,
    error::{ApiError, ErrorCode},
    request::ApiRequest,
    stream::{self, Outbound, StreamPermit, Transport, control},
    unavailable::Unavailable,
    upgrade,
};
use crate::feed::{FrameFormat, Framing};

/// SSE over HTTP/1.1, where a client finds the events of all types in `onmessage`.
pub(super) const UNNAMED_SSE: FrameFormat = FrameFormat::Sse { named: false, chunked: true };
/// SSE over HTTP/1.1, where a client chooses the types with `addEventListener`.
pub(super) const NAMED_SSE: FrameFormat = FrameFormat::Sse { named: true, chunked: true };

/// One endpoint.
#[derive(Debug)]
pub(super) struct StreamEndpoint {
    /// The path and the transport, as metrics name them.
    pub(super) endpoint: stream::Endpoint,
    framing: Framing,
    /// The path of the same stream over the other transport.
    counterpart: &'static str,
}

impl StreamEndpoint {
    pub(super) const fn new(path: &'static str, framing: Framing, counterpart: &'static str) -> StreamEndpoint {
        let transport = match framing.format {
            FrameFormat::WebSocket => Transport::WebSocket,
            FrameFormat::Sse { .. } | FrameFormat::JsonLines => Transport::Sse,
        };
        StreamEndpoint { endpoint: stream::Endpoint { path, transport }, framing, counterpart }
    }

    /// Returns whether the endpoint is at this path, with or without a trailing slash.
    pub(super) fn is_at(&self, path: &str) -> bool {
        path.strip_suffix('/').unwrap_or(path) == self.endpoint.path
    }

    fn is_websocket(&self) -> bool {
        self.endpoint.transport == Transport::WebSocket
    }

    /// Returns the framing of the response. HTTP/1.0 has no chunks.
    pub(super) fn framing(&self, version: Version) -> Framing {
        match self.framing.format {
            FrameFormat::Sse { named, .. } if version < Version::HTTP_11 => {
                Framing { format: FrameFormat::Sse { named, chunked: false }, ..self.framing }
            }
            _ => self.framing,
        }
    }

    /// Returns the head of the response.
    ///
    /// # Errors
    /// 426 for a request without an upgrade on a WebSocket endpoint, 400 for an upgrade on an SSE endpoint. Both name the
    /// endpoint with the other transport.
    pub(super) fn head<C>(&self, request: &ApiRequest<C>) -> Result<http::Response<()>, ApiError> {
        if self.is_websocket() {
            let hint = format!("connect with a WebSocket client, or read {} for server-sent events", self.counterpart);
            return upgrade::key(request, &hint).map(stream::websocket_head);
        }
        if upgrade::is_requested(request) {
            let message = format!("this endpoint sends server-sent events: the WebSocket is at {}", self.counterpart);
            return Err(ApiError::new(ErrorCode::BadRequest, message));
        }
        Ok(stream::sse_head(self.framing(request.version).format.is_chunked()))
    }

    /// Counts a request that is rejected for now, and returns its response.
    ///
    /// # Errors
    /// A WebSocket request gets a status. An SSE request gets a stream of one `stream.closing` event instead. Its id is the
    /// `last_id` of the request, because some clients forget their id when the first event has none.
    pub(super) fn unavailable_response<C>(
        &self,
        app: &App<C>,
        last_id: Option<&str>,
        unavailable: &Unavailable,
    ) -> Result<Response, ApiError> {
        let stream::Endpoint { path, transport } = self.endpoint;
        app.metrics.count_stream_rejection(path, transport.label(), unavailable.label());
        if self.is_websocket() {
            return Err(unavailable.to_error());
        }
        // hyper frames this body, because it is complete.
        Ok(unavailable.to_sse_response(self.framing(Version::HTTP_10), last_id, app.streams.config.retry_delay()))
    }

    /// Returns the stream that sends what `out` reads.
    pub(super) fn start<O: Outbound + 'static>(&self, out: O, framing: Framing, permit: StreamPermit) -> StreamStart {
        if self.is_websocket() {
            return StreamStart::new(move |socket| stream::websocket(out, socket, permit));
        }
        StreamStart::new(move |mut socket| {
            // The retry field is appended to the head, so that both and the first events go out in one write.
            let retry = control::retry_field(framing, permit.config.retry_delay());
            socket.head = [&socket.head[..], &retry].concat().into();
            stream::sse(out, socket, framing.format, permit)
        })
    }
}

/// Returns the header `Last-Event-ID`. An empty one counts as absent.
pub(super) fn last_event_id(headers: &HeaderMap) -> Option<&[u8]> {
    headers.get("last-event-id").map(http::HeaderValue::as_bytes).filter(|id| !id.is_empty())
}
