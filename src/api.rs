//! Kubernetes API types of this project: the `BoilerhouseClaim` custom resource and the label keys.
//!
//! It imports no other module of this crate, so that `source` and `sim` share the types without importing each other.

mod claim;
mod labels;

pub use self::{
    claim::{
        BoilerhouseClaim, BoilerhouseClaimSpec, BoilerhouseClaimStatus, ClaimPhase, ClaimSource, Endpoint, GROUP,
        PLURAL, VERSION, crd_yaml,
    },
    labels::{
        ANNOTATION_LAST_ACTIVITY, LABEL_MANAGED, LABEL_POOL_STATUS, LABEL_TENANT, LABEL_WORKLOAD, MANAGED_SELECTOR,
    },
};
