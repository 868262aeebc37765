//! The error body that all endpoints share (`docs/protocol.md#errors`).
//!
//! Must not import: any other module of this crate, except the codes of `wire`.

use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::Value;
use warp::reply::{Reply, Response};

pub use crate::wire::ErrorCode;

/// An error response. The message is for the client and contains what to do.
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

/// Returns the status of an answer with this code.
fn status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::BadRequest => StatusCode::BAD_REQUEST,
        ErrorCode::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorCode::Forbidden => StatusCode::FORBIDDEN,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        ErrorCode::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
        ErrorCode::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
        ErrorCode::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ErrorCode::InvalidInput => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorCode::UpgradeRequired => StatusCode::UPGRADE_REQUIRED,
        ErrorCode::RateLimitExceeded => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        ErrorCode::NotReady | ErrorCode::UpstreamUnavailable | ErrorCode::TooManyConnections => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    }
}

impl ApiError {
    /// Creates an error with this code and message.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> ApiError {
        ApiError { code, message: message.into(), details: None, headers: Vec::new() }
    }

    /// Creates a 400 for a parameter. `reason` contains what is wrong and what is accepted.
    #[must_use]
    pub fn parameter(name: &str, reason: &str) -> ApiError {
        let details = serde_json::json!({ "parameter": name });
        ApiError {
            details: Some(details),
            ..ApiError::new(ErrorCode::BadRequest, format!("parameter '{name}': {reason}"))
        }
    }

    /// Sets `details`.
    #[must_use]
    pub fn with_details(mut self, details: Value) -> ApiError {
        self.details = Some(details);
        self
    }

    /// Creates a 503 with `Retry-After: 1`.
    #[must_use]
    pub fn not_ready(message: &str) -> ApiError {
        ApiError::new(ErrorCode::NotReady, message).with(header::RETRY_AFTER, HeaderValue::from_static("1"))
    }

    /// Returns the code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// Adds a header to the response.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> ApiError {
        self.headers.push((name, value));
        self
    }

    /// Returns the response.
    #[must_use]
    pub fn into_response(self) -> Response {
        let body = Body { code: self.code, message: &self.message, details: &self.details, error: &self.message };
        let mut response = warp::reply::json(&body).into_response();
        *response.status_mut() = status(self.code);
        response.headers_mut().extend(self.headers);
        response
    }
}
