//! The client below kube-runtime: it judges each answer by the rules of the hub before kube-runtime reads it.
//!
//! kube-runtime hides errors that matter: it skips a line that ends too early, takes any other JSON object for an error
//! without a code, and reads the code of an error from its body. This client therefore reads each answer first. It passes
//! complete pages and complete lines on, and ends an answer with the error that the hub would see (`source/answer.rs`).
//!
//! Guarantees: each answer has the limits of the hub, and all answers together have one limit (docs/limits.md).
//!
//! A client has a queue of its own, so all watchers share one client. [`RequestState`] belongs to one watcher. A request
//! finds it in a task-local value, because kube-runtime polls its requests in the task of the watcher.

use std::{
    error::Error as StdError,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::{BufMut, Bytes, BytesMut};
use futures::{FutureExt, TryFutureExt};
use http::{Request, Response};
use http_body_util::Either;
use hyper::body::{Body as HttpBody, Frame};
use kube::{Client, client::Body};
use thiserror::Error;
use tokio::{
    sync::Notify,
    task_local,
    time::{Instant, timeout},
};

use super::limits::{BufferCharge, DedicatedLimits};
use crate::{
    event::{Resource, ResourceVersion},
    source::{
        answer::{self, ListVersion, WatchLine},
        decode::{Decode, DecodedClaim, DecodedPod, watch_line},
        error::{RequestInfo, UpstreamError},
        line_splitter::LineSplitter,
        list_limits::ListUsage,
    },
};

/// The API server in messages. Dedicated watchers log at `debug` only, and the hub names the server.
const SERVER: &str = "the API server";

task_local! {
    /// The state of the watcher that sends the request.
    static WATCHER: Arc<RequestState>;
}

/// Passes an [`UpstreamError`] through kube-runtime. Its text is constant, because kube searches the texts of errors.
#[derive(Debug, Error)]
#[error("the answer of the API server was rejected")]
pub(super) struct Rejected(#[source] UpstreamError);

/// What the requests of one watcher share with it.
#[derive(Debug)]
pub(super) struct RequestState {
    resource: Resource,
    namespace: Arc<str>,
    limits: Arc<DedicatedLimits>,
    list: Mutex<ListState>,
    /// The newest version of the watcher, as the last version of a watch loop of the hub.
    last_version: AtomicU64,
    /// A watch worked since the last failure: it delivered a new version, or lasted `min_watch_duration`.
    has_worked: AtomicBool,
    /// Notified when a watch has started.
    started: Notify,
}

#[derive(Debug)]
struct ListState {
    usage: ListUsage,
    /// The page that kube-runtime reads.
    page: BufferCharge,
    /// The views of the pages before it.
    views: BufferCharge,
}

impl RequestState {
    /// Creates the state of a watcher that has sent no request.
    pub(super) fn new(resource: Resource, namespace: Arc<str>, limits: Arc<DedicatedLimits>) -> Arc<RequestState> {
        Arc::new(RequestState {
            resource,
            namespace,
            list: Mutex::new(ListState::start(&limits)),
            limits,
            last_version: AtomicU64::new(0),
            has_worked: AtomicBool::new(false),
            started: Notify::new(),
        })
    }

    /// Polls a future of kube-runtime, whose requests then belong to this watcher. Cancel safe if the future is.
    pub(super) async fn scope<F: Future>(self: &Arc<Self>, future: F) -> F::Output {
        WATCHER.scope(self.clone(), future).await
    }

    /// Waits until a watch has started. Cancel safe.
    pub(super) async fn wait_started(&self) {
        self.started.notified().await;
    }

    /// Returns whether a watch has worked since the last call.
    pub(super) fn take_worked(&self) -> bool {
        // The watch that failed may have started in the same poll.
        let _ = self.started.notified().now_or_never();
        self.has_worked.swap(false, Relaxed)
    }

    /// Counts an object of the list whose view holds this many bytes.
    ///
    /// # Errors
    /// The list exceeds one of its limits, or all watchers together buffer too much.
    pub(super) fn add_object(&self, view_bytes: usize) -> Result<(), UpstreamError> {
        let mut list = self.list();
        list.usage.add_object(view_bytes).map_err(|excess| self.too_large(excess))?;
        list.views.add(view_bytes).map_err(|excess| self.too_large(excess))
    }

    /// Releases what the list has buffered, and starts to count a new one.
    pub(super) fn reset_list(&self) {
        *self.list() = ListState::start(&self.limits);
    }

    /// Describes a request with this verb, for error messages.
    pub(super) fn request_info(&self, verb: &'static str) -> RequestInfo {
        answer::request_info(verb, self.resource, &self.namespace, &SERVER.into())
    }

    fn too_large(&self, excess: String) -> UpstreamError {
        UpstreamError::ListTooLarge { excess, request_info: self.request_info("list") }
    }

    fn list(&self) -> MutexGuard<'_, ListState> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ListState {
    fn start(limits: &DedicatedLimits) -> ListState {
        ListState {
            usage: ListUsage::start(limits.config.list, Instant::now()),
            page: limits.list_buffers.charge(),
            views: limits.list_buffers.charge(),
        }
    }
}

/// Returns the client that all dedicated watchers share. It must be used within [`RequestState::scope`].
pub(super) fn checked_client(client: &Client) -> Client {
    let inner = client.clone();
    let service = tower::service_fn(move |request| send(inner.clone(), request).map_err(Rejected));
    Client::new(service, client.default_namespace())
}

/// Finds the error of this client in an error of kube-runtime, or classifies an error of kube-runtime itself.
pub(super) fn upstream_error(error: &kube::runtime::watcher::Error, request_info: &RequestInfo) -> UpstreamError {
    use kube::{Error as ClientError, runtime::watcher::Error};
    match error {
        Error::InitialListFailed(ClientError::SerdeError(error)) => UpstreamError::from_json_error(error),
        Error::InitialListFailed(ClientError::FromUtf8(_)) => {
            UpstreamError::Decode("a list that is not UTF-8".to_owned())
        }
        Error::InitialListFailed(error) | Error::WatchStartFailed(error) | Error::WatchFailed(error) => {
            UpstreamError::from_client_error(error, request_info)
        }
        Error::WatchError(status) => UpstreamError::from_watch_status(status, request_info),
        Error::NoResourceVersion => UpstreamError::Decode("an object or list without a version".to_owned()),
    }
}

async fn send(client: Client, request: Request<Body>) -> Result<Response<Either<Body, CheckedWatch>>, UpstreamError> {
    let watcher = WATCHER.with(Arc::clone);
    let query = request.uri().query().unwrap_or_default();
    if query.contains("watch=true") {
        let response = start_watch(&client, request, watcher).await?;
        return Ok(response.map(Either::Right));
    }
    if !query.contains("continue=") {
        watcher.reset_list();
    }
    let response = read_page(&client, request, &watcher).await?;
    Ok(response.map(Either::Left))
}

/// Reads one page of a list completely. kube-runtime parses the items.
async fn read_page(
    client: &Client,
    request: Request<Body>,
    watcher: &RequestState,
) -> Result<Response<Body>, UpstreamError> {
    let request_info = watcher.request_info("list");
    let config = &watcher.limits.config;
    let (max, all) = (config.page_timeout, config.list.time);
    let left = {
        let mut list = watcher.list();
        list.usage.add_page().map_err(|excess| watcher.too_large(excess))?;
        list.usage.time_left(Instant::now())
    };
    let page = async {
        let response = client.send(request).await;
        let response = response.map_err(|error| UpstreamError::from_client_error(&error, &request_info))?;
        let (head, body) = answer::require_success(response, &request_info).await?.into_parts();
        let charge = |bytes| watcher.list().page.set(bytes).map_err(|excess| watcher.too_large(excess));
        Ok((head, answer::read_body(body, config.page_bytes, charge).await?))
    };
    let limit = if left < max { all } else { max };
    let (head, body) = timeout(left.min(max), page)
        .await
        .map_err(|_| UpstreamError::Timeout { request_info: request_info.clone(), limit })??;
    watcher.list().usage.add_bytes(body.len()).map_err(|excess| watcher.too_large(excess))?;
    let list: ListVersion = match watch_line::parse_json_fast(&body) {
        Some(list) => list,
        None => answer::parse(&body)?,
    };
    watcher.last_version.store(list.metadata.resource_version, Relaxed);
    Ok(Response::from_parts(head, body.into()))
}

async fn start_watch(
    client: &Client,
    request: Request<Body>,
    watcher: Arc<RequestState>,
) -> Result<Response<CheckedWatch>, UpstreamError> {
    let request_info = watcher.request_info("watch");
    let limit = watcher.limits.config.start_timeout;
    let response = async {
        let response = client.send(request).await;
        let response = response.map_err(|error| UpstreamError::from_client_error(&error, &request_info))?;
        answer::require_success(response, &request_info).await
    };
    let response = timeout(limit, response)
        .await
        .map_err(|_| UpstreamError::Timeout { request_info: request_info.clone(), limit })??;
    watcher.started.notify_one();
    Ok(response.map(|body| CheckedWatch {
        body,
        lines: LineSplitter::new(watcher.limits.config.line_bytes),
        charge: watcher.limits.line_buffers.charge(),
        started: Instant::now(),
        is_ended: false,
        watcher,
    }))
}

/// The body of a watch. Each frame is one line that the hub would accept. It ends with an error in every case.
struct CheckedWatch {
    body: Body,
    lines: LineSplitter,
    /// The bytes of the unfinished line.
    charge: BufferCharge,
    started: Instant,
    is_ended: bool,
    watcher: Arc<RequestState>,
}

impl CheckedWatch {
    /// Returns the next line with its newline. Lines that are not newer than the last version are skipped, as the hub skips
    /// them.
    fn next_line(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let limit = self.watcher.limits.config.line_bytes;
        while let Some(mut line) = self.lines.next().map_err(|_| answer::line_too_long(limit))? {
            let version = match self.watcher.resource {
                Resource::Pods => self.line_version::<DecodedPod>(&line)?,
                Resource::Claims => self.line_version::<DecodedClaim>(&line)?,
            };
            if version > self.watcher.last_version.load(Relaxed) {
                self.watcher.last_version.store(version, Relaxed);
                self.watcher.has_worked.store(true, Relaxed);
                // The place of the newline that the splitter removed.
                line.put_u8(b'\n');
                return Ok(Some(line.freeze()));
            }
        }
        self.charge.set(self.lines.buffered()).map_err(UpstreamError::Decode)?;
        Ok(None)
    }

    fn line_version<T: Decode>(&self, line: &BytesMut) -> Result<ResourceVersion, UpstreamError> {
        Ok(match answer::parse_line::<T>(line, || self.watcher.request_info("watch"))? {
            WatchLine::Added(object) | WatchLine::Modified(object) | WatchLine::Deleted(object) => {
                object.into_decoded().view.resource_version()
            }
            WatchLine::Bookmark(version) => version,
        })
    }

    fn poll_line(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, UpstreamError>> {
        loop {
            if let Some(line) = self.next_line()? {
                return Poll::Ready(Ok(line));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(chunk) = frame.into_data() {
                        self.lines.push(&chunk);
                    }
                }
                Some(Err(error)) => {
                    return Poll::Ready(Err(UpstreamError::ConnectionLost(answer::innermost_cause(&error))));
                }
                None => return Poll::Ready(Err(UpstreamError::WatchEnded)),
            }
        }
    }

    fn note_duration(&self) {
        if self.started.elapsed() >= self.watcher.limits.config.min_watch_duration {
            self.watcher.has_worked.store(true, Relaxed);
        }
    }
}

impl HttpBody for CheckedWatch {
    type Data = Bytes;
    type Error = Box<dyn StdError + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.is_ended {
            return Poll::Ready(None);
        }
        let line = ready!(self.poll_line(cx));
        if line.is_err() {
            self.is_ended = true;
            self.note_duration();
        }
        Poll::Ready(Some(line.map(Frame::data).map_err(|error| Rejected(error).into())))
    }
}

impl Drop for CheckedWatch {
    fn drop(&mut self) {
        // kube-runtime drops a watch that is silent for too long.
        if !self.is_ended {
            self.note_duration();
        }
    }
}
