//! Asks the cluster about those who ask us: whose token it is, and whether that user may read what we read.
//!
//! Always: a token is reviewed for our own audience, and an answer without that audience, or without a clear yes about
//! somebody in particular, is a no; a user's rights are asked for with all that the cluster says of the user, as
//! authorizers other than RBAC may look at it; a token stands in no log and no error. It does not know who wants to know, or for how long that is believed.

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

/// What is asked about, and of whom.
#[derive(Clone, Debug)]
pub struct Config {
    /// The watched namespace.
    pub namespace: Arc<str>,
    /// The API server's URL, for people.
    pub server: Arc<str>,
    /// The audience that tokens must be made for (`--token-audience`).
    pub audience: String,
    /// How long an answer may take: 5 s, as somebody waits for it.
    pub timeout: Duration,
    /// Bytes of an answer: 256 KiB, a user with thousands of groups.
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

/// A user as the cluster knows one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// `status.user.username`.
    pub name: String,
    /// `status.user.uid`.
    pub uid: String,
    /// `status.user.groups`.
    pub groups: Vec<String>,
    /// `status.user.extra`: what RBAC does not look at, but other authorizers do (a token's scopes, for one).
    pub extra: BTreeMap<String, Vec<String>>,
}

/// The group of those who are nobody in particular. A token that is blank to the API server is authenticated, as theirs
/// and for whatever audience (measured on 1.36.3).
const UNAUTHENTICATED_GROUP: &str = "system:unauthenticated";

/// The four things that the bridge does for its clients, so whoever reads of it must be allowed to do them.
const REQUIRED_ACCESS: [(&str, &str, &str); 4] = [
    ("list", "", "pods"),
    ("watch", "", "pods"),
    ("list", api::GROUP, api::PLURAL),
    ("watch", api::GROUP, api::PLURAL),
];

/// Reviews of tokens and users.
#[derive(Clone)]
pub struct Reviewer {
    client: Client,
    config: Config,
    /// Whether the last question of each kind was answered: the log tells of changes only.
    reachable: Arc<[AtomicBool; 2]>,
}

/// A kind of question.
#[derive(Clone, Copy, Debug)]
enum ReviewKind {
    Token,
    Access,
}

#[derive(Deserialize)]
struct Answer<S> {
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
    /// A value without strings is `null`, as the API server is written in Go.
    extra: BTreeMap<String, Option<Vec<String>>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AccessStatus {
    allowed: bool,
    denied: bool,
}

impl Reviewer {
    /// Asks through this client.
    #[must_use]
    pub fn new(client: Client, config: Config) -> Reviewer {
        Reviewer { client, config, reachable: Arc::new([AtomicBool::new(true), AtomicBool::new(true)]) }
    }

    /// Whose token it is; `None`: nobody's, or not made for our audience.
    ///
    /// # Errors
    /// When the cluster does not say.
    pub async fn token(&self, token: &str) -> Result<Option<User>, UpstreamError> {
        if token.is_empty() || token.contains(char::is_whitespace) {
            return Ok(None);
        }
        let spec = json!({ "token": token, "audiences": [self.config.audience] });
        let TokenStatus { authenticated, audiences, user } = self.review(ReviewKind::Token, spec, token).await?;
        let UserInfo { username: name, uid, groups, extra } = user;
        let somebody = !name.is_empty() && !groups.iter().any(|group| group == UNAUTHENTICATED_GROUP);
        let ours = authenticated && audiences.contains(&self.config.audience);
        let extra = extra.into_iter().map(|(key, values)| (key, values.unwrap_or_default())).collect();
        Ok((ours && somebody).then_some(User { name, uid, groups, extra }))
    }

    /// The first of what is needed that a user may not do, as `list pods`.
    ///
    /// # Errors
    /// When the cluster does not say.
    pub async fn first_denied(&self, user: &User) -> Result<Option<String>, UpstreamError> {
        let asked = REQUIRED_ACCESS.map(|(verb, group, resource)| async move {
            let attributes =
                json!({ "namespace": &*self.config.namespace, "verb": verb, "group": group, "resource": resource });
            let User { name, uid, groups, extra } = user;
            let spec =
                json!({ "user": name, "uid": uid, "groups": groups, "extra": extra, "resourceAttributes": attributes });
            let AccessStatus { allowed, denied } = self.review(ReviewKind::Access, spec, "").await?;
            Ok((!allowed || denied).then(|| format!("{verb} {resource}")))
        });
        let answers: Vec<Option<String>> = try_join_all(asked).await?;
        Ok(answers.into_iter().flatten().next())
    }

    /// `secret`: what must not be told on, wherever an answer repeats it.
    async fn review<S: DeserializeOwned>(
        &self,
        question: ReviewKind,
        spec: Value,
        secret: &str,
    ) -> Result<S, UpstreamError> {
        let Config { namespace, server, timeout: limit, .. } = &self.config;
        let (group, kind, plural) = question.names();
        let resource = format!("{plural}.{group}").into();
        let request_info =
            RequestInfo { verb: "create", resource, namespace: namespace.clone(), server: server.clone() };
        let request = Request::post(format!("/apis/{group}/v1/{plural}")).header(CONTENT_TYPE, "application/json");
        let body = json!({ "apiVersion": format!("{group}/v1"), "kind": kind, "spec": spec });
        let request = request.body(Body::from(body.to_string().into_bytes()));
        let answer = timeout(*limit, async {
            let request = request.map_err(|error| UpstreamError::Decode(error.to_string()))?;
            self.send(&request_info, request, secret).await
        });
        let answer = answer.await.unwrap_or_else(|_| Err(UpstreamError::Timeout { request_info, limit: *limit }));
        self.log_transition(question, &answer);
        answer.map(|Answer { status }| status)
    }

    async fn send<S: DeserializeOwned>(
        &self,
        request_info: &RequestInfo,
        request: Request<Body>,
        secret: &str,
    ) -> Result<Answer<S>, UpstreamError> {
        let response =
            self.client.send(request).await.map_err(|error| UpstreamError::from_client_error(&error, request_info))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, self.config.answer_bytes).collect().await;
        let body = body.map_err(|error| UpstreamError::ConnectionLost(error.to_string()))?.to_bytes();
        if !head.status.is_success() {
            // Who refuses may say what was asked, and a part of what is said gets into the log.
            let mut text = String::from_utf8_lossy(&body).into_owned();
            if !secret.is_empty() {
                text = text.replace(secret, "[token]");
            }
            return Err(UpstreamError::from_response(head.status, &head.headers, text.as_bytes(), request_info));
        }
        // The answer to a TokenReview repeats the token: where it cannot be read is said, not what stands there.
        serde_json::from_slice(&body).map_err(|error| UpstreamError::from_json_error(&error))
    }

    fn log_transition<T>(&self, question: ReviewKind, answer: &Result<T, UpstreamError>) {
        let was = self.reachable[question as usize].swap(answer.is_ok(), Ordering::Relaxed);
        let (_, asked, _) = question.names();
        match answer {
            // The two rights are cluster-wide, and a role for just them comes with Kubernetes.
            Err(UpstreamError::Forbidden(_)) if was => tracing::warn!(
                asked,
                "not allowed to request_info Kubernetes about tokens: bind the ClusterRole system:auth-delegator to this account; \
                 until then nobody comes in with a token"
            ),
            Err(error) if was => {
                tracing::warn!(asked, reason = %error, "Kubernetes cannot be asked: nobody new comes in with a token");
            }
            Ok(_) if !was => tracing::info!(asked, "Kubernetes answers again"),
            Ok(_) | Err(_) => {}
        }
    }
}

impl ReviewKind {
    /// API group, kind and plural.
    fn names(self) -> (&'static str, &'static str, &'static str) {
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
