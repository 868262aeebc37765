//! `/`: a page that describes the bridge and its endpoints. It has no script and loads nothing.

use http::{HeaderValue, header};
use warp::reply::{Reply, Response};

use crate::http::{error::ApiError, request::ApiRequest};

/// Placeholder in the page for the host of the request.
const HOST: &str = "{host}";
/// The page.
const PAGE: &str = include_str!("../assets/index.html");
/// Allows the inline style of the page and nothing else.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
);

/// Answers `/`.
///
/// # Errors
/// 400 for a parameter.
pub(crate) async fn index(request: ApiRequest) -> Result<Response, ApiError> {
    request.parameters(&[])?;
    // The browser guard allows IP literals, localhost and configured names only, so the host needs no HTML escaping.
    let host = request.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let mut response = warp::reply::html(PAGE.replace(HOST, host)).into_response();
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, POLICY);
    Ok(response)
}
