//! The one error body of every endpoint (docs/protocol.md#errors).

use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::Value;
use warp::reply::{Reply, Response};

/// `code` of an error body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// 400
    BadRequest,
    /// 401
    Unauthorized,
    /// 403
    Forbidden,
    /// 404
    NotFound,
    /// 405
    MethodNotAllowed,
    /// 426
    UpgradeRequired,
    /// 429
    RateLimitExceeded,
    /// 500
    Internal,
    /// 503, before the first sync and where a wait for it ran out.
    NotReady,
    /// 503, while the process drains or cannot ask the cluster about a credential.
    UpstreamUnavailable,
    /// 503, where as many streams are open as may be.
    TooManyConnections,
}

/// An answer that is not the one asked for. `message` is for whoever asked: it says what to do.
#[derive(Clone, Debug)]
pub struct ApiError {
    code: ErrorCode,
    message: String,
    details: Option<Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Serialize)]
struct Body<'a> {
    code: ErrorCode,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: &'a Option<Value>,
    error: &'a str,
}

impl ErrorCode {
    fn status(self) -> StatusCode {
        match self {
            ErrorCode::BadRequest => StatusCode::BAD_REQUEST,
            ErrorCode::Unauthorized => StatusCode::UNAUTHORIZED,
            ErrorCode::Forbidden => StatusCode::FORBIDDEN,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            ErrorCode::UpgradeRequired => StatusCode::UPGRADE_REQUIRED,
            ErrorCode::RateLimitExceeded => StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            ErrorCode::NotReady | ErrorCode::UpstreamUnavailable | ErrorCode::TooManyConnections => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }
}

impl ApiError {
    /// An error with this code and message.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> ApiError {
        ApiError { code, message: message.into(), details: None, headers: Vec::new() }
    }

    /// A parameter that cannot be taken: names it and what it accepts.
    #[must_use]
    pub fn parameter(name: &str, problem: &str) -> ApiError {
        let details = serde_json::json!({ "parameter": name });
        ApiError {
            details: Some(details),
            ..ApiError::new(ErrorCode::BadRequest, format!("parameter '{name}': {problem}"))
        }
    }

    /// Not yet, and probably soon.
    #[must_use]
    pub fn not_ready(message: &str) -> ApiError {
        ApiError::new(ErrorCode::NotReady, message).with(header::RETRY_AFTER, HeaderValue::from_static("1"))
    }

    /// Adds a header to the answer.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> ApiError {
        self.headers.push((name, value));
        self
    }

    /// The answer.
    #[must_use]
    pub fn into_response(self) -> Response {
        let body = Body { code: self.code, message: &self.message, details: &self.details, error: &self.message };
        let mut response = warp::reply::json(&body).into_response();
        *response.status_mut() = self.code.status();
        response.headers_mut().extend(self.headers);
        response
    }
}
