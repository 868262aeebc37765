//! The Kubernetes user of a TokenReview.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A Kubernetes user: all that the cluster's authorizers may look at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct KubernetesUser {
    /// `status.user.username` of a TokenReview.
    pub name: String,
    /// `status.user.uid`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// `status.user.groups`.
    pub groups: Vec<String>,
    /// `status.user.extra`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}
