//! `/metrics`: the metrics of the process in the OpenMetrics text format.

use http::{HeaderValue, header};
use warp::reply::{Reply, Response};

use crate::http::{
    error::{ApiError, ErrorCode},
    request::ApiRequest,
};

pub(crate) async fn metrics(request: ApiRequest) -> Result<Response, ApiError> {
    request.parameters(&[])?;
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &request.app.registry)
        .map_err(|_| ApiError::new(ErrorCode::Internal, "the metrics could not be written"))?;
    let mut response = text.into_response();
    let resource = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, resource);
    Ok(response)
}
