//! What the clients of the histories ask for.

use boilerhouse_bridge::event::Resource;
use boilerhouse_bridge::event::projection::{EventFormat, EventTypes, Filter, Projection, Scope};

use crate::oracle::visibility::ExpectedProjection;

const TENANT: &str = "labels.boilerhouse.dev/tenant";

/// The projections of the clients.
pub(super) const PROJECTIONS: [ExpectedProjection; 11] = [
    ExpectedProjection::EVERYTHING,
    ExpectedProjection { types: None, conditions: &[(Resource::Pods, "phase", Some("Running"))] },
    ExpectedProjection {
        types: None,
        conditions: &[(Resource::Pods, "tenantId", Some("alice")), (Resource::Claims, "phase", Some("Active"))],
    },
    ExpectedProjection { types: None, conditions: &[(Resource::Pods, "poolStatus", Some("ready"))] },
    ExpectedProjection { types: Some("claim"), conditions: &[] },
    ExpectedProjection {
        types: Some("instance,pool.instance.ready,claim,tenant"),
        conditions: &[(Resource::Pods, TENANT, None)],
    },
    ExpectedProjection {
        types: Some("instance,claim,tenant"),
        conditions: &[(Resource::Pods, "name", Some("p1")), (Resource::Claims, "source", Some("pool"))],
    },
    ExpectedProjection { types: Some("instance.state,pool"), conditions: &[(Resource::Pods, TENANT, Some("bob"))] },
    ExpectedProjection {
        types: Some("pool.instance.ready,tenant"),
        conditions: &[(Resource::Claims, "phase", Some("Released"))],
    },
    ExpectedProjection {
        types: None,
        conditions: &[(Resource::Pods, "phase", Some("Nowhere")), (Resource::Claims, "workloadRef", Some("nothing"))],
    },
    ExpectedProjection { types: Some("claim,tenant"), conditions: &[] },
];

/// The product's projection for an expected one.
pub(crate) fn to_projection(expected: &ExpectedProjection) -> Projection {
    let mut filter = Filter::default();
    for (resource, key, value) in expected.conditions {
        let object = if *resource == Resource::Pods { &mut filter.instances } else { &mut filter.claims };
        let value = value.map(str::to_owned);
        match *key {
            "name" => object.name = value,
            "phase" => object.phase = value,
            "workloadRef" => object.workload_ref = value,
            "tenantId" => object.tenant_id = value,
            "poolStatus" => object.pool_status = value,
            "source" => object.source = value,
            label => drop(object.labels.insert(label.strip_prefix("labels.").unwrap().to_owned(), value)),
        }
    }
    let types = expected
        .types
        .map_or_else(|| EventTypes::all(EventFormat::Full), |list| EventTypes::parse(list, EventFormat::Full).unwrap());
    Projection { scope: Scope::All, filter, types, format: EventFormat::Full }
}
