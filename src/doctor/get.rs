//! One GET request to a bridge.

use std::sync::Arc;

use bytes::Bytes;
use http::{
    HeaderMap, Request, StatusCode,
    header::{AUTHORIZATION, LOCATION, USER_AGENT},
};
use http_body_util::{BodyExt as _, Full, Limited};
use rustls::ClientConfig;

use crate::{client::innermost, https_client::https_client};

/// Bytes of a response that are read: lists of instances may be longer, and only their head counts.
const MAX_BYTES: usize = 64 << 10;

/// A response, of whose body at most [`MAX_BYTES`] are read.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

/// Sends one GET, with this bearer token. It follows no redirect. The caller limits the time.
///
/// # Errors
/// Why there is no response.
pub(super) async fn get(url: &str, tls: Arc<ClientConfig>, token: Option<&str>) -> Result<Response, String> {
    let agent = concat!("boilerhouse-bridge/", env!("CARGO_PKG_VERSION"));
    let mut request = Request::get(url).header(USER_AGENT, agent);
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Full::<Bytes>::default()).map_err(|error| error.to_string())?;
    let response = https_client(tls).request(request).await.map_err(|error| innermost(&error))?;
    let (head, body) = response.into_parts();
    // A longer body, or one that is cut, does not change what the status says.
    let body = Limited::new(body, MAX_BYTES).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    Ok(Response { status: head.status, headers: head.headers, body: String::from_utf8_lossy(&body).into_owned() })
}

impl Response {
    /// Returns what the response says: the message of an error body, the target of a redirect, or the first line.
    pub(super) fn message(&self) -> String {
        if let Some(target) = self.headers.get(LOCATION).and_then(|target| target.to_str().ok()) {
            let target = target.split('?').next().unwrap_or_default();
            return format!("HTTP {}: a redirect to {target}; redirects are not followed", self.status.as_u16());
        }
        let json: Option<serde_json::Value> = serde_json::from_str(&self.body).ok();
        let message = json.as_ref().and_then(|json| json["message"].as_str().or(json["error"].as_str()));
        let line = message.or_else(|| self.body.lines().next()).unwrap_or_default();
        let line: String = line.chars().take(200).collect();
        format!("HTTP {}: {line}", self.status.as_u16())
    }
}
