//! Answers about the API itself: its version, the resource of the claims with its schema, and reviews of the caller's own
//! access. Pure, apart from the state that is passed in.
//!
//! Not implemented: all other discovery documents, and the user of a request. The reviews are about [`Sim::deny`], which is
//! for all users.
//!
//! [`Sim::deny`]: super::Sim::deny

use http::{Method, StatusCode};
use kube::CustomResourceExt as _;
use serde_json::{Value, json};

use super::{handle::SimState, resource::ApiResource};
use crate::api::{BoilerhouseClaim, GROUP, PLURAL, VERSION};

/// Returns the answer for a path of this module, or `None` for another path.
pub(super) fn answer(
    state: &SimState,
    user: &str,
    method: &Method,
    path: &str,
    body: &[u8],
) -> Option<(StatusCode, Value)> {
    let claims = format!("/apis/{GROUP}/{VERSION}");
    match (method.as_str(), path) {
        ("GET", "/version") => Some((StatusCode::OK, version())),
        ("GET", path) if state.crd && path == claims => Some((StatusCode::OK, resources())),
        ("GET", path) if state.crd && path.strip_prefix("/openapi/v3") == Some(&*claims) => {
            Some((StatusCode::OK, schemas()))
        }
        ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews") => {
            let mut review: Value = serde_json::from_slice(body).unwrap_or_default();
            let is_denied = is_denied(state, &review["spec"]["resourceAttributes"]);
            review["status"] = json!({ "allowed": !is_denied });
            Some((StatusCode::CREATED, review))
        }
        ("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews") => {
            let review = json!({
                "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview",
                "status": {"userInfo": {"username": user}},
            });
            Some((StatusCode::CREATED, review))
        }
        _ => None,
    }
}

fn is_denied(state: &SimState, attributes: &Value) -> bool {
    let names = |resource: ApiResource| {
        attributes["resource"] == resource.plural()
            && attributes["group"].as_str().unwrap_or_default() == resource.group()
    };
    state.denied.iter().any(|(verb, resource)| attributes["verb"] == verb.as_str() && names(*resource))
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "gitVersion": "v1.36.0+simulated", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none", "compiler": "none", "platform": "simulated",
    })
}

fn resources() -> Value {
    let verbs = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
    let claims = json!({
        "name": PLURAL, "singularName": "boilerhouseclaim", "namespaced": true, "kind": "BoilerhouseClaim", "verbs": verbs,
    });
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{GROUP}/{VERSION}"), "resources": [claims],
    })
}

fn schemas() -> Value {
    let definition = json!(BoilerhouseClaim::crd());
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    json!({"openapi": "3.0.0", "components": {"schemas": {"dev.boilerhouse.v1alpha1.BoilerhouseClaim": schema}}})
}
