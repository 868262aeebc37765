//! Service accounts, their tokens and their permissions, on the real control plane and on the simulator.
//!
//! Guarantees: tokens of the simulator have the form of real tokens, except for the signature.

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

/// How long the caches of the API server may take to contain a write. On an idle machine they take milliseconds.
pub(crate) const PROPAGATION_TIMEOUT: Duration = Duration::from_secs(10);
/// The permissions that a client of the bridge needs: list and watch on both resources.
pub(crate) const REQUIRED_ACCESS: [(Verb, ApiResource); 4] = [
    (Verb::List, ApiResource::Pods),
    (Verb::Watch, ApiResource::Pods),
    (Verb::List, ApiResource::Claims),
    (Verb::Watch, ApiResource::Claims),
];

const CLAIMS_GROUP: &str = "boilerhouse.dev";

/// The accounts of a cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Accounts<'a> {
    Real(&'a ControlPlane),
    Simulated(&'a Sim),
}

/// The subject of a role binding.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RbacSubject<'a> {
    /// A service account of the namespace.
    Account(&'a str),
    Group(&'a str),
}

/// Returns the user name of a service account.
pub(crate) fn user_name(namespace: &str, account: &str) -> String {
    format!("system:serviceaccount:{namespace}:{account}")
}

impl Accounts<'_> {
    /// Creates a service account and returns its uid.
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

    /// Deletes a service account. Its tokens become invalid; the simulator needs the list of them.
    pub(crate) async fn delete_account(&self, namespace: &str, name: &str, tokens: &[&str]) {
        match self {
            Self::Real(plane) => {
                let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}");
                plane.call(Method::DELETE, &path, &Value::Null).await;
            }
            Self::Simulated(sim) => tokens.iter().for_each(|token| sim.revoke(token)),
        }
    }

    /// Creates a token of a service account for these audiences, valid for ten minutes. Without audiences it is for the API
    /// server.
    pub(crate) async fn create_token(&self, namespace: &str, account: &str, audiences: &[&str]) -> String {
        match self {
            Self::Real(plane) => {
                let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
                let spec = json!({"audiences": audiences, "expirationSeconds": 600});
                let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
                let created = plane.call(Method::POST, &path, &request).await;
                created["status"]["token"].as_str().unwrap().to_owned()
            }
            Self::Simulated(sim) => simulated_token(sim, namespace, account, audiences, 600),
        }
    }

    /// Creates a token of a service account that expires `in_seconds` from now; a negative number is in the past.
    /// TokenRequest creates no token that expires within ten minutes, so the test signs this one with the key of the API
    /// server.
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
                let (header, claims) = (parts.next().unwrap(), parts.next().unwrap());
                let mut claims: Value = serde_json::from_slice(&claims).unwrap();
                let expiry = Timestamp::now().as_second() + in_seconds;
                let issued = expiry - 3600;
                (claims["exp"], claims["iat"], claims["nbf"]) = (json!(expiry), json!(issued), json!(issued));
                let signed = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims.to_string()));
                format!("{signed}.{}", BASE64.encode(plane.sign(signed.as_bytes())))
            }
            Self::Simulated(sim) => simulated_token(sim, namespace, account, &[audience], in_seconds),
        }
    }

    /// Grants these permissions in the namespace to a subject. The caches of the API server contain them within
    /// [`PROPAGATION_TIMEOUT`].
    pub(crate) async fn bind(&self, namespace: &str, grantee: RbacSubject<'_>, permissions: &[(Verb, ApiResource)]) {
        match self {
            Self::Real(plane) => {
                let rules: Vec<_> = permissions.iter().map(|(verb, resource)| rule(*verb, *resource)).collect();
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
                for (verb, resource) in permissions.iter().copied() {
                    let (subject, namespace) = (grantee.subject(namespace), namespace.to_owned());
                    sim.grant(Rule { subject, namespace, verb, resource });
                }
            }
        }
    }

    /// Revokes all permissions of a subject. The caches of the API server drop them within [`PROPAGATION_TIMEOUT`].
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

    /// Returns a client that must not create reviews. On the simulator, reviews are then forbidden for all clients.
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
    /// Returns the name as a part of an object's name.
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
        other => panic!("{other:?} is not a namespaced resource"),
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
    let expiry = sim.now().saturating_add(SignedDuration::from_secs(in_seconds)).unwrap();
    let user = user_name(namespace, account);
    let claims = json!({"aud": audiences, "exp": expiry.as_second(), "jti": id, "sub": user});
    let parts = [json!({"alg": "none"}).to_string(), claims.to_string(), "signature".to_owned()];
    let token = parts.map(|part| BASE64.encode(part)).join(".");
    let identity = Identity {
        user,
        uid: uid(namespace, account),
        groups: vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")],
        extra: BTreeMap::from([("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("JTI={id}")])]),
        audiences: audiences.iter().map(|audience| (*audience).to_owned()).collect(),
        expires_at: Some(expiry),
    };
    sim.issue(&token, identity);
    token
}
