//! The full stream: the endpoints of protocol.md section 4 as rows of a table over one handler.
//!
//! A row is a path, how events are laid on its wire, and what comes first. Who may not have a stream now but may soon is
//! told so in the transport's way ([`Later`]); what is wrong with a request is a 4xx that says what is accepted.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method};
use tokio::time::timeout;
use warp::reply::Response;

use super::{
    auth,
    conn::Start,
    error::{Code, Error},
    request::{Asked, Parameters},
    stream::{self, Outbound, Place},
    stream_credential::Leased,
    stream_rate::Rated,
    unavailable::{self, Later},
    upgrade,
};
use crate::{
    event::{
        Cursor,
        projection::{Format, Lens, Types},
    },
    feed::{Audience, Carrier, Framing, From, Read, Reason, Shown, Subscription},
    wire::Close,
};

/// Parameters that all rows take.
const ACCEPTED: &[&str] =
    &["types", "params", "connectionId", "snapshot", "lastEventId", auth::TICKETS[0], auth::TICKETS[1]];

/// One streaming endpoint.
#[derive(Debug)]
pub(super) struct Row {
    path: &'static str,
    framing: Framing,
    /// What comes first where the request does not say.
    snapshot: &'static str,
    /// Where the other transport is.
    other: &'static str,
}

const ROWS: [Row; 6] = [
    Row::new("/api/websocket", Carrier::WebSocket, false, "state", "/api/sse"),
    Row::new("/api/sse", Carrier::Sse { named: false }, false, "state", "/api/websocket"),
    Row::new("/api/events/stream", Carrier::Sse { named: true }, false, "none", "/api/websocket"),
    Row::new("/events/stream", Carrier::Sse { named: false }, true, "none", "/events/ws"),
    Row::new("/events", Carrier::Sse { named: false }, true, "none", "/events/ws"),
    Row::new("/events/ws", Carrier::WebSocket, true, "none", "/events/stream"),
];

impl Row {
    const fn new(
        path: &'static str,
        carrier: Carrier,
        matrix: bool,
        snapshot: &'static str,
        other: &'static str,
    ) -> Row {
        Row { path, framing: Framing { carrier, matrix }, snapshot, other }
    }

    /// The row at this path.
    pub(super) fn at(path: &str) -> Option<&'static Row> {
        static TABLE: &[Row] = &ROWS;
        let path = path.strip_suffix('/').unwrap_or(path);
        TABLE.iter().find(|row| row.path == path)
    }

    fn is_websocket(&self) -> bool {
        self.framing.carrier == Carrier::WebSocket
    }

    /// The head of the answer.
    ///
    /// # Errors
    /// 426 where no WebSocket is asked for on a row that is one, 400 for the reverse: both name the other row.
    fn head(&self, asked: &Asked) -> Result<http::Response<()>, Error> {
        if self.is_websocket() {
            let hint = format!("connect with a WebSocket client, or read {} for server-sent events", self.other);
            return upgrade::key(asked, &hint).map(stream::websocket_head);
        }
        if upgrade::is_asked(asked) {
            let message = format!("this endpoint sends server-sent events: the WebSocket is at {}", self.other);
            return Err(Error::new(Code::BadRequest, message));
        }
        Ok(stream::sse_head())
    }

    /// Where the stream starts (protocol.md section 3, "Resume"): at the cursor where there is one, whatever `snapshot`
    /// says.
    fn from(&self, headers: &HeaderMap, parameters: &Parameters) -> Result<From, Error> {
        let asked = match parameters.get("lastEventId").map(|text| (text, Cursor::decode(text))) {
            None => None,
            Some((_, Some(cursor))) => Some(From::Resume(cursor)),
            Some((_, None)) => {
                let problem = "not a cursor: accepted is the id of an event, or what Event-Cursor says";
                return Err(Error::parameter("lastEventId", problem));
            }
        };
        let first = match parameters.get("snapshot").unwrap_or(self.snapshot) {
            "state" => From::Snapshot(Reason::Connect, [0; 2]),
            "none" => From::Now,
            _ => return Err(Error::parameter("snapshot", "accepted are state, none")),
        };
        Ok(resumed(headers).or(asked).unwrap_or(first))
    }

    /// What keeps everybody out now. A WebSocket client is worth a wait: its library does not come back by itself.
    async fn obstacle(&self, asked: &Asked) -> Option<Later> {
        let site = &asked.site;
        if site.streams.stop.is_cancelled() {
            return Some(Later::Draining);
        }
        if self.is_websocket() {
            // What is over time shows below.
            let _ = timeout(site.config.ready_wait, site.feed.ready()).await;
        }
        (!site.feed.is_ready()).then_some(Later::NotReady)
    }

    /// The answer to whoever may have a stream later.
    pub(super) fn come_back(&self, later: Later, retry: Duration) -> Result<Response, Error> {
        if self.is_websocket() {
            return Err(later.error());
        }
        Ok(later.ended(self.framing, retry))
    }

    fn start<O: Outbound + 'static>(&self, out: O, place: Place) -> Start {
        if self.is_websocket() {
            return Start::new(move |socket| stream::websocket(out, socket, place));
        }
        let framing = self.framing;
        Start::new(move |mut socket| {
            // It shares the first write with the head and the first events.
            let retry = unavailable::retry_line(framing, place.config.retry());
            socket.head = [&socket.head[..], &retry].concat().into();
            stream::sse(out, socket, place)
        })
    }
}

/// Serves a row.
pub(super) async fn events(row: &'static Row, asked: Asked) -> Result<Response, Error> {
    let (site, head) = (&asked.site, row.head(&asked)?);
    let retry = site.streams.config.retry();
    let Some(place) = site.streams.enter() else {
        return row.come_back(Later::TooManyConnections, retry);
    };
    let seat = match site.limits.enter(&asked.principal.caller) {
        Ok(seat) => seat,
        Err(later) => return row.come_back(later, retry),
    };
    let parameters = asked.parameters(ACCEPTED)?;
    let types = match parameters.get("types") {
        None => Types::all(Format::Full),
        Some(list) => Types::parse(list, Format::Full).map_err(|problem| Error::parameter("types", &problem))?,
    };
    let lens = Lens { types, filter: parameters.filter()?, ..asked.lens(Format::Full) };
    let from = row.from(&asked.headers, &parameters)?;
    if let Some(later) = row.obstacle(&asked).await {
        return row.come_back(later, retry);
    }
    asked.check_connection(&parameters)?;
    if asked.method == Method::HEAD {
        return Ok(upgrade::response(head, None));
    }
    // Ready a moment ago, it refuses nothing else: what is wrong with a cursor is told on the stream.
    let rate = site.config.rate;
    let carrier = if rate.limit.is_some() { Carrier::Lines } else { row.framing.carrier };
    let framing = Framing { carrier, ..row.framing };
    let Ok(subscription) = site.feed.subscribe(site.feed.lens(lens, framing), from) else {
        return row.come_back(Later::NotReady, retry);
    };
    let hold = site.auth.hold(&asked.principal);
    let start = match rate.limit {
        None => row.start(Leased::new(subscription, hold, seat), place),
        Some(limit) => {
            let rated = Rated::new(subscription, row.framing, limit, rate.window);
            row.start(Leased::new(rated, hold, seat), place)
        }
    };
    Ok(upgrade::response(head, Some(start)))
}

/// What `Last-Event-ID` says. One that is no cursor must not be a 400, which would end an EventSource for good.
fn resumed(headers: &HeaderMap) -> Option<From> {
    let id = headers.get("last-event-id").filter(|id| !id.is_empty())?;
    let cursor = id.to_str().ok().and_then(Cursor::decode);
    Some(cursor.map_or(From::Snapshot(Reason::Foreign, [0; 2]), From::Resume))
}

impl Outbound for Subscription {
    fn read(&mut self, max_bytes: usize) -> Read {
        Subscription::read(self, max_bytes)
    }

    fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Subscription::poll_changed(self, cx)
    }

    fn audience(&mut self) -> Option<Audience> {
        Subscription::audience(self)
    }

    fn take(&mut self, shown: &Shown) -> bool {
        Subscription::take(self, shown)
    }

    fn heartbeat(&mut self) -> Option<Bytes> {
        Subscription::heartbeat(self)
    }

    fn tell(&mut self, name: &'static str, json: &str) -> Option<Bytes> {
        let mut out = Vec::new();
        self.framing()?.put(&mut out, name, None, json);
        Some(out.into())
    }

    fn farewell(&mut self, close: Close, retry: Duration) -> Option<Bytes> {
        Some(unavailable::closing(self.framing()?, close.reason(), retry))
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, DuplexStream},
        time::{Instant, timeout},
    };
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        event::{Home, Resource},
        feed::{self, Feed, Writer},
        http::{
            conn::{Conn, Socket},
            stream::Streams,
        },
    };

    /// A row's stream from now on, without a head; its client's end, and what keeps the feed alive.
    fn served(path: &str) -> (Writer, DuplexStream) {
        let (mut writer, feed) = Feed::new(feed::Config { clock: || 0, ..feed::Config::default() });
        writer.home(Home::of("a namespace"));
        writer.replace(Resource::Instance, Vec::new(), 1);
        writer.replace(Resource::Claim, Vec::new(), 1);
        let row = Row::at(path).unwrap();
        let subscription = feed.subscribe(feed.lens(Lens::all(Format::Full), row.framing), From::Now).unwrap();
        let (client, server) = tokio::io::duplex(4096);
        let socket = Socket { conn: Conn::Duplex(server), head: Bytes::new(), early: Bytes::new() };
        let streams = Streams::new(stream::Config::default(), stream::Metrics::default(), CancellationToken::new());
        let place = streams.enter().unwrap();
        #[allow(clippy::disallowed_methods, reason = "it ends with its client")]
        drop(if row.is_websocket() {
            tokio::spawn(stream::websocket(subscription, socket, place))
        } else {
            tokio::spawn(stream::sse(subscription, socket, place))
        });
        (writer, client)
    }

    /// The text that comes next; it comes whole.
    async fn next(client: &mut DuplexStream) -> String {
        let mut bytes = [0; 4096];
        let read = timeout(Duration::from_secs(100), client.read(&mut bytes)).await.expect("nothing comes").unwrap();
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }

    /// Heartbeats come every 15 s, on both transports, and a quiet stream's cursor moves with the bookmarks.
    #[tokio::test(start_paused = true)]
    async fn a_quiet_stream_has_heartbeats_that_keep_its_cursor_fresh() {
        for path in ["/api/websocket", "/api/sse", "/api/events/stream"] {
            let (mut writer, mut client) = served(path);
            let begun = Instant::now();
            let lens = Lens::all(Format::Full);
            for (beat, rv) in [(0, [1, 1]), (1, [5, 1]), (2, [5, 9])] {
                let text = next(&mut client).await;
                assert_eq!(begun.elapsed().as_secs(), 15 * beat, "{path}");
                let id = lens.cursor(Home::of("a namespace"), rv).encode();
                let json = format!(r#"{{"type":"heartbeat","id":"{id}","#);
                assert!(text.contains(&json), "{path}: {text}");
                // WebSocket's own ping comes beside it.
                assert_eq!(text.starts_with("\u{fffd}\0"), path == "/api/websocket" && beat > 0, "{text:?}");
                let fields = [format!("id: {id}\ndata: "), format!("id: {id}\nevent: heartbeat\ndata: ")];
                let sse = fields.map(|start| text.starts_with(&start));
                assert_eq!(sse, [path == "/api/sse", path == "/api/events/stream"], "{text}");
                let (kind, rv) = if beat == 0 { (Resource::Instance, 5) } else { (Resource::Claim, 9) };
                writer.bookmark(kind, rv);
            }
        }
    }

    fn size_of_output<A, B, C, F>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// Memory an idle connection is a promise (quality.md), and this is most of it: the task, in steps of 128 bytes.
    #[test]
    fn a_connection_is_small() {
        // tokio's header and trailer, the tracker and the place for a panic.
        const TASK: usize = 128;
        let websocket = size_of_output(|out: Leased<Subscription>, socket: Socket, place: Place| {
            stream::websocket(out, socket, place)
        });
        let sse =
            size_of_output(|out: Leased<Subscription>, socket: Socket, place: Place| stream::sse(out, socket, place));
        assert!(websocket.max(sse) + TASK <= 1152, "{websocket} and {sse} bytes");
    }
}
