//! A Kubernetes user, as a TokenReview returns it and a signed token contains it.
//!
//! Must not import: any other module of this crate.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A Kubernetes user: all attributes that the authorizers of a cluster can use.
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
