//! The full stream: the endpoints of `docs/protocol.md#stream-endpoints`, as a table over one handler.
//!
//! An entry of the table is a path, the framing of events, and what the stream starts with. A condition that passes without
//! a change by the client is reported in the form of the transport ([`Unavailable`]). A wrong request is a 4xx that lists
//! what is accepted.

use http::{HeaderMap, Method};
use tokio::time::timeout;
use warp::reply::Response;

use crate::{
    event::{
        Cursor, PerResource,
        projection::{EventFormat, EventTypes, Projection},
    },
    feed::{FrameFormat, Framing, SnapshotReason, StartAt},
    http::{
        auth,
        conn::stream_start,
        error::ApiError,
        request::{ApiRequest, QueryParams},
        stream_credential::{StreamSlots, WithCredential},
        stream_endpoint::{NAMED_SSE, StreamEndpoint, UNNAMED_SSE},
        stream_rate::RateLimited,
        unavailable::{Unavailable, failures},
    },
};

/// Parameters of all full streams.
const ACCEPTED: &[&str] =
    &["types", "params", "connectionId", "snapshot", "lastEventId", auth::TICKET_PARAMS[0], auth::TICKET_PARAMS[1]];

/// One streaming endpoint.
#[derive(Debug)]
pub(crate) struct FullStream {
    pub(crate) stream: StreamEndpoint,
    /// The value of `snapshot` where the request does not set it.
    default_snapshot: &'static str,
}

/// All full streams.
pub(crate) static ENDPOINTS: [FullStream; 6] = [
    FullStream::new("/api/websocket", FrameFormat::WebSocket, false, "state", "/api/sse"),
    FullStream::new("/api/sse", UNNAMED_SSE, false, "state", "/api/websocket"),
    FullStream::new("/api/events/stream", NAMED_SSE, false, "none", "/api/websocket"),
    FullStream::new("/events/stream", UNNAMED_SSE, true, "none", "/events/ws"),
    FullStream::new("/events", UNNAMED_SSE, true, "none", "/events/ws"),
    FullStream::new("/events/ws", FrameFormat::WebSocket, true, "none", "/events/stream"),
];

impl FullStream {
    const fn new(
        path: &'static str,
        format: FrameFormat,
        edgeplane_names: bool,
        default_snapshot: &'static str,
        counterpart: &'static str,
    ) -> FullStream {
        let stream = StreamEndpoint::new(path, Framing { format, edgeplane_names }, counterpart);
        FullStream { stream, default_snapshot }
    }

    /// Returns the endpoint at this path.
    pub(crate) fn find(path: &str) -> Option<&'static FullStream> {
        ENDPOINTS.iter().find(|entry| entry.stream.is_at(path))
    }

    /// Returns where the stream starts (docs/protocol.md#full-stream, "Resume"). A cursor takes precedence over `snapshot`,
    /// and `Last-Event-ID` over `lastEventId`. An empty one counts as absent.
    ///
    /// # Errors
    /// 400 for a `lastEventId` that is no cursor, or another value of `snapshot`.
    fn start_at(&self, headers: &HeaderMap, parameters: &QueryParams) -> Result<StartAt, ApiError> {
        let from_query = match parameters.get("lastEventId").filter(|text| !text.is_empty()).map(Cursor::decode) {
            None => None,
            Some(Some(cursor)) => Some(StartAt::Cursor(cursor)),
            Some(None) => {
                let reason = "not a cursor; send the `id` of an event, or the value of the header Event-Cursor";
                return Err(ApiError::parameter("lastEventId", reason));
            }
        };
        let without_cursor = match parameters.get("snapshot").unwrap_or(self.default_snapshot) {
            "state" => StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: PerResource::default() },
            "none" => StartAt::Live,
            _ => return Err(ApiError::parameter("snapshot", "accepted: state, none")),
        };
        Ok(header_start(headers).or(from_query).unwrap_or(without_cursor))
    }

    /// Checks conditions that reject all clients now.
    ///
    /// A request waits for the first lists (at most `sync_timeout`, 10 s): WebSocket libraries do not reconnect by themselves,
    /// and some SSE clients do not reconnect after an orderly end.
    async fn check_available(&self, request: &ApiRequest) -> Option<Unavailable> {
        let app = &request.app;
        tokio::select! {
            biased;
            () = app.streams.stop.cancelled() => return Some(Unavailable::Draining),
            // A timeout needs no handling here: `is_synced` is then false.
            _ = timeout(app.content.config.sync_timeout, app.content.feed.wait_synced()) => {}
        }
        (!app.content.feed.is_synced()).then(|| Unavailable::NotReady(failures(&app.content.feed)))
    }
}

/// Answers a full stream.
///
/// # Errors
/// 400 for a parameter or a wrong transport, 404 for another `connectionId`, 426 for a missing upgrade, and on WebSocket
/// 429 or 503 for [`Unavailable`].
pub(crate) async fn serve_stream(endpoint: &'static FullStream, request: ApiRequest) -> Result<Response, ApiError> {
    let stream = &endpoint.stream;
    let (app, head) = (&request.app, stream.head(&request)?);
    let last_id = header_cursor(&request.headers).map(|cursor| cursor.encode());
    let reject = |unavailable: Unavailable| stream.unavailable_response(app, last_id.as_deref(), &unavailable);
    let (permit, slot) = match request.acquire_stream(&stream.endpoint) {
        Ok(acquired) => acquired,
        Err(unavailable) => return reject(unavailable),
    };
    let parameters = request.parameters(ACCEPTED)?;
    let types = match parameters.get("types") {
        None => EventTypes::all(EventFormat::Full),
        Some(list) => {
            EventTypes::parse(list, EventFormat::Full).map_err(|error| ApiError::parameter("types", &error))?
        }
    };
    let projection = Projection { types, filter: parameters.filter()?, ..request.base_projection(EventFormat::Full) };
    let Ok(filter_slot) = app.content.filters.open(&request.principal.caller, &projection) else {
        return reject(Unavailable::TooManyFilters);
    };
    let start_at = endpoint.start_at(&request.headers, &parameters)?;
    if let Some(unavailable) = endpoint.check_available(&request).await {
        return reject(unavailable);
    }
    request.resolve_connection(&parameters)?;
    if request.method == Method::HEAD {
        return Ok(stream_start::response(head, None));
    }
    // The only error of `subscribe` is a feed that is not synced. A cursor that cannot be resumed is reported on the stream.
    let rate = app.content.config.stream_rate;
    let framing = stream.framing(request.version);
    let resumes = matches!(start_at, StartAt::Cursor(_));
    let format = if rate.limit.is_some() { FrameFormat::JsonLines } else { framing.format };
    let cache = app.content.feed.projection_cache(projection, Framing { format, ..framing });
    let Ok(subscription) = app.content.feed.subscribe(cache, start_at) else {
        return reject(Unavailable::NotReady(failures(&app.content.feed)));
    };
    let permit = request.traced(permit, resumes);
    let watch = app.auth.watch(&request.principal);
    let slots = StreamSlots { stream: slot, filter: filter_slot };
    let start = match rate.limit {
        None => stream.start(WithCredential::new(subscription, watch, slots), framing, permit),
        Some(limit) => {
            let rate_limited = RateLimited::new(subscription, framing, limit, rate.window);
            stream.start(WithCredential::new(rate_limited, watch, slots), framing, permit)
        }
    };
    Ok(stream_start::response(head, Some(start)))
}

/// Returns the cursor in `Last-Event-ID`, if it is one.
pub(crate) fn header_cursor(headers: &HeaderMap) -> Option<Cursor> {
    headers.get("last-event-id")?.to_str().ok().and_then(Cursor::decode)
}

/// Returns the start that `Last-Event-ID` requests.
///
/// A value that is no cursor starts with `state.initial`. It must not be a 400, which would end an `EventSource` for good.
fn header_start(headers: &HeaderMap) -> Option<StartAt> {
    headers.get("last-event-id").filter(|id| !id.is_empty())?;
    Some(header_cursor(headers).map_or(
        StartAt::Snapshot { reason: SnapshotReason::Foreign, not_before: PerResource::default() },
        StartAt::Cursor,
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::{
        io::{AsyncReadExt as _, DuplexStream},
        time::{Instant, timeout},
    };
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        event::{NamespaceId, Resource},
        feed::{self, Feed, Subscription, Writer},
        http::{
            conn::{Conn, HijackedSocket},
            stream::{self, StreamContext, StreamPermit, Transport},
        },
    };

    /// Serves a live stream of the endpoint at `path` without a response head. Returns the writer, which must outlive the
    /// stream, and the client's end of the connection.
    fn serve(path: &str) -> (Writer, DuplexStream) {
        let (mut writer, feed) = Feed::new(feed::Config { wall_clock_ms: || 0, ..feed::Config::default() });
        writer.set_namespace(NamespaceId::from_uid("a namespace"));
        writer.replace(Resource::Pods, Vec::new(), 1);
        writer.replace(Resource::Claims, Vec::new(), 1);
        let endpoint = &FullStream::find(path).unwrap().stream;
        let framing = endpoint.framing(http::Version::HTTP_11);
        let subscription = feed
            .subscribe(feed.projection_cache(Projection::everything(EventFormat::Full), framing), StartAt::Live)
            .unwrap();
        let (client, server) = tokio::io::duplex(4096);
        let socket = HijackedSocket { conn: Conn::Duplex(server), head: Bytes::new(), read_ahead: Bytes::new() };
        let streams =
            StreamContext::new(stream::Config::default(), stream::Metrics::default(), CancellationToken::new());
        let permit = streams.try_acquire(&endpoint.endpoint).unwrap();
        #[allow(clippy::disallowed_methods, reason = "the task ends with its client")]
        drop(if endpoint.endpoint.transport == Transport::WebSocket {
            tokio::spawn(stream::websocket(subscription, socket, permit))
        } else {
            tokio::spawn(stream::sse(subscription, socket, framing.format, permit))
        });
        (writer, client)
    }

    /// Returns the next text from the stream. Each write of the stream arrives as one read.
    async fn next(client: &mut DuplexStream) -> String {
        let mut bytes = [0; 4096];
        let read =
            timeout(Duration::from_secs(100), client.read(&mut bytes)).await.expect("no data within 100 s").unwrap();
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }

    /// Heartbeats are sent every 15 s on both transports, and the cursor of an idle stream follows the bookmarks.
    #[tokio::test(start_paused = true)]
    async fn idle_stream_sends_heartbeats_with_a_current_cursor() {
        for path in ["/api/websocket", "/api/sse", "/api/events/stream"] {
            let (mut writer, mut client) = serve(path);
            let start = Instant::now();
            let projection = Projection::everything(EventFormat::Full);
            for (beat, rv) in [(0, PerResource::new(1, 1)), (1, PerResource::new(5, 1)), (2, PerResource::new(5, 9))] {
                let text = next(&mut client).await;
                assert_eq!(start.elapsed().as_secs(), 15 * beat, "{path}");
                let id = projection.cursor_at(NamespaceId::from_uid("a namespace"), rv).encode();
                let json = format!(r#"{{"type":"heartbeat","id":"{id}","#);
                assert!(text.contains(&json), "{path}: {text}");
                // A WebSocket ping frame precedes the heartbeat.
                assert_eq!(text.starts_with("\u{fffd}\0"), path == "/api/websocket" && beat > 0, "{text:?}");
                let fields = [format!("id: {id}\ndata: "), format!("id: {id}\nevent: heartbeat\ndata: ")];
                // The size of the chunk precedes an SSE block.
                let block = text.split_once("\r\n").map_or("", |(_, block)| block);
                let sse = fields.map(|start| block.starts_with(&start));
                assert_eq!(sse, [path == "/api/sse", path == "/api/events/stream"], "{text}");
                let (resource, rv) = if beat == 0 { (Resource::Pods, 5) } else { (Resource::Claims, 9) };
                writer.bookmark(resource, rv);
            }
        }
    }

    fn size_of_output<A, B, C, F>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// The task is most of the memory of an idle connection, which docs/performance.md#goals bounds. tokio aligns it to
    /// 128 bytes.
    #[test]
    fn connection_task_is_at_most_1152_bytes() {
        // Bytes of tokio's task header and trailer, the task tracker, and the result of a panic.
        const TASK: usize = 128;
        let websocket =
            size_of_output(|out: WithCredential<Subscription>, socket: HijackedSocket, permit: StreamPermit| {
                stream::websocket(out, socket, permit)
            });
        let sse = size_of_output(|out: WithCredential<Subscription>, socket: HijackedSocket, permit: StreamPermit| {
            stream::sse(out, socket, UNNAMED_SSE, permit)
        });
        assert!(websocket.max(sse) + TASK <= 1152, "{websocket} and {sse} bytes");
    }
}
