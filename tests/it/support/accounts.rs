//! Who there is in a cluster and what they may, be it the real control plane or the simulator: service accounts, their
//! tokens, their rights.
//!
//! Tokens of the simulator look like the real ones, but for their signature.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use boilerhouse_bridge::sim::{
    ApiResource, Sim, Verb,
    review::{Identity, Rule},
};
use http::Method;
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use serde_json::{Value, json};

use super::control_plane::{ControlPlane, UNPRIVILEGED_TOKEN};

/// How long the API server's caches may take to know what has been written: milliseconds, on a machine that is not busy.
pub(crate) const PROPAGATION_TIMEOUT: Duration = Duration::from_secs(10);
/// What a client of ours needs: list and watch on both resources.
pub(crate) const REQUIRED_ACCESS: [(Verb, ApiResource); 4] = [
    (Verb::List, ApiResource::Pods),
    (Verb::Watch, ApiResource::Pods),
    (Verb::List, ApiResource::Claims),
    (Verb::Watch, ApiResource::Claims),
];

const CLAIMS_GROUP: &str = "boilerhouse.dev";

/// The people of a cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Accounts<'a> {
    Real(&'a ControlPlane),
    Simulated(&'a Sim),
}

/// Who is given a right.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RbacSubject<'a> {
    /// A service account of the namespace.
    Account(&'a str),
    Group(&'a str),
}

/// What a service account is called as a user.
pub(crate) fn user_name(namespace: &str, account: &str) -> String {
    format!("system:serviceaccount:{namespace}:{account}")
}

impl Accounts<'_> {
    /// Makes a service account. Returns its uid.
    pub(crate) async fn create_account(&self, namespace: &str, name: &str) -> String {
        match self {
            Self::Real(plane) => {
                let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
                let account = plane.call(Method::POST, &path, &json!({"metadata": {"name": name}})).await;
                account["metadata"]["uid"].as_str().unwrap().to_owned()
            }
            Self::Simulated(_) => uid(namespace, name),
        }
    }

    /// Removes a service account, and with it its tokens.
    pub(crate) async fn delete_account(&self, namespace: &str, name: &str, tokens: &[&str]) {
        match self {
            Self::Real(plane) => {
                let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}");
                plane.call(Method::DELETE, &path, &Value::Null).await;
            }
            Self::Simulated(sim) => tokens.iter().for_each(|token| sim.revoke(token)),
        }
    }

    /// A token of a service account, made for these audiences (for none: for the API server), good for ten minutes.
    pub(crate) async fn create_token(&self, namespace: &str, account: &str, audiences: &[&str]) -> String {
        match self {
            Self::Real(plane) => {
                let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
                let spec = json!({"audiences": audiences, "expirationSeconds": 600});
                let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
                let made = plane.call(Method::POST, &path, &request).await;
                made["status"]["token"].as_str().unwrap().to_owned()
            }
            Self::Simulated(sim) => simulated_token(sim, namespace, account, audiences, 600),
        }
    }

    /// A token of a service account that ends so many seconds from now, or has ended before. TokenRequest makes none that
    /// ends within ten minutes: this one is signed by the test, with the API server's own key.
    pub(crate) async fn create_token_expiring_in(
        &self,
        namespace: &str,
        account: &str,
        audience: &str,
        in_seconds: i64,
    ) -> String {
        match self {
            Self::Real(plane) => {
                let token = self.create_token(namespace, account, &[audience]).await;
                let mut parts = token.split('.').map(|part| BASE64.decode(part).unwrap());
                let (head, claims) = (parts.next().unwrap(), parts.next().unwrap());
                let mut claims: Value = serde_json::from_slice(&claims).unwrap();
                let end = Timestamp::now().as_second() + in_seconds;
                (claims["exp"], claims["iat"], claims["nbf"]) = (json!(end), json!(end - 3600), json!(end - 3600));
                let signed = format!("{}.{}", BASE64.encode(head), BASE64.encode(claims.to_string()));
                format!("{signed}.{}", BASE64.encode(plane.sign(signed.as_bytes())))
            }
            Self::Simulated(sim) => simulated_token(sim, namespace, account, &[audience], in_seconds),
        }
    }

    /// Lets somebody do this in the namespace, and waits until the API server knows.
    pub(crate) async fn bind(&self, namespace: &str, grantee: RbacSubject<'_>, rights: &[(Verb, ApiResource)]) {
        match self {
            Self::Real(plane) => {
                let rules: Vec<_> = rights.iter().map(|(verb, resource)| rule(*verb, *resource)).collect();
                let name = json!({"name": grantee.name()});
                let path = rbac(namespace, "roles");
                plane.call(Method::POST, &path, &json!({"metadata": name, "rules": rules})).await;
                let group = "rbac.authorization.k8s.io";
                let subject = match grantee {
                    RbacSubject::Account(name) => {
                        json!({"kind": "ServiceAccount", "name": name, "namespace": namespace})
                    }
                    RbacSubject::Group(name) => json!({"kind": "Group", "name": name, "apiGroup": group}),
                };
                let role = json!({"apiGroup": group, "kind": "Role", "name": grantee.name()});
                let binding = json!({"metadata": name, "roleRef": role, "subjects": [subject]});
                plane.call(Method::POST, &rbac(namespace, "rolebindings"), &binding).await;
            }
            Self::Simulated(sim) => {
                for (verb, resource) in rights.iter().copied() {
                    let (subject, namespace) = (grantee.subject(namespace), namespace.to_owned());
                    sim.grant(Rule { subject, namespace, verb, resource });
                }
            }
        }
    }

    /// Takes what was given to somebody. The API server knows a little later ([`PROPAGATION_TIMEOUT`]).
    pub(crate) async fn unbind(&self, namespace: &str, grantee: RbacSubject<'_>) {
        match self {
            Self::Real(plane) => {
                for plural in ["rolebindings", "roles"] {
                    let path = format!("{}/{}", rbac(namespace, plural), grantee.name());
                    plane.call(Method::DELETE, &path, &Value::Null).await;
                }
            }
            Self::Simulated(sim) => sim.revoke_grants(&grantee.subject(namespace)),
        }
    }

    /// A client that may not review anything. With the simulator nobody may from now on.
    pub(crate) async fn unprivileged_client(&self) -> Client {
        match self {
            Self::Real(plane) => Client::try_from(plane.config(UNPRIVILEGED_TOKEN).await).unwrap(),
            Self::Simulated(sim) => {
                sim.deny(Verb::Create, ApiResource::TokenReviews);
                sim.deny(Verb::Create, ApiResource::AccessReviews);
                sim.client("default")
            }
        }
    }
}

impl RbacSubject<'_> {
    /// As part of an object's name.
    fn name(self) -> String {
        match self {
            RbacSubject::Account(name) | RbacSubject::Group(name) => name.replace(':', "-"),
        }
    }

    fn subject(self, namespace: &str) -> String {
        match self {
            RbacSubject::Account(name) => user_name(namespace, name),
            RbacSubject::Group(name) => name.to_owned(),
        }
    }
}

fn rbac(namespace: &str, plural: &str) -> String {
    format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/{plural}")
}

fn rule(verb: Verb, resource: ApiResource) -> Value {
    let (group, plural) = match resource {
        ApiResource::Pods => ("", "pods"),
        ApiResource::Claims => (CLAIMS_GROUP, "boilerhouseclaims"),
        other => panic!("{other:?} is in no namespace"),
    };
    let verb = format!("{verb:?}").to_lowercase();
    json!({"apiGroups": [group], "resources": [plural], "verbs": [verb]})
}

fn uid(namespace: &str, account: &str) -> String {
    format!("uid-of-{}", user_name(namespace, account))
}

fn simulated_token(sim: &Sim, namespace: &str, account: &str, audiences: &[&str], in_seconds: i64) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let id = format!("simulated-{}", NEXT.fetch_add(1, Relaxed));
    let end = sim.now().saturating_add(SignedDuration::from_secs(in_seconds)).unwrap();
    let user = user_name(namespace, account);
    let claims = json!({"aud": audiences, "exp": end.as_second(), "jti": id, "sub": user});
    let parts = [json!({"alg": "none"}).to_string(), claims.to_string(), "signature".to_owned()];
    let token = parts.map(|part| BASE64.encode(part)).join(".");
    let identity = Identity {
        user,
        uid: uid(namespace, account),
        groups: vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")],
        extra: BTreeMap::from([("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("JTI={id}")])]),
        audiences: audiences.iter().map(|audience| (*audience).to_owned()).collect(),
        expires_at: Some(end),
    };
    sim.issue(&token, identity);
    token
}
