//! Filters of a stream, and the query of its URL (docs/protocol.md#filters).

use std::collections::BTreeMap;

use serde::Serialize;

/// Which instances the stream contains. All keys must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceFilter {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload_ref: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool_status: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, Option<String>>,
}

/// Which claims the stream contains. All keys must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimFilter {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload_ref: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, Option<String>>,
}

/// Defines one method for each key of a filter.
macro_rules! keys {
    ($filter:ident: $($key:ident $name:literal $doc:literal),+) => {
        impl $filter {
            /// The keys as they are in JSON, without those of labels (`labels.KEY`).
            pub const KEYS: &[&str] = &[$($name),+];

            /// Returns a filter that selects everything.
            #[must_use]
            pub fn new() -> Self {
                Self::default()
            }

            /// Sets a key by its name: one of [`Self::KEYS`] to a value, or `labels.KEY` to a value or to `None`, which means
            /// that the label exists. Returns `None` for another key, and for a key that needs a value.
            #[must_use]
            pub fn with(self, key: &str, value: Option<&str>) -> Option<Self> {
                match (key.strip_prefix("labels."), key, value) {
                    (Some(label), _, Some(value)) => Some(self.label(label, value)),
                    (Some(label), _, None) => Some(self.has_label(label)),
                    $((None, $name, Some(value)) => Some(self.$key(value)),)+
                    _ => None,
                }
            }

            $(
                #[doc = $doc]
                #[must_use]
                pub fn $key(mut self, value: impl Into<String>) -> Self {
                    self.$key = Some(value.into());
                    self
                }
            )+

            /// The label must have this value.
            #[must_use]
            pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
                self.labels.insert(key.into(), Some(value.into()));
                self
            }

            /// The label must exist.
            #[must_use]
            pub fn has_label(mut self, key: impl Into<String>) -> Self {
                self.labels.insert(key.into(), None);
                self
            }

            pub(super) fn is_empty(&self) -> bool {
                *self == Self::default()
            }
        }
    };
}

keys!(InstanceFilter:
    name "name" "The name of the Pod.",
    phase "phase" "The phase, for example `Running`.",
    workload_ref "workloadRef" "The workload.",
    tenant_id "tenantId" "The tenant.",
    pool_status "poolStatus" "The state in the pool: `warming`, `ready` or `acquired`.");
keys!(ClaimFilter:
    name "name" "The name of the claim.",
    phase "phase" "The phase, for example `Active`.",
    tenant_id "tenantId" "The tenant.",
    workload_ref "workloadRef" "The workload.",
    source "source" "Where the instance came from, for example `pool`.");

/// Returns the value of the parameter `params`, or `None` if everything is selected.
pub(super) fn params(instances: &InstanceFilter, claims: &ClaimFilter) -> Option<String> {
    #[derive(Serialize)]
    struct Params<'a> {
        #[serde(skip_serializing_if = "InstanceFilter::is_empty")]
        instances: &'a InstanceFilter,
        #[serde(skip_serializing_if = "ClaimFilter::is_empty")]
        claims: &'a ClaimFilter,
    }
    let has_filter = !(instances.is_empty() && claims.is_empty());
    has_filter.then(|| serde_json::to_string(&Params { instances, claims }).expect("filters have string keys only"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_become_the_json_of_the_protocol() {
        let instances = InstanceFilter::new().phase("Running").workload_ref("web").label("team", "a").has_label("x");
        let claims = ClaimFilter::new().tenant_id("alice");
        assert_eq!(
            params(&instances, &claims).unwrap(),
            r#"{"instances":{"phase":"Running","workloadRef":"web","labels":{"team":"a","x":null}},"claims":{"tenantId":"alice"}}"#
        );
        assert_eq!(params(&InstanceFilter::new(), &claims).unwrap(), r#"{"claims":{"tenantId":"alice"}}"#);
        assert_eq!(params(&InstanceFilter::new(), &ClaimFilter::new()), None);
    }

    /// Each key by its name is the JSON key of that name.
    #[test]
    fn keys_have_the_names_of_the_json() {
        for key in InstanceFilter::KEYS {
            let filter = InstanceFilter::new().with(key, Some("v")).unwrap();
            assert_eq!(serde_json::to_string(&filter).unwrap(), format!(r#"{{"{key}":"v"}}"#));
        }
        for key in ClaimFilter::KEYS {
            let filter = ClaimFilter::new().with(key, Some("v")).unwrap();
            assert_eq!(serde_json::to_string(&filter).unwrap(), format!(r#"{{"{key}":"v"}}"#));
        }
        assert_eq!(ClaimFilter::new().with("labels.a", None), Some(ClaimFilter::new().has_label("a")));
        assert_eq!((ClaimFilter::new().with("name", None), ClaimFilter::new().with("other", Some("v"))), (None, None));
    }
}
