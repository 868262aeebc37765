//! `/metrics`: the metrics of the process in the OpenMetrics text format (`docs/metrics.md`).

use http::{HeaderValue, header};
use warp::reply::{Reply, Response};

use crate::http::{
    error::{ApiError, ErrorCode},
    request::ApiRequest,
};

/// Answers `/metrics`.
///
/// # Errors
/// 400 for a parameter.
pub(crate) async fn metrics<C>(request: ApiRequest<C>) -> Result<Response, ApiError> {
    request.parameters(&[])?;
    let app = &request.app;
    app.metrics.set_draining(app.streams.stop.is_cancelled());
    app.auth.update_gauges();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &app.registry)
        .map_err(|_| ApiError::new(ErrorCode::Internal, "the metrics cannot be encoded; try again"))?;
    let mut response = text.into_response();
    let content_type = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}
