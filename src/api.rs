//! Kubernetes API types of this project: the `BoilerhouseClaim` custom resource, and the keys of labels and
//! annotations.
//!
//! Owns: no state. `crds/boilerhouseclaims.yaml` is generated from the types.
//!
//! Must not import: other modules of this crate. `source` and `sim` share the types without importing each other.
//!
//! Implements `docs/protocol.md#objects`.

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
