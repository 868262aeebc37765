//! An API server with scripted responses, and a record of the requests and the events of the hub.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    io,
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};

use super::super::*;
use crate::{
    event::{ResourceVersion, View},
    test_support::PodBuilder,
};

/// Maximum time that a test waits, in paused time.
const TEST_TIMEOUT: Duration = Duration::from_secs(600);

type ResponseBody = UnsyncBoxBody<Bytes, io::Error>;

pub(super) enum ScriptedResponse {
    Json(u16, Value),
    /// A status with `Retry-After` in seconds.
    RetryAfter(u16, u64),
    /// The body has what the sender sends, and ends with the sender.
    Stream(mpsc::Receiver<io::Result<Bytes>>),
    /// No response.
    Hang,
    /// The connection is refused.
    Refused,
}

struct RecordedRequest {
    at: Instant,
    kind: &'static str,
    query: String,
}

/// Responds by the kind of request: `namespace`, `list`, `next page`, `probe`, `watch`, `other`. The last response of a kind
/// is repeated, except a stream.
#[derive(Clone, Default)]
pub(super) struct ScriptedApi {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    responses: HashMap<&'static str, VecDeque<ScriptedResponse>>,
    requests: Vec<RecordedRequest>,
    events: Vec<(Instant, SourceEvent)>,
}

pub(super) fn pod(name: &str, version: ResourceVersion) -> Value {
    PodBuilder::new(name).version(version).json()
}

pub(super) fn list(version: ResourceVersion, items: &[Value]) -> ScriptedResponse {
    ScriptedResponse::Json(200, json!({"metadata": {"resourceVersion": version.to_string()}, "items": items}))
}

pub(super) fn line(kind: &str, object: &Value) -> io::Result<Bytes> {
    Ok(Bytes::from(format!("{}\n", json!({"type": kind, "object": object}))))
}

pub(super) fn bookmark(version: ResourceVersion) -> io::Result<Bytes> {
    line("BOOKMARK", &json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string()}}))
}

pub(super) fn expired() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410,
           "message": "too old resource version"})
}

/// An open watch, and the sender of its lines.
pub(super) fn watch() -> (mpsc::Sender<io::Result<Bytes>>, ScriptedResponse) {
    let (sender, receiver) = mpsc::channel(16);
    (sender, ScriptedResponse::Stream(receiver))
}

/// A watch that sends these lines and ends.
pub(super) fn ended_watch(lines: impl IntoIterator<Item = io::Result<Bytes>>) -> ScriptedResponse {
    let (sender, response) = watch();
    for line in lines {
        sender.try_send(line).unwrap();
    }
    response
}

pub(super) fn versions(views: &[View]) -> Vec<(String, ResourceVersion)> {
    views.iter().map(|view| (view.name().to_owned(), view.resource_version())).collect()
}

impl ScriptedApi {
    /// Adds a response to requests of this kind, after those added before.
    pub(super) fn respond(&self, kind: &'static str, response: ScriptedResponse) {
        self.state.lock().unwrap().responses.entry(kind).or_default().push_back(response);
    }

    /// Replaces all responses to requests of this kind.
    pub(super) fn respond_only(&self, kind: &'static str, response: ScriptedResponse) {
        self.state.lock().unwrap().responses.insert(kind, VecDeque::from([response]));
    }

    pub(super) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let api = api.clone();
            async move { api.handle(request.uri()).await }
        });
        Client::new(service, "bh")
    }

    async fn handle(&self, uri: &http::Uri) -> io::Result<Response<ResponseBody>> {
        let query = uri.query().unwrap_or_default().to_owned();
        let kind = match uri.path() {
            "/api/v1/namespaces/bh" => "namespace",
            "/api/v1/namespaces/bh/pods" if query.contains("watch=true") => "watch",
            "/api/v1/namespaces/bh/pods" if query.contains("continue=") => "next page",
            "/api/v1/namespaces/bh/pods" if query.contains("limit=1&") || query.ends_with("limit=1") => "probe",
            "/api/v1/namespaces/bh/pods" => "list",
            _ => "other",
        };
        let response = {
            let mut state = self.state.lock().unwrap();
            state.requests.push(RecordedRequest { at: Instant::now(), kind, query });
            let responses = state.responses.entry(kind).or_default();
            match responses.front() {
                Some(ScriptedResponse::Stream(_)) => responses.pop_front(),
                Some(_) if responses.len() > 1 => responses.pop_front(),
                Some(ScriptedResponse::Json(code, value)) => Some(ScriptedResponse::Json(*code, value.clone())),
                Some(ScriptedResponse::RetryAfter(code, seconds)) => {
                    Some(ScriptedResponse::RetryAfter(*code, *seconds))
                }
                Some(ScriptedResponse::Refused) => Some(ScriptedResponse::Refused),
                Some(ScriptedResponse::Hang) | None => None,
            }
        };
        self.changed.notify_waiters();
        let full = |text: String| Full::from(text).map_err(|never: Infallible| match never {}).boxed_unsync();
        match response.unwrap_or(ScriptedResponse::Hang) {
            ScriptedResponse::Json(code, value) => {
                Ok(Response::builder().status(code).body(full(value.to_string())).unwrap())
            }
            ScriptedResponse::RetryAfter(code, seconds) => {
                Ok(Response::builder().status(code).header("Retry-After", seconds).body(full(String::new())).unwrap())
            }
            ScriptedResponse::Stream(receiver) => {
                let chunks = stream::unfold(receiver, |mut receiver| async {
                    let chunk = receiver.recv().await?;
                    Some((chunk, receiver))
                });
                Ok(Response::new(BodyExt::boxed_unsync(StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))))))
            }
            ScriptedResponse::Hang => std::future::pending().await,
            ScriptedResponse::Refused => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }

    fn record(&self, event: SourceEvent) {
        self.state.lock().unwrap().events.push((Instant::now(), event));
        self.changed.notify_waiters();
    }

    /// Runs the watch loop of Pods until the test is done.
    pub(super) async fn run_watch_loop(&self, config: &Config, test: impl Future<Output = ()>) {
        let (client, metrics) = (self.client(), Metrics::default());
        let api = ResourceApi::<DecodedPod>::new(&client, config, &metrics);
        let sink = Mutex::new(|event| self.record(event));
        let mut watch_loop = WatchLoop::new(&api, &sink);
        tokio::select! {
            never = watch_loop.run() => match never {},
            () = test => (),
        }
    }

    /// Runs the complete hub until the test is done.
    pub(super) async fn run_hub(&self, config: &Config, test: impl Future<Output = ()>) {
        let (client, metrics) = (self.client(), Metrics::default());
        let sink = Mutex::new(|event| self.record(event));
        let (pods, claims) = (ResourceApi::new(&client, config, &metrics), ResourceApi::new(&client, config, &metrics));
        tokio::select! {
            never = watch_all(&pods, &claims, &sink) => match never {},
            () = test => (),
        }
    }

    /// Waits for the `n`th event (from 1) for which `matches` is true, and returns its time and the event.
    pub(super) async fn wait_for_event(
        &self,
        n: usize,
        matches: impl Fn(&SourceEvent) -> bool,
    ) -> (Instant, SourceEvent) {
        let found =
            self.wait_until(|state| state.events.iter().filter(|(_, event)| matches(event)).nth(n - 1).cloned()).await;
        found.unwrap_or_else(|| panic!("expected {n} matching events within {TEST_TIMEOUT:?}: {:#?}", self.events()))
    }

    /// Waits for the `n`th request (from 1) of this kind, and returns its time and query.
    pub(super) async fn wait_for_request(&self, kind: &str, n: usize) -> (Instant, String) {
        let find = |state: &State| {
            let request = state.requests.iter().filter(|request| request.kind == kind).nth(n - 1)?;
            Some((request.at, request.query.clone()))
        };
        let found = self.wait_until(find).await;
        found.unwrap_or_else(|| panic!("expected {n} {kind} requests within {TEST_TIMEOUT:?}: {:?}", self.events()))
    }

    /// Waits until `find` returns a value, or returns `None` after [`TEST_TIMEOUT`].
    async fn wait_until<R>(&self, find: impl Fn(&State) -> Option<R>) -> Option<R> {
        let found = timeout(TEST_TIMEOUT, async {
            loop {
                let changed = self.changed.notified();
                if let Some(found) = find(&self.state.lock().unwrap()) {
                    return found;
                }
                changed.await;
            }
        });
        found.await.ok()
    }

    /// Returns the number of requests of this kind.
    pub(super) fn request_count(&self, kind: &str) -> usize {
        self.state.lock().unwrap().requests.iter().filter(|request| request.kind == kind).count()
    }

    /// Returns all events of the hub.
    pub(super) fn events(&self) -> Vec<SourceEvent> {
        self.state.lock().unwrap().events.iter().map(|(_, event)| event.clone()).collect()
    }
}
