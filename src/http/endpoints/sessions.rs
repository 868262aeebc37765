//! Session cookies and stream tickets (`docs/protocol.md#access`).
//!
//! A client exchanges an API key or a Kubernetes token for one of them where it cannot send the key or token itself. The
//! bridge stores nothing: both are signed and contain the identity of their holder.

use std::net::IpAddr;

use http::{HeaderValue, Method, StatusCode, header};
use serde_json::json;
use warp::reply::{Reply, Response};

use crate::http::{
    auth::{cookie_name, host, signed_token::TokenPurpose},
    error::{ApiError, ErrorCode},
    request::ApiRequest,
};

/// Answers `/api/v1/session`: `POST` sets a session cookie for this `Host`, `DELETE` removes it from the browser.
///
/// # Errors
/// 400 for a parameter. 403 without https or loopback, without configured credentials, or for a user with too many groups
/// for a cookie.
pub(crate) async fn session<C>(request: ApiRequest<C>) -> Result<Response, ApiError> {
    request.parameters(&[])?;
    if request.method == Method::DELETE {
        let mut response = StatusCode::NO_CONTENT.into_response();
        if let Some(name) = cookie_name(request.client) {
            set_cookie(&mut response, &request, name, "", 0);
        }
        return Ok(response);
    }
    let host = host(&request.headers);
    let name =
        cookie_name(request.client).filter(|_| request.client.secure || is_loopback(&host)).ok_or_else(|| {
            let message = "a session cookie requires https: serve TLS (--tls-cert), or connect through a trusted proxy \
                           (--trusted-proxies) that sends X-Forwarded-Proto: https";
            ApiError::new(ErrorCode::Forbidden, message)
        })?;
    let auth = &request.app.auth;
    if auth.allows_anonymous() {
        return Err(sessions_disabled());
    }
    let Some((token, expires_at)) = auth.issue(&request.principal, TokenPurpose::Session, &host) else {
        let message = "this user is in too many groups for a session cookie: send the token as 'Authorization: Bearer'";
        return Err(ApiError::new(ErrorCode::Forbidden, message));
    };
    let mut response = warp::reply::json(&json!({ "expiresAt": expires_at.to_string() })).into_response();
    let max_age = expires_at.as_second() - auth.now().as_second();
    set_cookie(&mut response, &request, name, token.expose(), max_age);
    Ok(response)
}

/// Answers `/api/v1/tickets`: issues a stream ticket.
///
/// # Errors
/// 400 for a parameter, 403 without configured credentials.
pub(crate) async fn ticket<C>(request: ApiRequest<C>) -> Result<Response, ApiError> {
    request.parameters(&[])?;
    let auth = &request.app.auth;
    // Without configured credentials the principal is anonymous, and `issue` returns `None`.
    let (token, expires_at) = auth.issue(&request.principal, TokenPurpose::Ticket, "").ok_or_else(sessions_disabled)?;
    let body = json!({ "ticket": token.expose(), "expiresAt": expires_at.to_string() });
    let mut response = warp::reply::json(&body).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn sessions_disabled() -> ApiError {
    ApiError::new(ErrorCode::Forbidden, "no credentials are configured: read without a session or ticket")
}

fn set_cookie<C>(response: &mut Response, request: &ApiRequest<C>, name: &str, value: &str, seconds: i64) {
    let secure = if request.client.secure { "; Secure" } else { "" };
    let cookie = format!("{name}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}");
    // Base64url and fixed words are always a valid header value.
    if let Ok(mut cookie) = HeaderValue::from_str(&cookie) {
        cookie.set_sensitive(true);
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

/// Returns whether a `Host`, with or without a port, is a loopback host. Plain http to it never leaves the machine.
fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host().trim_matches(['[', ']']);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_loopback_accepts_only_loopback_hosts() {
        for own in [
            "localhost",
            "localhost:3000",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]",
            "[::1]:3000",
            "[::ffff:127.0.0.1]:3000",
        ] {
            assert!(is_loopback(own), "expected loopback: {own}");
        }
        for other in ["", "10.0.0.1", "[::]", "bridge.example", "localhost.example:80", "0.0.0.0", "[::ffff:10.0.0.1]"]
        {
            assert!(!is_loopback(other), "expected no loopback: {other}");
        }
    }
}
