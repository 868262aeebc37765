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

use super::history::NAMESPACE;
use super::latency::Latency;

/// One thing that an engine heard about one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordedResponse {
    /// Which history the API server had then.
    pub(crate) epoch: usize,
    pub(crate) what: ResponseKind,
    pub(crate) at: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResponseKind {
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

impl RecordedResponse {
    pub(crate) fn is_list(&self) -> bool {
        matches!(self.what, ResponseKind::List(_))
    }
}

/// What one engine heard, pods then claims.
#[derive(Debug, Default)]
pub(crate) struct RecorderLog {
    pub(crate) responses: [Vec<RecordedResponse>; 2],
    /// When the last byte came.
    pub(crate) last_byte: [Option<Instant>; 2],
    pub(crate) faults: [Option<FailureWindow>; 2],
    /// When requests failed that had been made, and watches broke.
    pub(crate) failed: [Vec<Instant>; 2],
    /// When watches began.
    pub(crate) watch_starts: [Vec<Instant>; 2],
    /// When bytes came.
    pub(crate) bytes: [Vec<Instant>; 2],
    /// Tokens of pages of the past.
    past_pages: HashSet<String>,
}

/// A time without an answer that helps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FailureWindow {
    since: Instant,
    /// When a watch began again.
    over: Option<Instant>,
}

/// A watch that began and was followed by another failure so soon was no end of the trouble: a list of one object,
/// which is asked for to find out, may take 5 s.
const FAILURE_GAP: Duration = Duration::from_secs(6);

impl RecorderLog {
    fn fails(&mut self, kind: Resource, since: Instant) {
        self.failed[kind as usize].push(Instant::now());
        let fault = &mut self.faults[kind as usize];
        match fault {
            Some(FailureWindow { over, .. }) if over.is_none_or(|over| over.elapsed() < FAILURE_GAP) => *over = None,
            Some(_) | None => *fault = Some(FailureWindow { since, over: None }),
        }
    }

    fn works(&mut self, kind: Resource) {
        self.watch_starts[kind as usize].push(Instant::now());
        if let Some(fault) = &mut self.faults[kind as usize] {
            fault.over.get_or_insert_with(Instant::now);
        }
    }

    /// Whether both resources' objects have been heard of up to this version.
    pub(crate) fn has_received(&self, rv: ResourceVersion) -> bool {
        let version = |response: &RecordedResponse| match response.what {
            ResponseKind::Line(rv) | ResponseKind::Bookmark(rv) | ResponseKind::List(rv) => Some(rv),
            _ => None,
        };
        self.responses.iter().all(|response| response.iter().rev().find_map(version).is_some_and(|last| last >= rv))
    }

    /// Whether one of the resources has been without an answer for so long.
    pub(crate) fn is_failing_for(&self, long: Duration) -> bool {
        let lasts = |fault: &FailureWindow| fault.over.is_none_or(|over| over.elapsed() < FAILURE_GAP);
        self.faults.iter().flatten().any(|fault| lasts(fault) && fault.since.elapsed() >= long)
    }
}

/// What all engines share.
#[derive(Debug, Default)]
pub(crate) struct RecorderState {
    pub(crate) epoch: AtomicUsize,
    /// So many lists will stop in the middle of their body, pods and claims.
    pub(crate) half_lists: [AtomicUsize; 2],
}

/// A client of the simulated API that keeps a log. Lists come in pages of three objects, whatever is asked for: a
/// server may give less than the limit, and pages are where things happen.
pub(crate) fn client(sim: &Sim, shared: &Arc<RecorderState>, pace: Latency) -> (kube::Client, Arc<Mutex<RecorderLog>>) {
    let log = Arc::new(Mutex::new(RecorderLog::default()));
    let recorder = ApiRecorder { log: log.clone(), shared: shared.clone(), pace };
    let api = sim.service();
    let service = tower::service_fn(move |mut request: Request<Body>| {
        let (recorder, mut api) = (recorder.clone(), api.clone());
        async move {
            let uri = request.uri().to_string();
            *request.uri_mut() = uri.replace("limit=500", "limit=3").parse()?;
            let request_info = RecordedRequest::of(&uri, &recorder.log.lock().unwrap().past_pages);
            // One that is refused, or given up unanswered, has failed since it was made.
            pace.request(request_info.kind).await;
            let mut asked = PendingRequest { log: recorder.clone(), request_info, answered: false, at: Instant::now() };
            let (response, answered) = recorder.answer(request_info, api.call(request).await?).await?;
            asked.answered = answered;
            Ok::<_, BoxError>(response)
        }
    });
    (kube::Client::new(service, NAMESPACE), log)
}

/// What a request is about.
#[derive(Clone, Copy, Debug)]
struct RecordedRequest {
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

impl RecordedRequest {
    fn of(uri: &str, past_pages: &HashSet<String>) -> RecordedRequest {
        let kind = match uri {
            uri if uri.contains("/pods") => Some(Resource::Pods),
            uri if uri.contains("/boilerhouseclaims") => Some(Resource::Claims),
            _ => None,
        };
        let verb = match uri {
            uri if uri.contains("watch=true") => Verb::Watch,
            uri if uri.contains("limit=1&") || uri.ends_with("limit=1") => Verb::Probe,
            _ => Verb::List,
        };
        let is_page = past_pages.iter().any(|page| uri.contains(page.as_str()));
        let is_past = uri.contains("resourceVersionMatch=Exact") || is_page || uri.contains(PAST_WATCH);
        RecordedRequest { kind, verb, is_past }
    }
}

/// How a watch of the past is told from others: it lasts only so long.
const PAST_WATCH: &str = "timeoutSeconds=2&";
/// The same in time.
const PAST_LASTS: Duration = Duration::from_secs(2);

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

#[derive(Clone)]
struct ApiRecorder {
    log: Arc<Mutex<RecorderLog>>,
    shared: Arc<RecorderState>,
    pace: Latency,
}

/// A request on its way.
struct PendingRequest {
    log: ApiRecorder,
    request_info: RecordedRequest,
    answered: bool,
    at: Instant,
}

impl Drop for PendingRequest {
    fn drop(&mut self) {
        let RecordedRequest { kind, verb, is_past } = self.request_info;
        let mine = Resource::ALL.into_iter().filter(|mine| !self.answered && kind.is_none_or(|kind| kind == *mine));
        for kind in mine {
            match (is_past, verb) {
                (false, _) => self.log.log.lock().unwrap().fails(kind, self.at),
                (true, Verb::Watch) => self.log.note(kind, ResponseKind::PastUnwatched),
                (true, Verb::List | Verb::Probe) => self.log.note(kind, ResponseKind::PastUnlisted),
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

impl ApiRecorder {
    /// Looks into an answer, and says whether it is one.
    async fn answer<B>(&self, request_info: RecordedRequest, response: Response<B>) -> Result<(Answer, bool), BoxError>
    where
        B: hyper::body::Body<Data = Bytes, Error = io::Error> + Send + 'static,
    {
        let Some(kind) = request_info.kind else {
            let answered = response.status().is_success();
            return Ok((response.map(|body| body.map_err(BoxError::from).boxed_unsync()), answered));
        };
        self.byte(kind);
        if response.status() == 410 && !request_info.is_past {
            self.note(kind, ResponseKind::Gone);
        }
        if !response.status().is_success() {
            return Ok((response.map(|body| body.map_err(BoxError::from).boxed_unsync()), false));
        }
        match request_info.verb {
            Verb::Watch if request_info.is_past => Ok((self.watch_past(kind, response), true)),
            Verb::Watch => Ok((self.watch(kind, response), true)),
            Verb::List | Verb::Probe => self.list(kind, request_info, response).await,
        }
    }

    fn watch<B>(&self, kind: Resource, response: Response<B>) -> Answer
    where
        B: hyper::body::Body<Data = Bytes, Error = io::Error> + Send + 'static,
    {
        self.log.lock().unwrap().works(kind);
        let recorder = self.clone();
        let listen = move |frame: io::Result<Frame<Bytes>>| {
            let recorder = recorder.clone();
            async move {
                recorder.pace.line(kind).await;
                match &frame {
                    Ok(frame) => recorder.line(kind, frame.data_ref().unwrap()),
                    Err(_) => recorder.log.lock().unwrap().failed[kind as usize].push(Instant::now()),
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
            PastWatch { recorder: self.clone(), kind, started: Instant::now(), is_lost: false, ended: false };
        let listen = move |frame: Option<io::Result<Frame<Bytes>>>| {
            let frame = reading.frame(frame);
            async move { frame.map(|frame| frame.map_err(BoxError::from)) }
        };
        response.map(|body| {
            let frames = BodyStream::new(body).map(Some).chain(futures::stream::iter([None]));
            StreamBody::new(frames.filter_map(listen)).boxed_unsync()
        })
    }

    async fn list<B>(
        &self,
        kind: Resource,
        request_info: RecordedRequest,
        response: Response<B>,
    ) -> Result<(Answer, bool), BoxError>
    where
        B: hyper::body::Body<Data = Bytes, Error = io::Error> + Send + 'static,
    {
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        let is_probe = request_info.verb == Verb::Probe;
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
            _ if is_probe => self.note(kind, ResponseKind::Probe(version)),
            Some(more) if request_info.is_past => drop(self.log.lock().unwrap().past_pages.insert(more)),
            Some(_) => {}
            None if request_info.is_past => self.note(kind, ResponseKind::Past(version)),
            None => self.note(kind, ResponseKind::List(version)),
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
            Err(_) => ResponseKind::Garbage,
            Ok(line) if line.object.code == Some(410) => ResponseKind::Gone,
            Ok(line) if line.r#type == "BOOKMARK" => ResponseKind::Bookmark(line.object.metadata.version()),
            Ok(line) => ResponseKind::Line(line.object.metadata.version()),
        };
        self.note(kind, what);
    }

    fn byte(&self, kind: Resource) {
        let mut log = self.log.lock().unwrap();
        log.last_byte[kind as usize] = Some(Instant::now());
        log.bytes[kind as usize].push(Instant::now());
    }

    fn note(&self, kind: Resource, what: ResponseKind) {
        let epoch = self.shared.epoch.load(Ordering::Relaxed);
        self.log.lock().unwrap().responses[kind as usize].push(RecordedResponse { epoch, what, at: Instant::now() });
    }
}

/// A watch of the past while it is read.
struct PastWatch {
    recorder: ApiRecorder,
    kind: Resource,
    started: Instant,
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
        let in_order =
            if self.ended { self.started.elapsed() >= PAST_LASTS } else { self.started.elapsed() <= PAST_LASTS };
        if self.is_lost || !in_order {
            self.recorder.note(self.kind, ResponseKind::PastUnwatched);
        }
    }
}
