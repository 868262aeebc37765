//! Every path of the bridge, in one function. What answers first where two things are wrong is decided by the order
//! here: Host, Origin, path, method, then the handler's own (protocol.md section 6).

use std::{convert::Infallible, sync::Arc};

use http::{HeaderMap, HeaderValue, Method, header};
use hyper::body::Incoming;
use tower::Service;
use warp::{Filter, Rejection, filters::BoxedFilter, host::Authority, path::FullPath, reject::Reject, reply::Response};

use super::{
    Site,
    asked::Asked,
    error::{Code, Error},
    events::{self, Row},
    guard::{self, Passed},
    page, snapshot, ws,
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
    let plain = |path: BoxedFilter<()>| path.map(|| None).boxed();
    let get = |path: Segment| path.and(with(site.clone()));

    let ws = get(plain(warp::path!("ws").boxed())).then(|s, a| answer(s, a, ws::ws));
    let row = |path: FullPath| std::future::ready(Row::at(path.as_str()).ok_or_else(warp::reject::not_found));
    let events = warp::path::full().and_then(row).and(with(site.clone()));
    let events = events.then(|row, a| answer(None, a, move |a| events::events(row, a)));
    let instances = warp::path!("api" / "v1" / "instances").boxed();
    let instances =
        get(plain(instances).or(segment(warp::path!("api" / "v1" / "instances" / String).boxed())).unify().boxed())
            .then(|s, a| answer(s, a, snapshot::instances));
    let tenants = warp::path!("api" / "v1" / "tenants").boxed();
    let tenants =
        get(plain(tenants).or(segment(warp::path!("api" / "v1" / "tenants" / String).boxed())).unify().boxed())
            .then(|s, a| answer(s, a, snapshot::tenants));
    let pools = get(plain(warp::path!("api" / "v1" / "pools").boxed())).then(|s, a| answer(s, a, snapshot::pools));
    let stats = get(plain(warp::path!("api" / "v1" / "stats").boxed())).then(|s, a| answer(s, a, snapshot::stats));
    let connections = get(plain(warp::path!("api" / "v1" / "connections").boxed()));
    let connections = connections.then(|s, a| answer(s, a, snapshot::connections));
    let health = get(plain(warp::path!("api" / "v1" / "health").boxed())).then(|s, a| answer(s, a, snapshot::health));
    let livez = get(plain(warp::path!("livez").boxed())).then(|s, a| answer(s, a, snapshot::livez));
    let readyz = get(plain(warp::path!("readyz").boxed())).then(|s, a| answer(s, a, snapshot::readyz));
    let metrics = get(plain(warp::path!("metrics").boxed())).then(|s, a| answer(s, a, snapshot::metrics));
    let page = get(plain(warp::path::end().boxed())).then(|s, a| answer(s, a, page::page));

    let api = instances
        .or(tenants)
        .unify()
        .or(pools)
        .unify()
        .or(stats)
        .unify()
        .or(health)
        .unify()
        .or(connections)
        .unify()
        .boxed();
    let service = livez.or(readyz).unify().or(metrics).unify().or(page).unify().boxed();
    let nothing = warp::path::full().map(|path: FullPath| nowhere(path.as_str()));
    // A CONNECT has no path, for which `full` panics: the page takes it before.
    let all = ws.or(api).unify().or(service).unify().or(events).unify().or(nothing).unify().boxed();
    guarded(site, all)
}

/// Runs the guard before anything else, and what a page of another site needs after everything else.
fn guarded(
    site: Arc<Site>,
    all: BoxedFilter<(Response,)>,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone {
    let check = move |host: Option<Authority>, headers: HeaderMap| {
        let passed = guard::check(host.as_ref(), &headers, &site.allowed);
        std::future::ready(passed.map_err(|error| warp::reject::custom(Refused(error))))
    };
    // Fails where Host is malformed or the request target names another host: the guard then sees none, and refuses.
    let host = warp::host::optional().or(warp::any().map(|| None)).unify();
    host.and(warp::header::headers_cloned())
        .and_then(check)
        .and(warp::header::headers_cloned())
        .and(all)
        .map(|passed, asked: HeaderMap, response| cross_origin(passed, &asked, response))
        .recover(recover)
        .unify()
        .map(not_embedded)
}

fn segment(path: BoxedFilter<(String,)>) -> Segment {
    path.map(Some).boxed()
}

async fn answer<F: Future<Output = Result<Response, Error>>>(
    segment: Option<String>,
    mut asked: Asked,
    handler: impl FnOnce(Asked) -> F,
) -> Response {
    if let Some(response) = asked.other_method(GET) {
        return response;
    }
    if let Some(encoded) = segment {
        // What is not UTF-8 names nothing here.
        let decoded = percent_encoding::percent_decode_str(&encoded).decode_utf8_lossy();
        asked.segment = Some(decoded.into_owned());
    }
    handler(asked).await.unwrap_or_else(Error::into_response)
}

fn with(site: Arc<Site>) -> impl Filter<Extract = (Asked,), Error = Infallible> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::method().and(warp::header::headers_cloned()).and(query).map(move |method: Method, headers, query| Asked {
        site: site.clone(),
        method,
        headers,
        query,
        segment: None,
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
    if let Passed::Cross(origin) = passed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
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
