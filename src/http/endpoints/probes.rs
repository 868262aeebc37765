//! `/livez`, `/readyz` and `/api/v1/health`.

use warp::reply::{Reply, Response};

use crate::{
    event::Resource,
    feed::Health,
    http::{error::ApiError, request::ApiRequest},
};

pub(crate) async fn health(request: ApiRequest) -> Result<Response, ApiError> {
    request.parameters(&[])?;
    Ok(warp::reply::json(&serde_json::json!({ "status": "ok" })).into_response())
}

pub(crate) async fn livez(request: ApiRequest) -> Result<Response, ApiError> {
    request.parameters(&["verbose"])?;
    Ok("ok\n".into_response())
}

/// Ready once both resources have been listed, until the process drains. While the upstream is down the bridge stays
/// ready: it says so on its streams, and sending clients elsewhere would not help them.
pub(crate) async fn readyz(request: ApiRequest) -> Result<Response, ApiError> {
    let parameters = request.parameters(&["verbose"])?;
    let feed = &request.app.feed;
    let draining = request.app.streams.stop.is_cancelled();
    let ready = feed.is_synced() && !draining;
    let mut text = String::new();
    if parameters.get("verbose").is_some() {
        let health = feed.health().borrow().clone();
        for (resource, health) in Resource::ALL.into_iter().zip(health.into_array()) {
            let (mark, word) = match &health {
                Health::Connecting => ('-', "connecting".to_owned()),
                Health::Live => ('+', "live".to_owned()),
                Health::Down { since, reason } => ('-', format!("down for {} s: {reason}", since.elapsed().as_secs())),
            };
            text += &format!("[{mark}] {}: {word}\n", resource.plural());
        }
        for line in (request.app.readiness_details)() {
            text += &format!("[i] {line}\n");
        }
    }
    text += match (ready, draining) {
        (true, _) => "ready\n",
        (false, true) => "not ready: draining\n",
        (false, false) => "not ready: the first lists are not complete yet\n",
    };
    let mut response = text.into_response();
    if !ready {
        *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
    }
    Ok(response)
}
