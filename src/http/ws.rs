//! `/ws`: the Boilerhouse stream (protocol.md section 2).

use tokio::time::{Instant, timeout_at};
use warp::reply::Response;

use super::{
    conn::Start,
    error::{Code, Error},
    request::Asked,
    stream,
    stream_credential::Leased,
    unavailable::Later,
    upgrade,
};
use crate::{
    event::projection::{Format, Lens, Types},
    feed::{Feed, Framing, From, Reason, Refused, Subscription},
};

pub(super) async fn ws(asked: Asked) -> Result<Response, Error> {
    let key = upgrade::key(&asked, "connect with a WebSocket client")?;
    let place = asked.site.streams.enter().ok_or_else(|| Later::TooManyConnections.error())?;
    let seat = asked.site.limits.enter(&asked.principal.caller).map_err(Later::error)?;
    let parameters = asked.parameters(&["types", "connectionId", "snapshot"])?;
    let types = match parameters.get("types") {
        None => Types::all(Format::Boilerhouse),
        Some(list) => Types::parse(list, Format::Boilerhouse).map_err(|problem| Error::parameter("types", &problem))?,
    };
    let from = match parameters.get("snapshot") {
        None | Some("state") => From::Snapshot(Reason::Connect, [0; 2]),
        Some("none") => From::Now,
        Some(_) => return Err(Error::parameter("snapshot", "accepted are state, none")),
    };
    let site = asked.site.clone();
    if site.streams.stop.is_cancelled() {
        return Err(Later::Draining.error());
    }
    let deadline = Instant::now() + site.config.ready_wait;
    timeout_at(deadline, site.feed.open()).await.map_err(|_| not_ready(&site.feed))?;
    asked.check_connection(&parameters)?;
    let lens = Lens { types, ..asked.lens(Format::Boilerhouse) };
    let hold = site.auth.hold(&asked.principal);
    let leased = |subscription| Leased::new(subscription, hold, seat);
    let start = match (site.own)() {
        None => {
            let out = leased(subscribe(&site.feed, lens, from)?);
            Start::new(move |socket| stream::websocket(out, socket, place))
        }
        Some((feed, mut source)) => {
            let synced = async {
                tokio::select! {
                    never = &mut source => match never {},
                    () = feed.ready() => {}
                }
            };
            timeout_at(deadline, synced).await.map_err(|_| not_ready(&site.feed))?;
            let out = leased(subscribe(&feed, lens, from)?);
            Start::new(move |socket| async move {
                // The watchers end with the stream, and their connections with them.
                tokio::select! {
                    closed = stream::websocket(out, socket, place) => closed,
                    never = source => match never {},
                }
            })
        }
    };
    Ok(upgrade::response(stream::websocket_head(key), Some(start)))
}

fn subscribe(feed: &Feed, lens: Lens, from: From) -> Result<Subscription, Error> {
    feed.subscribe(feed.lens(lens, Framing::WEBSOCKET), from).map_err(|refused| match refused {
        Refused::NotReady => not_ready(feed),
        Refused::Below | Refused::Between | Refused::Foreign | Refused::OtherLens => {
            Error::new(Code::Internal, "the stream could not begin")
        }
    })
}

/// What keeps a connection out, by the feed that all share.
fn not_ready(feed: &Feed) -> Error {
    if feed.is_ready() {
        Error::not_ready("the API server has not answered for too long: connect again in a moment")
    } else {
        Later::NotReady.error()
    }
}
