//! Probes: `/livez`, `/readyz` and `/api/v1/health` (`docs/protocol.md#snapshots`).

use std::fmt::Write;

use http::StatusCode;
use warp::reply::{Reply, Response};

use crate::{
    event::Resource,
    feed::Health,
    http::{error::ApiError, request::ApiRequest},
};

/// Answers `/api/v1/health`, always with 200.
///
/// # Errors
/// 400 for a parameter.
pub(crate) async fn health<C>(request: ApiRequest<C>) -> Result<Response, ApiError> {
    request.parameters(&[])?;
    Ok(warp::reply::json(&serde_json::json!({ "status": "ok" })).into_response())
}

/// Answers `/livez`, always with 200.
///
/// # Errors
/// 400 for a parameter other than `verbose`.
pub(crate) async fn livez<C>(request: ApiRequest<C>) -> Result<Response, ApiError> {
    request.parameters(&["verbose"])?;
    Ok("ok\n".into_response())
}

/// Answers `/readyz`: 200 after both resources have been listed and until the process drains, 503 otherwise.
///
/// The text of a 503 states the reason: it has the lines that `verbose` adds to a 200.
///
/// The bridge stays ready while the API server does not answer. Its streams report that (`upstream.down`), and another
/// replica would not serve clients better.
///
/// # Errors
/// 400 for a parameter other than `verbose`.
pub(crate) async fn readyz(request: ApiRequest) -> Result<Response, ApiError> {
    let parameters = request.parameters(&["verbose"])?;
    let feed = &request.app.content.feed;
    let draining = request.app.streams.stop.is_cancelled();
    let ready = feed.is_synced() && !draining;
    let mut text = String::new();
    if parameters.get("verbose").is_some() || !(ready || draining) {
        let health = feed.health().borrow().clone();
        for (resource, health) in Resource::ALL.into_iter().zip(health.into_array()) {
            let (mark, state) = match &health {
                Health::Connecting => ('-', "connecting".to_owned()),
                Health::Live => ('+', "live".to_owned()),
                Health::Down { since, reason } => ('-', format!("down for {} s: {reason}", since.elapsed().as_secs())),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "[{mark}] {}: {state}", resource.plural());
        }
        for line in (request.app.content.readiness_details)() {
            let _ = writeln!(text, "[i] {line}");
        }
    }
    text += match (ready, draining) {
        (true, _) => "ready\n",
        (false, true) => "not ready: draining\n",
        (false, false) => "not ready: the first lists are not complete yet\n",
    };
    let mut response = text.into_response();
    if !ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    Ok(response)
}
