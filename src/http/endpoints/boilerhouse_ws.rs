//! `/ws`: the Boilerhouse stream (docs/protocol.md#boilerhouse-stream).

use tokio::time::{Instant, timeout_at};
use warp::reply::Response;

use crate::{
    event::{
        PerResource,
        projection::{EventFormat, EventTypes, Projection},
    },
    feed::{Feed, Framing, ResumeError, SnapshotReason, StartAt, Subscription},
    http::{
        conn::StreamStart,
        error::{ApiError, ErrorCode},
        request::ApiRequest,
        stream,
        stream_credential::WithCredential,
        unavailable::Unavailable,
        upgrade,
    },
};

pub(crate) async fn ws(request: ApiRequest) -> Result<Response, ApiError> {
    let key = upgrade::key(&request, "connect with a WebSocket client")?;
    let permit = request.app.streams.try_acquire().ok_or_else(|| Unavailable::TooManyStreams.to_error())?;
    let slot = request.app.rate_limits.open_stream(&request.principal.caller).map_err(|exceeded| Unavailable::from(exceeded).to_error())?;
    let parameters = request.parameters(&["types", "connectionId", "snapshot"])?;
    let types = match parameters.get("types") {
        None => EventTypes::all(EventFormat::Boilerhouse),
        Some(list) => {
            EventTypes::parse(list, EventFormat::Boilerhouse).map_err(|error| ApiError::parameter("types", &error))?
        }
    };
    let start_at = match parameters.get("snapshot") {
        None | Some("state") => {
            StartAt::Snapshot { reason: SnapshotReason::Connect, not_before: PerResource::default() }
        }
        Some("none") => StartAt::Live,
        Some(_) => return Err(ApiError::parameter("snapshot", "accepted are state, none")),
    };
    let app = request.app.clone();
    if app.streams.stop.is_cancelled() {
        return Err(Unavailable::Draining.to_error());
    }
    let deadline = Instant::now() + app.config.sync_timeout;
    timeout_at(deadline, app.feed.wait_serviceable()).await.map_err(|_| not_ready(&app.feed))?;
    request.resolve_connection(&parameters)?;
    let projection = Projection { types, ..request.base_projection(EventFormat::Boilerhouse) };
    let watch = app.auth.watch(&request.principal);
    let with_credential = |subscription| WithCredential::new(subscription, watch, slot);
    let start = match (app.dedicated_feeds)() {
        None => {
            let out = with_credential(subscribe(&app.feed, projection, start_at)?);
            StreamStart::new(move |socket| stream::websocket(out, socket, permit))
        }
        Some((feed, mut source)) => {
            let synced = async {
                tokio::select! {
                    never = &mut source => match never {},
                    () = feed.wait_synced() => {}
                }
            };
            timeout_at(deadline, synced).await.map_err(|_| not_ready(&app.feed))?;
            let out = with_credential(subscribe(&feed, projection, start_at)?);
            StreamStart::new(move |socket| async move {
                // The watchers end with the stream, and their connections with them.
                tokio::select! {
                    closed = stream::websocket(out, socket, permit) => closed,
                    never = source => match never {},
                }
            })
        }
    };
    Ok(upgrade::response(stream::websocket_head(key), Some(start)))
}

fn subscribe(feed: &Feed, projection: Projection, start_at: StartAt) -> Result<Subscription, ApiError> {
    feed.subscribe(feed.projection_cache(projection, Framing::WEBSOCKET), start_at).map_err(|refused| match refused {
        ResumeError::NotSynced => not_ready(feed),
        ResumeError::BeforeLog
        | ResumeError::InsideCoalesced
        | ResumeError::ForeignHistory
        | ResumeError::ProjectionMismatch => ApiError::new(ErrorCode::Internal, "the stream could not begin"),
    })
}

/// What keeps a connection out, by the feed that all share.
fn not_ready(feed: &Feed) -> ApiError {
    if feed.is_synced() {
        ApiError::not_ready("the API server has not answered for too long: connect again in a moment")
    } else {
        Unavailable::NotReady.to_error()
    }
}
