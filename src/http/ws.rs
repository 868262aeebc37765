//! `/ws`: the Boilerhouse stream (protocol.md section 2).

use http::{HeaderMap, HeaderValue, Method, header};
use tokio::time::{Instant, timeout_at};
use warp::reply::Response;

use super::{
    asked::Asked,
    conn::Start,
    error::{Code, Error},
    stream::{self, Outbound},
};
use crate::{
    event::lens::{Format, Lens, Types},
    feed::{Feed, Framing, From, Read, Reason, Refused, Subscription},
};

impl Outbound for Subscription {
    fn read(&mut self, max_bytes: usize) -> Read {
        Subscription::read(self, max_bytes)
    }

    fn changed(&mut self) -> impl Future<Output = ()> + Send {
        Subscription::changed(self)
    }
}

pub(super) async fn ws(asked: Asked) -> Result<Response, Error> {
    let key = upgrade_key(&asked)?;
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
        return Err(Error::new(Code::UpstreamUnavailable, "draining: connect again, to another replica")
            .with(header::RETRY_AFTER, HeaderValue::from_static("1")));
    }
    let deadline = Instant::now() + site.config.ready_wait;
    timeout_at(deadline, site.feed.open()).await.map_err(|_| not_ready(&site.feed))?;
    asked.check_connection(&parameters)?;
    let lens = Lens { types, ..Lens::all(Format::Boilerhouse) };
    let streams = site.streams.clone();
    let start = match (site.own)() {
        None => {
            let subscription = subscribe(&site.feed, lens, from)?;
            Start::new(move |socket| stream::websocket(subscription, socket, streams))
        }
        Some((feed, mut source)) => {
            let synced = async {
                tokio::select! {
                    never = &mut source => match never {},
                    () = feed.ready() => {}
                }
            };
            timeout_at(deadline, synced).await.map_err(|_| not_ready(&site.feed))?;
            let subscription = subscribe(&feed, lens, from)?;
            Start::new(move |socket| async move {
                // The watchers end with the stream, and their connections with them.
                tokio::select! {
                    closed = stream::websocket(subscription, socket, streams) => closed,
                    never = source => match never {},
                }
            })
        }
    };
    let (head, ()) = stream::websocket_head(key).into_parts();
    let mut response = Response::default();
    (*response.status_mut(), *response.headers_mut()) = (head.status, head.headers);
    response.extensions_mut().insert(start);
    Ok(response)
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
        Error::not_ready("the first lists of pods and claims are not complete yet: connect again in a moment")
    }
}

/// `Sec-WebSocket-Key` of a proper upgrade request (RFC 6455, section 4.2.1).
///
/// # Errors
/// 426 that says what is spoken here.
fn upgrade_key(asked: &Asked) -> Result<&str, Error> {
    let headers = &asked.headers;
    let required = |message: &str| {
        Error::new(Code::UpgradeRequired, message)
            .with(header::UPGRADE, HeaderValue::from_static("websocket"))
            .with(header::CONNECTION, HeaderValue::from_static("Upgrade"))
            .with(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"))
    };
    let upgrades = lists(headers, header::CONNECTION, "upgrade") && lists(headers, header::UPGRADE, "websocket");
    if asked.method != Method::GET || !upgrades {
        return Err(required("this endpoint speaks WebSocket: connect with a WebSocket client"));
    }
    if !lists(headers, header::SEC_WEBSOCKET_VERSION, "13") {
        return Err(required("this endpoint speaks WebSocket version 13"));
    }
    // Its bytes would be taken for frames.
    let length = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    if length || headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(Error::new(Code::BadRequest, "an upgrade request has no body: leave Content-Length out"));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok()).unwrap_or_default();
    let nonce = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, key);
    if nonce.is_ok_and(|nonce| nonce.len() == 16) {
        Ok(key)
    } else {
        Err(Error::new(Code::BadRequest, "Sec-WebSocket-Key must be 16 bytes in base64"))
    }
}

fn lists(headers: &HeaderMap, name: header::HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|list| list.split(',')).any(|item| item.trim().eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::http::conn::Socket;

    fn size_of_output<A, B, C, F>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// Memory an idle connection is a promise (quality.md), and this is most of it: the task, in steps of 128 bytes.
    #[test]
    fn a_connection_is_small() {
        // tokio's header and trailer, the tracker and the place for a panic.
        const TASK: usize = 128;
        let stream = size_of_output(|out: Subscription, socket: Socket, shared: Arc<stream::Streams>| {
            stream::websocket(out, socket, shared)
        });
        assert!(stream + TASK <= 1152, "{stream} bytes");
    }
}
