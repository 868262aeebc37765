//! The current state as JSON: instances, tenants, pools, stats and connections (`docs/protocol.md#snapshots`).

use std::sync::Arc;

use serde::Serialize;
use warp::reply::{Reply as _, Response};

use crate::{
    event::{
        Resource,
        projection::{EventFormat, Projection},
        render,
    },
    feed::{Snapshot, SourceState},
    http::{
        error::{ApiError, ErrorCode},
        request::ApiRequest,
        response_budget::{BodyKey, BudgetExceeded},
        snapshot_response::{busy, load_snapshot, snapshot_response, to_json},
        unavailable::failures,
    },
};

/// Estimated bytes of a body without a list of objects. The reservation is adjusted when the body is complete.
const SMALL_BODY_BYTES: usize = 4096;
/// Parameters of the endpoints that read the state.
const ACCEPTED: &[&str] = &["connectionId", "params"];

/// Answers `/api/v1/instances` and `/api/v1/instances/{name}`.
///
/// # Errors
/// 400 for a parameter, 404 for an unknown name or another `connectionId`, 503 before the first lists are complete.
pub(crate) async fn instances(request: ApiRequest) -> Result<Response, ApiError> {
    respond_from_snapshot(request, "/api/v1/instances", Some(Resource::Pods), |name, snapshot, projection| {
        let instances = snapshot.instances(projection);
        let Some(name) = name else { return to_json(&instances) };
        let instance = instances.iter().find(|instance| instance.name() == name).ok_or_else(|| {
            ApiError::new(
                ErrorCode::NotFound,
                format!("no such instance: '{name}'; see /api/v1/instances for all instances"),
            )
        })?;
        to_json(instance)
    })
    .await
}

/// Answers `/api/v1/tenants` and `/api/v1/tenants/{tenantId}`.
///
/// # Errors
/// As [`instances`].
pub(crate) async fn tenants(request: ApiRequest) -> Result<Response, ApiError> {
    respond_from_snapshot(request, "/api/v1/tenants", Some(Resource::Claims), |id, snapshot, projection| {
        let tenants = snapshot.tenants(projection);
        let Some(id) = id else { return to_json(&tenants) };
        let tenant = tenants.iter().find(|tenant| tenant.tenant_id() == id).ok_or_else(|| {
            ApiError::new(
                ErrorCode::NotFound,
                format!("no such tenant: '{id}' has no claims; see /api/v1/tenants for all tenants"),
            )
        })?;
        to_json(tenant)
    })
    .await
}

/// Answers `/api/v1/pools`.
///
/// # Errors
/// As [`instances`].
pub(crate) async fn pools(request: ApiRequest) -> Result<Response, ApiError> {
    respond_from_snapshot(request, "/api/v1/pools", None, |_, snapshot, projection| {
        to_json(&snapshot.pools(projection))
    })
    .await
}

/// Answers `/api/v1/stats`.
///
/// # Errors
/// As [`instances`].
pub(crate) async fn stats(request: ApiRequest) -> Result<Response, ApiError> {
    respond_from_snapshot(request, "/api/v1/stats", None, |_, snapshot, projection| {
        to_json(&snapshot.stats(projection))
    })
    .await
}

/// Answers `/api/v1/connections` with the one watched namespace.
///
/// # Errors
/// 400 for a parameter. 503 until the API server has returned the uid of the namespace, because the id of the connection
/// is made from it.
pub(crate) async fn connections(request: ApiRequest) -> Result<Response, ApiError> {
    request.parameters(&[])?;
    let app = &request.app;
    let namespace = request.namespace()?;
    let (source_state, since_ms) = app.content.feed.source_state();
    let state = match source_state {
        SourceState::Syncing => "syncing",
        SourceState::Live => "live",
        SourceState::Down => "down",
    };
    let connection = ConnectionBody {
        id: namespace.connection_id.to_string(),
        name: &app.content.connection.name,
        namespace: &app.content.connection.namespace,
        state,
        since: render::format_timestamp(since_ms),
        detail: failures(&app.content.feed),
    };
    Ok(warp::reply::json(&[connection]).into_response())
}

#[derive(Serialize)]
struct ConnectionBody<'a> {
    id: String,
    name: &'a str,
    namespace: &'a str,
    state: &'static str,
    since: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<Arc<str>>,
}

/// Makes a body: of the object with a name or, without a name, of all objects.
type Encode = fn(Option<&str>, &Snapshot, &Projection) -> Result<String, ApiError>;

/// Answers from the state. Objects that the projection excludes do not exist for the client. A stream with the same `params`
/// has the same projection, and so it can resume from the cursor of the response. `listed` is the resource whose objects the
/// body lists.
async fn respond_from_snapshot(
    request: ApiRequest,
    path: &'static str,
    listed: Option<Resource>,
    encode: Encode,
) -> Result<Response, ApiError> {
    let parameters = request.parameters(ACCEPTED)?;
    let projection = Projection { filter: parameters.filter()?, ..request.base_projection(EventFormat::Full) };
    request.resolve_connection(&parameters)?;
    let ApiRequest { app, principal, path_param: name, .. } = &request;
    let snapshot = load_snapshot(app).await?;
    let key = |snapshot: &Snapshot| BodyKey { path, projection: projection.clone(), position: snapshot.position };
    if name.is_none()
        && let Some(body) = app.content.responses.find(&key(&snapshot))
    {
        return Ok(snapshot_response(&request, &snapshot, &projection, body));
    }
    let bytes = match (listed, name) {
        (Some(resource), None) => snapshot.charged_bytes(resource),
        (_, _) => SMALL_BODY_BYTES,
    };
    let reservation = app.content.responses.reserve(&principal.caller, bytes).await;
    // Not the state from before the wait.
    let snapshot = load_snapshot(app).await?;
    // A request for the same body may have made it meanwhile.
    if name.is_none()
        && let Some(body) = app.content.responses.find(&key(&snapshot))
    {
        return Ok(snapshot_response(&request, &snapshot, &projection, body));
    }
    let reservation = reservation.map_err(|BudgetExceeded| busy(app))?;
    let (encoded_snapshot, encoded_projection, encoded_name) = (snapshot.clone(), projection.clone(), name.clone());
    let encode = move || encode(encoded_name.as_deref(), &encoded_snapshot, &encoded_projection);
    let shared_key = name.is_none().then(|| key(&snapshot));
    let body = app.content.responses.body(shared_key, reservation, encode).await?;
    Ok(snapshot_response(&request, &snapshot, &projection, body))
}
