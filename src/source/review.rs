//! TokenReviews and SubjectAccessReviews: which user a token belongs to, and whether that user may read what the bridge reads
//! (docs/protocol.md#access).
//!
//! Guarantees:
//! - A token is reviewed for the audience of the bridge. A response without that audience denies the token, and so does a
//!   response that does not name an authenticated user.
//! - A SubjectAccessReview contains everything that the cluster reported about the user, because authorizers other than RBAC
//!   may use it.
//! - No log line and no error contains a token.
//!
//! Must not import: the cache of review outcomes, which is in `http::auth`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::try_join_all;
use http::{Request, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Limited};
use kube::{Client, client::Body};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::error::{RequestInfo, UpstreamError};
use crate::api;

/// Configuration and bounds of reviews.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the watched namespace.
    pub namespace: Arc<str>,
    /// URL of the API server, for messages only.
    pub server: Arc<str>,
    /// The audience that a token must have (`--token-audience`).
    pub audience: String,
    /// Maximum time of one review. The default is 5 s, because a client waits for the response.
    pub timeout: Duration,
    /// Maximum bytes of a response. The default of 256 KiB is enough for a user with thousands of groups.
    pub answer_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            namespace: "".into(),
            server: "".into(),
            audience: String::new(),
            timeout: Duration::from_secs(5),
            answer_bytes: 256 << 10,
        }
    }
}

/// A user of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// `status.user.username`.
    pub name: String,
    /// `status.user.uid`.
    pub uid: String,
    /// `status.user.groups`.
    pub groups: Vec<String>,
    /// `status.user.extra`, such as the scopes of a token. RBAC ignores it, other authorizers use it.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// The group of unauthenticated users. The API server authenticates a blank token as a member of it, for any audience
/// (measured on 1.36.3, docs/kubernetes-behavior.md#token-and-access-reviews).
const UNAUTHENTICATED_GROUP: &str = "system:unauthenticated";

/// The rights that a user needs: verb, API group, resource. The bridge does the same for its clients.
const REQUIRED_ACCESS: [(&str, &str, &str); 4] = [
    ("list", "", "pods"),
    ("watch", "", "pods"),
    ("list", api::GROUP, api::PLURAL),
    ("watch", api::GROUP, api::PLURAL),
];

/// Sends reviews to the API server.
#[derive(Clone)]
pub struct Reviewer {
    client: Client,
    config: Config,
    /// Whether the last review of each kind got a response. Only changes are logged.
    reachable: Arc<[AtomicBool; 2]>,
}

#[derive(Clone, Copy, Debug)]
enum ReviewKind {
    Token,
    Access,
}

#[derive(Deserialize)]
struct Review<S> {
    status: S,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenStatus {
    authenticated: bool,
    audiences: Vec<String>,
    user: UserInfo,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct UserInfo {
    username: String,
    uid: String,
    groups: Vec<String>,
    /// A value without strings is `null`, because the API server is written in Go.
    extra: BTreeMap<String, Option<Vec<String>>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AccessStatus {
    allowed: bool,
    denied: bool,
}

impl TokenStatus {
    /// Returns whether the token belongs to a named user and has this audience.
    fn is_accepted(&self, audience: &String) -> bool {
        let is_named =
            !self.user.username.is_empty() && !self.user.groups.iter().any(|group| group == UNAUTHENTICATED_GROUP);
        self.authenticated && self.audiences.contains(audience) && is_named
    }
}

impl AccessStatus {
    fn is_allowed(&self) -> bool {
        self.allowed && !self.denied
    }
}

impl Reviewer {
    /// Creates a reviewer that uses this client.
    #[must_use]
    pub fn new(client: Client, config: Config) -> Reviewer {
        let reachable = Arc::new([AtomicBool::new(true), AtomicBool::new(true)]);
        Reviewer { client, config, reachable }
    }

    /// Returns the user of a token, or `None` if the token is invalid or has another audience.
    ///
    /// # Errors
    /// When the review fails, so that the user is unknown.
    pub async fn token(&self, token: &str) -> Result<Option<User>, UpstreamError> {
        if token.is_empty() || token.contains(char::is_whitespace) {
            return Ok(None);
        }
        let spec = json!({ "token": token, "audiences": [self.config.audience] });
        let status: TokenStatus = self.review(ReviewKind::Token, spec, token).await?;
        if !status.is_accepted(&self.config.audience) {
            return Ok(None);
        }
        let UserInfo { username: name, uid, groups, extra } = status.user;
        let extra = extra.into_iter().map(|(key, values)| (key, values.unwrap_or_default())).collect();
        Ok(Some(User { name, uid, groups, extra }))
    }

    /// Returns the first required right that the user does not have, such as `list pods`.
    ///
    /// # Errors
    /// When a review fails, so that the rights are unknown.
    pub async fn first_denied(&self, user: &User) -> Result<Option<String>, UpstreamError> {
        let reviews = REQUIRED_ACCESS.map(|(verb, group, resource)| async move {
            let attributes =
                json!({ "namespace": &*self.config.namespace, "verb": verb, "group": group, "resource": resource });
            let User { name, uid, groups, extra } = user;
            let spec =
                json!({ "user": name, "uid": uid, "groups": groups, "extra": extra, "resourceAttributes": attributes });
            let status: AccessStatus = self.review(ReviewKind::Access, spec, "").await?;
            Ok((!status.is_allowed()).then(|| format!("{verb} {resource}")))
        });
        let denied: Vec<Option<String>> = try_join_all(reviews).await?;
        Ok(denied.into_iter().flatten().next())
    }

    /// Sends a review, and logs when reviews start to fail and when they work again. `secret` is removed from every error text.
    async fn review<S: DeserializeOwned>(
        &self,
        kind: ReviewKind,
        spec: Value,
        secret: &str,
    ) -> Result<S, UpstreamError> {
        let Config { namespace, server, timeout: limit, .. } = &self.config;
        let (group, object_kind, plural) = kind.api_names();
        let resource = format!("{plural}.{group}").into();
        let request_info =
            RequestInfo { verb: "create", resource, namespace: namespace.clone(), server: server.clone() };
        let request = Request::post(format!("/apis/{group}/v1/{plural}")).header(CONTENT_TYPE, "application/json");
        let body = json!({ "apiVersion": format!("{group}/v1"), "kind": object_kind, "spec": spec });
        let request = request.body(Body::from(body.to_string().into_bytes()));
        let review = timeout(*limit, async {
            let request = request.map_err(|error| UpstreamError::Decode(error.to_string()))?;
            self.send(&request_info, request, secret).await
        });
        let review = review.await.unwrap_or_else(|_| Err(UpstreamError::Timeout { request_info, limit: *limit }));
        let status = review.map(|Review { status }: Review<S>| status);
        self.log_transition(kind, &status);
        status
    }

    async fn send<S: DeserializeOwned>(
        &self,
        request_info: &RequestInfo,
        request: Request<Body>,
        secret: &str,
    ) -> Result<Review<S>, UpstreamError> {
        let response =
            self.client.send(request).await.map_err(|error| UpstreamError::from_client_error(&error, request_info))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, self.config.answer_bytes).collect().await;
        let body = body.map_err(|error| UpstreamError::ConnectionLost(error.to_string()))?.to_bytes();
        if !head.status.is_success() {
            // The message of an error may repeat the request, and a part of the message is logged.
            let mut text = String::from_utf8_lossy(&body).into_owned();
            if !secret.is_empty() {
                text = text.replace(secret, "[token]");
            }
            return Err(UpstreamError::from_response(head.status, &head.headers, text.as_bytes(), request_info));
        }
        // The response to a TokenReview repeats the token, so a parse error contains the position only.
        serde_json::from_slice(&body).map_err(|error| UpstreamError::from_json_error(&error))
    }

    fn log_transition<T>(&self, kind: ReviewKind, status: &Result<T, UpstreamError>) {
        let was_reachable = self.reachable[kind as usize].swap(status.is_ok(), Ordering::Relaxed);
        let (_, review, _) = kind.api_names();
        match status {
            // The two rights are cluster-wide. Kubernetes has a ClusterRole that contains only these two.
            Err(UpstreamError::Forbidden(_)) if was_reachable => tracing::warn!(
                review,
                "reviews are forbidden: bind the ClusterRole system:auth-delegator to this account; until then no new \
                 token is accepted"
            ),
            Err(error) if was_reachable => tracing::warn!(review, %error, "reviews fail; no new token is accepted"),
            Ok(_) if !was_reachable => tracing::info!(review, "reviews work again"),
            Ok(_) | Err(_) => {}
        }
    }
}

impl ReviewKind {
    /// Returns the API group, the kind and the plural of the resource.
    fn api_names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            ReviewKind::Token => ("authentication.k8s.io", "TokenReview", "tokenreviews"),
            ReviewKind::Access => ("authorization.k8s.io", "SubjectAccessReview", "subjectaccessreviews"),
        }
    }
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviewer").field("config", &self.config).finish_non_exhaustive()
    }
}
