//! One route: a path with its methods, what it requires, and how a request reaches the endpoint.
//!
//! Guarantees the order of checks behind the path: method, `Origin` and `Sec-Fetch-Site`, credential, rights, limits, then the
//! checks of the endpoint (`docs/protocol.md#errors`).

use std::{convert::Infallible, sync::Arc};

use futures::future::BoxFuture;
use http::{HeaderMap, Method};
use warp::{Filter, filters::BoxedFilter, host::Authority, path::FullPath, reply::Response};

use super::{
    admit::{RawRequest, Rejection, admit},
    app::App,
    auth::AccessRequirement,
    body::{self, Body},
    browser_guard,
    endpoints::boilerhouse_ws,
    error::{ApiError, ErrorCode},
    guard_filter::{host, record_guard_rejection, with_guard},
    metrics::RequestTimer,
    request::{self, ApiRequest},
    stream_endpoint::StreamEndpoint,
};
use crate::traces::RequestSpan;

/// Allowed methods of read-only endpoints.
const GET: &str = "GET, HEAD, OPTIONS";

/// Characters of a path that an error message repeats.
const MAX_PATH_CHARS: usize = 200;

/// Matches a path, and extracts its variable segment if it has one.
pub(super) type PathFilter = BoxedFilter<(Option<String>,)>;

/// The pattern of the route that answered, in the extensions of a response.
#[derive(Clone, Copy)]
struct RoutePattern(&'static str);

/// A path without a variable segment: its pattern and the filter that matches it.
macro_rules! fixed_path {
    ($($segment:tt)/+) => {
        (concat!($("/", $segment),+), warp::path!($($segment)/+).map(|| None).boxed())
    };
}
pub(super) use fixed_path;

/// An endpoint that reads the body of a request.
pub(super) type BodyEndpoint<C> = for<'b> fn(ApiRequest<C>, &'b mut Body) -> BoxFuture<'b, Result<Response, ApiError>>;

/// A path and its allowed methods.
pub(super) struct Route<C> {
    app: Arc<App<C>>,
    pattern: &'static str,
    path: PathFilter,
    methods: &'static str,
}

impl<C: Send + Sync + 'static> Route<C> {
    /// Sets the allowed methods. Without it, the route can be read.
    pub(super) fn with_methods(self, methods: &'static str) -> Route<C> {
        Route { methods, ..self }
    }

    /// Sets what the route requires and the endpoint that answers.
    pub(super) fn to<F>(
        self,
        requirement: AccessRequirement,
        endpoint: fn(ApiRequest<C>) -> F,
    ) -> BoxedFilter<(Response,)>
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

    /// As [`Route::to`], for a POST whose endpoint reads the body. The endpoint must bound what it reads. The rest of the body
    /// of a refused request is read and dropped, whatever refused it, so that the client sees the answer.
    pub(super) fn with_body_to(
        self,
        requirement: AccessRequirement,
        endpoint: BodyEndpoint<C>,
    ) -> BoxedFilter<(Response,)> {
        let Route { app, pattern, path, methods } = self;
        app.metrics.add_route(pattern, "POST", 200);
        path.and(raw_request(app))
            .and(warp::body::stream().map(body::boxed))
            .then(move |path_param, request, mut body| async move {
                let response =
                    handle(request, path_param, methods, requirement, |request| endpoint(request, &mut body)).await;
                if !response.status().is_success() {
                    body::discard(&mut body).await;
                }
                response
            })
            .map(move |response| with_pattern(response, pattern))
            .boxed()
    }
}

/// Matches the path `/`.
pub(super) fn root() -> PathFilter {
    warp::path::end().map(|| None).boxed()
}

/// Returns a route that can be read.
pub(super) fn route<C>(app: &Arc<App<C>>, (pattern, path): (&'static str, PathFilter)) -> Route<C> {
    Route { app: app.clone(), pattern, path, methods: GET }
}

/// Returns a filter that answers with the first route that matches, or with 404.
pub(super) fn first_of(routes: Vec<BoxedFilter<(Response,)>>, help: &'static str) -> BoxedFilter<(Response,)> {
    // `FullPath` panics on a CONNECT request, which has no path.
    let no_path = warp::path::end().map(move || not_found("/", help));
    let no_route =
        no_path.or(warp::path::full().map(move |path: FullPath| not_found(path.as_str(), help))).unify().boxed();
    routes.into_iter().rev().fold(no_route, |rest, route| route.or(rest).unify().boxed())
}

/// Counts, times and traces all requests, and checks `Host` before any route.
pub(super) fn with_checks<C: Send + Sync + 'static>(
    app: Arc<App<C>>,
    all: BoxedFilter<(Response,)>,
) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone {
    let timer_app = app.clone();
    warp::any()
        .map(move || timer_app.metrics.start_request())
        .and(warp::method())
        .and(span())
        .and(with_guard(app, all))
        .map(|timer, method: Method, span, response| finish_request(timer, &method, &span, response))
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
                AccessRequirement::BoilerhouseWs => boilerhouse_ws::rejection(&app, &unavailable),
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
pub(super) async fn handle_stream<C, F: Future<Output = Result<Response, ApiError>>>(
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
            endpoint.unavailable_response(&app, last_id.as_deref(), &unavailable)
        }
    };
    with_pattern(response.unwrap_or_else(ApiError::into_response), pattern)
}

/// Records the pattern of the route that answered, for [`finish_request`].
fn with_pattern(mut response: Response, pattern: &'static str) -> Response {
    response.extensions_mut().insert(RoutePattern(pattern));
    response
}

pub(super) fn raw_request<C: Send + Sync + 'static>(
    app: Arc<App<C>>,
) -> impl Filter<Extract = (RawRequest<C>,), Error = Infallible> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let extensions = warp::ext::optional().and(warp::ext::optional());
    let parts = warp::method().and(warp::header::headers_cloned()).and(query).and(host()).and(extensions).and(span());
    parts.map(move |method, headers: HeaderMap, query, host: Option<Authority>, peer, version, span| {
        let host = browser_guard::check_host(host.as_ref(), &headers, &app.guard);
        let origin = host.and_then(|host| browser_guard::check_origin(&host, &headers, &app.guard));
        RawRequest { app: app.clone(), method, headers, query, origin, peer, version, span }
    })
}

/// Extracts the span of a request.
fn span() -> impl Filter<Extract = (RequestSpan,), Error = Infallible> + Copy {
    warp::ext::optional().map(Option::unwrap_or_default)
}

fn not_found(path: &str, help: &str) -> Response {
    let path: String = path.chars().take(MAX_PATH_CHARS).collect();
    let message = format!("no such path: '{path}'; {help}");
    ApiError::new(ErrorCode::NotFound, message).into_response()
}

/// Counts an answered request, and ends its span.
fn finish_request(timer: RequestTimer, method: &Method, span: &RequestSpan, mut response: Response) -> Response {
    let pattern = response.extensions_mut().remove::<RoutePattern>().map(|RoutePattern(pattern)| pattern);
    let status = response.status().as_u16();
    timer.finish(pattern, method, status);
    span.finish(pattern, status);
    response
}
