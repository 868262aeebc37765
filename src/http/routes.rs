//! Every path of the bridge, in one function. What answers first where two things are wrong is decided by the order
//! here: Host, Origin, path, method, credential, rights, limits, then the handler's own (docs/protocol.md#errors).

use std::{convert::Infallible, sync::Arc};

use http::{HeaderMap, Method};
use hyper::body::Incoming;
use tower::Service;
use warp::{Filter, filters::BoxedFilter, host::Authority, path::FullPath, reject::Reject, reply::Response};

use super::{
    admit::{RawRequest, Rejection, admit},
    app::App,
    auth::AccessRequirement,
    browser_guard,
    cors::{add_cors_headers, add_isolation_headers},
    endpoints::{
        boilerhouse_ws,
        event_streams::{self, StreamEndpoint},
        index, metrics, probes, sessions, state,
    },
    error::{ApiError, ErrorCode},
    request::{self, ApiRequest},
};

/// Methods of everything that is only read.
const GET: &str = "GET, HEAD, OPTIONS";
/// A path's variable segment, if it has one.
type Segment = BoxedFilter<(Option<String>,)>;

#[derive(Debug)]
struct GuardRejection(ApiError);

impl Reject for GuardRejection {}

/// The whole site as one service.
#[must_use]
pub fn service(
    app: Arc<App>,
) -> impl Service<
    http::Request<Incoming>,
    Response = Response,
    Error = Infallible,
    Future = impl Future<Output = Result<Response, Infallible>> + Send,
> + Clone
+ Send
+ 'static {
    warp::service(routes(app))
}

fn routes(app: Arc<App>) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone {
    let instances = warp::path!("api" / "v1" / "instances" / String).boxed();
    let tenants = warp::path!("api" / "v1" / "tenants" / String).boxed();
    let endpoint =
        |path: FullPath| std::future::ready(StreamEndpoint::find(path.as_str()).ok_or_else(warp::reject::not_found));
    let endpoints = warp::path::full().and_then(endpoint).and(raw_request(app.clone())).then(stream).boxed();
    let route = |path: BoxedFilter<()>| Route { app: app.clone(), path: path.map(|| None).boxed(), methods: GET };
    let route_with_param =
        |path: BoxedFilter<(String,)>| Route { app: app.clone(), path: path.map(Some).boxed(), methods: GET };
    let post_route = |path: BoxedFilter<()>, methods| Route { methods, ..route(path) };
    let routes = [
        route(warp::path!("ws").boxed()).to(AccessRequirement::BoilerhouseWs, boilerhouse_ws::ws),
        route(warp::path!("api" / "v1" / "instances").boxed()).to(AccessRequirement::Read, state::instances),
        route_with_param(instances).to(AccessRequirement::Read, state::instances),
        route(warp::path!("api" / "v1" / "tenants").boxed()).to(AccessRequirement::Read, state::tenants),
        route_with_param(tenants).to(AccessRequirement::Read, state::tenants),
        route(warp::path!("api" / "v1" / "pools").boxed()).to(AccessRequirement::ReadAllTenants, state::pools),
        route(warp::path!("api" / "v1" / "stats").boxed()).to(AccessRequirement::Aggregates, state::stats),
        route(warp::path!("api" / "v1" / "connections").boxed()).to(AccessRequirement::Read, state::connections),
        route(warp::path!("api" / "v1" / "health").boxed()).to(AccessRequirement::Probe, probes::health),
        route(warp::path!("livez").boxed()).to(AccessRequirement::Probe, probes::livez),
        route(warp::path!("readyz").boxed()).to(AccessRequirement::Probe, probes::readyz),
        route(warp::path!("metrics").boxed()).to(AccessRequirement::Aggregates, metrics::metrics),
        route(warp::path::end().boxed()).to(AccessRequirement::Public, index::index),
        post_route(warp::path!("api" / "v1" / "session").boxed(), "POST, DELETE, OPTIONS")
            .to(AccessRequirement::RawCredential, sessions::session),
        post_route(warp::path!("api" / "v1" / "tickets").boxed(), "POST, OPTIONS")
            .to(AccessRequirement::RawCredential, sessions::ticket),
        // A CONNECT has no path, for which `full` panics: the page takes it before.
        endpoints,
    ];
    let nothing = warp::path::full().map(|path: FullPath| not_found(path.as_str())).boxed();
    let all = routes.into_iter().rev().fold(nothing, |rest, route| route.or(rest).unify().boxed());
    with_guard(app, all)
}

/// A path and the methods that it has.
struct Route {
    app: Arc<App>,
    path: Segment,
    methods: &'static str,
}

impl Route {
    /// What it needs, and what answers.
    fn to<F>(self, requirement: AccessRequirement, handler: fn(ApiRequest) -> F) -> BoxedFilter<(Response,)>
    where
        F: Future<Output = Result<Response, ApiError>> + Send + 'static,
    {
        let Route { app, path, methods } = self;
        path.and(raw_request(app))
            .then(move |path_param, request| handle(request, path_param, methods, requirement, handler))
            .boxed()
    }
}

/// Runs the guard before anything else, and what a page of another site needs after everything else.
fn with_guard(
    app: Arc<App>,
    all: BoxedFilter<(Response,)>,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone {
    let check = move |host: Option<Authority>, headers: HeaderMap| {
        let decision = browser_guard::check(host.as_ref(), &headers, &app.guard);
        std::future::ready(decision.map_err(|error| warp::reject::custom(GuardRejection(error))))
    };
    host()
        .and(warp::header::headers_cloned())
        .and_then(check)
        .and(warp::header::headers_cloned())
        .and(all)
        .map(|decision, request_headers: HeaderMap, response| add_cors_headers(decision, &request_headers, response))
        .recover(recover)
        .unify()
        .map(add_isolation_headers)
}

/// Whom a request names as its host. None where Host is malformed or the request target names another host: the guard
/// refuses both.
fn host() -> impl Filter<Extract = (Option<Authority>,), Error = Infallible> + Copy {
    warp::host::optional().or(warp::any().map(|| None)).unify()
}

/// Answers a request: method, credential and rights, limits, then the handler.
async fn handle<F: Future<Output = Result<Response, ApiError>>>(
    request: RawRequest,
    path_param: Option<String>,
    methods: &'static str,
    requirement: AccessRequirement,
    handler: impl FnOnce(ApiRequest) -> F,
) -> Response {
    if let Some(response) = request::method_response(&request.method, methods) {
        return response;
    }
    // Whoever leaves is asked for nothing.
    let requirement = if request.method == Method::DELETE { AccessRequirement::Public } else { requirement };
    let (request, status) = match admit(request, path_param, requirement).await {
        Ok(admitted) => admitted,
        Err(Rejection::Error(error)) => return error.into_response(),
        Err(Rejection::Unavailable(unavailable)) => return unavailable.to_error().into_response(),
    };
    let mut response = handler(request).await.unwrap_or_else(ApiError::into_response);
    if let Some(status) = status {
        status.write_headers(response.headers_mut());
    }
    response
}

/// The same for a stream: what passes by itself is said in the transport's way.
async fn stream(endpoint: &'static StreamEndpoint, request: RawRequest) -> Response {
    if let Some(response) = request::method_response(&request.method, GET) {
        return response;
    }
    let retry = request.app.streams.config.retry_delay();
    let response = match admit(request, None, AccessRequirement::Stream).await {
        Ok((request, _)) => event_streams::serve_stream(endpoint, request).await,
        Err(Rejection::Error(error)) => Err(error),
        Err(Rejection::Unavailable(unavailable)) => endpoint.unavailable_response(unavailable, retry),
    };
    response.unwrap_or_else(ApiError::into_response)
}

fn raw_request(app: Arc<App>) -> impl Filter<Extract = (RawRequest,), Error = Infallible> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let parts = warp::method().and(warp::header::headers_cloned()).and(query).and(host()).and(warp::ext::optional());
    parts.map(move |method, headers, query, host, peer| RawRequest {
        app: app.clone(),
        method,
        headers,
        query,
        host,
        peer,
    })
}

fn not_found(path: &str) -> Response {
    let shown: String = path.chars().take(200).collect();
    ApiError::new(ErrorCode::NotFound, format!("there is nothing at '{shown}': / lists what there is")).into_response()
}

/// What no route took: the guard's refusals.
async fn recover(rejection: warp::Rejection) -> Result<Response, Infallible> {
    let error = match rejection.find::<GuardRejection>() {
        Some(GuardRejection(error)) => error.clone(),
        None => ApiError::new(ErrorCode::BadRequest, "the request could not be understood"),
    };
    Ok(error.into_response())
}
