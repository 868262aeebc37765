//! The GETs: the current state and the service's own, as JSON (protocol.md section 5).

use std::panic::resume_unwind;

use http::{HeaderMap, HeaderValue, header};
use serde::Serialize;
use tokio::{sync::Semaphore, task::spawn_blocking};
use warp::reply::{Reply, Response};

use super::{
    error::{Code, Error},
    request::Asked,
};
use crate::{
    event::{
        Resource,
        projection::{Format, Lens, short_hash},
        render,
    },
    feed::{Condition, Health, Refused, Snapshot},
    wire::json,
};

/// States drawn at once, and so threads and texts in the making: 2. Who asks meanwhile waits for his turn.
static DRAWN: Semaphore = Semaphore::const_new(2);
/// Parameters that snapshot GETs take.
const ACCEPTED: &[&str] = &["connectionId", "params"];

pub(super) async fn instances(asked: Asked) -> Result<Response, Error> {
    draw(asked, |asked, snapshot, lens| {
        let instances = snapshot.instances(lens);
        match &asked.segment {
            None => answer(asked, snapshot, lens, &instances),
            Some(name) => match instances.iter().find(|instance| instance.name() == name) {
                Some(instance) => answer(asked, snapshot, lens, instance),
                None => Err(Error::new(Code::NotFound, format!("there is no instance '{name}'"))),
            },
        }
    })
    .await
}

pub(super) async fn tenants(asked: Asked) -> Result<Response, Error> {
    draw(asked, |asked, snapshot, lens| {
        let tenants = snapshot.tenants(lens);
        match &asked.segment {
            None => answer(asked, snapshot, lens, &tenants),
            Some(id) => match tenants.iter().find(|tenant| tenant.tenant_id() == id) {
                Some(tenant) => answer(asked, snapshot, lens, tenant),
                None => Err(Error::new(Code::NotFound, format!("tenant '{id}' has no claims"))),
            },
        }
    })
    .await
}

pub(super) async fn pools(asked: Asked) -> Result<Response, Error> {
    draw(asked, |asked, snapshot, lens| answer(asked, snapshot, lens, &snapshot.pools(lens))).await
}

pub(super) async fn stats(asked: Asked) -> Result<Response, Error> {
    draw(asked, |asked, snapshot, lens| answer(asked, snapshot, lens, &snapshot.stats(lens))).await
}

pub(super) async fn health(asked: Asked) -> Result<Response, Error> {
    asked.parameters(&[])?;
    Ok(warp::reply::json(&serde_json::json!({ "status": "ok" })).into_response())
}

/// What this bridge watches: one namespace, for as long as it runs. Without its uid it has no id, so until the API server
/// has given that there is nothing to show but 503.
pub(super) async fn connections(asked: Asked) -> Result<Response, Error> {
    asked.parameters(&[])?;
    let site = &asked.site;
    let Some(home) = site.feed.home() else {
        return Err(Error::not_ready("the cluster has not been reached yet: /readyz?verbose says why"));
    };
    let (condition, since_ms) = site.feed.condition();
    let state = match condition {
        Condition::Syncing => "syncing",
        Condition::Live => "live",
        Condition::Down => "down",
    };
    let connection = Connection {
        id: home.connection_id.to_string(),
        name: &site.connection.name,
        namespace: &site.connection.namespace,
        state,
        since: render::time(since_ms),
    };
    Ok(warp::reply::json(&[connection]).into_response())
}

pub(super) async fn livez(asked: Asked) -> Result<Response, Error> {
    asked.parameters(&["verbose"])?;
    Ok("ok\n".into_response())
}

/// Ready once both resources have been listed, until the process drains. While the upstream is down the bridge stays
/// ready: it says so on its streams, and sending clients elsewhere would not help them.
pub(super) async fn readyz(asked: Asked) -> Result<Response, Error> {
    let parameters = asked.parameters(&["verbose"])?;
    let feed = &asked.site.feed;
    let draining = asked.site.streams.stop.is_cancelled();
    let ready = feed.is_ready() && !draining;
    let mut text = String::new();
    if parameters.get("verbose").is_some() {
        let health = feed.health().borrow().clone();
        for (kind, health) in Resource::ALL.into_iter().zip(health) {
            let (mark, word) = match &health {
                Health::Connecting => ('-', "connecting".to_owned()),
                Health::Live => ('+', "live".to_owned()),
                Health::Down { since, reason } => ('-', format!("down for {} s: {reason}", since.elapsed().as_secs())),
            };
            text += &format!("[{mark}] {}: {word}\n", kind.resource());
        }
        for line in (asked.site.verbose)() {
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

pub(super) async fn metrics(asked: Asked) -> Result<Response, Error> {
    asked.parameters(&[])?;
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &asked.site.registry)
        .map_err(|_| Error::new(Code::Internal, "the metrics could not be written"))?;
    let mut response = text.into_response();
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

#[derive(Serialize)]
struct Connection<'a> {
    id: String,
    name: &'a str,
    namespace: &'a str,
    state: &'static str,
    since: String,
}

/// The state and the lens through which it is asked for. What the lens does not show does not exist for this client, and
/// the cursor is of this lens: a stream with the same `params` goes on from it.
async fn open(asked: &Asked) -> Result<(Snapshot, Lens), Error> {
    let parameters = asked.parameters(ACCEPTED)?;
    let lens = Lens { filter: parameters.filter()?, ..asked.lens(Format::Full) };
    asked.check_connection(&parameters)?;
    let snapshot = asked.site.feed.snapshot().await.map_err(|refused| match refused {
        Refused::NotReady => Error::not_ready("the state is not complete yet: try again in a moment"),
        Refused::Below | Refused::Between | Refused::Foreign | Refused::OtherLens => {
            Error::new(Code::Internal, "the state could not be read")
        }
    })?;
    Ok((snapshot, lens))
}

/// Answers from the state on a thread of its own: ten thousand Pods take ten milliseconds, for which streams would wait.
async fn draw(
    asked: Asked,
    answer: impl FnOnce(&Asked, &Snapshot, &Lens) -> Result<Response, Error> + Send + 'static,
) -> Result<Response, Error> {
    let (snapshot, lens) = open(&asked).await?;
    // It is never closed.
    let permit = DRAWN.acquire().await.ok();
    let drawn = spawn_blocking(move || {
        // Held until it is done, even when nobody waits for it any more.
        let _permit = permit;
        answer(&asked, &snapshot, &lens)
    });
    // Nobody aborts it, so it has panicked: here as there.
    drawn.await.unwrap_or_else(|error| resume_unwind(error.into_panic()))
}

/// JSON with its cursor and its tag; 304 where the client has it already (RFC 9110, section 13).
fn answer(asked: &Asked, snapshot: &Snapshot, lens: &Lens, body: &impl Serialize) -> Result<Response, Error> {
    let body = json::to_string(body).map_err(|_| Error::new(Code::Internal, "the state could not be written"))?;
    let tag = format!("\"{:016x}\"", short_hash(body.as_bytes()));
    let mut response = if asked.has(&tag) {
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
    put(headers, http::HeaderName::from_static("event-cursor"), &lens.cursor(snapshot.home, snapshot.rv).encode());
    Ok(response)
}

fn put(headers: &mut HeaderMap, name: http::HeaderName, value: &str) {
    // Hexadecimal and base64url are valid header values.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

impl Asked {
    /// Whether `If-None-Match` names this tag. Weak comparison, as GET asks for.
    fn has(&self, tag: &str) -> bool {
        let values = self.headers.get_all(header::IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
        let mut tags = values.flat_map(|list| list.split(',')).map(str::trim);
        tags.any(|have| have == "*" || have.strip_prefix("W/").unwrap_or(have) == tag)
    }
}
