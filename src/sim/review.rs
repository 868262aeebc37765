//! TokenReview and SubjectAccessReview, as kube-apiserver 1.36 answers them. Pure.
//!
//! Owns: the tokens and the grants. Tests set them with [`Sim::issue`](super::Sim::issue) and
//! [`Sim::grant`](super::Sim::grant).
//!
//! Not implemented: the cache of the real API server, which accepts a token for 10 s after its first use, and
//! authorizers other than RBAC.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    resource::{ApiResource, Verb},
    status::StatusError,
    write,
};

/// The audience of the API server itself. It is the audience of reviews and tokens that list none.
pub const OWN_AUDIENCE: &str = "https://kubernetes.default.svc";
/// Time after its expiry for which a token is still accepted, because clocks differ. It is the leeway of go-jose;
/// measured on 1.36.3, a token was accepted 55 s after its expiry, and not 62 s after it.
pub const LEEWAY: Duration = Duration::from_secs(60);

/// The user of a token, its audiences and its expiry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// `status.user.username`
    pub user: String,
    /// `status.user.uid`
    pub uid: String,
    /// `status.user.groups`. The API adds `system:authenticated`.
    pub groups: Vec<String>,
    /// `status.user.extra`
    pub extra: BTreeMap<String, Vec<String>>,
    /// The audiences of the token. An empty list is [`OWN_AUDIENCE`].
    pub audiences: Vec<String>,
    /// The expiry of the token. The token is rejected [`LEEWAY`] after it.
    pub expires_at: Option<Timestamp>,
}

/// A grant of RBAC: a user or a group may use a verb on a resource in one namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// The user or the group.
    pub subject: String,
    /// The namespace of the grant.
    pub namespace: String,
    /// The granted verb.
    pub verb: Verb,
    /// The resource of the grant.
    pub resource: ApiResource,
}

/// The tokens and grants that determine the answers to reviews.
#[derive(Default)]
pub(super) struct ReviewState {
    tokens: BTreeMap<String, Identity>,
    rules: BTreeSet<Rule>,
}

impl ReviewState {
    pub(super) fn issue(&mut self, token: &str, identity: Identity) {
        self.tokens.insert(token.to_owned(), identity);
    }

    pub(super) fn revoke(&mut self, token: &str) {
        self.tokens.remove(token);
    }

    pub(super) fn grant(&mut self, rule: Rule) {
        self.rules.insert(rule);
    }

    pub(super) fn revoke_grants(&mut self, subject: &str) {
        self.rules.retain(|rule| rule.subject != subject);
    }

    /// Returns the `status` of a TokenReview.
    fn token(&self, spec: &Value, now: Timestamp) -> Result<Value, StatusError> {
        let token = spec["token"].as_str().filter(|token| !token.is_empty());
        let token =
            token.ok_or_else(|| StatusError::bad_request("token is required for TokenReview in authentication"))?;
        let unauthenticated = |error: &str| Ok(json!({"user": {}, "error": error}));
        let requested = or_own(strings(&spec["audiences"]));
        // The real API server writes the token into a header and reads the second word of the header. If that word is
        // empty, the token authenticates as the anonymous user, for every audience.
        let header = format!("Bearer {token}");
        let token = header.trim().split(' ').nth(1).unwrap_or_default();
        if token.is_empty() {
            let anonymous = json!({"username": "system:anonymous", "groups": ["system:unauthenticated"]});
            return Ok(json!({"authenticated": true, "user": anonymous, "audiences": requested}));
        }
        let Some(identity) = self.tokens.get(token) else { return unauthenticated("invalid bearer token") };
        let is_expired = |expiry: Timestamp| expiry.saturating_add(LEEWAY).is_ok_and(|end| end <= now);
        if identity.expires_at.is_some_and(is_expired) {
            return unauthenticated("[invalid bearer token, service account token has expired]");
        }
        let issued_for = or_own(identity.audiences.clone());
        let common: Vec<_> = requested.iter().filter(|audience| issued_for.contains(audience)).collect();
        if common.is_empty() {
            let (issued_for, requested) = (quoted(&issued_for), quoted(&requested));
            return unauthenticated(&format!(
                "[invalid bearer token, token audiences [{issued_for}] is invalid for the target audiences [{requested}]]"
            ));
        }
        Ok(json!({"authenticated": true, "user": identity.info(), "audiences": common}))
    }

    /// Returns the `status` of a SubjectAccessReview.
    fn access(&self, spec: &Value) -> Result<Value, StatusError> {
        let mut subjects = strings(&spec["groups"]);
        subjects.extend(spec["user"].as_str().filter(|user| !user.is_empty()).map(str::to_owned));
        let invalid = |reason: &str| StatusError::invalid(ApiResource::AccessReviews, "", reason);
        if subjects.is_empty() {
            return Err(invalid("spec.user: Invalid value: \"\": at least one of user or group must be specified"));
        }
        let Some(attributes) = spec["resourceAttributes"].as_object() else {
            return Err(invalid(
                "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or \
                 resourceAttributes must be specified",
            ));
        };
        if subjects.iter().any(|subject| subject == "system:masters") {
            return Ok(json!({"allowed": true}));
        }
        let attribute = |field: &str| attributes.get(field).and_then(Value::as_str).unwrap_or_default();
        let grants = |rule: &&Rule| {
            subjects.contains(&rule.subject)
                && rule.namespace == attribute("namespace")
                && rule.verb.as_str() == attribute("verb")
                && (rule.resource.group(), rule.resource.plural()) == (attribute("group"), attribute("resource"))
        };
        Ok(match self.rules.iter().find(grants) {
            Some(Rule { subject, namespace, .. }) => {
                let reason =
                    format!("RBAC: allowed by RoleBinding \"rule/{namespace}\" of Role \"rule\" to {subject:?}");
                json!({"allowed": true, "reason": reason})
            }
            None => json!({"allowed": false}),
        })
    }
}

impl Identity {
    /// Returns `status.user` of a TokenReview.
    fn info(&self) -> Value {
        let mut groups = self.groups.clone();
        groups.push("system:authenticated".to_owned());
        let mut info = Map::from_iter([("username".to_owned(), json!(self.user))]);
        if !self.uid.is_empty() {
            info.insert("uid".to_owned(), json!(self.uid));
        }
        info.insert("groups".to_owned(), json!(groups));
        if !self.extra.is_empty() {
            info.insert("extra".to_owned(), json!(self.extra));
        }
        info.into()
    }
}

/// Parses a review and returns it with its `status`.
pub(super) fn answer(
    state: &ReviewState,
    resource: ApiResource,
    now: Timestamp,
    body: &[u8],
) -> Result<Value, StatusError> {
    let mut review = write::parse(body)?;
    let status = match resource {
        ApiResource::TokenReviews => state.token(&review["spec"], now)?,
        _ => state.access(&review["spec"])?,
    };
    review["kind"] = json!(resource.kind());
    review["apiVersion"] = json!(resource.api_version());
    review["status"] = status;
    Ok(review)
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn or_own(audiences: Vec<String>) -> Vec<String> {
    if audiences.is_empty() { vec![OWN_AUDIENCE.to_owned()] } else { audiences }
}

fn quoted(audiences: &[String]) -> String {
    audiences.iter().map(|audience| format!("{audience:?}")).collect::<Vec<_>>().join(" ")
}

impl fmt::Debug for ReviewState {
    /// Prints the number of tokens instead of the tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReviewState").field("tokens", &self.tokens.len()).field("rules", &self.rules).finish()
    }
}
