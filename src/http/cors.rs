//! CORS and isolation headers of responses (`docs/protocol.md#access`).

use http::{HeaderMap, HeaderValue, header};
use warp::reply::Response;

use super::browser_guard::OriginDecision;

/// Request headers that a page of another origin may send (docs/protocol.md#access).
const ALLOW_HEADERS: &str = "authorization, content-type, last-event-id, if-none-match";
/// Response headers that a page of another origin may read (docs/protocol.md#access).
const EXPOSE_HEADERS: &str = "Event-Cursor, ETag, Retry-After, RateLimit, RateLimit-Policy";
/// Time for which a browser may cache a preflight response, in seconds: 10 minutes.
const PREFLIGHT_SECONDS: &str = "600";

/// Adds the CORS headers for an allowed origin (Fetch standard, "CORS protocol"). `decision` is `None` for an origin or a site
/// that is not allowed: its pages cannot read the response, a 403, 404 or 405.
pub(super) fn add_cors_headers(
    decision: Option<OriginDecision>,
    request_headers: &HeaderMap,
    mut response: Response,
) -> Response {
    let allow = response.headers().get(header::ALLOW).cloned();
    let headers = response.headers_mut();
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    let cross_origin = match decision {
        None | Some(OriginDecision::SameOrigin | OriginDecision::Navigation) => None,
        Some(OriginDecision::Allowed(origin)) => Some((origin, true)),
        Some(OriginDecision::AnyOrigin) => Some((HeaderValue::from_static("*"), false)),
    };
    if let Some((origin, credentials)) = cross_origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if credentials {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSE_HEADERS));
        if let Some(allow) = allow.filter(|_| request_headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, allow);
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOW_HEADERS));
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(PREFLIGHT_SECONDS));
        }
    }
    response
}

/// Adds headers that stop pages of other sites from loading a response as a script, an image or a style, and every page from
/// showing it in a frame.
///
/// Such requests carry no `Origin` that the guard could check. Whether they load would reveal which instances and tenants
/// exist (Fetch standard, "Cross-Origin-Resource-Policy header"). The headers do not change what CORS allows.
pub(super) fn add_isolation_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    response
}
