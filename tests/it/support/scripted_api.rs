//! An API server whose answers a test scripts, as a kube client in the process of the test.
//!
//! Owns the record of its requests. Nothing is answered that the script does not answer.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::time::Instant;

/// The namespace of the scripted API server.
pub(crate) const NAMESPACE: &str = "bh";

/// A request, as a script sees it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiRequest {
    pub(crate) kind: Kind,
    /// Whether the request concerns Pods. Otherwise it concerns claims, or the Namespace.
    pub(crate) is_pods: bool,
    /// How many requests of the same kind about the same resource came before.
    pub(crate) before: usize,
}

/// The kind of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Namespace,
    /// The first page of a list.
    List,
    /// A page after the first.
    NextPage,
    /// A list of one object.
    Probe,
    /// A watch from this version.
    Watch(u64),
}

/// What the API server answers.
pub(crate) enum Answer {
    /// A status, header fields, and a body.
    Response(u16, Vec<(&'static str, String)>, Bytes),
    /// 200, and these chunks of a body.
    Body(BoxStream<'static, io::Result<Bytes>>),
    /// The connection is refused.
    Refused,
    /// No answer.
    Hang,
}

impl Answer {
    /// A JSON body with this status.
    pub(crate) fn json(code: u16, body: &Value) -> Answer {
        Answer::Response(code, Vec::new(), body.to_string().into())
    }

    /// A watch that sends these chunks and stays open.
    pub(crate) fn open(chunks: Vec<Bytes>) -> Answer {
        Answer::Body(stream::iter(chunks.into_iter().map(Ok)).chain(stream::pending()).boxed())
    }

    /// A watch that sends these chunks and ends.
    pub(crate) fn ended(chunks: Vec<io::Result<Bytes>>) -> Answer {
        Answer::Body(stream::iter(chunks).boxed())
    }
}

/// A complete list.
pub(crate) fn list(version: u64, items: &[Value]) -> Answer {
    Answer::json(200, &json!({"kind": "List", "metadata": {"resourceVersion": version.to_string()}, "items": items}))
}

/// One watch line.
pub(crate) fn line(kind: &str, object: &Value) -> Bytes {
    format!("{}\n", json!({"type": kind, "object": object})).into()
}

type Script = dyn Fn(&ApiRequest) -> Answer + Send + Sync;

/// An API server.
#[derive(Clone)]
pub(crate) struct ScriptedApi {
    script: Arc<Script>,
    requests: Arc<Mutex<Vec<(Instant, ApiRequest)>>>,
}

impl ScriptedApi {
    /// Creates an API server that answers by this script. The Namespace is always answered.
    pub(crate) fn new(script: impl Fn(&ApiRequest) -> Answer + Send + Sync + 'static) -> ScriptedApi {
        ScriptedApi { script: Arc::new(script), requests: Arc::default() }
    }

    /// Returns all requests about Pods so far, with their times.
    pub(crate) fn pod_requests(&self) -> Vec<(Instant, Kind)> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|(_, request)| request.is_pods).map(|(at, request)| (*at, request.kind)).collect()
    }

    /// Returns the number of lists so far, of both resources, without probes and later pages.
    pub(crate) fn lists(&self) -> usize {
        self.requests.lock().unwrap().iter().filter(|(_, request)| request.kind == Kind::List).count()
    }

    /// Returns a client of this API server.
    pub(crate) fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { api.answer(request.uri()).await }.boxed()
        });
        Client::new(service, NAMESPACE)
    }

    async fn answer(&self, uri: &http::Uri) -> io::Result<Response<UnsyncBoxBody<Bytes, io::Error>>> {
        let full = |body: Bytes| Full::from(body).map_err(|never: Infallible| match never {}).boxed_unsync();
        match (self.script)(&self.record(uri)) {
            Answer::Response(code, headers, body) => {
                let mut response = Response::builder().status(code);
                for (name, value) in headers {
                    response = response.header(name, value);
                }
                Ok(response.body(full(body)).unwrap())
            }
            Answer::Body(chunks) => {
                let body = StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data)));
                Ok(Response::new(BodyExt::boxed_unsync(body)))
            }
            Answer::Refused => Err(io::ErrorKind::ConnectionRefused.into()),
            Answer::Hang => std::future::pending().await,
        }
    }

    fn record(&self, uri: &http::Uri) -> ApiRequest {
        let query = uri.query().unwrap_or_default();
        let parameter = |name: &str| {
            query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
        };
        let kind = if uri.path().ends_with(&format!("/namespaces/{NAMESPACE}")) {
            Kind::Namespace
        } else if parameter("watch").as_deref() == Some("true") {
            Kind::Watch(parameter("resourceVersion").unwrap_or_default().parse().unwrap_or(0))
        } else if parameter("continue").is_some() {
            Kind::NextPage
        } else if parameter("limit").as_deref() == Some("1") {
            Kind::Probe
        } else {
            Kind::List
        };
        let is_pods = uri.path().ends_with("/pods");
        let mut requests = self.requests.lock().unwrap();
        let before = requests.iter().filter(|(_, other)| other.kind == kind && other.is_pods == is_pods).count();
        let request = ApiRequest { kind, is_pods, before };
        requests.push((Instant::now(), request.clone()));
        request
    }
}

/// Answers as an API server does that has no objects and no changes, at this version.
pub(crate) fn empty_answer(request: &ApiRequest, version: u64) -> Answer {
    match request.kind {
        Kind::Namespace => Answer::json(200, &json!({"metadata": {"name": NAMESPACE, "uid": "namespace-uid"}})),
        Kind::List | Kind::NextPage | Kind::Probe => list(version, &[]),
        Kind::Watch(_) => Answer::open(Vec::new()),
    }
}
