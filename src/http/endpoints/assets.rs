//! `/assets/<file>` and `/client.js`: the files of the dashboard, and the JavaScript client.

use warp::reply::Response;

use crate::http::{
    assets,
    error::{ApiError, ErrorCode},
    request::ApiRequest,
};

/// Answers `/client.js`.
///
/// # Errors
/// 400 for a parameter.
pub(crate) async fn client(request: ApiRequest) -> Result<Response, ApiError> {
    request.parameters(&[])?;
    Ok(assets::client().respond(&request.headers))
}

/// Answers `/assets/<file>`.
///
/// # Errors
/// 400 for a parameter, 404 for another file.
pub(crate) async fn file(request: ApiRequest) -> Result<Response, ApiError> {
    request.parameters(&[])?;
    let asset = request.path_param.as_deref().and_then(assets::find);
    let asset = asset.ok_or_else(|| ApiError::new(ErrorCode::NotFound, "no such file; open / for the dashboard"))?;
    Ok(asset.respond(&request.headers))
}
