//! Sessions and tickets: what an API key or a token is exchanged for, where those themselves cannot be sent (docs/protocol.md
//! section 7). Nothing is stored: both are signed, and say who holds them.

use std::net::IpAddr;

use http::{HeaderValue, Method, StatusCode, header};
use serde_json::json;
use warp::reply::{Reply, Response};

use crate::http::{
    auth::{cookie_name, host, signed_token::TokenPurpose},
    error::{ApiError, ErrorCode},
    request::ApiRequest,
};

/// `POST` begins a session at this Host, `DELETE` ends it in this browser.
pub(crate) async fn session(request: ApiRequest) -> Result<Response, ApiError> {
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
            let message = "a session needs https: serve TLS (--tls-cert), or come through a trusted proxy \
                       (--trusted-proxies) that says so in X-Forwarded-Proto";
            ApiError::new(ErrorCode::Forbidden, message)
        })?;
    let auth = &request.app.auth;
    if auth.allows_anonymous() {
        return Err(sessions_disabled());
    }
    let Some((token, expires_at)) = auth.issue(&request.principal, TokenPurpose::Session, &host) else {
        let message = "this user is in too many groups for a cookie: send the token as 'Authorization: Bearer'";
        return Err(ApiError::new(ErrorCode::Forbidden, message));
    };
    let mut response = warp::reply::json(&json!({ "expiresAt": expires_at.to_string() })).into_response();
    let max_age = expires_at.as_second() - auth.now().as_second();
    set_cookie(&mut response, &request, name, token.expose(), max_age);
    Ok(response)
}

/// A ticket for streams.
pub(crate) async fn ticket(request: ApiRequest) -> Result<Response, ApiError> {
    request.parameters(&[])?;
    let auth = &request.app.auth;
    // Where nobody signs in there is nobody to give a ticket to.
    let (token, expires_at) = auth.issue(&request.principal, TokenPurpose::Ticket, "").ok_or_else(sessions_disabled)?;
    let body = json!({ "ticket": token.expose(), "expiresAt": expires_at.to_string() });
    let mut response = warp::reply::json(&body).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn sessions_disabled() -> ApiError {
    ApiError::new(ErrorCode::Forbidden, "no credentials are configured here: everybody may read without one")
}

fn set_cookie(response: &mut Response, request: &ApiRequest, name: &str, value: &str, seconds: i64) {
    let secure = if request.client.secure { "; Secure" } else { "" };
    let cookie = format!("{name}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={seconds}{secure}");
    // Base64url and words of ours: always a valid value.
    if let Ok(mut cookie) = HeaderValue::from_str(&cookie) {
        cookie.set_sensitive(true);
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

/// Whether a Host, port included, is this machine by itself: then nobody else reads plain http on its way here.
fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host().trim_matches(['[', ']']);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_loopback_accepts_only_loopback_hosts() {
        for own in ["localhost", "localhost:3000", "127.0.0.1:1", "127.9.9.9", "[::1]", "[::1]:3000"] {
            assert!(is_loopback(own), "{own}");
        }
        for other in ["", "10.0.0.1", "[::]", "bridge.example", "localhost.example:80", "0.0.0.0"] {
            assert!(!is_loopback(other), "{other}");
        }
    }
}
