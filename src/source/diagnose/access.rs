//! The permissions that the bridge needs: the rules of deploy/rbac.yaml.

use crate::api::{GROUP, PLURAL};

/// A permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The verb of RBAC.
    pub verb: &'static str,
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The plural of the resource.
    pub resource: &'static str,
    /// Where it is needed.
    pub place: Place,
}

/// Where a permission is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// For all objects in the watched namespace.
    Namespace,
    /// For the Namespace object itself.
    NamespaceObject,
    /// For the whole cluster.
    Cluster,
}

/// What the bridge needs in its namespace: the rules of deploy/rbac.yaml.
pub const NAMESPACE_ACCESS: [Access; 5] = [
    Access { verb: "list", group: "", resource: "pods", place: Place::Namespace },
    Access { verb: "watch", group: "", resource: "pods", place: Place::Namespace },
    Access { verb: "list", group: GROUP, resource: PLURAL, place: Place::Namespace },
    Access { verb: "watch", group: GROUP, resource: PLURAL, place: Place::Namespace },
    Access { verb: "get", group: "", resource: "namespaces", place: Place::NamespaceObject },
];

/// What the bridge needs for `--token-audience`.
pub const REVIEW_ACCESS: [Access; 2] = [
    Access { verb: "create", group: "authentication.k8s.io", resource: "tokenreviews", place: Place::Cluster },
    Access { verb: "create", group: "authorization.k8s.io", resource: "subjectaccessreviews", place: Place::Cluster },
];
