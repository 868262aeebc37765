//! A metric family with one metric for each watched resource, and the label type for it.
//!
//! Guarantees: both label sets exist from the start, with the value 0. An update takes no lock and no hash lookup.

use std::ops::Index;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::family::Family,
    registry::{Metric, Registry},
};

use crate::event::{PerResource, Resource};

/// The label `resource`: the plural of a watched resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ResourceLabel {
    resource: &'static str,
}

/// One metric for each watched resource.
#[derive(Clone, Debug)]
pub(super) struct ResourceFamily<M> {
    family: Family<ResourceLabel, M, fn() -> M>,
    metrics: PerResource<M>,
}

impl<M: Clone> ResourceFamily<M> {
    /// Creates both metrics with `create`.
    pub(super) fn new(create: fn() -> M) -> ResourceFamily<M> {
        let family = Family::new_with_constructor(create);
        let metrics =
            PerResource::from_fn(|resource| family.get_or_create_owned(&ResourceLabel { resource: resource.plural() }));
        ResourceFamily { family, metrics }
    }

    /// Registers the family under `name`, to which the registry adds its prefix.
    pub(super) fn register(&self, registry: &mut Registry, name: &str, help: &str)
    where
        Family<ResourceLabel, M, fn() -> M>: Metric,
    {
        registry.register(name, help, self.family.clone());
    }
}

impl<M: Clone + Default> Default for ResourceFamily<M> {
    fn default() -> Self {
        ResourceFamily::new(M::default)
    }
}

impl<M> Index<Resource> for ResourceFamily<M> {
    type Output = M;

    fn index(&self, resource: Resource) -> &M {
        &self.metrics[resource]
    }
}
