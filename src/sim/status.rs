//! Errors of the simulated API: `Status` objects with the reasons, messages and details of kube-apiserver 1.36.

use http::StatusCode;
use serde_json::{Value, json};

use super::path::ResourcePath;
use super::resource::{ApiResource, Verb};
use super::store::{Revision, StoreError};

/// A `Status` object with the status `Failure`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StatusError {
    pub(super) code: StatusCode,
    reason: &'static str,
    message: String,
    details: Option<Value>,
    /// The continue token in the metadata.
    page: Option<String>,
}

impl StatusError {
    /// Creates an error with code, reason and message only.
    pub(super) fn new(code: StatusCode, reason: &'static str, message: &str) -> Self {
        Self { code, reason, message: message.to_owned(), details: None, page: None }
    }

    fn details(self, details: Value) -> Self {
        Self { details: Some(details), ..self }
    }

    /// Sets the time after which the client may retry, in whole seconds: for the details and the header `Retry-After`.
    pub(super) fn retry_after(self, seconds: u32) -> Self {
        self.details(json!({"retryAfterSeconds": seconds}))
    }

    /// Returns the value of the header `Retry-After` in seconds, or `None` for no header.
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

    pub(super) fn bad_options(field: &str, reason: &str) -> Self {
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: Forbidden: {reason}");
        let cause = json!({"reason": "FieldValueForbidden", "message": format!("Forbidden: {reason}"), "field": field});
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

    /// The error of RBAC, with the user, the verb, the resource and the namespace.
    pub(super) fn forbidden(user: &str, verb: Verb, path: &ResourcePath) -> Self {
        let (resource, group) = (path.resource, path.resource.group());
        let full = if path.status { format!("{}/status", resource.plural()) } else { resource.plural().to_owned() };
        // For authorization, the namespace of a Namespace object is its own name.
        let namespace = path.namespace.as_ref().or(path.name.as_ref().filter(|_| !resource.namespaced()));
        let place = match namespace {
            Some(namespace) => format!("in the namespace {namespace:?}"),
            None => "at the cluster scope".to_owned(),
        };
        let verb = verb.as_str();
        let subject = path.name.as_ref().map(|name| format!(" {name:?}")).unwrap_or_default();
        let message = format!(
            "{}{subject} is forbidden: User {user:?} cannot {verb} resource {full:?} in API group {group:?} {place}",
            resource.qualified()
        );
        let details = named(resource, path.name.as_deref().unwrap_or_default());
        Self::new(StatusCode::FORBIDDEN, "Forbidden", &message).details(details)
    }

    /// A list at a revision that does not exist yet.
    pub(super) fn future(requested: Revision, current: Revision) -> Self {
        let message = format!("Timeout: Too large resource version: {requested}, current: {current}");
        let cause = json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"});
        Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", &message)
            .details(json!({"causes": [cause], "retryAfterSeconds": 1}))
    }

    /// A list at a compacted revision.
    pub(super) fn list_expired() -> Self {
        Self::new(StatusCode::GONE, "Expired", "The resourceVersion for the provided list is too old.")
    }

    /// A page of a list at a compacted revision. The token `page` continues at the newest revision instead.
    pub(super) fn page_expired(page: String) -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result. \
            Start a new list, or continue inconsistently with the token in this response.";
        Self { page: Some(page), ..Self::new(StatusCode::GONE, "Expired", message) }
    }

    /// A watch from a revision before the watch window.
    pub(super) fn watch_expired(requested: Revision, window: Revision) -> Self {
        Self::new(StatusCode::GONE, "Expired", &format!("too old resource version: {requested} ({window})"))
    }

    /// An error of the store about an object.
    pub(super) fn from_store(error: &StoreError, resource: ApiResource, name: &str) -> Self {
        let qualified = resource.qualified();
        let details = named(resource, name);
        match error {
            StoreError::NotFound => {
                Self::new(StatusCode::NOT_FOUND, "NotFound", &format!("{qualified} {name:?} not found"))
                    .details(details)
            }
            StoreError::NoNamespace(namespace) => {
                let details = named(ApiResource::Namespaces, namespace);
                Self::new(StatusCode::NOT_FOUND, "NotFound", &format!("namespaces {namespace:?} not found"))
                    .details(details)
            }
            StoreError::Exists => {
                Self::new(StatusCode::CONFLICT, "AlreadyExists", &format!("{qualified} {name:?} already exists"))
                    .details(details)
            }
            StoreError::Conflict => {
                let reason =
                    "the object has been modified; please apply your changes to the latest version and try again";
                let message = format!("Operation cannot be fulfilled on {qualified} {name:?}: {reason}");
                Self::new(StatusCode::CONFLICT, "Conflict", &message).details(details)
            }
            StoreError::Uid(uid) => {
                Self::invalid(resource, name, &format!("metadata.uid: Invalid value: {uid:?}: field is immutable"))
            }
            StoreError::Malformed(reason) => Self::invalid(resource, name, reason),
            StoreError::Compacted(_) => Self::list_expired(),
        }
    }

    /// An object that does not fit its schema.
    pub(super) fn invalid(resource: ApiResource, name: &str, reason: &str) -> Self {
        let kind = match resource.group() {
            "" => resource.kind().to_owned(),
            group => format!("{}.{group}", resource.kind()),
        };
        let mut details = named(resource, name);
        details["kind"] = json!(resource.kind());
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", &format!("{kind} {name:?} is invalid: {reason}"))
            .details(details)
    }

    /// A watch from a version that is not a number. kube-apiserver reports it as an internal error without a reason.
    pub(super) fn bad_watch_version(version: &str) -> Self {
        let message = format!(
            "resourceVersion: Invalid value: {version:?}: strconv.ParseUint: parsing {version:?}: invalid syntax"
        );
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "", &message)
    }

    /// Returns the JSON of the `Status` object.
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

/// Returns the details that identify an object. As in Kubernetes, empty fields are left out.
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
