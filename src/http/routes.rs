//! Every path of the bridge, in one function. What answers first where two things are wrong is decided by the order
//! here: Host, Origin, path, method, credential, rights, limits, then the handler's own (protocol.md section 6).

use std::{convert::Infallible, net::Ipv4Addr, sync::Arc};

use http::{HeaderMap, HeaderValue, Method, header};
use hyper::body::Incoming;
use tower::Service;
use warp::{Filter, Rejection, filters::BoxedFilter, host::Authority, path::FullPath, reject::Reject, reply::Response};

use super::{
    Site,
    auth::{Asks, Needs, Refusal},
    browser_guard::{self, Passed},
    conn::Peer,
    error::{Code, Error},
    events::{self, Row},
    page,
    rate_limit::Spent,
    request::{self, Asked},
    session, snapshot,
    unavailable::Later,
    ws,
};

/// Methods of everything that is only read.
const GET: &str = "GET, HEAD, OPTIONS";
/// Request headers that a page of another site may send (protocol.md section 7).
const ALLOW_HEADERS: &str = "authorization, content-type, last-event-id, if-none-match";
/// Response headers that it may read.
const EXPOSE_HEADERS: &str = "Event-Cursor, ETag, Retry-After, RateLimit, RateLimit-Policy";
/// How long a browser may remember a preflight: 10 minutes.
const PREFLIGHT_SECONDS: &str = "600";

/// A path's variable segment, if it has one.
type Segment = BoxedFilter<(Option<String>,)>;

#[derive(Debug)]
struct Refused(Error);

impl Reject for Refused {}

/// The whole site as one service.
#[must_use]
pub fn service(
    site: Arc<Site>,
) -> impl Service<
    http::Request<Incoming>,
    Response = Response,
    Error = Infallible,
    Future = impl Future<Output = Result<Response, Infallible>> + Send,
> + Clone
+ Send
+ 'static {
    warp::service(routes(site))
}

fn routes(site: Arc<Site>) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone {
    let instances = warp::path!("api" / "v1" / "instances" / String).boxed();
    let tenants = warp::path!("api" / "v1" / "tenants" / String).boxed();
    let row = |path: FullPath| std::future::ready(Row::at(path.as_str()).ok_or_else(warp::reject::not_found));
    let rows = warp::path::full().and_then(row).and(with(site.clone())).then(stream).boxed();
    let at = |path: BoxedFilter<()>| Route { site: site.clone(), path: path.map(|| None).boxed(), methods: GET };
    let within =
        |path: BoxedFilter<(String,)>| Route { site: site.clone(), path: path.map(Some).boxed(), methods: GET };
    let posted = |path: BoxedFilter<()>, methods| Route { methods, ..at(path) };
    let routes = [
        at(warp::path!("ws").boxed()).to(Needs::Ws, ws::ws),
        at(warp::path!("api" / "v1" / "instances").boxed()).to(Needs::Read, snapshot::instances),
        within(instances).to(Needs::Read, snapshot::instances),
        at(warp::path!("api" / "v1" / "tenants").boxed()).to(Needs::Read, snapshot::tenants),
        within(tenants).to(Needs::Read, snapshot::tenants),
        at(warp::path!("api" / "v1" / "pools").boxed()).to(Needs::Whole, snapshot::pools),
        at(warp::path!("api" / "v1" / "stats").boxed()).to(Needs::Counts, snapshot::stats),
        at(warp::path!("api" / "v1" / "connections").boxed()).to(Needs::Read, snapshot::connections),
        at(warp::path!("api" / "v1" / "health").boxed()).to(Needs::Probe, snapshot::health),
        at(warp::path!("livez").boxed()).to(Needs::Probe, snapshot::livez),
        at(warp::path!("readyz").boxed()).to(Needs::Probe, snapshot::readyz),
        at(warp::path!("metrics").boxed()).to(Needs::Counts, snapshot::metrics),
        at(warp::path::end().boxed()).to(Needs::Nothing, page::page),
        posted(warp::path!("api" / "v1" / "session").boxed(), "POST, DELETE, OPTIONS")
            .to(Needs::Bearer, session::session),
        posted(warp::path!("api" / "v1" / "tickets").boxed(), "POST, OPTIONS").to(Needs::Bearer, session::ticket),
        // A CONNECT has no path, for which `full` panics: the page takes it before.
        rows,
    ];
    let nothing = warp::path::full().map(|path: FullPath| nowhere(path.as_str())).boxed();
    let all = routes.into_iter().rev().fold(nothing, |rest, route| route.or(rest).unify().boxed());
    guarded(site, all)
}

/// A path and the methods that it has.
struct Route {
    site: Arc<Site>,
    path: Segment,
    methods: &'static str,
}

impl Route {
    /// What it needs, and what answers.
    fn to<F>(self, needs: Needs, handler: fn(Asked) -> F) -> BoxedFilter<(Response,)>
    where
        F: Future<Output = Result<Response, Error>> + Send + 'static,
    {
        let Route { site, path, methods } = self;
        path.and(with(site)).then(move |segment, request| answer(request, segment, methods, needs, handler)).boxed()
    }
}

/// Runs the guard before anything else, and what a page of another site needs after everything else.
fn guarded(
    site: Arc<Site>,
    all: BoxedFilter<(Response,)>,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone {
    let check = move |host: Option<Authority>, headers: HeaderMap| {
        let passed = browser_guard::check(host.as_ref(), &headers, &site.allowed);
        std::future::ready(passed.map_err(|error| warp::reject::custom(Refused(error))))
    };
    host()
        .and(warp::header::headers_cloned())
        .and_then(check)
        .and(warp::header::headers_cloned())
        .and(all)
        .map(|passed, asked: HeaderMap, response| cross_origin(passed, &asked, response))
        .recover(recover)
        .unify()
        .map(not_embedded)
}

/// Whom a request names as its host. None where Host is malformed or the request target names another host: the guard
/// refuses both.
fn host() -> impl Filter<Extract = (Option<Authority>,), Error = Infallible> + Copy {
    warp::host::optional().or(warp::any().map(|| None)).unify()
}

/// A request of which nothing has been looked at but Host, Origin and path.
struct Request {
    site: Arc<Site>,
    method: Method,
    headers: HeaderMap,
    query: String,
    host: Option<Authority>,
    peer: Option<Peer>,
}

/// Answers a request: method, credential and rights, limits, then the handler.
async fn answer<F: Future<Output = Result<Response, Error>>>(
    request: Request,
    segment: Option<String>,
    methods: &'static str,
    needs: Needs,
    handler: impl FnOnce(Asked) -> F,
) -> Response {
    if let Some(response) = request::other_method(&request.method, methods) {
        return response;
    }
    // Whoever leaves is asked for nothing.
    let needs = if request.method == Method::DELETE { Needs::Nothing } else { needs };
    let (asked, spent) = match admit(request, segment, needs).await {
        Ok(admitted) => admitted,
        Err(Refusal::No(error)) => return error.into_response(),
        Err(Refusal::Later(later)) => return later.error().into_response(),
    };
    let mut response = handler(asked).await.unwrap_or_else(Error::into_response);
    if let Some(spent) = spent {
        spent.tell(response.headers_mut());
    }
    response
}

/// The same for a stream: what passes by itself is said in the transport's way.
async fn stream(row: &'static Row, request: Request) -> Response {
    if let Some(response) = request::other_method(&request.method, GET) {
        return response;
    }
    let retry = request.site.streams.config.retry();
    let answer = match admit(request, None, Needs::Stream).await {
        Ok((asked, _)) => events::events(row, asked).await,
        Err(Refusal::No(error)) => Err(error),
        Err(Refusal::Later(later)) => row.come_back(later, retry),
    };
    answer.unwrap_or_else(Error::into_response)
}

async fn admit(request: Request, segment: Option<String>, needs: Needs) -> Result<(Asked, Option<Spent>), Refusal> {
    let Request { site, method, headers, query, host, peer } = request;
    // Without a peer there is no connection: a test's.
    let peer = peer.unwrap_or(Peer { address: (Ipv4Addr::UNSPECIFIED, 0).into(), tls: false });
    let came = site.proxies.came(peer.address.ip(), peer.tls, &headers);
    // A page of any other site may use what it knows itself, never what the browser knows (protocol.md: "credentials never
    // with `*`").
    let passed = || browser_guard::check(host.as_ref(), &headers, &site.allowed);
    let cookies = headers.contains_key(header::COOKIE) && passed().is_ok_and(|passed| passed != Passed::Any);
    let asks = Asks { headers: &headers, query: &query, came, cookies };
    let principal = site.auth.admit(needs, asks, &site.limits).await?;
    let spent = match needs {
        // Streams have limits of their own.
        Needs::Probe | Needs::Stream | Needs::Ws => None,
        Needs::Nothing | Needs::Counts | Needs::Read | Needs::Whole | Needs::Bearer => {
            Some(site.limits.requests.take(&principal.caller).map_err(|spent| Refusal::Later(Later::Rate(spent)))?)
        }
    };
    // What is not UTF-8 names nothing here.
    let decoded = |encoded: String| percent_encoding::percent_decode_str(&encoded).decode_utf8_lossy().into_owned();
    let segment = segment.map(decoded);
    Ok((Asked { site, method, headers, query, came, principal, segment }, spent))
}

fn with(site: Arc<Site>) -> impl Filter<Extract = (Request,), Error = Infallible> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let parts = warp::method().and(warp::header::headers_cloned()).and(query).and(host()).and(warp::ext::optional());
    parts.map(move |method, headers, query, host, peer| Request {
        site: site.clone(),
        method,
        headers,
        query,
        host,
        peer,
    })
}

fn nowhere(path: &str) -> Response {
    let shown: String = path.chars().take(200).collect();
    Error::new(Code::NotFound, format!("there is nothing at '{shown}': / lists what there is")).into_response()
}

/// CORS, for those origins that may (Fetch standard, "CORS protocol").
fn cross_origin(passed: Passed, asked: &HeaderMap, mut response: Response) -> Response {
    let allow = response.headers().get(header::ALLOW).cloned();
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    let cross = match passed {
        Passed::Own => None,
        Passed::Cross(origin) => Some((origin, true)),
        Passed::Any => Some((HeaderValue::from_static("*"), false)),
    };
    if let Some((origin, credentials)) = cross {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if credentials {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSE_HEADERS));
        if let Some(allow) = allow.filter(|_| asked.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, allow);
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOW_HEADERS));
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(PREFLIGHT_SECONDS));
        }
    }
    response
}

/// Keeps pages of other sites from loading anything here as a script, an image or a style: such requests carry no
/// `Origin` for the guard to see, and whether they load would tell which instances and tenants there are (Fetch
/// standard, "Cross-Origin-Resource-Policy header"). What CORS allows is not touched.
fn not_embedded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// What no route took: the guard's refusals.
async fn recover(rejection: Rejection) -> Result<Response, Infallible> {
    let error = match rejection.find::<Refused>() {
        Some(Refused(error)) => error.clone(),
        None => Error::new(Code::BadRequest, "the request could not be understood"),
    };
    Ok(error.into_response())
}
