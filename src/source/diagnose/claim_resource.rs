//! What the API server says about the resource of the claims, compared with what the bridge reads. Pure.

use serde_json::Value;

use crate::api::PLURAL;

/// The fields of a claim that the bridge reads, with their JSON type, and whether the bridge needs them.
const CLAIM_FIELDS: [(&[&str], &str, bool); 10] = [
    (&["spec", "tenantId"], "string", true),
    (&["spec", "workloadRef"], "string", true),
    (&["status", "phase"], "string", true),
    (&["status", "instanceId"], "string", true),
    (&["status", "endpoint"], "object", false),
    (&["status", "endpoint", "host"], "string", false),
    (&["status", "endpoint", "port"], "integer", false),
    (&["status", "source"], "string", false),
    (&["status", "claimedAt"], "string", false),
    (&["status", "detail"], "string", false),
];

/// The CRD of the claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimResource {
    /// What a bridge cannot work with, such as a missing verb.
    pub errors: Vec<String>,
    /// Fields that differ from those that the bridge reads. `None` if the schema cannot be read.
    pub differences: Option<Vec<String>>,
}

/// Returns what is wrong with the resource of the claims in an APIResourceList. `None` if it is not in the list.
pub(super) fn resource_errors(list: &Value) -> Option<Vec<String>> {
    let resources = list["resources"].as_array()?;
    let claims = resources.iter().find(|resource| resource["name"] == PLURAL)?;
    let mut errors = Vec::new();
    if claims["namespaced"] != true {
        errors.push("the resource is not namespaced".to_owned());
    }
    for verb in ["list", "watch"] {
        if !claims["verbs"].as_array().is_some_and(|verbs| verbs.iter().any(|other| other == verb)) {
            errors.push(format!("the resource has no verb {verb}"));
        }
    }
    Some(errors)
}

/// Compares the schema of the claims in an OpenAPI document with the fields that the bridge reads. `None` if the document
/// has no such schema.
pub(super) fn schema_differences(document: &Value) -> Option<Vec<String>> {
    let schemas = document["components"]["schemas"].as_object()?;
    let (_, claim) = schemas.iter().find(|(name, _)| name.ends_with(".BoilerhouseClaim"))?;
    let mut differences = Vec::new();
    for (path, expected, is_needed) in CLAIM_FIELDS {
        let field = path.iter().try_fold(claim, |schema, name| match &schema["properties"][name] {
            Value::Null if schema["x-kubernetes-preserve-unknown-fields"] == true => Err(true),
            Value::Null => Err(false),
            property => Ok(property),
        });
        let path = path.join(".");
        match field {
            Ok(field) if field["type"].is_string() && field["type"] != expected => {
                let found = field["type"].as_str().unwrap_or_default();
                differences.push(format!("{path} is of type {found}, not {expected}"));
            }
            Err(false) if is_needed => differences.push(format!("{path} is missing")),
            // A field without a type, and one in a part that keeps unknown fields, can be anything.
            Ok(_) | Err(_) => {}
        }
    }
    Some(differences)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::BoilerhouseClaim;

    fn document(claim: &Value) -> Value {
        json!({"components": {"schemas": {"dev.boilerhouse.v1alpha1.BoilerhouseClaim": claim}}})
    }

    #[test]
    fn schema_of_this_project_has_no_differences_and_others_are_named() {
        let crd = serde_json::to_value(<BoilerhouseClaim as kube::CustomResourceExt>::crd()).unwrap();
        let own = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        assert_eq!(schema_differences(&document(own)), Some(vec![]));

        let mut other = own.clone();
        other["properties"]["spec"]["properties"]["tenantId"]["type"] = json!("integer");
        other["properties"]["status"]["properties"].as_object_mut().unwrap().remove("phase");
        other["properties"]["status"]["properties"].as_object_mut().unwrap().remove("detail");
        let expected = ["spec.tenantId is of type integer, not string", "status.phase is missing"];
        assert_eq!(schema_differences(&document(&other)), Some(expected.map(str::to_owned).to_vec()));

        let open = json!({"properties": {
            "spec": {"x-kubernetes-preserve-unknown-fields": true},
            "status": {"x-kubernetes-preserve-unknown-fields": true},
        }});
        assert_eq!(schema_differences(&document(&open)), Some(vec![]));
        assert_eq!(schema_differences(&json!({})), None);
    }

    #[test]
    fn resource_of_claims_needs_its_verbs() {
        let list = |claims: Value| json!({"resources": [{"name": "others"}, claims]});
        let whole = json!({"name": PLURAL, "namespaced": true, "verbs": ["get", "list", "watch"]});
        assert_eq!(resource_errors(&list(whole)), Some(vec![]));
        let cluster = json!({"name": PLURAL, "namespaced": false, "verbs": ["list"]});
        let errors = ["the resource is not namespaced", "the resource has no verb watch"];
        assert_eq!(resource_errors(&list(cluster)), Some(errors.map(str::to_owned).to_vec()));
        assert_eq!(resource_errors(&list(json!({"name": "x"}))), None);
    }
}
