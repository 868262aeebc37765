//! The route table: every path, what it requires, and the endpoint that answers.
//!
//! Guarantees the order of checks, which decides the response where two things are wrong (`docs/protocol.md#errors`):
//! `Host`, path, method, `Origin` and `Sec-Fetch-Site`, credential, rights, limits, then the checks of the endpoint.

use std::{convert::Infallible, sync::Arc};

use http::{HeaderValue, Version, header};
use hyper::body::Incoming;
use tower::{Service, ServiceExt};
use warp::{Filter, filters::BoxedFilter, host::Authority, path::FullPath, path::Tail, reply::Response};

use super::{
    admit::{RawRequest, UNKNOWN_PEER},
    app::{App, ServedFeed, ServedRelay},
    auth::AccessRequirement,
    browser_guard,
    conn::Peer,
    endpoints::{
        assets, boilerhouse_ws, documents,
        event_streams::{self, FullStream},
        index, metrics, probes, relay, sessions, state, telemetry,
    },
    error::ApiError,
    metrics::known_method,
    request::ApiRequest,
    route::{first_of, fixed_path, handle_stream, raw_request, root, route, with_checks},
    stream::{self, Transport},
    stream_endpoint::{self, StreamEndpoint},
    unavailable::Unavailable,
};
use crate::traces::RequestHead;

/// Paths of probes. They need no credential and are exempt from all limits.
const PROBES: [&str; 3] = ["/livez", "/readyz", "/api/v1/health"];
/// What a 404 says to a client of a bridge.
const SEE_INDEX: &str = "see / for the list of endpoints";
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
        .map_request(move |request| start_span(&app, name_host_of_probe(use_forwarded_host(&app, request))))
}

/// Starts the span of a request, and adds it to the extensions.
fn start_span<C, B>(app: &App<C>, mut request: http::Request<B>) -> http::Request<B> {
    let span = app.tracer.request(|| {
        let headers = request.headers();
        let peer = request.extensions().get::<Peer>().unwrap_or(&UNKNOWN_PEER);
        let client = app.trusted_proxies.client_info(peer.address.ip(), peer.tls, headers);
        RequestHead {
            method: known_method(request.method()),
            path: request.uri().path(),
            version: request.version(),
            headers,
            address: client.address,
            secure: client.secure,
        }
    });
    if span.is_recorded() {
        request.extensions_mut().insert(span);
    }
    request
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
        route(app, fixed_path!("livez")).to(AccessRequirement::Probe, probes::livez),
        route(app, fixed_path!("readyz")).to(AccessRequirement::Probe, readyz),
        route(app, fixed_path!("api" / "v1" / "health")).to(AccessRequirement::Probe, probes::health),
    ]
}

/// Returns the routes that every server has beside its probes and its own.
fn common_routes<C: Content>(app: &Arc<App<C>>) -> Vec<BoxedFilter<(Response,)>> {
    let post_route = |path, methods| route(app, path).with_methods(methods);
    vec![
        route(app, fixed_path!("metrics")).to(AccessRequirement::Aggregates, metrics::metrics),
        post_route(fixed_path!("api" / "v1" / "session"), "POST, DELETE, OPTIONS")
            .to(AccessRequirement::RawCredential, sessions::session),
        post_route(fixed_path!("api" / "v1" / "tickets"), "POST, OPTIONS")
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
        route(app, fixed_path!("ws")).to(AccessRequirement::BoilerhouseWs, boilerhouse_ws::ws),
        route(app, fixed_path!("api" / "v1" / "instances")).to(AccessRequirement::Read, state::instances),
        route(app, ("/api/v1/instances/{name}", instance)).to(AccessRequirement::Read, state::instances),
        route(app, fixed_path!("api" / "v1" / "tenants")).to(AccessRequirement::Read, state::tenants),
        route(app, ("/api/v1/tenants/{tenantId}", tenant)).to(AccessRequirement::Read, state::tenants),
        route(app, fixed_path!("api" / "v1" / "pools")).to(AccessRequirement::ReadAllTenants, state::pools),
        route(app, fixed_path!("api" / "v1" / "stats")).to(AccessRequirement::Aggregates, state::stats),
        route(app, fixed_path!("api" / "v1" / "connections")).to(AccessRequirement::Read, state::connections),
        route(app, fixed_path!("api" / "v1" / "telemetry")).to(AccessRequirement::ReadTelemetry, telemetry::latest),
        route(app, fixed_path!("v1" / "tunnels" / "telemetry")).to(AccessRequirement::ReadTelemetry, telemetry::latest),
        route(app, ("/v1/tunnels/{tunnelId}/telemetry", tunnel))
            .with_methods("POST, OPTIONS")
            .with_body_to(AccessRequirement::Ingest, telemetry::post),
        route(app, ("/", root())).to(AccessRequirement::Public, index::index),
        route(app, fixed_path!("client.js")).to(AccessRequirement::Public, assets::client),
        route(app, ("/assets/{file}", file)).to(AccessRequirement::Public, assets::file),
        route(app, fixed_path!("openapi.json")).to(AccessRequirement::Public, documents::openapi),
        route(app, fixed_path!("asyncapi.json")).to(AccessRequirement::Public, documents::asyncapi),
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
