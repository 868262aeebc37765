//! `/`: says what runs here and how to listen. Plain on purpose: no script, nothing loaded.

use http::{HeaderValue, header};
use warp::reply::{Reply, Response};

use crate::http::{error::ApiError, request::ApiRequest};

/// Placeholder in the page for the host that the reader came by.
const HOST: &str = "{host}";
const PAGE: &str = include_str!("../assets/index.html");

pub(crate) async fn index(request: ApiRequest) -> Result<Response, ApiError> {
    request.parameters(&[])?;
    // The guard let it pass, so it is an IP literal, localhost or a configured name: nothing to escape.
    let host = request.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let mut response = warp::reply::html(PAGE.replace(HOST, host)).into_response();
    let headers = response.headers_mut();
    let policy =
        "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    Ok(response)
}
