//! One object at one version: its view by the tables of docs/protocol.md#objects, made from the raw Kubernetes JSON.

use std::sync::Arc;

use boilerhouse_bridge::event::{Resource, ResourceVersion};
use serde_json::{Value, json};

/// An object at one version.
#[derive(Debug, PartialEq)]
pub(crate) struct ExpectedObject {
    pub(crate) resource: Resource,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) version: ResourceVersion,
    /// The view as it is on the wire.
    pub(crate) view: Value,
    /// The object as the API server has it.
    pub(crate) raw: Arc<Value>,
}

impl ExpectedObject {
    /// Returns the object, or `None` if the bridge does not watch it: a Pod without the label of managed Pods.
    pub(crate) fn of(raw: &Arc<Value>) -> Option<Arc<ExpectedObject>> {
        let is_pod = raw["kind"] == "Pod";
        let metadata = &raw["metadata"];
        if is_pod && metadata["labels"]["boilerhouse.dev/managed"] != "true" {
            return None;
        }
        let mut view = if is_pod { pod_view(raw) } else { claim_view(raw) };
        view["labels"] = metadata["labels"].clone();
        let members = view.as_object_mut()?;
        members.retain(|_, value| !is_absent(value));
        let name = metadata["name"].as_str()?.to_owned();
        let uid = metadata["uid"].as_str()?.to_owned();
        members.insert("name".to_owned(), json!(name));
        members.insert("uid".to_owned(), json!(uid));
        let default_phase = if is_pod { "Unknown" } else { "Pending" };
        let phase = raw["status"]["phase"].as_str().filter(|phase| !phase.is_empty()).unwrap_or(default_phase);
        members.insert("phase".to_owned(), json!(phase));
        if !is_pod {
            // These two are required: an object that lacks them has them empty.
            for key in ["tenantId", "workloadRef"] {
                members.entry(key).or_insert_with(|| json!(""));
            }
        }
        let resource = if is_pod { Resource::Pods } else { Resource::Claims };
        let version = metadata["resourceVersion"].as_str()?.parse().ok()?;
        Some(Arc::new(ExpectedObject { resource, name, uid, version, view, raw: raw.clone() }))
    }

    /// Returns a text member of the view, or `None` if it is absent or empty.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.view[key].as_str().filter(|text| !text.is_empty())
    }

    pub(crate) fn phase(&self) -> &str {
        self.view["phase"].as_str().unwrap_or_default()
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.resource == Resource::Pods && self.text("poolStatus") == Some("ready")
    }
}

fn pod_view(raw: &Value) -> Value {
    let label = |key: &str| &raw["metadata"]["labels"][key];
    json!({
        "createdAt": raw["metadata"]["creationTimestamp"], "workloadRef": label("boilerhouse.dev/workload"),
        "tenantId": label("boilerhouse.dev/tenant"), "poolStatus": label("boilerhouse.dev/pool-status"),
        "ip": raw["status"]["podIP"],
    })
}

fn claim_view(raw: &Value) -> Value {
    let (spec, status) = (&raw["spec"], &raw["status"]);
    json!({
        "tenantId": spec["tenantId"], "workloadRef": spec["workloadRef"], "instanceId": status["instanceId"],
        "endpoint": status["endpoint"], "source": status["source"], "claimedAt": status["claimedAt"],
        "detail": status["detail"],
    })
}

/// Whether a member is left out of the view.
fn is_absent(value: &Value) -> bool {
    value.is_null() || value == "" || value.as_object().is_some_and(serde_json::Map::is_empty)
}
