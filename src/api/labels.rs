//! The label and annotation keys that Boilerhouse sets on its objects.

/// Label selector of the Pods that Boilerhouse manages.
pub const MANAGED_SELECTOR: &str = "boilerhouse.dev/managed=true";
/// Label key: `true` on the Pods that Boilerhouse manages.
pub const LABEL_MANAGED: &str = "boilerhouse.dev/managed";
/// Label key: the workload of an instance.
pub const LABEL_WORKLOAD: &str = "boilerhouse.dev/workload";
/// Label key: the tenant of an instance.
pub const LABEL_TENANT: &str = "boilerhouse.dev/tenant";
/// Label key: `warming`, `ready` or `acquired`.
pub const LABEL_POOL_STATUS: &str = "boilerhouse.dev/pool-status";
/// Annotation key: when the tenant of a claim was last active.
pub const ANNOTATION_LAST_ACTIVITY: &str = "boilerhouse.dev/last-activity";
