//! The current state as JSON: instances, tenants, pools, stats and connections (`docs/protocol.md#snapshots`).

use std::panic::resume_unwind;

use http::{HeaderMap, HeaderValue, header};
use serde::Serialize;
use tokio::{sync::Semaphore, task::spawn_blocking};
use warp::reply::{Reply, Response};

use crate::{
    event::{
        hash::sha256_prefix,
        projection::{EventFormat, Projection},
        render,
    },
    feed::{NotSynced, Snapshot, SourceState},
    http::{
        error::{ApiError, ErrorCode},
        request::ApiRequest,
    },
    wire::json,
};

/// Concurrent serializations of the state: 2. It bounds the blocking threads and the bytes of unfinished responses; further
/// requests wait.
static SNAPSHOT_PERMITS: Semaphore = Semaphore::const_new(2);
/// Parameters of the endpoints that read the state.
const ACCEPTED: &[&str] = &["connectionId", "params"];

/// Answers `/api/v1/instances` and `/api/v1/instances/{name}`.
///
/// # Errors
/// 400 for a parameter, 404 for an unknown name or another `connectionId`, 503 before the first lists are complete.
pub(crate) async fn instances(request: ApiRequest) -> Result<Response, ApiError> {
    respond_from_snapshot(request, |request, snapshot, projection| {
        let instances = snapshot.instances(projection);
        match &request.path_param {
            None => json_response(request, snapshot, projection, &instances),
            Some(name) => match instances.iter().find(|instance| instance.name() == name) {
                Some(instance) => json_response(request, snapshot, projection, instance),
                None => Err(ApiError::new(
                    ErrorCode::NotFound,
                    format!("no such instance: '{name}'; see /api/v1/instances for all instances"),
                )),
            },
        }
    })
    .await
}

/// Answers `/api/v1/tenants` and `/api/v1/tenants/{tenantId}`.
///
/// # Errors
/// As [`instances`].
pub(crate) async fn tenants(request: ApiRequest) -> Result<Response, ApiError> {
    respond_from_snapshot(request, |request, snapshot, projection| {
        let tenants = snapshot.tenants(projection);
        match &request.path_param {
            None => json_response(request, snapshot, projection, &tenants),
            Some(id) => match tenants.iter().find(|tenant| tenant.tenant_id() == id) {
                Some(tenant) => json_response(request, snapshot, projection, tenant),
                None => Err(ApiError::new(
                    ErrorCode::NotFound,
                    format!("no such tenant: '{id}' has no claims; see /api/v1/tenants for all tenants"),
                )),
            },
        }
    })
    .await
}

/// Answers `/api/v1/pools`.
///
/// # Errors
/// As [`instances`].
pub(crate) async fn pools(request: ApiRequest) -> Result<Response, ApiError> {
    respond_from_snapshot(request, |request, snapshot, projection| {
        json_response(request, snapshot, projection, &snapshot.pools(projection))
    })
    .await
}

/// Answers `/api/v1/stats`.
///
/// # Errors
/// As [`instances`].
pub(crate) async fn stats(request: ApiRequest) -> Result<Response, ApiError> {
    respond_from_snapshot(request, |request, snapshot, projection| {
        json_response(request, snapshot, projection, &snapshot.stats(projection))
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
    let Some(namespace) = app.feed.namespace() else {
        return Err(ApiError::not_ready("the API server has not answered yet: see /readyz?verbose for the reason"));
    };
    let (source_state, since_ms) = app.feed.source_state();
    let state = match source_state {
        SourceState::Syncing => "syncing",
        SourceState::Live => "live",
        SourceState::Down => "down",
    };
    let connection = ConnectionBody {
        id: namespace.connection_id.to_string(),
        name: &app.connection.name,
        namespace: &app.connection.namespace,
        state,
        since: render::format_timestamp(since_ms),
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
}

/// Returns the state and the projection of the request. Objects that the projection excludes do not exist for the client.
/// A stream with the same `params` has the same projection, and so it can resume from the cursor of the response.
async fn load_snapshot(request: &ApiRequest) -> Result<(Snapshot, Projection), ApiError> {
    let parameters = request.parameters(ACCEPTED)?;
    let projection = Projection { filter: parameters.filter()?, ..request.base_projection(EventFormat::Full) };
    request.resolve_connection(&parameters)?;
    let snapshot = request
        .app
        .feed
        .snapshot()
        .await
        .map_err(|NotSynced| ApiError::not_ready("the state is not complete yet: try again in a moment"))?;
    Ok((snapshot, projection))
}

/// Answers from the state on a blocking thread. The serialization of 10,000 Pods takes 10 ms, which would delay streams on
/// the runtime's threads.
async fn respond_from_snapshot(
    request: ApiRequest,
    respond: impl FnOnce(&ApiRequest, &Snapshot, &Projection) -> Result<Response, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let (snapshot, projection) = load_snapshot(&request).await?;
    // An error would mean a closed semaphore, which this one never is.
    let permit = SNAPSHOT_PERMITS.acquire().await.ok();
    let task = spawn_blocking(move || {
        // The permit is held until the end of the serialization, even if the client disconnects.
        let _permit = permit;
        respond(&request, &snapshot, &projection)
    });
    // The task is never aborted, so an error means that it panicked. The panic continues here.
    task.await.unwrap_or_else(|error| resume_unwind(error.into_panic()))
}

/// Returns JSON with `Event-Cursor` and `ETag`, or 304 if `If-None-Match` contains the tag (RFC 9110, section 13).
fn json_response(
    request: &ApiRequest,
    snapshot: &Snapshot,
    projection: &Projection,
    body: &impl Serialize,
) -> Result<Response, ApiError> {
    let body = json::to_string(body)
        .map_err(|_| ApiError::new(ErrorCode::Internal, "the state cannot be serialized; try again"))?;
    let tag = format!("\"{:016x}\"", sha256_prefix(body.as_bytes()));
    let mut response = if matches_etag(&request.headers, &tag) {
        let mut response = Response::default();
        *response.status_mut() = http::StatusCode::NOT_MODIFIED;
        response
    } else {
        let mut response = body.into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    insert(headers, header::ETAG, &tag);
    insert(
        headers,
        http::HeaderName::from_static("event-cursor"),
        &projection.cursor_at(snapshot.namespace, snapshot.versions).encode(),
    );
    Ok(response)
}

fn insert(headers: &mut HeaderMap, name: http::HeaderName, value: &str) {
    // Hexadecimal and base64url are always a valid header value.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Returns whether `If-None-Match` contains this tag. The comparison is weak, as RFC 9110 requires for GET.
fn matches_etag(headers: &HeaderMap, tag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    let mut tags = values.flat_map(|list| list.split(',')).map(str::trim);
    tags.any(|listed| listed == "*" || listed.strip_prefix("W/").unwrap_or(listed) == tag)
}
