//! Refusals as kube-apiserver 1.36 words them: `Status` objects with its reasons, messages and details.

use http::StatusCode;
use serde_json::{Value, json};

use super::path::ResourcePath;
use super::resource::{ApiResource, Verb};
use super::store::{Refused, Revision};

/// A `Status` object that says no.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StatusError {
    pub(super) code: StatusCode,
    reason: &'static str,
    message: String,
    details: Option<Value>,
    page: Option<String>,
}

impl StatusError {
    /// A refusal with nothing but its code, reason and message.
    pub(super) fn new(code: StatusCode, reason: &'static str, message: &str) -> Self {
        Self { code, reason, message: message.to_owned(), details: None, page: None }
    }

    fn details(self, details: Value) -> Self {
        Self { details: Some(details), ..self }
    }

    /// The wait in whole seconds that goes into details and the `Retry-After` header.
    pub(super) fn retry_after(self, seconds: u32) -> Self {
        self.details(json!({"retryAfterSeconds": seconds}))
    }

    /// What the header `Retry-After` says, if anything.
    pub(super) fn retry_after_seconds(&self) -> Option<u64> {
        self.details.as_ref().and_then(|details| details["retryAfterSeconds"].as_u64()).filter(|seconds| *seconds > 0)
    }

    pub(super) fn bad_request(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub(super) fn bad_version(version: &str) -> Self {
        Self::bad_request(&format!(
            "invalid resource version: resourceVersion: Invalid value: {version:?}: \
             strconv.ParseUint: parsing {version:?}: invalid syntax"
        ))
    }

    pub(super) fn bad_options(field: &str, why: &str) -> Self {
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: Forbidden: {why}");
        let cause = json!({"reason": "FieldValueForbidden", "message": format!("Forbidden: {why}"), "field": field});
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", &message)
            .details(json!({"group": "meta.k8s.io", "kind": "ListOptions", "causes": [cause]}))
    }

    pub(super) fn no_such_method() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message).details(json!({}))
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// RBAC's refusal, which names the user, the verb, the resource and where.
    pub(super) fn forbidden(user: &str, verb: Verb, target: &ResourcePath) -> Self {
        let (resource, group) = (target.resource, target.resource.group());
        let full = if target.status { format!("{}/status", resource.plural()) } else { resource.plural().to_owned() };
        // A Namespace lies in itself, as far as authorization is concerned.
        let namespace = target.namespace.as_ref().or(target.name.as_ref().filter(|_| !resource.namespaced()));
        let place = match namespace {
            Some(namespace) => format!("in the namespace {namespace:?}"),
            None => "at the cluster scope".to_owned(),
        };
        let verb = verb.as_str();
        let subject = target.name.as_ref().map(|name| format!(" {name:?}")).unwrap_or_default();
        let message = format!(
            "{}{subject} is forbidden: User {user:?} cannot {verb} resource {full:?} in API group {group:?} {place}",
            resource.qualified()
        );
        let details = named(resource, target.name.as_deref().unwrap_or_default());
        Self::new(StatusCode::FORBIDDEN, "Forbidden", &message).details(details)
    }

    /// A list at a revision that is not there yet.
    pub(super) fn future(asked: Revision, current: Revision) -> Self {
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        let cause = json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"});
        Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", &message)
            .details(json!({"causes": [cause], "retryAfterSeconds": 1}))
    }

    /// A list at a revision that is gone.
    pub(super) fn list_expired() -> Self {
        Self::new(StatusCode::GONE, "Expired", "The resourceVersion for the provided list is too old.")
    }

    /// A page whose revision is gone; `page` continues at the newest revision instead.
    pub(super) fn page_expired(page: String) -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result. \
            Start a new list, or continue inconsistently with the token in this response.";
        Self { page: Some(page), ..Self::new(StatusCode::GONE, "Expired", message) }
    }

    /// A watch from before the watch window.
    pub(super) fn watch_expired(asked: Revision, window: Revision) -> Self {
        Self::new(StatusCode::GONE, "Expired", &format!("too old resource version: {asked} ({window})"))
    }

    /// What the store refused about an object.
    pub(super) fn refused(refused: &Refused, resource: ApiResource, name: &str) -> Self {
        let qualified = resource.qualified();
        let details = named(resource, name);
        match refused {
            Refused::NotFound => {
                Self::new(StatusCode::NOT_FOUND, "NotFound", &format!("{qualified} {name:?} not found"))
                    .details(details)
            }
            Refused::NoNamespace(namespace) => {
                let details = named(ApiResource::Namespaces, namespace);
                Self::new(StatusCode::NOT_FOUND, "NotFound", &format!("namespaces {namespace:?} not found"))
                    .details(details)
            }
            Refused::Exists => {
                Self::new(StatusCode::CONFLICT, "AlreadyExists", &format!("{qualified} {name:?} already exists"))
                    .details(details)
            }
            Refused::Conflict => {
                let why = "the object has been modified; please apply your changes to the latest version and try again";
                let message = format!("Operation cannot be fulfilled on {qualified} {name:?}: {why}");
                Self::new(StatusCode::CONFLICT, "Conflict", &message).details(details)
            }
            Refused::Uid(uid) => {
                Self::invalid(resource, name, &format!("metadata.uid: Invalid value: {uid:?}: field is immutable"))
            }
            Refused::Malformed(why) => Self::invalid(resource, name, why),
            Refused::Compacted(_) => Self::list_expired(),
        }
    }

    /// An object that its schema refuses.
    pub(super) fn invalid(resource: ApiResource, name: &str, why: &str) -> Self {
        let kind = match resource.group() {
            "" => resource.kind().to_owned(),
            group => format!("{}.{group}", resource.kind()),
        };
        let mut details = named(resource, name);
        details["kind"] = json!(resource.kind());
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", &format!("{kind} {name:?} is invalid: {why}"))
            .details(details)
    }

    /// A watch from a version that is no number: the real one calls that its own error, without a reason.
    pub(super) fn bad_watch_version(version: &str) -> Self {
        let message = format!(
            "resourceVersion: Invalid value: {version:?}: strconv.ParseUint: parsing {version:?}: invalid syntax"
        );
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "", &message)
    }

    /// The object as it goes over the wire.
    pub(super) fn to_json(&self) -> Value {
        let mut metadata = json!({});
        if let Some(page) = &self.page {
            metadata["continue"] = json!(page);
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure",
            "message": self.message, "code": self.code.as_u16(),
        });
        if !self.reason.is_empty() {
            status["reason"] = json!(self.reason);
        }
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }
}

/// The details that name an object; empty fields are left out, as Kubernetes does.
fn named(resource: ApiResource, name: &str) -> Value {
    let mut details = json!({"kind": resource.plural()});
    if !name.is_empty() {
        details["name"] = json!(name);
    }
    if !resource.group().is_empty() {
        details["group"] = json!(resource.group());
    }
    details
}
