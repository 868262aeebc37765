//! The codes of error bodies (`docs/protocol.md#errors`).

use serde::Serialize;

/// The `code` of an error body.
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
    /// 406
    NotAcceptable,
    /// 408
    RequestTimeout,
    /// 413
    PayloadTooLarge,
    /// 415
    UnsupportedMediaType,
    /// 422
    InvalidInput,
    /// 426
    UpgradeRequired,
    /// 429
    RateLimitExceeded,
    /// 500
    Internal,
    /// 503, before the first lists are complete, after a wait for them timed out, or while telemetry cannot be stored.
    NotReady,
    /// 503, while the process drains, or while the API server does not answer the review of a credential.
    UpstreamUnavailable,
    /// 503, while the maximum number of streams is open.
    TooManyConnections,
}

impl ErrorCode {
    /// All codes. The published schemas list them.
    pub const ALL: [ErrorCode; 16] = [
        ErrorCode::BadRequest,
        ErrorCode::Unauthorized,
        ErrorCode::Forbidden,
        ErrorCode::NotFound,
        ErrorCode::MethodNotAllowed,
        ErrorCode::NotAcceptable,
        ErrorCode::RequestTimeout,
        ErrorCode::PayloadTooLarge,
        ErrorCode::UnsupportedMediaType,
        ErrorCode::InvalidInput,
        ErrorCode::UpgradeRequired,
        ErrorCode::RateLimitExceeded,
        ErrorCode::Internal,
        ErrorCode::NotReady,
        ErrorCode::UpstreamUnavailable,
        ErrorCode::TooManyConnections,
    ];
}
