//! The browser guard as a filter around all routes: `Host` before them, CORS and isolation headers on every response
//! (`docs/protocol.md#browsers`).

use std::{convert::Infallible, sync::Arc};

use http::HeaderMap;
use tokio::time::Instant;
use tracing::info;
use warp::{Filter, filters::BoxedFilter, host::Authority, reject::Reject, reply::Response};

use super::{
    app::App,
    browser_guard::{self, GuardError, RequestHost},
    cors::{add_cors_headers, add_isolation_headers},
    error::{ApiError, ErrorCode},
};

#[derive(Debug)]
struct GuardRejection(ApiError);

impl Reject for GuardRejection {}

/// Checks `Host` before all routes, and adds CORS and isolation headers to all responses.
pub(super) fn with_guard<C: Send + Sync + 'static>(
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
pub(super) fn record_guard_rejection<C>(app: &App<C>, GuardError { check, refused, .. }: &GuardError) {
    app.metrics.count_guard_rejection(check.label());
    if let Some(refused) = refused
        && app.refused_origins.must_log(refused, Instant::now())
    {
        info!(origin = refused.origin, host = refused.host, "origin refused");
    }
}

/// Extracts the host that a request names. It is `None` where `Host` is malformed or the request target names another
/// host; the guard rejects both.
pub(super) fn host() -> impl Filter<Extract = (Option<Authority>,), Error = Infallible> + Copy {
    warp::host::optional().or(warp::any().map(|| None)).unify()
}

/// Returns the response to a request that the guard or warp rejected.
async fn recover(rejection: warp::Rejection) -> Result<Response, Infallible> {
    let error = match rejection.find::<GuardRejection>() {
        Some(GuardRejection(error)) => error.clone(),
        None => ApiError::new(ErrorCode::BadRequest, "the request is malformed; send a valid HTTP/1.1 request"),
    };
    Ok(error.into_response())
}
