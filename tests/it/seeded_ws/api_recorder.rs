//! A recorder between the simulated API server and a client of it. It writes down every response.
//!
//! It does not depend on the bridge. The recording shows up to which version a watch has come, at which version a list
//! was read, and whether there was a reason to list again. With the history of the store this determines what a client
//! must receive.

use std::collections::HashSet;
use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boilerhouse_bridge::event::{PerResource, Resource, ResourceVersion};
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

use super::latency::Latency;
use crate::oracle::history::NAMESPACE;
use crate::oracle::recording::{RecordedResponse, Recording, ResponseKind};

/// What was recorded of one watcher.
#[derive(Debug, Default)]
pub(crate) struct RecorderLog {
    pub(crate) recording: Recording,
    pub(crate) failures: PerResource<Option<FailureWindow>>,
    /// `continue` tokens of lists of backfills.
    backfill_pages: HashSet<String>,
}

/// A time without a successful watch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FailureWindow {
    since: Instant,
    /// When a watch started again.
    ended: Option<Instant>,
}

/// If another failure follows a new watch within this time, the failure did not end. The probe that detects a failure
/// may take 5 s.
const FAILURE_GAP: Duration = Duration::from_secs(6);

impl RecorderLog {
    fn request_failed(&mut self, resource: Resource, since: Instant) {
        self.recording.failed[resource].push(Instant::now());
        let failure = &mut self.failures[resource];
        match failure {
            Some(FailureWindow { ended, .. }) if ended.is_none_or(|ended| ended.elapsed() < FAILURE_GAP) => {
                *ended = None;
            }
            Some(_) | None => *failure = Some(FailureWindow { since, ended: None }),
        }
    }

    fn watch_started(&mut self, resource: Resource) {
        self.recording.watch_starts[resource].push(Instant::now());
        if let Some(failure) = &mut self.failures[resource] {
            failure.ended.get_or_insert_with(Instant::now);
        }
    }

    /// When the last byte arrived.
    pub(crate) fn last_byte_at(&self, resource: Resource) -> Option<Instant> {
        self.recording.bytes[resource].last().copied()
    }

    /// Whether both resources have been received up to a version.
    pub(crate) fn has_received(&self, version: ResourceVersion) -> bool {
        let version_of = |response: &RecordedResponse| match response.kind {
            ResponseKind::Line(version) | ResponseKind::Bookmark(version) | ResponseKind::List(version) => {
                Some(version)
            }
            _ => None,
        };
        let last = |responses: &Vec<RecordedResponse>| responses.iter().rev().find_map(version_of);
        self.recording.responses.iter().all(|responses| last(responses).is_some_and(|last| last >= version))
    }

    /// Whether one of the resources has been without a successful watch for this time.
    pub(crate) fn is_failing_for(&self, duration: Duration) -> bool {
        let lasts = |failure: &FailureWindow| failure.ended.is_none_or(|ended| ended.elapsed() < FAILURE_GAP);
        self.failures.iter().flatten().any(|failure| lasts(failure) && failure.since.elapsed() >= duration)
    }
}

/// What all recorders of a cluster share.
#[derive(Debug, Default)]
pub(crate) struct RecorderState {
    pub(crate) epoch: AtomicUsize,
    /// How many of the next lists stop in the middle of their body.
    pub(crate) half_lists: PerResource<AtomicUsize>,
}

/// A client of the simulated API that records its responses. Lists come in pages of three objects, whatever limit the
/// client asks for. A server may send fewer than the limit, and several faults happen between two pages.
pub(crate) fn client(
    sim: &Sim,
    shared: &Arc<RecorderState>,
    latency: Latency,
) -> (kube::Client, Arc<Mutex<RecorderLog>>) {
    let log = Arc::new(Mutex::new(RecorderLog::default()));
    let recorder = ApiRecorder { log: log.clone(), shared: shared.clone(), latency };
    let api = sim.service();
    let service = tower::service_fn(move |mut request: Request<Body>| {
        let (recorder, mut api) = (recorder.clone(), api.clone());
        async move {
            let uri = request.uri().to_string();
            *request.uri_mut() = uri.replace("limit=500", "limit=3").parse()?;
            let recorded = RecordedRequest::of(&uri, &recorder.log.lock().unwrap().backfill_pages);
            // A request that is rejected or canceled counts as failed since it was sent.
            latency.request(recorded.resource).await;
            let mut pending =
                PendingRequest { recorder: recorder.clone(), request: recorded, answered: false, at: Instant::now() };
            let (response, answered) = recorder.record(recorded, api.call(request).await?).await?;
            pending.answered = answered;
            Ok::<_, BoxError>(response)
        }
    });
    (kube::Client::new(service, NAMESPACE), log)
}

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
struct RecordedRequest {
    /// `None` for the Namespace, which the client reads before anything else.
    resource: Option<Resource>,
    verb: Verb,
    is_backfill: bool,
    /// The version of an exact list; the maximum for a further page, whose token contains the version.
    exact: ResourceVersion,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Verb {
    List,
    Probe,
    Watch,
}

impl RecordedRequest {
    fn of(uri: &str, backfill_pages: &HashSet<String>) -> RecordedRequest {
        let resource = match uri {
            uri if uri.contains("/pods") => Some(Resource::Pods),
            uri if uri.contains("/boilerhouseclaims") => Some(Resource::Claims),
            _ => None,
        };
        let verb = match uri {
            uri if uri.contains("watch=true") => Verb::Watch,
            uri if uri.contains("limit=1&") || uri.ends_with("limit=1") => Verb::Probe,
            _ => Verb::List,
        };
        let is_page = backfill_pages.iter().any(|page| uri.contains(page.as_str()));
        let is_backfill = uri.contains("resourceVersionMatch=Exact") || is_page || uri.contains(BACKFILL_WATCH);
        let (_, version) = uri.split_once("resourceVersion=").unwrap_or_default();
        let version = version.split('&').next().and_then(|version| version.parse().ok());
        RecordedRequest { resource, verb, is_backfill, exact: version.unwrap_or(ResourceVersion::MAX) }
    }
}

/// The timeout parameter that only watches of backfills have.
const BACKFILL_WATCH: &str = "timeoutSeconds=2&";
/// The same as a time.
const BACKFILL_WATCH_LASTS: Duration = Duration::from_secs(2);

type ApiResponse = Response<UnsyncBoxBody<Bytes, BoxError>>;

#[derive(Clone)]
struct ApiRecorder {
    log: Arc<Mutex<RecorderLog>>,
    shared: Arc<RecorderState>,
    latency: Latency,
}

/// A request without a response. Dropped without one, it counts as failed.
struct PendingRequest {
    recorder: ApiRecorder,
    request: RecordedRequest,
    answered: bool,
    at: Instant,
}

impl Drop for PendingRequest {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let RecordedRequest { resource, verb, is_backfill, .. } = self.request;
        if resource.is_none() && !self.recorder.log.lock().unwrap().recording.bytes.iter().all(Vec::is_empty) {
            // A later request for the Namespace only checks its uid.
            return;
        }
        for resource in Resource::ALL.into_iter().filter(|one| resource.is_none_or(|resource| resource == *one)) {
            match (is_backfill, verb) {
                (false, _) => self.recorder.log.lock().unwrap().request_failed(resource, self.at),
                (true, Verb::Watch) => self.recorder.add(resource, ResponseKind::BackfillWatchFailed),
                (true, Verb::List | Verb::Probe) => self.recorder.add(resource, ResponseKind::BackfillListFailed),
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
    /// Records a response. Returns it, and whether it is a success.
    async fn record<B>(&self, request: RecordedRequest, response: Response<B>) -> Result<(ApiResponse, bool), BoxError>
    where
        B: hyper::body::Body<Data = Bytes, Error = io::Error> + Send + 'static,
    {
        let is_success = response.status().is_success();
        let Some(resource) = request.resource else {
            return Ok((response.map(|body| body.map_err(BoxError::from).boxed_unsync()), is_success));
        };
        self.add_byte(resource);
        if response.status() == 410 && !request.is_backfill {
            self.add(resource, ResponseKind::Gone);
        }
        if response.status() == 410 && request.is_backfill && request.verb != Verb::Watch {
            self.add(resource, ResponseKind::BackfillListGone(request.exact));
        }
        if !is_success {
            return Ok((response.map(|body| body.map_err(BoxError::from).boxed_unsync()), false));
        }
        match request.verb {
            Verb::Watch if request.is_backfill => Ok((self.record_backfill_watch(resource, response), true)),
            Verb::Watch => Ok((self.record_watch(resource, response), true)),
            Verb::List | Verb::Probe => self.record_list(resource, request, response).await,
        }
    }

    fn record_watch<B>(&self, resource: Resource, response: Response<B>) -> ApiResponse
    where
        B: hyper::body::Body<Data = Bytes, Error = io::Error> + Send + 'static,
    {
        self.log.lock().unwrap().watch_started(resource);
        let recorder = self.clone();
        let record_frame = move |frame: io::Result<Frame<Bytes>>| {
            let recorder = recorder.clone();
            async move {
                recorder.latency.line(resource).await;
                match &frame {
                    Ok(frame) => recorder.record_line(resource, frame.data_ref().unwrap()),
                    Err(_) => recorder.log.lock().unwrap().recording.failed[resource].push(Instant::now()),
                }
                frame.map_err(BoxError::from)
            }
        };
        response.map(|body| StreamBody::new(BodyStream::new(body).then(record_frame)).boxed_unsync())
    }

    fn record_backfill_watch<B>(&self, resource: Resource, response: Response<B>) -> ApiResponse
    where
        B: hyper::body::Body<Data = Bytes, Error = io::Error> + Send + 'static,
    {
        let mut watch =
            BackfillWatch { recorder: self.clone(), resource, started: Instant::now(), failed: false, ended: false };
        let record_frame = move |frame: Option<io::Result<Frame<Bytes>>>| {
            let frame = watch.frame(frame);
            async move { frame.map(|frame| frame.map_err(BoxError::from)) }
        };
        let latency = self.latency;
        let delay = move |frame: io::Result<Frame<Bytes>>| async move {
            latency.backfill_line(resource).await;
            frame
        };
        response.map(|body| {
            let frames = BodyStream::new(body).then(delay).map(Some).chain(futures::stream::iter([None]));
            StreamBody::new(frames.filter_map(record_frame)).boxed_unsync()
        })
    }

    async fn record_list<B>(
        &self,
        resource: Resource,
        request: RecordedRequest,
        response: Response<B>,
    ) -> Result<(ApiResponse, bool), BoxError>
    where
        B: hyper::body::Body<Data = Bytes, Error = io::Error> + Send + 'static,
    {
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        let is_probe = request.verb == Verb::Probe;
        let half_lists = &self.shared.half_lists[resource];
        if !is_probe && half_lists.load(Ordering::Relaxed) > 0 {
            half_lists.fetch_sub(1, Ordering::Relaxed);
            let half = Ok::<_, BoxError>(Frame::data(body.slice(..body.len() / 2)));
            let stalled = futures::stream::iter([half]).chain(futures::stream::pending());
            return Ok((Response::from_parts(head, StreamBody::new(stalled).boxed_unsync()), false));
        }
        let page: Object = serde_json::from_slice(&body)?;
        let version = page.metadata.version();
        let token = page.metadata.r#continue.filter(|token| !token.is_empty());
        match token {
            // It only asks whether the API server has the version.
            _ if is_probe && request.is_backfill => {}
            _ if is_probe => self.add(resource, ResponseKind::Probe(version)),
            Some(token) if request.is_backfill => drop(self.log.lock().unwrap().backfill_pages.insert(token)),
            Some(_) => {}
            None if request.is_backfill => self.add(resource, ResponseKind::BackfillList(version)),
            None => self.add(resource, ResponseKind::List(version)),
        }
        let body = Full::new(body).map_err(|never: Infallible| match never {});
        Ok((Response::from_parts(head, body.boxed_unsync()), true))
    }

    fn record_line(&self, resource: Resource, bytes: &[u8]) {
        self.add_byte(resource);
        if !bytes.ends_with(b"\n") {
            // The first half of a line, as the last bytes of a connection. It has no effect.
            return;
        }
        let kind = match serde_json::from_slice::<Line>(bytes) {
            Err(_) => ResponseKind::Garbage,
            Ok(line) if line.object.code == Some(410) => ResponseKind::Gone,
            Ok(line) if line.r#type == "BOOKMARK" => ResponseKind::Bookmark(line.object.metadata.version()),
            Ok(line) => ResponseKind::Line(line.object.metadata.version()),
        };
        self.add(resource, kind);
    }

    fn add_byte(&self, resource: Resource) {
        self.log.lock().unwrap().recording.bytes[resource].push(Instant::now());
    }

    fn add(&self, resource: Resource, kind: ResponseKind) {
        let epoch = self.shared.epoch.load(Ordering::Relaxed);
        let response = RecordedResponse { epoch, kind, at: Instant::now() };
        self.log.lock().unwrap().recording.responses[resource].push(response);
    }
}

/// The watch of a backfill while it is read.
struct BackfillWatch {
    recorder: ApiRecorder,
    resource: Resource,
    started: Instant,
    failed: bool,
    ended: bool,
}

impl BackfillWatch {
    /// Records the next frame; `None` is the end of the stream.
    fn frame(&mut self, frame: Option<io::Result<Frame<Bytes>>>) -> Option<io::Result<Frame<Bytes>>> {
        let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()).and_then(|frame| frame.data_ref());
        let line = bytes.and_then(|bytes| serde_json::from_slice::<Line>(bytes).ok());
        self.ended |= frame.is_none();
        self.failed |= frame.is_some() && line.is_none_or(|line| line.object.code.is_some());
        frame
    }
}

impl Drop for BackfillWatch {
    fn drop(&mut self) {
        // A reader that has everything drops the watch before its timeout.
        let elapsed = self.started.elapsed();
        let is_complete = if self.ended {
            // Lines that are late can arrive immediately before the end. The reader cannot know that nothing follows.
            elapsed >= BACKFILL_WATCH_LASTS && !self.recorder.latency.delays_backfill_lines(self.resource)
        } else {
            elapsed <= BACKFILL_WATCH_LASTS
        };
        if self.failed || !is_complete {
            self.recorder.add(self.resource, ResponseKind::BackfillWatchFailed);
        }
    }
}
