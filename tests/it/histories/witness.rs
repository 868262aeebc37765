//! What the API server told an engine: a layer between the simulated API and a client that writes down each answer.
//!
//! It knows nothing of the bridge. It says up to where a watch has come, at which version a list was read, and whether
//! there was a reason to list again; what has to be told to a reader follows from that and the store's history.

use std::collections::HashSet;
use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::event::{Resource, ResourceVersion};
use boilerhouse_bridge::sim::Sim;
use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use hyper::body::Frame;
use kube::client::Body;
use serde::Deserialize;
use tokio::time::Instant;
use tower::{BoxError, Service};

use super::pace::Pace;
use super::truth::NAMESPACE;

/// One thing that an engine heard about one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heard {
    /// Which history the API server had then.
    pub(super) epoch: usize,
    pub(super) what: What,
    pub(super) at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A watch's line about an object, at this version.
    Line(ResourceVersion),
    /// A bookmark.
    Bookmark(ResourceVersion),
    /// The last page of a list that is true at this version.
    List(ResourceVersion),
    /// A list of one object, which says how far the API server is.
    Probe(ResourceVersion),
    /// 410, as a status or as a line.
    Gone,
    /// A line that does not parse.
    Garbage,
    /// A list of the past, whole, at this version.
    Past(ResourceVersion),
    /// A list of the past that did not come.
    PastUnlisted,
    /// A watch of the past that did not tell all that it was asked for.
    PastUnwatched,
}

impl Heard {
    pub(super) fn is_list(&self) -> bool {
        matches!(self.what, What::List(_))
    }
}

/// What one engine heard, pods then claims.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) heard: [Vec<Heard>; 2],
    /// When the last byte came.
    pub(super) last_byte: [Option<Instant>; 2],
    pub(super) troubles: [Option<Failing>; 2],
    /// When requests failed that had been made, and watches broke.
    pub(super) failed: [Vec<Instant>; 2],
    /// When watches began.
    pub(super) began: [Vec<Instant>; 2],
    /// When bytes came.
    pub(super) bytes: [Vec<Instant>; 2],
    /// Tokens of pages of the past.
    past_pages: HashSet<String>,
}

/// A time without an answer that helps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failing {
    since: Instant,
    /// When a watch began again.
    over: Option<Instant>,
}

/// A watch that began and was followed by another failure so soon was no end of the trouble: a list of one object,
/// which is asked for to find out, may take 5 s.
const RELAPSE: Duration = Duration::from_secs(6);

impl Log {
    fn fails(&mut self, kind: Resource, since: Instant) {
        self.failed[kind as usize].push(Instant::now());
        let trouble = &mut self.troubles[kind as usize];
        match trouble {
            Some(Failing { over, .. }) if over.is_none_or(|over| over.elapsed() < RELAPSE) => *over = None,
            Some(_) | None => *trouble = Some(Failing { since, over: None }),
        }
    }

    fn works(&mut self, kind: Resource) {
        self.began[kind as usize].push(Instant::now());
        if let Some(trouble) = &mut self.troubles[kind as usize] {
            trouble.over.get_or_insert_with(Instant::now);
        }
    }

    /// Whether both resources' objects have been heard of up to this version.
    pub(super) fn has_heard(&self, rv: ResourceVersion) -> bool {
        let version = |heard: &Heard| match heard.what {
            What::Line(rv) | What::Bookmark(rv) | What::List(rv) => Some(rv),
            _ => None,
        };
        self.heard.iter().all(|heard| heard.iter().rev().find_map(version).is_some_and(|last| last >= rv))
    }

    /// Whether one of the resources has been without an answer for so long.
    pub(super) fn fails_since(&self, long: Duration) -> bool {
        let lasts = |trouble: &Failing| trouble.over.is_none_or(|over| over.elapsed() < RELAPSE);
        self.troubles.iter().flatten().any(|trouble| lasts(trouble) && trouble.since.elapsed() >= long)
    }
}

/// What all engines share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) epoch: AtomicUsize,
    /// So many lists will stop in the middle of their body, pods and claims.
    pub(super) half_lists: [AtomicUsize; 2],
}

/// A client of the simulated API that keeps a log. Lists come in pages of three objects, whatever is asked for: a
/// server may give less than the limit, and pages are where things happen.
pub(super) fn client(sim: &Sim, shared: &Arc<Shared>, pace: Pace) -> (kube::Client, Arc<Mutex<Log>>) {
    let log = Arc::new(Mutex::new(Log::default()));
    let witness = Witness { log: log.clone(), shared: shared.clone(), pace };
    let api = sim.service();
    let service = tower::service_fn(move |mut request: Request<Body>| {
        let (witness, mut api) = (witness.clone(), api.clone());
        async move {
            let uri = request.uri().to_string();
            *request.uri_mut() = uri.replace("limit=500", "limit=3").parse()?;
            let ask = Ask::of(&uri, &witness.log.lock().unwrap().past_pages);
            // One that is refused, or given up unanswered, has failed since it was made.
            pace.request(ask.kind).await;
            let mut asked = Asked { log: witness.clone(), ask, answered: false, at: Instant::now() };
            let (response, answered) = witness.answer(ask, api.call(request).await?).await?;
            asked.answered = answered;
            Ok::<_, BoxError>(response)
        }
    });
    (kube::Client::new(service, NAMESPACE), log)
}

/// What a request is about.
#[derive(Clone, Copy, Debug)]
struct Ask {
    /// None where it is about the Namespace, without which nothing else is asked for.
    kind: Option<Resource>,
    verb: Verb,
    /// Whether it is about what happened before the log.
    is_past: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Verb {
    List,
    Probe,
    Watch,
}

impl Ask {
    fn of(uri: &str, past_pages: &HashSet<String>) -> Ask {
        let kind = match uri {
            uri if uri.contains("/pods") => Some(Resource::Instance),
            uri if uri.contains("/boilerhouseclaims") => Some(Resource::Claim),
            _ => None,
        };
        let verb = match uri {
            uri if uri.contains("watch=true") => Verb::Watch,
            uri if uri.contains("limit=1&") || uri.ends_with("limit=1") => Verb::Probe,
            _ => Verb::List,
        };
        let is_page = past_pages.iter().any(|page| uri.contains(page.as_str()));
        let is_past = uri.contains("resourceVersionMatch=Exact") || is_page || uri.contains(PAST_WATCH);
        Ask { kind, verb, is_past }
    }
}

/// How a watch of the past is told from others: it lasts only so long.
const PAST_WATCH: &str = "timeoutSeconds=2&";
/// The same in time.
const PAST_LASTS: Duration = Duration::from_secs(2);

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

#[derive(Clone)]
struct Witness {
    log: Arc<Mutex<Log>>,
    shared: Arc<Shared>,
    pace: Pace,
}

/// A request on its way.
struct Asked {
    log: Witness,
    ask: Ask,
    answered: bool,
    at: Instant,
}

impl Drop for Asked {
    fn drop(&mut self) {
        let Ask { kind, verb, is_past } = self.ask;
        let mine = Resource::ALL.into_iter().filter(|mine| !self.answered && kind.is_none_or(|kind| kind == *mine));
        for kind in mine {
            match (is_past, verb) {
                (false, _) => self.log.log.lock().unwrap().fails(kind, self.at),
                (true, Verb::Watch) => self.log.note(kind, What::PastUnwatched),
                (true, Verb::List | Verb::Probe) => self.log.note(kind, What::PastUnlisted),
            }
        }
    }
}

#[derive(Deserialize)]
struct Line {
    r#type: String,
    object: Object,
}

#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    metadata: Metadata,
    code: Option<u16>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: Option<String>,
    r#continue: Option<String>,
}

impl Metadata {
    fn version(&self) -> ResourceVersion {
        self.resource_version.as_ref().unwrap().parse().unwrap()
    }
}

impl Witness {
    /// Looks into an answer, and says whether it is one.
    async fn answer<B>(&self, ask: Ask, response: Response<B>) -> Result<(Answer, bool), BoxError>
    where
        B: hyper::body::Body<Data = Bytes, Error = io::Error> + Send + 'static,
    {
        let Some(kind) = ask.kind else {
            let answered = response.status().is_success();
            return Ok((response.map(|body| body.map_err(BoxError::from).boxed_unsync()), answered));
        };
        self.byte(kind);
        if response.status() == 410 && !ask.is_past {
            self.note(kind, What::Gone);
        }
        if !response.status().is_success() {
            return Ok((response.map(|body| body.map_err(BoxError::from).boxed_unsync()), false));
        }
        match ask.verb {
            Verb::Watch if ask.is_past => Ok((self.watch_past(kind, response), true)),
            Verb::Watch => Ok((self.watch(kind, response), true)),
            Verb::List | Verb::Probe => self.list(kind, ask, response).await,
        }
    }

    fn watch<B>(&self, kind: Resource, response: Response<B>) -> Answer
    where
        B: hyper::body::Body<Data = Bytes, Error = io::Error> + Send + 'static,
    {
        self.log.lock().unwrap().works(kind);
        let witness = self.clone();
        let listen = move |frame: io::Result<Frame<Bytes>>| {
            let witness = witness.clone();
            async move {
                witness.pace.line(kind).await;
                match &frame {
                    Ok(frame) => witness.line(kind, frame.data_ref().unwrap()),
                    Err(_) => witness.log.lock().unwrap().failed[kind as usize].push(Instant::now()),
                }
                frame.map_err(BoxError::from)
            }
        };
        response.map(|body| StreamBody::new(BodyStream::new(body).then(listen)).boxed_unsync())
    }

    /// A watch of the past comes without a lag: that is the main one's.
    fn watch_past<B>(&self, kind: Resource, response: Response<B>) -> Answer
    where
        B: hyper::body::Body<Data = Bytes, Error = io::Error> + Send + 'static,
    {
        let mut reading =
            PastWatch { witness: self.clone(), kind, began: Instant::now(), is_lost: false, ended: false };
        let listen = move |frame: Option<io::Result<Frame<Bytes>>>| {
            let frame = reading.frame(frame);
            async move { frame.map(|frame| frame.map_err(BoxError::from)) }
        };
        response.map(|body| {
            let frames = BodyStream::new(body).map(Some).chain(futures::stream::iter([None]));
            StreamBody::new(frames.filter_map(listen)).boxed_unsync()
        })
    }

    async fn list<B>(&self, kind: Resource, ask: Ask, response: Response<B>) -> Result<(Answer, bool), BoxError>
    where
        B: hyper::body::Body<Data = Bytes, Error = io::Error> + Send + 'static,
    {
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        let is_probe = ask.verb == Verb::Probe;
        let half_lists = &self.shared.half_lists[kind as usize];
        if !is_probe && half_lists.load(Ordering::Relaxed) > 0 {
            half_lists.fetch_sub(1, Ordering::Relaxed);
            let half = Ok::<_, BoxError>(Frame::data(body.slice(..body.len() / 2)));
            let stopped = futures::stream::iter([half]).chain(futures::stream::pending());
            return Ok((Response::from_parts(head, StreamBody::new(stopped).boxed_unsync()), false));
        }
        let page: Object = serde_json::from_slice(&body)?;
        let version = page.metadata.version();
        let more = page.metadata.r#continue.filter(|more| !more.is_empty());
        match more {
            _ if is_probe => self.note(kind, What::Probe(version)),
            Some(more) if ask.is_past => drop(self.log.lock().unwrap().past_pages.insert(more)),
            Some(_) => {}
            None if ask.is_past => self.note(kind, What::Past(version)),
            None => self.note(kind, What::List(version)),
        }
        let whole = Full::new(body).map_err(|never: Infallible| match never {});
        Ok((Response::from_parts(head, whole.boxed_unsync()), true))
    }

    fn line(&self, kind: Resource, bytes: &[u8]) {
        self.byte(kind);
        if !bytes.ends_with(b"\n") {
            // The first half of a line, and the connection's last bytes: nobody can make anything of it.
            return;
        }
        let what = match serde_json::from_slice::<Line>(bytes) {
            Err(_) => What::Garbage,
            Ok(line) if line.object.code == Some(410) => What::Gone,
            Ok(line) if line.r#type == "BOOKMARK" => What::Bookmark(line.object.metadata.version()),
            Ok(line) => What::Line(line.object.metadata.version()),
        };
        self.note(kind, what);
    }

    fn byte(&self, kind: Resource) {
        let mut log = self.log.lock().unwrap();
        log.last_byte[kind as usize] = Some(Instant::now());
        log.bytes[kind as usize].push(Instant::now());
    }

    fn note(&self, kind: Resource, what: What) {
        let epoch = self.shared.epoch.load(Ordering::Relaxed);
        self.log.lock().unwrap().heard[kind as usize].push(Heard { epoch, what, at: Instant::now() });
    }
}

/// A watch of the past while it is read.
struct PastWatch {
    witness: Witness,
    kind: Resource,
    began: Instant,
    is_lost: bool,
    ended: bool,
}

impl PastWatch {
    /// Looks at the next frame; none where it has ended.
    fn frame(&mut self, frame: Option<io::Result<Frame<Bytes>>>) -> Option<io::Result<Frame<Bytes>>> {
        let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()).and_then(|frame| frame.data_ref());
        let line = bytes.and_then(|bytes| serde_json::from_slice::<Line>(bytes).ok());
        self.ended |= frame.is_none();
        self.is_lost |= frame.is_some() && line.is_none_or(|line| line.object.code.is_some());
        frame
    }
}

impl Drop for PastWatch {
    fn drop(&mut self) {
        // Whoever has read enough drops it sooner.
        let in_order = if self.ended { self.began.elapsed() >= PAST_LASTS } else { self.began.elapsed() <= PAST_LASTS };
        if self.is_lost || !in_order {
            self.witness.note(self.kind, What::PastUnwatched);
        }
    }
}
