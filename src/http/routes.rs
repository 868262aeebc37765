//! The route table: every path, what it requires, and the endpoint that answers.
//!
//! Guarantees the order of checks, which decides the response where two things are wrong (`docs/protocol.md#errors`):
//! `Host`, path, method, `Origin` and `Sec-Fetch-Site`, credential, rights, limits, then the checks of the endpoint.

use std::{convert::Infallible, sync::Arc};

use http::{HeaderMap, HeaderValue, Method, Version, header};
use hyper::body::Incoming;
use tokio::time::Instant;
use tower::{Service, ServiceExt};
use tracing::info;
use warp::{
    Filter, filters::BoxedFilter, host::Authority, path::FullPath, path::Tail, reject::Reject, reply::Response,
};

use super::{
    admit::{RawRequest, Rejection, admit},
    app::{App, ServedFeed, ServedRelay},
    auth::AccessRequirement,
    body::{self, Body},
    browser_guard::{self, GuardError, RequestHost},
    conn::Peer,
    cors::{add_cors_headers, add_isolation_headers},
    endpoints::{
        assets, boilerhouse_ws, documents,
        event_streams::{self, FullStream},
        index, metrics, probes, relay, sessions, state, telemetry,
    },
    error::{ApiError, ErrorCode},
    metrics::RequestTimer,
    request::{self, ApiRequest},
    stream::{self, Transport},
    stream_endpoint::{self, StreamEndpoint},
    unavailable::Unavailable,
};

/// Allowed methods of read-only endpoints.
const GET: &str = "GET, HEAD, OPTIONS";
/// Paths of probes. They need no credential and are exempt from all limits.
const PROBES: [&str; 3] = ["/livez", "/readyz", "/api/v1/health"];
/// What a 404 says to a client of a bridge.
const SEE_INDEX: &str = "see / for the list of endpoints";
/// Characters of a path that an error message repeats.
const MAX_PATH_CHARS: usize = 200;

/// Matches a path, and extracts its variable segment if it has one.
type PathFilter = BoxedFilter<(Option<String>,)>;

/// The pattern of the route that answered, in the extensions of a response.
#[derive(Clone, Copy)]
struct RoutePattern(&'static str);

#[derive(Debug)]
struct GuardRejection(ApiError);

impl Reject for GuardRejection {}

/// A path without a variable segment: its pattern and the filter that matches it.
macro_rules! path {
    ($($segment:tt)/+) => {
        (concat!($("/", $segment),+), warp::path!($($segment)/+).map(|| None).boxed())
    };
}

/// A listener of the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// It serves every path.
    Main,
    /// It serves probes only (`--probe-listen`).
    Probes,
}

/// What a server serves.
pub trait Content: Sized + Send + Sync + 'static {
    /// Returns the routes of a server with this content: its own, and those that every server has.
    fn routes(app: &Arc<App<Self>>, listener: Listener) -> BoxedFilter<(Response,)>;
}

impl Content for ServedFeed {
    fn routes(app: &Arc<App>, listener: Listener) -> BoxedFilter<(Response,)> {
        match listener {
            Listener::Main => feed_routes(app),
            Listener::Probes => first_of(probe_routes(app, probes::readyz), SEE_INDEX),
        }
    }
}

impl Content for ServedRelay {
    fn routes(app: &Arc<App<Self>>, listener: Listener) -> BoxedFilter<(Response,)> {
        match listener {
            Listener::Main => relay_routes(app),
            Listener::Probes => first_of(probe_routes(app, relay::readyz), SEE_INDEX),
        }
    }
}

/// Returns the HTTP service of a listener.
#[must_use]
pub fn service<C: Content>(
    app: Arc<App<C>>,
    listener: Listener,
) -> impl Service<
    http::Request<Incoming>,
    Response = Response,
    Error = Infallible,
    Future = impl Future<Output = Result<Response, Infallible>> + Send,
> + Clone
+ Send
+ 'static {
    let routes = C::routes(&app, listener);
    warp::service(with_checks(app.clone(), routes))
        .map_request(move |request| name_host_of_probe(use_forwarded_host(&app, request)))
}

/// Replaces `Host` by the `X-Forwarded-Host` of a trusted proxy, for everything that reads `Host`. A malformed value makes
/// `Host` malformed.
///
/// A request whose own `Host` the guard rejects is left as it is. Otherwise a page whose name leads to a proxy that passes
/// the header of clients on could name any host.
fn use_forwarded_host<B, C>(app: &App<C>, mut request: http::Request<B>) -> http::Request<B> {
    let peer = request.extensions().get::<Peer>().map(|peer| peer.address.ip());
    let headers = request.headers();
    let Some(host) = peer.and_then(|peer| app.trusted_proxies.forwarded_host(peer, headers)) else { return request };
    let own: Option<Authority> = headers.get(header::HOST).and_then(|host| host.to_str().ok()?.parse().ok());
    if browser_guard::check_host(own.as_ref(), headers, &app.guard).is_ok() {
        request.headers_mut().insert(header::HOST, host);
    }
    request
}

/// Names `localhost` as the host of a probe that names none. Load balancers send such requests with HTTP/1.0, which does
/// not require a host. No browser does.
fn name_host_of_probe<B>(mut request: http::Request<B>) -> http::Request<B> {
    let has_host = request.headers().contains_key(header::HOST) || request.uri().authority().is_some();
    if request.version() == Version::HTTP_10 && !has_host && PROBES.contains(&request.uri().path()) {
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("localhost"));
    }
    request
}

/// Returns the routes of [`PROBES`].
fn probe_routes<C, F>(app: &Arc<App<C>>, readyz: fn(ApiRequest<C>) -> F) -> Vec<BoxedFilter<(Response,)>>
where
    C: Content,
    F: Future<Output = Result<Response, ApiError>> + Send + 'static,
{
    vec![
        route(app, path!("livez")).to(AccessRequirement::Probe, probes::livez),
        route(app, path!("readyz")).to(AccessRequirement::Probe, readyz),
        route(app, path!("api" / "v1" / "health")).to(AccessRequirement::Probe, probes::health),
    ]
}

/// Returns the routes that every server has beside its probes and its own.
fn common_routes<C: Content>(app: &Arc<App<C>>) -> Vec<BoxedFilter<(Response,)>> {
    let post_route = |path, methods| Route { methods, ..route(app, path) };
    vec![
        route(app, path!("metrics")).to(AccessRequirement::Aggregates, metrics::metrics),
        post_route(path!("api" / "v1" / "session"), "POST, DELETE, OPTIONS")
            .to(AccessRequirement::RawCredential, sessions::session),
        post_route(path!("api" / "v1" / "tickets"), "POST, OPTIONS")
            .to(AccessRequirement::RawCredential, sessions::ticket),
    ]
}

fn feed_routes(app: &Arc<App>) -> BoxedFilter<(Response,)> {
    let streams = event_streams::ENDPOINTS.iter().map(|entry| &entry.stream.endpoint);
    streams.chain([&boilerhouse_ws::ENDPOINT]).for_each(|endpoint| create_label_sets(app, endpoint));
    let find = |path: FullPath| std::future::ready(FullStream::find(path.as_str()).ok_or_else(warp::reject::not_found));
    let answer = |endpoint: &'static FullStream, request: RawRequest<ServedFeed>| {
        let last_id = event_streams::header_cursor(&request.headers).map(|cursor| cursor.encode());
        let serve = move |request| event_streams::serve_stream(endpoint, request);
        handle_stream(request, &endpoint.stream, AccessRequirement::Stream, last_id, serve)
    };
    // `FullPath` panics on a CONNECT request, which has no path. The route `/` matches it first.
    let streams = warp::path::full().and_then(find).and(raw_request(app.clone())).then(answer).boxed();
    let instance = warp::path!("api" / "v1" / "instances" / String).map(Some).boxed();
    let tenant = warp::path!("api" / "v1" / "tenants" / String).map(Some).boxed();
    let file = warp::path("assets").and(warp::path::tail()).map(|name: Tail| Some(name.as_str().to_owned())).boxed();
    let schema = warp::path!("schemas" / String).map(Some).boxed();
    let tunnel = warp::path!("v1" / "tunnels" / String / "telemetry").map(Some).boxed();
    let own = vec![
        route(app, path!("ws")).to(AccessRequirement::BoilerhouseWs, boilerhouse_ws::ws),
        route(app, path!("api" / "v1" / "instances")).to(AccessRequirement::Read, state::instances),
        route(app, ("/api/v1/instances/{name}", instance)).to(AccessRequirement::Read, state::instances),
        route(app, path!("api" / "v1" / "tenants")).to(AccessRequirement::Read, state::tenants),
        route(app, ("/api/v1/tenants/{tenantId}", tenant)).to(AccessRequirement::Read, state::tenants),
        route(app, path!("api" / "v1" / "pools")).to(AccessRequirement::ReadAllTenants, state::pools),
        route(app, path!("api" / "v1" / "stats")).to(AccessRequirement::Aggregates, state::stats),
        route(app, path!("api" / "v1" / "connections")).to(AccessRequirement::Read, state::connections),
        route(app, path!("api" / "v1" / "telemetry")).to(AccessRequirement::ReadTelemetry, telemetry::latest),
        route(app, path!("v1" / "tunnels" / "telemetry")).to(AccessRequirement::ReadTelemetry, telemetry::latest),
        Route { methods: "POST, OPTIONS", ..route(app, ("/v1/tunnels/{tunnelId}/telemetry", tunnel)) }
            .with_body_to(AccessRequirement::Ingest, telemetry::post),
        route(app, ("/", root())).to(AccessRequirement::Public, index::index),
        route(app, path!("client.js")).to(AccessRequirement::Public, assets::client),
        route(app, ("/assets/{file}", file)).to(AccessRequirement::Public, assets::file),
        route(app, path!("openapi.json")).to(AccessRequirement::Public, documents::openapi),
        route(app, path!("asyncapi.json")).to(AccessRequirement::Public, documents::asyncapi),
        route(app, ("/schemas/{file}", schema)).to(AccessRequirement::Public, documents::schema),
    ];
    let probes = probe_routes(app, probes::readyz);
    first_of(probes.into_iter().chain(own).chain(common_routes(app)).chain([streams]).collect(), SEE_INDEX)
}

fn relay_routes(app: &Arc<App<ServedRelay>>) -> BoxedFilter<(Response,)> {
    relay::ENDPOINTS.iter().for_each(|stream| create_label_sets(app, &stream.endpoint));
    let find = |path: FullPath| std::future::ready(relay::find(path.as_str()).ok_or_else(warp::reject::not_found));
    let answer = |endpoint: &'static StreamEndpoint, request: RawRequest<ServedRelay>| {
        let last_id = stream_endpoint::last_event_id(&request.headers);
        let last_id = last_id.map(|id| String::from_utf8_lossy(id).into_owned());
        let serve = move |request| relay::serve_stream(endpoint, request);
        handle_stream(request, endpoint, AccessRequirement::StreamAllTenants, last_id, serve)
    };
    // As in `feed_routes`, the route `/` comes before `FullPath`.
    let streams = warp::path::full().and_then(find).and(raw_request(app.clone())).then(answer).boxed();
    let index = route(app, ("/", root())).to(AccessRequirement::Public, relay::index);
    let probes = probe_routes(app, relay::readyz);
    let help = "this is a relay: its streams are /events (SSE) and /events/ws (WebSocket)";
    first_of(probes.into_iter().chain([index]).chain(common_routes(app)).chain([streams]).collect(), help)
}

/// Creates the label sets of a stream endpoint, so that they are visible before the first stream.
fn create_label_sets<C>(app: &App<C>, endpoint: &'static stream::Endpoint) {
    let stream::Endpoint { path, transport } = endpoint;
    app.streams.metrics.create_label_sets(endpoint);
    app.metrics.add_route(path, "GET", if *transport == Transport::WebSocket { 101 } else { 200 });
    app.metrics.add_stream_endpoint(path, transport.label(), &Unavailable::LABELS);
}

/// Matches the path `/`.
fn root() -> PathFilter {
    warp::path::end().map(|| None).boxed()
}

/// Returns a route that can be read.
fn route<C>(app: &Arc<App<C>>, (pattern, path): (&'static str, PathFilter)) -> Route<C> {
    Route { app: app.clone(), pattern, path, methods: GET }
}

/// Returns a filter that answers with the first route that matches, or with 404.
fn first_of(routes: Vec<BoxedFilter<(Response,)>>, help: &'static str) -> BoxedFilter<(Response,)> {
    // `FullPath` panics on a CONNECT request, which has no path.
    let no_path = warp::path::end().map(move || not_found("/", help));
    let no_route =
        no_path.or(warp::path::full().map(move |path: FullPath| not_found(path.as_str(), help))).unify().boxed();
    routes.into_iter().rev().fold(no_route, |rest, route| route.or(rest).unify().boxed())
}

/// Counts and times all requests, and checks `Host` before any route.
fn with_checks<C: Content>(
    app: Arc<App<C>>,
    all: BoxedFilter<(Response,)>,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone {
    let timer_app = app.clone();
    warp::any()
        .map(move || timer_app.metrics.start_request())
        .and(warp::method())
        .and(with_guard(app, all))
        .map(|timer, method: Method, response| finish_request(timer, &method, response))
}

/// A path and its allowed methods.
struct Route<C> {
    app: Arc<App<C>>,
    pattern: &'static str,
    path: PathFilter,
    methods: &'static str,
}

impl<C: Content> Route<C> {
    /// Sets what the route requires and the endpoint that answers.
    fn to<F>(self, requirement: AccessRequirement, endpoint: fn(ApiRequest<C>) -> F) -> BoxedFilter<(Response,)>
    where
        F: Future<Output = Result<Response, ApiError>> + Send + 'static,
    {
        let Route { app, pattern, path, methods } = self;
        if requirement != AccessRequirement::BoilerhouseWs {
            app.metrics.add_route(pattern, if methods == GET { "GET" } else { "POST" }, 200);
        }
        path.and(raw_request(app))
            .then(move |path_param, request| handle(request, path_param, methods, requirement, endpoint))
            .map(move |response| with_pattern(response, pattern))
            .boxed()
    }

    /// As [`Route::to`], for a POST whose endpoint reads the body. The endpoint must bound what it reads.
    fn with_body_to<F>(
        self,
        requirement: AccessRequirement,
        endpoint: fn(ApiRequest<C>, Body) -> F,
    ) -> BoxedFilter<(Response,)>
    where
        F: Future<Output = Result<Response, ApiError>> + Send + 'static,
    {
        let Route { app, pattern, path, methods } = self;
        app.metrics.add_route(pattern, "POST", 200);
        path.and(raw_request(app))
            .and(warp::body::stream().map(body::boxed))
            .then(move |path_param, request, body| {
                handle(request, path_param, methods, requirement, move |request| endpoint(request, body))
            })
            .map(move |response| with_pattern(response, pattern))
            .boxed()
    }
}

/// Checks `Host` before all routes, and adds CORS and isolation headers to all responses.
fn with_guard<C: Content>(
    app: Arc<App<C>>,
    all: BoxedFilter<(Response,)>,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone {
    let for_cors = app.clone();
    let check_host = move |host: Option<Authority>, headers: HeaderMap| {
        let checked = browser_guard::check_host(host.as_ref(), &headers, &app.guard);
        std::future::ready(checked.map_err(|rejection| {
            record_guard_rejection(&app, &rejection);
            warp::reject::custom(GuardRejection(rejection.error))
        }))
    };
    let add_cors = move |host: RequestHost, headers: HeaderMap, response| {
        // Where this is an error, the route has answered 403, or there is no route or no such method.
        let decision = browser_guard::check_origin(&host, &headers, &for_cors.guard).ok();
        add_cors_headers(decision, &headers, response)
    };
    host()
        .and(warp::header::headers_cloned())
        .and_then(check_host)
        .and(warp::header::headers_cloned())
        .and(all)
        .map(add_cors)
        .recover(recover)
        .unify()
        .map(add_isolation_headers)
}

/// Counts a rejection of the guard. It logs a refused origin, because a page cannot show its user the message.
fn record_guard_rejection<C>(app: &App<C>, GuardError { check, refused, .. }: &GuardError) {
    app.metrics.count_guard_rejection(check.label());
    if let Some(refused) = refused
        && app.refused_origins.must_log(refused, Instant::now())
    {
        info!(origin = refused.origin, host = refused.host, "origin refused");
    }
}

/// Extracts the host that a request names. It is `None` where `Host` is malformed or the request target names another
/// host; the guard rejects both.
fn host() -> impl Filter<Extract = (Option<Authority>,), Error = Infallible> + Copy {
    warp::host::optional().or(warp::any().map(|| None)).unify()
}

/// Checks the method, then `Origin` and `Sec-Fetch-Site`. Returns the response to a request that ends here.
fn response_before_admission<C>(request: &RawRequest<C>, methods: &'static str) -> Option<Response> {
    if let Some(error) = request::method_error(&request.method, methods) {
        return Some(error.into_response());
    }
    if let Err(rejection) = &request.origin {
        record_guard_rejection(&request.app, rejection);
        return Some(rejection.error.clone().into_response());
    }
    (request.method == Method::OPTIONS).then(|| request::options_response(methods))
}

/// Checks method, origin, credential, rights and limits of a request, then calls the endpoint.
async fn handle<C, F: Future<Output = Result<Response, ApiError>>>(
    request: RawRequest<C>,
    path_param: Option<String>,
    methods: &'static str,
    requirement: AccessRequirement,
    endpoint: impl FnOnce(ApiRequest<C>) -> F,
) -> Response {
    if let Some(response) = response_before_admission(&request, methods) {
        return response;
    }
    // Deleting a session needs no credential: it only removes the cookie.
    let requirement = if request.method == Method::DELETE { AccessRequirement::Public } else { requirement };
    let app = request.app.clone();
    let (request, status) = match admit(request, path_param, requirement).await {
        Ok(admitted) => admitted,
        Err(Rejection::Error(error)) => return error.into_response(),
        Err(Rejection::Unavailable(unavailable)) => {
            let error = match requirement {
                AccessRequirement::BoilerhouseWs => boilerhouse_ws::rejection(&app, unavailable),
                _ => unavailable.to_error(),
            };
            return error.into_response();
        }
    };
    let mut response = endpoint(request).await.unwrap_or_else(ApiError::into_response);
    if let Some(status) = status {
        status.write_headers(response.headers_mut());
    }
    response
}

/// As [`handle`], for a stream of the server's own events. Conditions that pass without a change by the client are reported
/// in the form of the transport. `last_id` is the id after which the client resumes.
async fn handle_stream<C, F: Future<Output = Result<Response, ApiError>>>(
    request: RawRequest<C>,
    endpoint: &'static StreamEndpoint,
    requirement: AccessRequirement,
    last_id: Option<String>,
    serve: impl FnOnce(ApiRequest<C>) -> F,
) -> Response {
    let pattern = endpoint.endpoint.path;
    if let Some(response) = response_before_admission(&request, GET) {
        return with_pattern(response, pattern);
    }
    let app = request.app.clone();
    let response = match admit(request, None, requirement).await {
        Ok((request, _)) => serve(request).await,
        Err(Rejection::Error(error)) => Err(error),
        Err(Rejection::Unavailable(unavailable)) => {
            endpoint.unavailable_response(&app, last_id.as_deref(), unavailable)
        }
    };
    with_pattern(response.unwrap_or_else(ApiError::into_response), pattern)
}

/// Records the pattern of the route that answered, for [`finish_request`].
fn with_pattern(mut response: Response, pattern: &'static str) -> Response {
    response.extensions_mut().insert(RoutePattern(pattern));
    response
}

fn raw_request<C: Content>(app: Arc<App<C>>) -> impl Filter<Extract = (RawRequest<C>,), Error = Infallible> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let extensions = warp::ext::optional().and(warp::ext::optional());
    let parts = warp::method().and(warp::header::headers_cloned()).and(query).and(host()).and(extensions);
    parts.map(move |method, headers: HeaderMap, query, host: Option<Authority>, peer, version| {
        let host = browser_guard::check_host(host.as_ref(), &headers, &app.guard);
        let origin = host.and_then(|host| browser_guard::check_origin(&host, &headers, &app.guard));
        RawRequest { app: app.clone(), method, headers, query, origin, peer, version }
    })
}

fn not_found(path: &str, help: &str) -> Response {
    let path: String = path.chars().take(MAX_PATH_CHARS).collect();
    let message = format!("no such path: '{path}'; {help}");
    ApiError::new(ErrorCode::NotFound, message).into_response()
}

/// Returns the response to a request that the guard or warp rejected.
async fn recover(rejection: warp::Rejection) -> Result<Response, Infallible> {
    let error = match rejection.find::<GuardRejection>() {
        Some(GuardRejection(error)) => error.clone(),
        None => ApiError::new(ErrorCode::BadRequest, "the request is malformed; send a valid HTTP/1.1 request"),
    };
    Ok(error.into_response())
}

/// Counts an answered request.
fn finish_request(timer: RequestTimer, method: &Method, mut response: Response) -> Response {
    let pattern = response.extensions_mut().remove::<RoutePattern>();
    timer.finish(pattern.map(|RoutePattern(pattern)| pattern), method, response.status().as_u16());
    response
}
