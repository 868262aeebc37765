//! Single requests to the API server for `doctor`, as plain data (docs/protocol.md#doctor). They are those of the bridge, so
//! that their answers say what the bridge would get.
//!
//! Guarantees: nothing is written, apart from reviews, which the API server does not store. Nothing is retried. Each answer
//! has a size limit. The caller limits the time.
//!
//! Must not import: feeds, the hub, the dedicated watchers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{
    HeaderMap, Request as HttpRequest,
    header::{CONTENT_TYPE, DATE},
};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Client,
    client::Body,
    core::{
        Request, Resource as _, WatchEvent,
        params::{GetParams, ListParams, VersionMatch, WatchParams},
    },
};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json};

use super::{
    answer::{self, ListMeta, line_too_long, request_info, require_success},
    connect::ClusterConnection,
    error::{RequestInfo, UpstreamError},
    line_splitter::LineSplitter,
    list_limits::{LINE_BYTES, PAGE_BYTES, PAGE_OBJECTS},
};
use crate::{
    api::{BoilerhouseClaim, GROUP, MANAGED_SELECTOR, PLURAL, VERSION},
    event::{Resource, ResourceVersion},
};

mod access;
mod claim_resource;

use self::claim_resource::{resource_errors, schema_differences};
pub use self::{
    access::{Access, NAMESPACE_ACCESS, Place, REVIEW_ACCESS},
    claim_resource::ClaimResource,
};

/// Maximum bytes of a review, of the version and of a schema.
const SMALL_BYTES: usize = 4 << 20;

/// What `/version` has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerVersion {
    /// `gitVersion`, such as `v1.36.0`. `None` if the account may not read it, which proves that the server answers.
    pub version: Option<String>,
    /// The clock of the API server minus the clock of this machine. `None` without the header `Date`.
    pub clock_difference_s: Option<i64>,
    /// The time that the answer took.
    pub round_trip: Duration,
}

/// The first page of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListFound {
    /// Objects of the page.
    pub objects: usize,
    /// There are no more pages.
    pub is_complete: bool,
    /// The version of the list.
    pub version: ResourceVersion,
}

/// What a watch has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchItem {
    /// An object.
    Event,
    /// A bookmark.
    Bookmark,
}

/// Sends the requests.
#[derive(Clone)]
pub struct Diagnosis {
    client: Client,
    namespace: Arc<str>,
    server: Arc<str>,
}

impl std::fmt::Debug for Diagnosis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Diagnosis({}, {})", self.namespace, self.server)
    }
}

/// An open watch.
#[derive(Debug)]
pub struct Watch {
    body: Body,
    lines: LineSplitter,
    request_info: RequestInfo,
}

#[derive(Deserialize)]
struct Page {
    metadata: ListMeta,
    /// Null in an empty list.
    items: Option<Vec<IgnoredAny>>,
}

impl Diagnosis {
    /// Creates it for the namespace of a connection.
    #[must_use]
    pub fn new(connection: &ClusterConnection) -> Diagnosis {
        let ClusterConnection { client, namespace, server, .. } = connection;
        Diagnosis { client: client.clone(), namespace: namespace.as_str().into(), server: server.as_str().into() }
    }

    /// Returns the watched namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns the version of the API server, and compares its clock with that of this machine.
    ///
    /// # Errors
    /// There is no answer, or the credential is rejected.
    pub async fn version(&self) -> Result<ServerVersion, UpstreamError> {
        let (before, start) = (jiff::Timestamp::now(), Instant::now());
        let info = self.info("read", "/version");
        let answered = self.read(&info, HttpRequest::get("/version").body(Vec::new())).await;
        let round_trip = start.elapsed();
        let (version, clock_difference_s) = match answered {
            Ok((headers, body)) => {
                let version: Value = answer::parse(&body)?;
                (version["gitVersion"].as_str().map(str::to_owned), clock_difference(&headers, before, round_trip))
            }
            Err(UpstreamError::Forbidden(_)) => (None, None),
            Err(error) => return Err(error),
        };
        Ok(ServerVersion { version, clock_difference_s, round_trip })
    }

    /// Returns whether the account has a permission (SelfSubjectAccessReview).
    ///
    /// # Errors
    /// The review fails.
    pub async fn can(&self, access: &Access) -> Result<bool, UpstreamError> {
        let Access { verb, group, resource, place } = access;
        let mut attributes = json!({ "verb": verb, "group": group, "resource": resource });
        if *place != Place::Cluster {
            attributes["namespace"] = json!(&*self.namespace);
        }
        if *place == Place::NamespaceObject {
            attributes["name"] = json!(&*self.namespace);
        }
        let spec = json!({ "resourceAttributes": attributes });
        let review = self.review("authorization.k8s.io", "SelfSubjectAccessReview", &spec).await?;
        Ok(review["status"]["allowed"] == true && review["status"]["denied"] != true)
    }

    /// Returns the name of the account (SelfSubjectReview).
    ///
    /// # Errors
    /// The review fails.
    pub async fn user(&self) -> Result<String, UpstreamError> {
        let review = self.review("authentication.k8s.io", "SelfSubjectReview", &json!({})).await?;
        let name = review["status"]["userInfo"]["username"].as_str().unwrap_or_default();
        if name.is_empty() {
            Err(UpstreamError::Decode("the name of the user".to_owned()))
        } else {
            Ok(name.to_owned())
        }
    }

    async fn review(&self, group: &str, kind: &str, spec: &Value) -> Result<Value, UpstreamError> {
        let plural = format!("{}s", kind.to_lowercase());
        let body = json!({ "apiVersion": format!("{group}/v1"), "kind": kind, "spec": spec });
        let request = HttpRequest::post(format!("/apis/{group}/v1/{plural}")).header(CONTENT_TYPE, "application/json");
        let info = self.info("create", &format!("{plural}.{group}"));
        let (_, body) = self.read(&info, request.body(body.to_string().into_bytes())).await?;
        answer::parse(&body)
    }

    /// Reads the CRD of the claims as every authenticated account can: from discovery and from the OpenAPI document.
    ///
    /// # Errors
    /// [`UpstreamError::NoCrd`], and those of the request.
    pub async fn claim_resource(&self) -> Result<ClaimResource, UpstreamError> {
        let path = format!("/apis/{GROUP}/{VERSION}");
        let info = self.info("read", &format!("{PLURAL}.{GROUP}"));
        let (_, body) = self.read(&info, HttpRequest::get(&path).body(Vec::new())).await?;
        let errors = resource_errors(&answer::parse(&body)?).ok_or(UpstreamError::NoCrd)?;
        let schema = self.read(&info, HttpRequest::get(format!("/openapi/v3{path}")).body(Vec::new())).await;
        let document = schema.ok().and_then(|(_, body)| answer::parse::<Value>(&body).ok());
        Ok(ClaimResource { errors, differences: document.as_ref().and_then(schema_differences) })
    }

    /// Returns whether the watched Namespace exists. It needs the right to `get` it.
    ///
    /// # Errors
    /// [`UpstreamError::NoNamespace`], and those of the request.
    pub async fn namespace_exists(&self) -> Result<(), UpstreamError> {
        let request = Request::new(Namespace::url_path(&(), None)).get(&self.namespace, &GetParams::default());
        self.read(&self.info("get", &format!("namespaces/{}", self.namespace)), request).await.map(drop)
    }

    /// Returns the first page of a list of all objects of the bridge.
    ///
    /// # Errors
    /// Those of the request.
    pub async fn list(&self, resource: Resource) -> Result<ListFound, UpstreamError> {
        let params = ListParams { limit: Some(PAGE_OBJECTS), ..list_params(resource) };
        let request = Request::new(self.path(resource)).list(&params);
        let (_, body) = self.read(&self.resource_info("list", resource), request).await?;
        let Page { metadata, items } = answer::parse(&body)?;
        let is_complete = metadata.next.is_none_or(|next| next.is_empty());
        Ok(ListFound { objects: items.map_or(0, |items| items.len()), is_complete, version: metadata.resource_version })
    }

    /// Lists one object at exactly this version, as the bridge does before it resumes a client from it.
    ///
    /// # Errors
    /// [`UpstreamError::Expired`], and those of the request.
    pub async fn list_exactly(&self, resource: Resource, version: ResourceVersion) -> Result<(), UpstreamError> {
        let params = ListParams { limit: Some(1), ..list_params(resource) };
        let params = params.at(&version.to_string()).matching(VersionMatch::Exact);
        let request = Request::new(self.path(resource)).list(&params);
        self.read(&self.resource_info("list", resource), request).await.map(drop)
    }

    /// Opens a watch with bookmarks that ends after `seconds`. It starts after the version `from`; without one it starts with
    /// the objects that exist.
    ///
    /// # Errors
    /// Those of the request.
    pub async fn watch(
        &self,
        resource: Resource,
        from: Option<ResourceVersion>,
        seconds: u32,
    ) -> Result<Watch, UpstreamError> {
        let label_selector = list_params(resource).label_selector;
        let params = WatchParams { label_selector, timeout: Some(seconds), bookmarks: true, ..WatchParams::default() };
        let request_info = self.resource_info("watch", resource);
        let from = from.unwrap_or_default().to_string();
        let response = self.send(&request_info, Request::new(self.path(resource)).watch(&params, &from)).await?;
        Ok(Watch { body: response.into_body(), lines: LineSplitter::new(LINE_BYTES), request_info })
    }

    fn path(&self, resource: Resource) -> String {
        match resource {
            Resource::Pods => Pod::url_path(&(), Some(&self.namespace)),
            Resource::Claims => BoilerhouseClaim::url_path(&(), Some(&self.namespace)),
        }
    }

    fn info(&self, verb: &'static str, resource: &str) -> RequestInfo {
        RequestInfo { verb, resource: resource.into(), namespace: self.namespace.clone(), server: self.server.clone() }
    }

    fn resource_info(&self, verb: &'static str, resource: Resource) -> RequestInfo {
        request_info(verb, resource, &self.namespace, &self.server)
    }

    async fn read<E: std::fmt::Display>(
        &self,
        request_info: &RequestInfo,
        request: Result<HttpRequest<Vec<u8>>, E>,
    ) -> Result<(HeaderMap, Bytes), UpstreamError> {
        let limit = if request_info.verb == "list" { PAGE_BYTES } else { SMALL_BYTES };
        let (head, body) = self.send(request_info, request).await?.into_parts();
        Ok((head.headers, answer::read_body(body, limit, |_| Ok(())).await?))
    }

    async fn send<E: std::fmt::Display>(
        &self,
        request_info: &RequestInfo,
        request: Result<HttpRequest<Vec<u8>>, E>,
    ) -> Result<http::Response<Body>, UpstreamError> {
        let request = request.map_err(|error| UpstreamError::Decode(error.to_string()))?;
        let response = self.client.send(request.map(Body::from)).await;
        let response = response.map_err(|error| UpstreamError::from_client_error(&error, request_info))?;
        require_success(response, request_info).await
    }
}

impl Watch {
    /// Returns the next item.
    ///
    /// # Errors
    /// The watch has ended: [`UpstreamError::WatchEnded`] at its timeout.
    pub async fn next(&mut self) -> Result<WatchItem, UpstreamError> {
        loop {
            if let Some(line) = self.lines.next().map_err(|_| line_too_long(LINE_BYTES))? {
                let line: WatchEvent<IgnoredAny> = answer::parse(&line)?;
                return match line {
                    WatchEvent::Added(_) | WatchEvent::Modified(_) | WatchEvent::Deleted(_) => Ok(WatchItem::Event),
                    WatchEvent::Bookmark(_) => Ok(WatchItem::Bookmark),
                    WatchEvent::Error(status) => Err(UpstreamError::from_watch_status(&status, &self.request_info)),
                };
            }
            let frame = self.body.frame().await.ok_or(UpstreamError::WatchEnded)?;
            let frame = frame.map_err(|error| UpstreamError::ConnectionLost(error.to_string()))?;
            if let Ok(chunk) = frame.into_data() {
                self.lines.push(&chunk);
            }
        }
    }
}

fn list_params(resource: Resource) -> ListParams {
    let label_selector = (resource == Resource::Pods).then(|| MANAGED_SELECTOR.to_owned());
    ListParams { label_selector, ..ListParams::default() }
}

/// Returns the clock of the API server minus that of this machine, in seconds. The header has whole seconds, and was written
/// within the round trip, so a difference within these bounds is none.
fn clock_difference(headers: &HeaderMap, before: jiff::Timestamp, round_trip: Duration) -> Option<i64> {
    let date = jiff::fmt::rfc2822::parse(headers.get(DATE)?.to_str().ok()?).ok()?.timestamp().as_second();
    let earliest = before.as_second() - 1;
    let latest = before.as_second() + 1 + i64::try_from(round_trip.as_secs()).ok()?;
    Some(if date < earliest { date - earliest } else { (date - latest).max(0) })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn clocks_are_compared_within_the_bounds_of_the_header() {
        let before: jiff::Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let difference = |date: &str, seconds| {
            let headers = HeaderMap::from_iter([(DATE, HeaderValue::from_str(date).unwrap())]);
            clock_difference(&headers, before, Duration::from_secs(seconds))
        };
        assert_eq!(difference("Fri, 02 Jan 2026 03:04:05 GMT", 0), Some(0));
        assert_eq!(difference("Fri, 02 Jan 2026 03:04:04 GMT", 0), Some(0));
        assert_eq!(difference("Fri, 02 Jan 2026 03:04:09 GMT", 3), Some(0));
        assert_eq!(difference("Fri, 02 Jan 2026 03:05:06 GMT", 0), Some(60));
        assert_eq!(difference("Fri, 02 Jan 2026 03:03:04 GMT", 0), Some(-60));
        assert_eq!(difference("yesterday", 0), None);
        assert_eq!(clock_difference(&HeaderMap::new(), before, Duration::ZERO), None);
    }
}
