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
    ($filter:ident: $($key:ident $doc:literal),+) => {
        impl $filter {
            /// Returns a filter that selects everything.
            #[must_use]
            pub fn new() -> Self {
                Self::default()
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
    name "The name of the Pod.",
    phase "The phase, for example `Running`.",
    workload_ref "The workload.",
    tenant_id "The tenant.",
    pool_status "The state in the pool: `warming`, `ready` or `acquired`.");
keys!(ClaimFilter:
    name "The name of the claim.",
    phase "The phase, for example `Active`.",
    tenant_id "The tenant.",
    workload_ref "The workload.",
    source "Where the instance came from, for example `pool`.");

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
}
