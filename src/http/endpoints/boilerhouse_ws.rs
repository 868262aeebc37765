//! `/ws`: the Boilerhouse stream (`docs/protocol.md#boilerhouse-stream`).

use std::convert::Infallible;

use futures::future::BoxFuture;
use tokio::time::{Instant, timeout_at};
use warp::reply::Response;

use crate::{
    event::{
        PerResource,
        projection::{EventFormat, EventTypes, Projection},
    },
    feed::{Feed, Framing, NotSynced, SnapshotReason, StartAt, Subscription},
    http::{
        app::App,
        caller::Caller,
        conn::{StreamStart, stream_start},
        error::ApiError,
        request::ApiRequest,
        stream,
        stream_credential::{StreamSlots, WithCredential},
        unavailable::{self, Unavailable, failures},
        upgrade,
    },
};

/// The endpoint, as metrics name it.
pub(crate) static ENDPOINT: stream::Endpoint =
    stream::Endpoint { path: "/ws", transport: stream::Transport::WebSocket };

/// Answers `/ws`.
///
/// An upgrade waits until the feed can serve (at most `sync_timeout`, 10 s). With dedicated watchers it also waits, within
/// the same time, until they have listed both resources.
///
/// # Errors
/// 426 or 400 for a request that is no valid upgrade, 400 for a parameter, 404 for another `connectionId`, 429 or 503 for
/// [`Unavailable`].
pub(crate) async fn ws(request: ApiRequest) -> Result<Response, ApiError> {
    let app = request.app.clone();
    let key = upgrade::key(&request, "connect with a WebSocket client")?;
    let acquired = request.acquire_stream(&ENDPOINT);
    let (permit, slot) = acquired.map_err(|unavailable| rejection(&app, &unavailable))?;
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
        Some(_) => return Err(ApiError::parameter("snapshot", "accepted: state, none")),
    };
    if app.streams.stop.is_cancelled() {
        return Err(rejection(&app, &Unavailable::Draining));
    }
    let deadline = Instant::now() + app.content.config.sync_timeout;
    timeout_at(deadline, app.content.feed.wait_serviceable()).await.map_err(|_| not_ready(&app))?;
    request.resolve_connection(&parameters)?;
    let projection = Projection { types, ..request.base_projection(EventFormat::Boilerhouse) };
    let watch = app.auth.watch(&request.principal);
    let with_credential =
        |subscription| WithCredential::new(subscription, watch, StreamSlots { stream: slot, filter: None });
    let start = match open_dedicated(&app, &request.principal.caller) {
        None => {
            let out = with_credential(subscribe(&app, &app.content.feed, projection, start_at)?);
            let permit = request.traced(permit, false);
            StreamStart::new(move |socket| stream::websocket(out, socket, permit))
        }
        Some((feed, mut source)) => {
            let synced = async {
                tokio::select! {
                    never = &mut source => match never {},
                    () = feed.wait_synced() => {}
                }
            };
            timeout_at(deadline, synced).await.map_err(|_| not_ready(&app))?;
            let out = with_credential(subscribe(&app, &feed, projection, start_at)?);
            let permit = request.traced(permit, false);
            StreamStart::new(move |socket| async move {
                // The watchers and their connections to the API server end with the stream.
                tokio::select! {
                    closed = stream::websocket(out, socket, permit) => closed,
                    never = source => match never {},
                }
            })
        }
    };
    Ok(stream_start::response(stream::websocket_head(key), Some(start)))
}

/// Returns a dedicated feed for a connection of this caller. Returns `None` if the connection must read the hub's feed: all
/// dedicated watchers are in use, or a budget for opening them is.
fn open_dedicated(app: &App, caller: &Caller) -> Option<(Feed, BoxFuture<'static, Infallible>)> {
    // Dropping the feed frees its slot. It sends no request before it is polled.
    (app.content.dedicated_feeds)().filter(|_| app.rate_limits.open_dedicated(caller))
}

/// Counts a rejection and returns its response.
pub(crate) fn rejection<C>(app: &App<C>, unavailable: &Unavailable) -> ApiError {
    app.metrics.count_stream_rejection(ENDPOINT.path, ENDPOINT.transport.label(), unavailable.label());
    unavailable.to_error()
}

fn subscribe(app: &App, feed: &Feed, projection: Projection, start_at: StartAt) -> Result<Subscription, ApiError> {
    feed.subscribe(feed.projection_cache(projection, Framing::WEBSOCKET), start_at).map_err(|NotSynced| not_ready(app))
}

/// Returns the response to a request whose wait for the first lists, or for the API server, took too long.
fn not_ready(app: &App) -> ApiError {
    let failures = failures(&app.content.feed);
    let error = rejection(app, &Unavailable::NotReady(failures.clone()));
    if !app.content.feed.is_synced() {
        return error;
    }
    unavailable::not_ready("the API server has not answered for too long", failures.as_deref())
}
