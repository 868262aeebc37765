//! Telemetry of tunnels: posts, and the most recent values of all (`docs/protocol.md#telemetry`).

use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt};
use http::HeaderMap;
use serde_json::json;
use uuid::Uuid;
use warp::reply::{Reply as _, Response};

use crate::{
    backbone::PublishError,
    event::{
        Instance, Telemetry,
        projection::{EventFormat, Projection},
    },
    http::{
        body::{self, Body},
        caller::Caller,
        error::{ApiError, ErrorCode},
        ingest::Outcome,
        rate_limit::{BudgetStatus, RateBudget},
        request::ApiRequest,
        snapshot_response::{busy, load_snapshot, snapshot_response, to_json},
        unavailable::Unavailable,
    },
    validate::{
        Violation, Violations,
        telemetry::{self, BodyError, MAX_BODY_BYTES},
    },
};

/// Parameters of the GETs.
const ACCEPTED: &[&str] = &["connectionId", "params"];
/// Estimated bytes of one snapshot in a body. The reservation is adjusted when the body is complete.
const SNAPSHOT_BYTES: usize = 320;
/// The answer to a post.
const OK: &str = r#"{"ok":true}"#;

/// Answers `GET /v1/tunnels/telemetry` and `GET /api/v1/telemetry`.
///
/// # Errors
/// 400 for a parameter, 404 for another `connectionId`, 406 if the client does not accept JSON, 503 before the first lists
/// are complete.
pub(crate) async fn latest(request: ApiRequest) -> Result<Response, ApiError> {
    let parameters = request.parameters(ACCEPTED)?;
    let projection = Projection { filter: parameters.filter()?, ..request.base_projection(EventFormat::Full) };
    request.resolve_connection(&parameters)?;
    body::check_accepts_json(&request.headers)?;
    let content = &request.app.content;
    let bytes = 2 + content.feed.telemetry_count() * SNAPSHOT_BYTES;
    let reservation = content.responses.reserve(&request.principal.caller, bytes).await;
    let reservation = reservation.map_err(|_| busy(&request.app))?;
    // Not the values from before the wait.
    let snapshot = load_snapshot(&request.app).await?;
    let telemetry = content.feed.telemetry(&snapshot, &projection);
    let body = content.responses.body(None, reservation, move || to_json(&telemetry)).await?;
    Ok(snapshot_response(&request, &snapshot, &projection, body))
}

/// Answers `POST /v1/tunnels/{tunnelId}/telemetry`.
///
/// # Errors
/// As `docs/protocol.md#post-telemetry` lists them. Nothing is stored or sent then, except that a 503 of the backbone does not
/// say whether it has the telemetry.
pub(crate) fn post(request: ApiRequest, body: &mut Body) -> BoxFuture<'_, Result<Response, ApiError>> {
    async move {
        let result = accept(&request, body).await;
        let ingest = &request.app.content.ingest;
        let status = result.map_err(|(outcome, error)| {
            ingest.count(outcome);
            error
        })?;
        ingest.count("accepted");
        let mut response = warp::reply::with_header(OK, "content-type", "application/json").into_response();
        status.write_headers(response.headers_mut());
        Ok(response)
    }
    .boxed()
}

async fn accept(request: &ApiRequest, body: &mut Body) -> Result<BudgetStatus, (Outcome, ApiError)> {
    let malformed = |error| ("malformed", error);
    request.parameters(&[]).map_err(malformed)?;
    let tunnel_id = tunnel_id(request.path_param.as_deref().unwrap_or_default()).map_err(malformed)?;
    let instance = visible_instance(request, &tunnel_id).await?;
    let limits = &request.app.rate_limits;
    let tunnel = Caller::Tunnel(instance.uid.as_str().into());
    let status = consume(&limits.telemetry_posts, &tunnel)?;
    check_headers(&request.headers).map_err(malformed)?;
    let ingest = &request.app.content.ingest;
    let announced = body::announced_bytes(&request.headers, MAX_BODY_BYTES).map_err(|error| ("too_large", error))?;
    let reservation = ingest.bodies.reserve(&request.principal.caller, announced).await;
    let reservation = reservation.map_err(|_| {
        ("unavailable", ApiError::not_ready("too many bodies are being read or validated: try again in a moment"))
    })?;
    let bytes = body::read(body, MAX_BODY_BYTES, announced)
        .await
        .map_err(|error| (if error.code() == ErrorCode::PayloadTooLarge { "too_large" } else { "malformed" }, error))?;
    let parsed = telemetry::parse(&bytes).map_err(|error| match error {
        BodyError::NotJson(reason) => {
            ("malformed", ApiError::new(ErrorCode::BadRequest, format!("the body is not JSON: {reason}")))
        }
        BodyError::Invalid(violations) => ("invalid", invalid_input(&violations)),
    })?;
    let refused = ingest.validate(parsed.value, bytes).await;
    if !refused.is_empty() {
        return Err(("refused", invalid_input(&refused)));
    }
    drop(reservation);
    let received_at_ms = request.app.content.feed.wall_clock_ms();
    let telemetry = Telemetry { tunnel_id, received_at_ms, region: parsed.region, metrics: parsed.metrics };
    ingest.backbone.publish_telemetry(telemetry).await.map_err(|error| match error {
        PublishError::UnknownTunnel(_) => ("unknown_tunnel", unknown_tunnel()),
        PublishError::Unavailable(_) => ("unavailable", ApiError::not_ready(&format!("{error}; post it again"))),
    })?;
    Ok(status)
}

/// Returns the living instance with this uid, if the principal may see it. Otherwise the post counts for the caller, as any
/// other request does. An instance without telemetry is searched for only while the caller has a request left.
async fn visible_instance(request: &ApiRequest, tunnel_id: &str) -> Result<Arc<Instance>, (Outcome, ApiError)> {
    load_snapshot(&request.app).await.map_err(|error| ("unavailable", error))?;
    let (feed, scope) = (&request.app.content.feed, request.principal.scope());
    if let Some(instance) = feed.find_reporting_instance(tunnel_id).filter(|instance| scope.allows_instance(instance)) {
        return Ok(instance);
    }
    let (requests, caller) = (&request.app.rate_limits.requests, &request.principal.caller);
    requests.check(caller).map_err(over_rate)?;
    if let Some(instance) = feed.find_instance(tunnel_id).filter(|instance| scope.allows_instance(instance)) {
        return Ok(instance);
    }
    consume(requests, caller)?;
    Err(("unknown_tunnel", unknown_tunnel()))
}

fn consume(budget: &RateBudget, caller: &Caller) -> Result<BudgetStatus, (Outcome, ApiError)> {
    budget.consume(caller).map_err(over_rate)
}

fn over_rate(status: BudgetStatus) -> (Outcome, ApiError) {
    ("rate", Unavailable::RateLimited(status).to_error())
}

/// Parses a UUID in its usual form. Kubernetes writes uids in lower case.
fn tunnel_id(text: &str) -> Result<String, ApiError> {
    let uuid = (text.len() == 36).then(|| Uuid::try_parse(text).ok()).flatten();
    uuid.map(|uuid| uuid.to_string()).ok_or_else(|| {
        let message = "tunnelId: not a UUID; it is the uid of an instance, see /api/v1/instances";
        ApiError::new(ErrorCode::BadRequest, message).with_details(json!({ "parameter": "tunnelId" }))
    })
}

fn check_headers(headers: &HeaderMap) -> Result<(), ApiError> {
    body::check_accepts_json(headers)?;
    body::check_json(headers)
}

fn unknown_tunnel() -> ApiError {
    ApiError::new(ErrorCode::NotFound, "no living instance has this uid; see /api/v1/instances for all instances")
}

fn invalid_input(violations: &Violations) -> ApiError {
    let first = violations.listed().first().map(|Violation { path, message }| match &**path {
        "" => message.clone(),
        path => format!("{path}: {message}"),
    });
    let first = first.unwrap_or_default();
    let message = match violations.count() {
        1 => format!("the telemetry is invalid: {first}"),
        count => format!("the telemetry is invalid: {count} violations, see details; the first: {first}"),
    };
    ApiError::new(ErrorCode::InvalidInput, message).with_details(json!(violations))
}
