//! `/openapi.json`, `/asyncapi.json` and `/schemas/<type>.json` (docs/protocol.md#schemas).

use warp::reply::Response;

use crate::{
    http::{
        assets,
        error::{ApiError, ErrorCode},
        request::ApiRequest,
    },
    schema::messages,
};

/// Answers `/openapi.json`.
///
/// # Errors
/// 400 for a parameter.
pub(crate) async fn openapi(request: ApiRequest) -> Result<Response, ApiError> {
    request.parameters(&[])?;
    Ok(assets::openapi().respond(&request.headers))
}

/// Answers `/asyncapi.json`.
///
/// # Errors
/// 400 for a parameter.
pub(crate) async fn asyncapi(request: ApiRequest) -> Result<Response, ApiError> {
    request.parameters(&[])?;
    Ok(assets::asyncapi().respond(&request.headers))
}

/// Answers `/schemas/<type>.json`.
///
/// # Errors
/// 400 for a parameter, 404 for a type that no message has.
pub(crate) async fn schema(request: ApiRequest) -> Result<Response, ApiError> {
    request.parameters(&[])?;
    let name = request.path_param.as_deref().and_then(|file| file.strip_suffix(".json"));
    let schema = name.and_then(assets::schema).ok_or_else(|| {
        let names: Vec<&str> = messages::names().collect();
        let message = format!("no such schema; /schemas/<type>.json exists for these types: {}", names.join(", "));
        ApiError::new(ErrorCode::NotFound, message)
    })?;
    Ok(schema.respond(&request.headers))
}
