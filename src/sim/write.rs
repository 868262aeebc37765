//! Writes over HTTP: create, update, merge patch and delete, with the rules of the status subresource, of graceful
//! deletion and of the claims' schema.
//!
//! Left out: finalizers, server-side apply, JSON and strategic patches, defaulting of Pod specs, dry runs (refused
//! or absent, never pretended).

use http::{StatusCode, header};
use serde_json::{Value, json};

use super::path::ResourcePath;
use super::resource::ApiResource;
use super::status::StatusError;
use super::store::{self, Refused, Store};
use crate::api::BoilerhouseClaim;

/// How long a Pod is given to end where nothing says otherwise, in seconds.
const DEFAULT_GRACE_SECONDS: i64 = 30;

const WRONG_NAMESPACE: &str = "the namespace of the provided object does not match the namespace sent on the request";

/// `POST`: 201 and the new object.
pub(super) fn create(store: &mut Store, target: &ResourcePath, body: &[u8]) -> Result<Value, StatusError> {
    let resource = target.resource;
    let mut object = parse(body)?;
    let namespace = target.namespace.clone().unwrap_or_default();
    match object["metadata"]["namespace"].as_str() {
        Some(other) if other != namespace => return Err(StatusError::bad_request(WRONG_NAMESPACE)),
        _ if resource.namespaced() => object["metadata"]["namespace"] = json!(namespace),
        _ => {}
    }
    if let (None, Some(prefix)) = (object["metadata"]["name"].as_str(), object["metadata"]["generateName"].as_str()) {
        object["metadata"]["name"] = json!(format!("{prefix}{:05x}", store.revision() & 0xf_ffff));
    }
    for given in ["uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "generation"] {
        object["metadata"].as_object_mut().map(|metadata| metadata.remove(given));
    }
    match resource {
        // Status is the kubelet's and the operator's: at creation it is not taken from the writer.
        ApiResource::Pods => object["status"] = json!({"phase": "Pending", "qosClass": "BestEffort"}),
        ApiResource::Claims => drop(object.as_object_mut().and_then(|object| object.remove("status"))),
        ApiResource::Namespaces => object["status"] = json!({"phase": "Active"}),
        // Answered, not kept: `review`.
        ApiResource::TokenReviews | ApiResource::AccessReviews => {}
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    validate_schema(resource, &name, &mut object)?;
    let created = store.create(resource, object);
    created.map(|object| (*object).clone()).map_err(|refused| StatusError::refused(&refused, resource, &name))
}

/// `PUT` and `PATCH`: 200 and the object as it is then.
pub(super) fn change(
    store: &mut Store,
    target: &ResourcePath,
    headers: &http::HeaderMap,
    replace: bool,
    body: &[u8],
) -> Result<Value, StatusError> {
    let (resource, name, namespace) = (target.resource, name_of(target), target.namespace.as_deref());
    let namespace = namespace.unwrap_or_default();
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !replace && !content_type.starts_with("application/merge-patch+json") {
        let message = "the simulated API applies only application/merge-patch+json";
        return Err(StatusError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message));
    }
    let sent = parse(body)?;
    let before = store.get(resource, namespace, name);
    let before = before.ok_or_else(|| StatusError::refused(&Refused::NotFound, resource, name))?;
    let mut after = (*before).clone();
    if replace {
        if resource == ApiResource::Claims && sent["metadata"]["resourceVersion"].as_str().is_none_or(str::is_empty) {
            let why = "metadata.resourceVersion: Invalid value: 0: must be specified for an update";
            return Err(StatusError::invalid(resource, name, why));
        }
        after = sent;
    } else {
        store::merge(&mut after, &sent);
    }
    if let Some(other) = after["metadata"]["name"].as_str().filter(|other| *other != name) {
        let why = format!("the name of the object ({other}) does not match the name on the URL ({name})");
        return Err(StatusError::bad_request(&why));
    }
    preserve_other_subresource(target, &before, &mut after);
    validate_schema(resource, name, &mut after)?;
    let changed = store.modify(resource, namespace, name, |object| *object = after);
    changed.map(|object| (*object).clone()).map_err(|refused| StatusError::refused(&refused, resource, name))
}

/// `DELETE`: 200 and the Pod, or a Status for what is gone at once.
pub(super) fn delete(store: &mut Store, target: &ResourcePath, body: &[u8]) -> Result<Value, StatusError> {
    let (resource, name) = (target.resource, name_of(target));
    let namespace = target.namespace.clone().unwrap_or_default();
    if resource == ApiResource::Namespaces {
        return Err(StatusError::no_such_method());
    }
    let options = if body.is_empty() { json!({}) } else { parse(body)? };
    let refused = |refused: Refused| StatusError::refused(&refused, resource, name);
    let before = store.get(resource, &namespace, name).ok_or_else(|| refused(Refused::NotFound))?;
    for field in ["uid", "resourceVersion"] {
        let wanted = &options["preconditions"][field];
        if !wanted.is_null() && *wanted != before["metadata"][field] {
            return Err(refused(Refused::Conflict));
        }
    }
    if resource == ApiResource::Pods {
        let Some(grace) = grace_seconds(&before, options["gracePeriodSeconds"].as_i64()) else {
            return Ok((*before).clone());
        };
        let dying = store.terminate(resource, &namespace, name, grace).map_err(refused)?;
        if grace == 0 {
            store.delete(resource, &namespace, name).map_err(refused)?;
        }
        return Ok((*dying).clone());
    }
    store.delete(resource, &namespace, name).map_err(refused)?;
    let uid = &before["metadata"]["uid"];
    let details = json!({"name": name, "group": resource.group(), "kind": resource.plural(), "uid": uid});
    Ok(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}))
}

/// The grace period in seconds that a delete writes into a Pod; `None` where the Pod is already dying as fast as asked.
/// Pods that nobody runs, or that have ended, get none.
fn grace_seconds(pod: &Value, asked: Option<i64>) -> Option<u32> {
    let asked = asked.map(|seconds| if seconds < 0 { 1 } else { seconds });
    if let Some(current) = pod["metadata"]["deletionGracePeriodSeconds"].as_i64() {
        return asked.filter(|asked| *asked < current || current == 0).and_then(|asked| asked.try_into().ok());
    }
    let running = pod["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty())
        && !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let specified = pod["spec"]["terminationGracePeriodSeconds"].as_i64();
    let seconds = if running { asked.or(specified).unwrap_or(DEFAULT_GRACE_SECONDS) } else { 0 };
    Some(u32::try_from(seconds).unwrap_or(0))
}

/// A write to the object leaves its status alone, a write to its status leaves the rest alone.
fn preserve_other_subresource(target: &ResourcePath, before: &Value, after: &mut Value) {
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        restore(&before["metadata"], &mut after["metadata"], field);
    }
    if !target.status {
        restore(before, after, "status");
        return;
    }
    restore(before, after, "spec");
    if target.resource == ApiResource::Claims {
        // The version stays as sent: it is the writer's precondition.
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

/// Holds a claim against its schema; fields that the schema does not know are pruned.
fn validate_schema(resource: ApiResource, name: &str, object: &mut Value) -> Result<(), StatusError> {
    if resource != ApiResource::Claims {
        return Ok(());
    }
    let mut bare = json!({"apiVersion": resource.api_version(), "kind": resource.kind(), "metadata": {}});
    for field in ["spec", "status"] {
        if let Some(value) = object.get(field) {
            bare[field] = value.clone();
        }
    }
    let invalid = |error: serde_json::Error| StatusError::invalid(resource, name, &error.to_string());
    let claim: BoilerhouseClaim = serde_json::from_value(bare).map_err(invalid)?;
    object["spec"] = serde_json::to_value(&claim.spec).map_err(invalid)?;
    if let Some(status) = &claim.status {
        object["status"] = serde_json::to_value(status).map_err(invalid)?;
    }
    Ok(())
}

pub(super) fn parse(body: &[u8]) -> Result<Value, StatusError> {
    let object: Value = serde_json::from_slice(body).map_err(|error| StatusError::bad_request(&error.to_string()))?;
    let well_formed = object.is_object() && matches!(object.get("metadata"), None | Some(Value::Object(_)));
    if well_formed { Ok(object) } else { Err(StatusError::bad_request("the body is not an object with metadata")) }
}

fn name_of(target: &ResourcePath) -> &str {
    target.name.as_deref().unwrap_or_default()
}
