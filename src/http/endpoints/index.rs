//! `/`: the dashboard for browsers, and for all other clients a page that lists the endpoints. That one has no script and
//! loads nothing.

use http::{HeaderMap, HeaderValue, header};
use warp::reply::{Reply, Response};

use crate::http::{assets, error::ApiError, request::ApiRequest};

/// Placeholder in the list for the host of the request.
const HOST: &str = "{host}";
/// Placeholders for the schemes with which the client reaches the bridge, perhaps through a proxy with TLS.
const SCHEMES: [&str; 2] = ["{http}", "{ws}"];
/// The list of endpoints.
const LIST: &str = include_str!("../assets/index.html");
/// Allows the inline style of the list and nothing else.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
);

/// Answers `/`.
///
/// # Errors
/// 400 for a parameter.
pub(crate) async fn index(request: ApiRequest) -> Result<Response, ApiError> {
    request.parameters(&[])?;
    let mut response =
        if prefers_html(&request.headers) { assets::page().respond(&request.headers) } else { list(&request) };
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

fn list(request: &ApiRequest) -> Response {
    // The browser guard allows IP literals, localhost and configured names only, so the host needs no HTML escaping. The host
    // that a trusted proxy forwards is in the same header.
    let host = request.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let schemes = if request.client.secure { ["https", "wss"] } else { ["http", "ws"] };
    let text =
        SCHEMES.into_iter().zip(schemes).fold(LIST.to_owned(), |text, (name, scheme)| text.replace(name, scheme));
    let mut response = warp::reply::html(text.replace(HOST, host)).into_response();
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, POLICY);
    response
}

/// Returns whether `Accept` names `text/html` and nothing that it prefers to it. Every browser sends this for an address
/// that a person opens. `*/*` alone, as curl sends it, does not name it.
fn prefers_html(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    let (mut html, mut best) = (0.0, 0.0_f32);
    for range in values.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let quality = parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |text| text.parse().ok());
        let Some(quality) = quality.filter(|quality| (0.0..=1.0).contains(quality)) else { continue };
        best = best.max(quality);
        if name.eq_ignore_ascii_case("text/html") {
            html = quality;
        }
    }
    html > 0.0 && html >= best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_get_the_dashboard_and_others_the_list() {
        for (accept, expected) in [
            (Some("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"), true),
            (Some("text/html"), true),
            (Some("application/json;q=0.5, TEXT/HTML ;q=0.9"), true),
            (Some("application/json, text/html;q=0.9"), false),
            (Some("text/html;q=0"), false),
            (Some("text/html;q=x"), false),
            (Some("text/html;q=2"), false),
            (Some("*/*"), false),
            (Some("application/json"), false),
            (Some(""), false),
            (None, false),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(header::ACCEPT, accept.parse().unwrap());
            }
            assert_eq!(prefers_html(&headers), expected, "{accept:?}");
        }
    }
}
