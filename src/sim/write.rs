//! Writes over HTTP: create, update, merge patch and delete, with the rules of the status subresource, of graceful
//! deletion and of the claims' schema.
//!
//! Not implemented: finalizers, server-side apply, JSON and strategic patches, defaults of Pod specs, dry runs. The API
//! rejects or does not have them. It never reports success for them.

use http::{StatusCode, header};
use serde_json::{Value, json};

use super::path::ResourcePath;
use super::resource::ApiResource;
use super::status::StatusError;
use super::store::{self, Store, StoreError};
use crate::api::BoilerhouseClaim;

/// Grace period of a Pod in seconds if neither the request nor the Pod contains one.
const DEFAULT_GRACE_SECONDS: i64 = 30;

const WRONG_NAMESPACE: &str = "the namespace of the provided object does not match the namespace sent on the request";

/// Handles `POST`. Returns the new object, for an answer with 201.
pub(super) fn create(store: &mut Store, path: &ResourcePath, body: &[u8]) -> Result<Value, StatusError> {
    let resource = path.resource;
    let mut object = parse(body)?;
    let namespace = path.namespace.clone().unwrap_or_default();
    match object["metadata"]["namespace"].as_str() {
        Some(other) if other != namespace => return Err(StatusError::bad_request(WRONG_NAMESPACE)),
        _ if resource.namespaced() => object["metadata"]["namespace"] = json!(namespace),
        _ => {}
    }
    if let (None, Some(prefix)) = (object["metadata"]["name"].as_str(), object["metadata"]["generateName"].as_str()) {
        object["metadata"]["name"] = json!(format!("{prefix}{:05x}", store.revision() & 0xf_ffff));
    }
    for field in ["uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "generation"] {
        object["metadata"].as_object_mut().map(|metadata| metadata.remove(field));
    }
    match resource {
        // Only kubelet and operator write the status. A status in the request is ignored at creation.
        ApiResource::Pods => object["status"] = json!({"phase": "Pending", "qosClass": "BestEffort"}),
        ApiResource::Claims => drop(object.as_object_mut().and_then(|object| object.remove("status"))),
        ApiResource::Namespaces => object["status"] = json!({"phase": "Active"}),
        // `review` answers them. They are not stored.
        ApiResource::TokenReviews | ApiResource::AccessReviews => {}
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    validate_schema(resource, &name, &mut object)?;
    let created = store.create(resource, object);
    created.map(|object| (*object).clone()).map_err(|error| StatusError::from_store(&error, resource, &name))
}

/// Handles `PUT` and `PATCH`. Returns the changed object, for an answer with 200.
pub(super) fn change(
    store: &mut Store,
    path: &ResourcePath,
    headers: &http::HeaderMap,
    replace: bool,
    body: &[u8],
) -> Result<Value, StatusError> {
    let (resource, name, namespace) = (path.resource, name_of(path), path.namespace.as_deref());
    let namespace = namespace.unwrap_or_default();
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !replace && !content_type.starts_with("application/merge-patch+json") {
        let message = "the simulated API applies only application/merge-patch+json";
        return Err(StatusError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message));
    }
    let received = parse(body)?;
    let before = store.get(resource, namespace, name);
    let before = before.ok_or_else(|| StatusError::from_store(&StoreError::NotFound, resource, name))?;
    let mut after = (*before).clone();
    if replace {
        let version = received["metadata"]["resourceVersion"].as_str();
        if resource == ApiResource::Claims && version.is_none_or(str::is_empty) {
            let reason = "metadata.resourceVersion: Invalid value: 0: must be specified for an update";
            return Err(StatusError::invalid(resource, name, reason));
        }
        after = received;
    } else {
        store::merge(&mut after, &received);
    }
    if let Some(other) = after["metadata"]["name"].as_str().filter(|other| *other != name) {
        let message = format!("the name of the object ({other}) does not match the name on the URL ({name})");
        return Err(StatusError::bad_request(&message));
    }
    preserve_other_subresource(path, &before, &mut after);
    validate_schema(resource, name, &mut after)?;
    let changed = store.modify(resource, namespace, name, |object| *object = after);
    changed.map(|object| (*object).clone()).map_err(|error| StatusError::from_store(&error, resource, name))
}

/// Handles `DELETE`. Returns the Pod, or a Status for an object that is deleted immediately, for an answer with 200.
pub(super) fn delete(store: &mut Store, path: &ResourcePath, body: &[u8]) -> Result<Value, StatusError> {
    let (resource, name) = (path.resource, name_of(path));
    let namespace = path.namespace.clone().unwrap_or_default();
    if resource == ApiResource::Namespaces {
        return Err(StatusError::no_such_method());
    }
    let options = if body.is_empty() { json!({}) } else { parse(body)? };
    let to_status = |error: StoreError| StatusError::from_store(&error, resource, name);
    let before = store.get(resource, &namespace, name).ok_or_else(|| to_status(StoreError::NotFound))?;
    for field in ["uid", "resourceVersion"] {
        let precondition = &options["preconditions"][field];
        if !precondition.is_null() && *precondition != before["metadata"][field] {
            return Err(to_status(StoreError::Conflict));
        }
    }
    if resource == ApiResource::Pods {
        let Some(grace) = grace_seconds(&before, options["gracePeriodSeconds"].as_i64()) else {
            return Ok((*before).clone());
        };
        let terminating = store.terminate(resource, &namespace, name, grace).map_err(to_status)?;
        if grace == 0 {
            store.delete(resource, &namespace, name).map_err(to_status)?;
        }
        return Ok((*terminating).clone());
    }
    store.delete(resource, &namespace, name).map_err(to_status)?;
    let uid = &before["metadata"]["uid"];
    let details = json!({"name": name, "group": resource.group(), "kind": resource.plural(), "uid": uid});
    Ok(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}))
}

/// Returns the grace period in seconds that a delete writes into a Pod. Returns `None` if the Pod is terminating
/// already and the request does not shorten it. The grace period is 0 for a Pod that has no node or has ended.
fn grace_seconds(pod: &Value, requested: Option<i64>) -> Option<u32> {
    let requested = requested.map(|seconds| if seconds < 0 { 1 } else { seconds });
    if let Some(current) = pod["metadata"]["deletionGracePeriodSeconds"].as_i64() {
        return requested
            .filter(|seconds| *seconds < current || current == 0)
            .and_then(|seconds| seconds.try_into().ok());
    }
    let running = pod["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty())
        && !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let specified = pod["spec"]["terminationGracePeriodSeconds"].as_i64();
    let seconds = if running { requested.or(specified).unwrap_or(DEFAULT_GRACE_SECONDS) } else { 0 };
    Some(u32::try_from(seconds).unwrap_or(0))
}

/// Restores the fields that a write must not change: the status in a write to the object, and all other fields in a
/// write to the status.
fn preserve_other_subresource(path: &ResourcePath, before: &Value, after: &mut Value) {
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        restore(&before["metadata"], &mut after["metadata"], field);
    }
    if !path.status {
        restore(before, after, "status");
        return;
    }
    restore(before, after, "spec");
    if path.resource == ApiResource::Claims {
        // The version of the request is kept, because it is the precondition of the write.
        let version = after["metadata"]["resourceVersion"].take();
        restore(before, after, "metadata");
        after["metadata"]["resourceVersion"] = version;
    }
}

fn restore(before: &Value, after: &mut Value, field: &str) {
    match before.get(field) {
        Some(old) => after[field] = old.clone(),
        None => drop(after.as_object_mut().and_then(|after| after.remove(field))),
    }
}

/// Validates a claim against its schema, and removes the fields that the schema does not have.
fn validate_schema(resource: ApiResource, name: &str, object: &mut Value) -> Result<(), StatusError> {
    if resource != ApiResource::Claims {
        return Ok(());
    }
    let mut without_metadata = json!({"apiVersion": resource.api_version(), "kind": resource.kind(), "metadata": {}});
    for field in ["spec", "status"] {
        if let Some(value) = object.get(field) {
            without_metadata[field] = value.clone();
        }
    }
    let invalid = |error: serde_json::Error| StatusError::invalid(resource, name, &error.to_string());
    let claim: BoilerhouseClaim = serde_json::from_value(without_metadata).map_err(invalid)?;
    object["spec"] = serde_json::to_value(&claim.spec).map_err(invalid)?;
    if let Some(status) = &claim.status {
        object["status"] = serde_json::to_value(status).map_err(invalid)?;
    }
    Ok(())
}

/// Parses the body of a request as an object.
pub(super) fn parse(body: &[u8]) -> Result<Value, StatusError> {
    let object: Value = serde_json::from_slice(body).map_err(|error| StatusError::bad_request(&error.to_string()))?;
    let well_formed = object.is_object() && matches!(object.get("metadata"), None | Some(Value::Object(_)));
    if well_formed { Ok(object) } else { Err(StatusError::bad_request("the body is not an object with metadata")) }
}

fn name_of(path: &ResourcePath) -> &str {
    path.name.as_deref().unwrap_or_default()
}
