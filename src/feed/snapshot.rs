//! A snapshot: the whole state as one cut, and what the GETs draw from it.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

use super::inventory::Inventory;
use crate::event::{
    Claim, Instance, NamespaceId, PerResource, PoolDepth, ResourceVersion,
    projection::{Projection, Scope},
};

/// The state at one position of the log.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The namespace it is of.
    pub namespace: NamespaceId,
    /// The objects.
    pub inventory: Arc<Inventory>,
    /// The versions it is true at.
    pub versions: PerResource<ResourceVersion>,
    /// The position of the log that follows it.
    pub position: u64,
}

/// An instance with what only the GETs know: what is joined from its claim (docs/protocol.md#objects).
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

/// Counts for `GET /api/v1/stats`.
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
    /// The instances that the lens shows, by name, joined with their claims.
    #[must_use]
    pub fn instances(&self, projection: &Projection) -> Vec<InstanceWithActivity<'_>> {
        let claims = self.claims_by_instance(&projection.scope);
        let shown = self.inventory.instances.values().filter(|i| projection.includes_instance(i));
        shown.map(|instance| with_activity(instance, claims.get(instance.name.as_str()).copied())).collect()
    }

    /// The tenants with their claims as the lens shows them, by tenantId, claims by name.
    #[must_use]
    pub fn tenants(&self, projection: &Projection) -> Vec<Tenant<'_>> {
        let mut tenants: BTreeMap<&str, Vec<&Claim>> = BTreeMap::new();
        for claim in self.shown_claims(projection) {
            tenants.entry(&claim.tenant_id).or_default().push(claim);
        }
        tenants.into_iter().map(|(tenant_id, claims)| Tenant { tenant_id, claims }).collect()
    }

    /// The pools that the lens shows, by workloadRef.
    #[must_use]
    pub fn pools(&self, projection: &Projection) -> Vec<PoolDepth> {
        self.inventory.pools().into_iter().filter(|pool| projection.includes_pool(&pool.workload_ref)).collect()
    }

    /// Counts by phase of what the lens shows.
    #[must_use]
    pub fn stats(&self, projection: &Projection) -> Stats<'_> {
        let instances = self.inventory.instances.values().filter(|i| projection.includes_instance(i));
        Stats {
            instances: count(instances.map(|i| i.phase.as_str())),
            claims: count(self.shown_claims(projection).map(|c| c.phase.as_str())),
        }
    }

    fn shown_claims(&self, projection: &Projection) -> impl Iterator<Item = &Claim> {
        self.inventory.claims.values().filter(|c| projection.includes_claim(c)).map(|c| &**c)
    }

    /// The claim that speaks for an instance: the Active one, then the newest `claimedAt`. Of all that may be seen: a
    /// filter on claims chooses claims, and says nothing about instances.
    fn claims_by_instance(&self, scope: &Scope) -> BTreeMap<&str, &Claim> {
        let mut best: BTreeMap<&str, &Claim> = BTreeMap::new();
        for claim in self.inventory.claims.values().filter(|claim| scope.allows_claim(claim)) {
            let Some(instance) = claim.instance_id.as_deref() else { continue };
            let rank = |claim: &Claim| (claim.is_active(), claim.claimed_at.clone());
            best.entry(instance)
                .and_modify(|held| {
                    if rank(claim) > rank(held) {
                        *held = claim
                    }
                })
                .or_insert(claim);
        }
        best
    }
}

impl InstanceWithActivity<'_> {
    /// The instance's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.instance.name
    }
}

impl Tenant<'_> {
    /// The tenant.
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
