//! A snapshot: the complete state at one position of the log, and the answers of the snapshot GETs
//! (docs/protocol.md#snapshots).
//!
//! *Guarantees:* an answer contains only objects that the projection includes.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

use super::inventory::Inventory;
use crate::event::{
    Claim, Instance, NamespaceId, PerResource, PoolDepth, Resource, ResourceVersion,
    projection::{Projection, Scope},
};

/// The state at one position of the log.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The watched namespace.
    pub namespace: NamespaceId,
    /// The objects.
    pub inventory: Arc<Inventory>,
    /// The versions of both resources in this state.
    pub versions: PerResource<ResourceVersion>,
    /// The position of the first log entry after this state.
    pub position: u64,
}

/// An instance with two fields of its claim. Only GETs send them (docs/protocol.md#objects).
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceWithActivity<'a> {
    #[serde(flatten)]
    instance: &'a Instance,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_activity: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    claimed_at: Option<&'a str>,
}

/// A tenant and its claims, by name.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tenant<'a> {
    tenant_id: &'a str,
    claims: Vec<&'a Claim>,
}

/// The body of `GET /api/v1/stats`.
#[derive(Debug, Serialize)]
pub struct Stats<'a> {
    instances: PhaseCounts<'a>,
    claims: PhaseCounts<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PhaseCounts<'a> {
    total: u64,
    by_phase: BTreeMap<&'a str, u64>,
}

impl Snapshot {
    /// Returns the instances that the projection includes, by name, with the fields of their claims.
    #[must_use]
    pub fn instances(&self, projection: &Projection) -> Vec<InstanceWithActivity<'_>> {
        let claims = self.claims_by_instance(&projection.scope);
        let included = self.inventory.instances.values().filter(|i| projection.includes_instance(i));
        included.map(|instance| with_activity(instance, claims.get(instance.name.as_str()).copied())).collect()
    }

    /// Returns the claims that the projection includes, grouped by `tenantId`. Claims are in the order of their names.
    #[must_use]
    pub fn tenants(&self, projection: &Projection) -> Vec<Tenant<'_>> {
        let mut tenants: BTreeMap<&str, Vec<&Claim>> = BTreeMap::new();
        for claim in self.included_claims(projection) {
            tenants.entry(&claim.tenant_id).or_default().push(claim);
        }
        tenants.into_iter().map(|(tenant_id, claims)| Tenant { tenant_id, claims }).collect()
    }

    /// Returns the pools that the projection includes, by `workloadRef`.
    #[must_use]
    pub fn pools(&self, projection: &Projection) -> Vec<PoolDepth> {
        self.inventory.pools().into_iter().filter(|pool| projection.includes_pool(&pool.workload_ref)).collect()
    }

    /// Returns the counts by phase of the objects that the projection includes.
    #[must_use]
    pub fn stats(&self, projection: &Projection) -> Stats<'_> {
        let instances = self.inventory.instances.values().filter(|i| projection.includes_instance(i));
        Stats {
            instances: count(instances.map(|i| i.phase.as_str())),
            claims: count(self.included_claims(projection).map(|c| c.phase.as_str())),
        }
    }

    /// Returns the bytes that are charged for holding the objects of a resource: about the bytes of their JSON.
    #[must_use]
    pub fn charged_bytes(&self, resource: Resource) -> usize {
        match resource {
            Resource::Pods => self.inventory.instances.values().map(|instance| instance.charged_bytes()).sum(),
            Resource::Claims => self.inventory.claims.values().map(|claim| claim.charged_bytes()).sum(),
        }
    }

    fn included_claims(&self, projection: &Projection) -> impl Iterator<Item = &Claim> {
        self.inventory.claims.values().filter(|c| projection.includes_claim(c)).map(|c| &**c)
    }

    /// Returns the claim of each instance. An Active claim has precedence, then the newest `claimedAt`. All claims in the
    /// scope count, also those that the filter excludes: a filter on claims selects claims, not the fields of instances.
    fn claims_by_instance(&self, scope: &Scope) -> BTreeMap<&str, &Claim> {
        let mut best: BTreeMap<&str, &Claim> = BTreeMap::new();
        for claim in self.inventory.claims.values().filter(|claim| scope.allows_claim(claim)) {
            let Some(instance) = claim.instance_id.as_deref() else { continue };
            let rank = |claim: &Claim| (claim.is_active(), claim.claimed_at.clone());
            best.entry(instance)
                .and_modify(|current| {
                    if rank(claim) > rank(current) {
                        *current = claim
                    }
                })
                .or_insert(claim);
        }
        best
    }
}

impl InstanceWithActivity<'_> {
    /// Returns the name of the instance.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.instance.name
    }
}

impl Tenant<'_> {
    /// Returns the `tenantId`.
    #[must_use]
    pub fn tenant_id(&self) -> &str {
        self.tenant_id
    }
}

fn with_activity<'a>(instance: &'a Instance, claim: Option<&'a Claim>) -> InstanceWithActivity<'a> {
    InstanceWithActivity {
        instance,
        last_activity: claim.and_then(|claim| claim.last_activity.as_deref()),
        claimed_at: claim.and_then(|claim| claim.claimed_at.as_deref()),
    }
}

fn count<'a>(phases: impl Iterator<Item = &'a str>) -> PhaseCounts<'a> {
    let mut by_phase: BTreeMap<&str, u64> = BTreeMap::new();
    for phase in phases {
        *by_phase.entry(phase).or_default() += 1;
    }
    PhaseCounts { total: by_phase.values().sum(), by_phase }
}
