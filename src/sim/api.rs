//! The simulated API as a tower service.
//!
//! Guarantees: a request passes these steps in this order, and the first one that has an answer gives it: the state of
//! the network, the path, an armed fault, authentication, authorization, the resource.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::Frame;
use jiff::fmt::rfc2822::DateTimePrinter;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use tower::BoxError;

use super::fault::{self, ConcurrentChange, Effect, NetworkState};
use super::handle::{Sim, SimState};
use super::list_options::ListOptions;
use super::path::ResourcePath;
use super::resource::{ApiResource, Verb};
use super::status::StatusError;
use super::store::{self, Revision, Store};
use super::watch::{self, Watch};
use super::{discovery, review, write};

/// Maximum size of a request body in bytes. It is the limit of the real API server.
const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;

/// The body of a response: complete, or the stream of a watch.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// The simulated API as a tower service.
#[derive(Clone, Debug)]
pub struct Service(Sim);

impl Sim {
    /// Returns a kube client of this API. It must be called inside a tokio runtime, because kube's client spawns a task
    /// that buffers its requests.
    #[must_use]
    pub fn client(&self, namespace: &str) -> kube::Client {
        kube::Client::new(self.service(), namespace)
    }

    /// Returns the API as a tower service.
    #[must_use]
    pub fn service(&self) -> Service {
        Service(self.clone())
    }
}

impl<B> tower::Service<Request<B>> for Service
where
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Response<Body>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let sim = self.0.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = Limited::new(body, MAX_BODY_BYTES).collect().await.map_err(io::Error::other)?.to_bytes();
            answer(&sim, &parts, &body).await
        })
    }
}

/// Answers one request.
///
/// # Errors
/// Returns an I/O error if the connection is refused.
async fn answer(sim: &Sim, request: &http::request::Parts, body: &[u8]) -> io::Result<Response<Body>> {
    let network = sim.lock().network;
    match network {
        NetworkState::Up => {}
        NetworkState::Refusing => return Err(refused()),
        NetworkState::BlackHole => std::future::pending().await,
    }
    if let Some(response) = about_the_api(sim, request, body) {
        return Ok(response);
    }
    let installed = |path: &ResourcePath| path.resource != ApiResource::Claims || sim.lock().crd;
    let Some(path) = ResourcePath::parse(request.uri.path()).filter(installed) else {
        return Ok(no_such_path());
    };
    let (verb, options) = match parse(request, &path) {
        Ok(parsed) => parsed,
        Err(error) => return Ok(error_response(&error)),
    };
    let effect = {
        let mut state = sim.lock();
        *state.metrics.requests.entry((verb, path.resource)).or_default() += 1;
        fault::take_matching(&mut state.faults, verb, path.resource, &options)
    };
    if path.resource.is_review() && !sim.lock().reviews_available {
        return Err(refused());
    }
    match effect {
        Some(Effect::Refuse) => Err(refused()),
        Some(Effect::Hang) => std::future::pending().await,
        Some(Effect::Answer(answer)) => Ok(error_response(&answer.to_error(&sim.config().user, verb, &path))),
        Some(Effect::ExpirePage) => {
            Ok(error_response(&StatusError::page_expired(inconsistent_continue_token(&options))))
        }
        Some(Effect::ConcurrentChange(change)) => {
            let call = Call { sim, path, verb, options, request, body, watch_fault: None };
            let response = call.run().await;
            apply_concurrent_change(sim, &change);
            Ok(response)
        }
        Some(Effect::Watch { after, then }) => {
            let watch_fault = Some((after, then));
            Ok(Call { sim, path, verb, options, request, body, watch_fault }.run().await)
        }
        None => Ok(Call { sim, path, verb, options, request, body, watch_fault: None }.run().await),
    }
}

/// Answers a request about the API itself, with the time of the simulated cluster.
fn about_the_api(sim: &Sim, request: &http::request::Parts, body: &[u8]) -> Option<Response<Body>> {
    let state = sim.lock();
    let user = &sim.config().user;
    let (code, answer) = discovery::answer(&state, user, &request.method, request.uri.path(), body)?;
    if state.unauthorized {
        return Some(error_response(&StatusError::unauthorized()));
    }
    drop(state);
    let mut response = json_response(code, &answer);
    let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&sim.now()).ok();
    if let Some(date) = date.and_then(|date| date.try_into().ok()) {
        response.headers_mut().insert(header::DATE, date);
    }
    Some(response)
}

fn apply_concurrent_change(sim: &Sim, change: &ConcurrentChange) {
    sim.store(|store| change(store));
}

fn parse(request: &http::request::Parts, path: &ResourcePath) -> Result<(Verb, ListOptions), StatusError> {
    let query = request.uri.query().unwrap_or_default();
    let listing = request.method == Method::GET && path.name.is_none();
    let options = if listing { ListOptions::parse(query)? } else { ListOptions::default() };
    let verb = path.verb(&request.method, options.watch).ok_or_else(StatusError::no_such_method)?;
    Ok((verb, options))
}

/// A parsed request.
struct Call<'a> {
    sim: &'a Sim,
    path: ResourcePath,
    verb: Verb,
    options: ListOptions,
    request: &'a http::request::Parts,
    body: &'a [u8],
    watch_fault: Option<(usize, fault::WatchFault)>,
}

impl Call<'_> {
    async fn run(&self) -> Response<Body> {
        let result = match self.authorize() {
            Err(error) => Err(error),
            Ok(()) if self.verb == Verb::Watch => Ok(self.watch()),
            Ok(()) if self.verb == Verb::List => self.list().await,
            Ok(()) => self.get_or_write(),
        };
        result.unwrap_or_else(|error| error_response(&error))
    }

    fn authorize(&self) -> Result<(), StatusError> {
        let state = self.sim.lock();
        if state.unauthorized {
            return Err(StatusError::unauthorized());
        }
        if state.denied.contains(&(self.verb, self.path.resource)) {
            return Err(StatusError::forbidden(&self.sim.config().user, self.verb, &self.path));
        }
        Ok(())
    }

    /// Handles a GET of one object, and all writes.
    fn get_or_write(&self) -> Result<Response<Body>, StatusError> {
        let path = &self.path;
        if self.verb == Verb::Get {
            let name = path.name.as_deref().unwrap_or_default();
            let namespace = path.namespace.as_deref().unwrap_or_default();
            let object = self.sim.lock().store.get(path.resource, namespace, name);
            let not_found = || StatusError::from_store(&store::StoreError::NotFound, path.resource, name);
            return Ok(json_response(StatusCode::OK, &object.ok_or_else(not_found)?));
        }
        let (headers, body) = (&self.request.headers, self.body);
        if path.resource.is_review() {
            let now = self.sim.now();
            let answer = review::answer(&self.sim.lock().review_state, path.resource, now, body)?;
            return Ok(json_response(StatusCode::CREATED, &answer));
        }
        let object = self.sim.store(|store| match self.verb {
            Verb::Create => write::create(store, path, body),
            Verb::Delete => write::delete(store, path, body),
            verb => write::change(store, path, headers, verb == Verb::Update, body),
        })?;
        let code = if self.verb == Verb::Create { StatusCode::CREATED } else { StatusCode::OK };
        Ok(json_response(code, &object))
    }

    async fn list(&self) -> Result<Response<Body>, StatusError> {
        if let Some(requested) = self.options.version {
            self.wait_for(requested).await?;
        }
        let list = list(&self.sim.lock().store, &self.path, &self.options)?;
        Ok(json_response(StatusCode::OK, &list))
    }

    /// Waits until the store has reached a revision, at most `future_version_timeout`.
    async fn wait_for(&self, requested: Revision) -> Result<(), StatusError> {
        let mut changed = self.sim.changed();
        let deadline = Instant::now() + self.sim.config().future_version_timeout;
        loop {
            let current = self.sim.lock().store.revision();
            if requested <= current {
                return Ok(());
            }
            if timeout_at(deadline, changed.changed()).await.is_err() {
                return Err(StatusError::future(requested, current));
            }
        }
    }

    fn watch(&self) -> Response<Body> {
        let mut state = self.sim.lock();
        let SimState { store, .. } = &*state;
        let window = store.watch_window();
        match self.options.version.filter(|version| (1..window).contains(version)) {
            Some(version) => {
                let line = watch::error_line(&StatusError::watch_expired(version, window));
                respond(StatusCode::OK, stream_body(stream::iter([Ok(line)])))
            }
            None => {
                let watch = Watch::open(self.sim, &mut state, &self.path, &self.options, self.watch_fault);
                drop(state);
                respond(StatusCode::OK, stream_body(watch.lines()))
            }
        }
    }
}

/// The answer to a list.
struct List {
    resource: ApiResource,
    metadata: Value,
    items: Vec<Arc<Value>>,
}

fn list(store: &Store, path: &ResourcePath, options: &ListOptions) -> Result<List, StatusError> {
    let page = options.page.as_deref().map(Page::decode).transpose()?;
    let at = match &page {
        Some(page) => page.revision.unwrap_or(store.revision()),
        None if options.exact => options.version.unwrap_or(store.revision()),
        None => store.revision(),
    };
    let objects = store.list_at(path.resource, path.namespace.as_deref(), at);
    let mut items = objects.map_err(|_| match options.page {
        Some(_) => StatusError::page_expired(inconsistent_continue_token(options)),
        None => StatusError::list_expired(),
    })?;
    if let Some(page) = &page {
        items.retain(|item| position(item) > page.after);
    }
    items.retain(|item| options.selector.matches(item));
    let mut metadata = json!({"resourceVersion": at.to_string()});
    if options.limit > 0 && items.len() > options.limit {
        let remaining = items.len() - options.limit;
        items.truncate(options.limit);
        if let Some(last) = items.last() {
            metadata["continue"] = json!(Page { revision: Some(at), after: position(last) }.encode());
        }
        // The real API server counts in etcd, which does not evaluate selectors. It omits the count with a selector.
        if options.selector.is_empty() {
            metadata["remainingItemCount"] = json!(remaining);
        }
    }
    Ok(List { resource: path.resource, metadata, items })
}

/// The start of a page of a list: the content of a continue token. Without a revision, the list continues at the newest
/// revision and is then inconsistent.
struct Page {
    revision: Option<Revision>,
    after: (String, String),
}

impl Page {
    fn decode(token: &str) -> Result<Self, StatusError> {
        let bad = || StatusError::bad_request("invalid continue token: continue key is not valid");
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad())?;
        let token: Value = serde_json::from_slice(&bytes).map_err(|_| bad())?;
        let (namespace, name) = token["start"].as_str().and_then(|start| start.split_once('/')).ok_or_else(bad)?;
        let revision = token["rv"].as_i64().ok_or_else(bad)?;
        Ok(Self { revision: u64::try_from(revision).ok(), after: (namespace.to_owned(), name.to_owned()) })
    }

    fn encode(&self) -> String {
        let revision = self.revision.map_or(-1, |revision| i64::try_from(revision).unwrap_or(-1));
        let start = format!("{}/{}", self.after.0, self.after.1);
        URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "rv": revision, "start": start}).to_string())
    }
}

/// Returns the token with which a client can continue at the newest revision after its own token has expired.
fn inconsistent_continue_token(options: &ListOptions) -> String {
    let page = options.page.as_deref().and_then(|page| Page::decode(page).ok());
    page.map(|page| Page { revision: None, ..page }.encode()).unwrap_or_default()
}

fn position(object: &Value) -> (String, String) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

impl Serialize for List {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let items: Vec<Item<'_>> = self.items.iter().map(|object| Item(object, self.resource)).collect();
        let mut map = serializer.serialize_map(Some(4))?;
        map.serialize_entry("kind", &format!("{}List", self.resource.kind()))?;
        map.serialize_entry("apiVersion", &self.resource.api_version())?;
        map.serialize_entry("metadata", &self.metadata)?;
        map.serialize_entry("items", &items)?;
        map.end()
    }
}

/// An object inside a list. Objects of built-in types have no kind and apiVersion there, custom resources have them.
struct Item<'a>(&'a Value, ApiResource);

impl Serialize for Item<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(object, resource) = self;
        let typed = *resource == ApiResource::Claims;
        let fields = object.as_object().into_iter().flatten();
        serializer.collect_map(fields.filter(|(name, _)| typed || !matches!(name.as_str(), "kind" | "apiVersion")))
    }
}

/// Returns the answer for a path without a resource. It is not a `Status`. A cluster without the CRD of claims answers
/// so.
fn no_such_path() -> Response<Body> {
    let text = Full::new(Bytes::from_static(b"404 page not found\n"));
    let mut response = respond(StatusCode::NOT_FOUND, text.map_err(|never| match never {}).boxed_unsync());
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

fn refused() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionRefused, "connection refused")
}

fn error_response(error: &StatusError) -> Response<Body> {
    let mut response = json_response(error.code, &error.to_json());
    if let Some(seconds) = error.retry_after_seconds() {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

fn json_response(code: StatusCode, body: &impl Serialize) -> Response<Body> {
    // Serializing cannot fail, because a `Value` has string keys only.
    let bytes = serde_json::to_vec(body).unwrap_or_default();
    respond(code, Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync())
}

fn stream_body(lines: impl futures::Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    StreamBody::new(lines.map_ok(Frame::data).boxed()).boxed_unsync()
}

fn respond(code: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}
