//! Asks the cluster about those who ask us: whose token it is, and whether that user may read what we read.
//!
//! Always: a token is reviewed for our own audience, and an answer without that audience, or without a clear yes, is a
//! no; a token stands in no log and no error. It does not know who wants to know, or for how long that is believed.

use std::{
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

use super::{
    crd,
    trouble::{Ask, Trouble},
};

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
    /// `status.user.groups`.
    pub groups: Vec<String>,
}

/// The four things that the bridge does for its clients, so whoever reads of it must be allowed to do them.
const NEEDED: [(&str, &str, &str); 4] = [
    ("list", "", "pods"),
    ("watch", "", "pods"),
    ("list", crd::GROUP, crd::PLURAL),
    ("watch", crd::GROUP, crd::PLURAL),
];

/// Reviews of tokens and users.
#[derive(Clone)]
pub struct Review {
    client: Client,
    config: Config,
    /// Whether the last question was answered: the log tells of changes only.
    reachable: Arc<AtomicBool>,
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
    groups: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AccessStatus {
    allowed: bool,
    denied: bool,
}

impl Review {
    /// Asks through this client.
    #[must_use]
    pub fn new(client: Client, config: Config) -> Review {
        Review { client, config, reachable: Arc::new(AtomicBool::new(true)) }
    }

    /// Whose token it is; `None`: nobody's, or not made for our audience.
    ///
    /// # Errors
    /// When the cluster does not say.
    pub async fn token(&self, token: &str) -> Result<Option<User>, Trouble> {
        let spec = json!({ "token": token, "audiences": [self.config.audience] });
        let path = "authentication.k8s.io/v1/tokenreviews";
        let status: TokenStatus = self.ask(path, "TokenReview", "tokenreviews.authentication.k8s.io", spec).await?;
        let TokenStatus { authenticated, audiences, user: UserInfo { username, groups } } = status;
        let ours = authenticated && audiences.contains(&self.config.audience) && !username.is_empty();
        Ok(ours.then_some(User { name: username, groups }))
    }

    /// The first of what is needed that a user may not do, as `list pods`.
    ///
    /// # Errors
    /// When the cluster does not say.
    pub async fn denied(&self, user: &str, groups: &[String]) -> Result<Option<String>, Trouble> {
        let asked = NEEDED.map(|(verb, group, resource)| async move {
            let attributes =
                json!({ "namespace": &*self.config.namespace, "verb": verb, "group": group, "resource": resource });
            let spec = json!({ "user": user, "groups": groups, "resourceAttributes": attributes });
            let path = "authorization.k8s.io/v1/subjectaccessreviews";
            let name = "subjectaccessreviews.authorization.k8s.io";
            let status: AccessStatus = self.ask(path, "SubjectAccessReview", name, spec).await?;
            Ok((!status.allowed || status.denied).then(|| format!("{verb} {resource}")))
        });
        let answers: Vec<Option<String>> = try_join_all(asked).await?;
        Ok(answers.into_iter().flatten().next())
    }

    async fn ask<S: DeserializeOwned>(
        &self,
        path: &str,
        kind: &str,
        resource: &str,
        spec: Value,
    ) -> Result<S, Trouble> {
        let Config { namespace, server, timeout: limit, .. } = &self.config;
        let (resource, namespace, server) = (resource.into(), namespace.clone(), server.clone());
        let ask = Ask { verb: "create", resource, namespace, server };
        let (group, _) = path.rsplit_once('/').unwrap_or((path, ""));
        let body = json!({ "apiVersion": group, "kind": kind, "spec": spec });
        let answer = timeout(*limit, self.post(&ask, &format!("/apis/{path}"), &body)).await;
        let answer = answer.unwrap_or_else(|_| Err(Trouble::NoAnswer { ask: ask.clone(), limit: *limit }));
        self.note(&answer);
        answer.map(|Answer { status }| status)
    }

    async fn post<S: DeserializeOwned>(&self, ask: &Ask, path: &str, body: &Value) -> Result<Answer<S>, Trouble> {
        let request = Request::post(path).header(CONTENT_TYPE, "application/json");
        let request = request.body(Body::from(body.to_string().into_bytes()));
        let request = request.map_err(|error| Trouble::Unreadable(error.to_string()))?;
        let response = self.client.send(request).await.map_err(|error| Trouble::of(&error, ask))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, self.config.answer_bytes).collect().await;
        let body = body.map_err(|error| Trouble::Cut(error.to_string()))?.to_bytes();
        if !head.status.is_success() {
            return Err(Trouble::answered(head.status, &head.headers, &body, ask));
        }
        // An answer to a TokenReview repeats the token: where it cannot be read is said, not what stands there.
        serde_json::from_slice(&body).map_err(|error| Trouble::unreadable(&error))
    }

    fn note<T>(&self, answer: &Result<T, Trouble>) {
        let was = self.reachable.swap(answer.is_ok(), Ordering::Relaxed);
        match answer {
            Err(trouble) if was => {
                tracing::warn!(reason = %trouble, "Kubernetes cannot be asked about tokens: nobody new comes in with one");
            }
            Ok(_) if !was => tracing::info!("Kubernetes answers about tokens again"),
            Ok(_) | Err(_) => {}
        }
    }
}

impl std::fmt::Debug for Review {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Review").field("config", &self.config).finish_non_exhaustive()
    }
}
