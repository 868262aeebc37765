//! The GETs: the current state and the service's own, as JSON (docs/protocol.md#snapshots).

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
    feed::{ResumeError, Snapshot, SourceState},
    http::{
        error::{ApiError, ErrorCode},
        request::ApiRequest,
    },
    wire::json,
};

/// States drawn at once, and so threads and texts in the making: 2. Who asks meanwhile waits for his turn.
static SNAPSHOT_PERMITS: Semaphore = Semaphore::const_new(2);
/// Parameters that snapshot GETs take.
const ACCEPTED: &[&str] = &["connectionId", "params"];

pub(crate) async fn instances(request: ApiRequest) -> Result<Response, ApiError> {
    respond_from_snapshot(request, |request, snapshot, projection| {
        let instances = snapshot.instances(projection);
        match &request.path_param {
            None => json_response(request, snapshot, projection, &instances),
            Some(name) => match instances.iter().find(|instance| instance.name() == name) {
                Some(instance) => json_response(request, snapshot, projection, instance),
                None => Err(ApiError::new(ErrorCode::NotFound, format!("there is no instance '{name}'"))),
            },
        }
    })
    .await
}

pub(crate) async fn tenants(request: ApiRequest) -> Result<Response, ApiError> {
    respond_from_snapshot(request, |request, snapshot, projection| {
        let tenants = snapshot.tenants(projection);
        match &request.path_param {
            None => json_response(request, snapshot, projection, &tenants),
            Some(id) => match tenants.iter().find(|tenant| tenant.tenant_id() == id) {
                Some(tenant) => json_response(request, snapshot, projection, tenant),
                None => Err(ApiError::new(ErrorCode::NotFound, format!("tenant '{id}' has no claims"))),
            },
        }
    })
    .await
}

pub(crate) async fn pools(request: ApiRequest) -> Result<Response, ApiError> {
    respond_from_snapshot(request, |request, snapshot, projection| {
        json_response(request, snapshot, projection, &snapshot.pools(projection))
    })
    .await
}

pub(crate) async fn stats(request: ApiRequest) -> Result<Response, ApiError> {
    respond_from_snapshot(request, |request, snapshot, projection| {
        json_response(request, snapshot, projection, &snapshot.stats(projection))
    })
    .await
}

/// What this bridge watches: one namespace, for as long as it runs. Without its uid it has no id, so until the API server
/// has given that there is nothing to show but 503.
pub(crate) async fn connections(request: ApiRequest) -> Result<Response, ApiError> {
    request.parameters(&[])?;
    let app = &request.app;
    let Some(namespace) = app.feed.namespace() else {
        return Err(ApiError::not_ready("the cluster has not been reached yet: /readyz?verbose says why"));
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

/// The state and the lens through which it is asked for. What the lens does not show does not exist for this client, and
/// the cursor is of this lens: a stream with the same `params` goes on from it.
async fn load_snapshot(request: &ApiRequest) -> Result<(Snapshot, Projection), ApiError> {
    let parameters = request.parameters(ACCEPTED)?;
    let projection = Projection { filter: parameters.filter()?, ..request.base_projection(EventFormat::Full) };
    request.resolve_connection(&parameters)?;
    let snapshot = request.app.feed.snapshot().await.map_err(|refused| match refused {
        ResumeError::NotSynced => ApiError::not_ready("the state is not complete yet: try again in a moment"),
        ResumeError::BeforeLog
        | ResumeError::InsideCoalesced
        | ResumeError::ForeignHistory
        | ResumeError::ProjectionMismatch => ApiError::new(ErrorCode::Internal, "the state could not be read"),
    })?;
    Ok((snapshot, projection))
}

/// Answers from the state on a thread of its own: ten thousand Pods take ten milliseconds, for which streams would wait.
async fn respond_from_snapshot(
    request: ApiRequest,
    respond: impl FnOnce(&ApiRequest, &Snapshot, &Projection) -> Result<Response, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let (snapshot, projection) = load_snapshot(&request).await?;
    // It is never closed.
    let permit = SNAPSHOT_PERMITS.acquire().await.ok();
    let task = spawn_blocking(move || {
        // Held until it is done, even when nobody waits for it any more.
        let _permit = permit;
        respond(&request, &snapshot, &projection)
    });
    // Nobody aborts it, so it has panicked: here as there.
    task.await.unwrap_or_else(|error| resume_unwind(error.into_panic()))
}

/// JSON with its cursor and its tag; 304 where the client has it already (RFC 9110, section 13).
fn json_response(
    request: &ApiRequest,
    snapshot: &Snapshot,
    projection: &Projection,
    body: &impl Serialize,
) -> Result<Response, ApiError> {
    let body =
        json::to_string(body).map_err(|_| ApiError::new(ErrorCode::Internal, "the state could not be written"))?;
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
    put(headers, header::ETAG, &tag);
    put(
        headers,
        http::HeaderName::from_static("event-cursor"),
        &projection.cursor_at(snapshot.namespace, snapshot.versions).encode(),
    );
    Ok(response)
}

fn put(headers: &mut HeaderMap, name: http::HeaderName, value: &str) {
    // Hexadecimal and base64url are valid header values.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Whether `If-None-Match` names this tag. Weak comparison, as GET asks for.
fn matches_etag(headers: &HeaderMap, tag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    let mut tags = values.flat_map(|list| list.split(',')).map(str::trim);
    tags.any(|have| have == "*" || have.strip_prefix("W/").unwrap_or(have) == tag)
}
