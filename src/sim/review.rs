//! Whose a token is, and what a user may: TokenReview and SubjectAccessReview, as kube-apiserver 1.36 answers them.
//!
//! What is known is set through the handle ([`Sim::issue`](super::Sim::issue), [`Sim::grant`](super::Sim::grant)). Pure.
//! Left out: the 10 s for which the real one believes a token that it has seen, and authorizers other than RBAC.

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

/// The API server's own audience: what a review without audiences is about.
pub const OWN_AUDIENCE: &str = "https://kubernetes.default.svc";
/// How long after its end a token is still believed, for the sake of clocks that differ (go-jose's leeway; measured on
/// 1.36.3: 55 s after its end yes, 62 s after it no).
pub const LEEWAY: Duration = Duration::from_secs(60);

/// Whom a token belongs to, for whom it was made, and until when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// `status.user.username`
    pub user: String,
    /// `status.user.uid`
    pub uid: String,
    /// `status.user.groups`; `system:authenticated` comes by itself.
    pub groups: Vec<String>,
    /// `status.user.extra`
    pub extra: BTreeMap<String, Vec<String>>,
    /// For whom it was made; for none: for the API server.
    pub audiences: Vec<String>,
    /// Its end, which is believed [`LEEWAY`] later.
    pub expires_at: Option<Timestamp>,
}

/// That a user or a group may do something to a resource in one namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// The user or the group.
    pub subject: String,
    /// In this namespace.
    pub namespace: String,
    /// What may be done.
    pub verb: Verb,
    /// To what.
    pub resource: ApiResource,
}

/// All that reviews are answered by.
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

    /// The `status` of a TokenReview.
    fn token(&self, spec: &Value, now: Timestamp) -> Result<Value, StatusError> {
        let token = spec["token"].as_str().filter(|token| !token.is_empty());
        let token =
            token.ok_or_else(|| StatusError::bad_request("token is required for TokenReview in authentication"))?;
        let refusal = |error: &str| Ok(json!({"user": {}, "error": error}));
        let asked = or_own(strings(&spec["audiences"]));
        // The real one makes a request's header of it and reads that: where nothing is left, it finds its anonymous user,
        // for any audience.
        let header = format!("Bearer {token}");
        let token = header.trim().split(' ').nth(1).unwrap_or_default();
        if token.is_empty() {
            let nobody = json!({"username": "system:anonymous", "groups": ["system:unauthenticated"]});
            return Ok(json!({"authenticated": true, "user": nobody, "audiences": asked}));
        }
        let Some(identity) = self.tokens.get(token) else { return refusal("invalid bearer token") };
        let over = |end: Timestamp| end.saturating_add(LEEWAY).is_ok_and(|end| end <= now);
        if identity.expires_at.is_some_and(over) {
            return refusal("[invalid bearer token, service account token has expired]");
        }
        let made_for = or_own(identity.audiences.clone());
        let both: Vec<_> = asked.iter().filter(|audience| made_for.contains(audience)).collect();
        if both.is_empty() {
            let (made_for, asked) = (quoted(&made_for), quoted(&asked));
            return refusal(&format!(
                "[invalid bearer token, token audiences [{made_for}] is invalid for the target audiences [{asked}]]"
            ));
        }
        Ok(json!({"authenticated": true, "user": identity.info(), "audiences": both}))
    }

    /// The `status` of a SubjectAccessReview.
    fn access(&self, spec: &Value) -> Result<Value, StatusError> {
        let mut subjects = strings(&spec["groups"]);
        subjects.extend(spec["user"].as_str().filter(|user| !user.is_empty()).map(str::to_owned));
        let invalid = |why: &str| StatusError::invalid(ApiResource::AccessReviews, "", why);
        if subjects.is_empty() {
            return Err(invalid("spec.user: Invalid value: \"\": at least one of user or group must be specified"));
        }
        let Some(asked) = spec["resourceAttributes"].as_object() else {
            return Err(invalid(
                "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or \
                 resourceAttributes must be specified",
            ));
        };
        if subjects.iter().any(|subject| subject == "system:masters") {
            return Ok(json!({"allowed": true}));
        }
        let asked = |field: &str| asked.get(field).and_then(Value::as_str).unwrap_or_default();
        let grants = |rule: &&Rule| {
            subjects.contains(&rule.subject)
                && rule.namespace == asked("namespace")
                && rule.verb.as_str() == asked("verb")
                && (rule.resource.group(), rule.resource.plural()) == (asked("group"), asked("resource"))
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

/// The review with its answer.
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
    /// Without the tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReviewState").field("tokens", &self.tokens.len()).field("rules", &self.rules).finish()
    }
}
