//! The endpoints of a relay (docs/protocol.md#relay).

use http::Method;
use warp::reply::{Reply, Response};

use crate::{
    feed::{FrameFormat, Framing},
    http::{
        app::ServedRelay,
        auth,
        conn::stream_start,
        error::ApiError,
        request::ApiRequest,
        stream_credential::{StreamSlots, WithCredential},
        stream_endpoint::{NAMED_SSE, StreamEndpoint, last_event_id},
        unavailable::Unavailable,
    },
    relay::Outbound,
};

/// Parameters of the streams.
const ACCEPTED: &[&str] = &["lastEventId", auth::TICKET_PARAMS[0], auth::TICKET_PARAMS[1]];

/// The streams.
pub(crate) static ENDPOINTS: [StreamEndpoint; 2] = [
    StreamEndpoint::new("/events", Framing { format: NAMED_SSE, edgeplane_names: true }, "/events/ws"),
    StreamEndpoint::new("/events/ws", Framing { format: FrameFormat::WebSocket, edgeplane_names: true }, "/events"),
];

/// Returns the endpoint at this path.
pub(crate) fn find(path: &str) -> Option<&'static StreamEndpoint> {
    ENDPOINTS.iter().find(|endpoint| endpoint.is_at(path))
}

/// Answers a stream.
///
/// # Errors
/// 400 for a parameter or a wrong transport, 426 for a missing upgrade, and on WebSocket 429 or 503 for [`Unavailable`].
pub(crate) async fn serve_stream(
    endpoint: &'static StreamEndpoint,
    request: ApiRequest<ServedRelay>,
) -> Result<Response, ApiError> {
    let (app, head) = (&request.app, endpoint.head(&request)?);
    let header = last_event_id(&request.headers).map(String::from_utf8_lossy);
    let reject = |unavailable: Unavailable| endpoint.unavailable_response(app, header.as_deref(), &unavailable);
    let (permit, slot) = match request.acquire_stream(&endpoint.endpoint) {
        Ok(acquired) => acquired,
        Err(unavailable) => return reject(unavailable),
    };
    let parameters = request.parameters(ACCEPTED)?;
    let after = header.as_deref().or(parameters.get("lastEventId")).filter(|id| !id.is_empty());
    if app.streams.stop.is_cancelled() {
        return reject(Unavailable::Draining);
    }
    if request.method == Method::HEAD {
        return Ok(stream_start::response(head, None));
    }
    let framing = endpoint.framing(request.version);
    let permit = request.traced(permit, after.is_some());
    let out = Outbound::new(app.content.history.clone(), framing.format, after);
    let watch = app.auth.watch(&request.principal);
    let out = WithCredential::new(out, watch, StreamSlots { stream: slot, filter: None });
    Ok(stream_start::response(head, Some(endpoint.start(out, framing, permit))))
}

/// Answers `/readyz`: 200 until the process drains. A relay is ready while its upstream is down: its clients learn that, and
/// the history serves them.
///
/// # Errors
/// 400 for a parameter other than `verbose`.
pub(crate) async fn readyz(request: ApiRequest<ServedRelay>) -> Result<Response, ApiError> {
    let parameters = request.parameters(&["verbose"])?;
    let is_draining = request.app.streams.stop.is_cancelled();
    let mut text = String::new();
    if parameters.get("verbose").is_some() {
        let ServedRelay { history, readiness_details } = &request.app.content;
        text += if history.is_up() { "[+] upstream: live\n" } else { "[-] upstream: down\n" };
        text.extend(readiness_details().into_iter().map(|line| format!("[i] {line}\n")));
    }
    text += if is_draining { "not ready: draining\n" } else { "ready\n" };
    let mut response = text.into_response();
    if is_draining {
        *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
    }
    Ok(response)
}

/// Answers `/`: the list of the endpoints.
///
/// # Errors
/// 400 for a parameter.
pub(crate) async fn index(request: ApiRequest<ServedRelay>) -> Result<Response, ApiError> {
    request.parameters(&[])?;
    let text = "boilerhouse-bridge relay\n\n\
                /events          server-sent events\n\
                /events/ws       WebSocket\n\
                /api/v1/health   health\n\
                /livez, /readyz  probes\n\
                /metrics         metrics\n";
    Ok(text.into_response())
}
