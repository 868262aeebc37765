//! Metric families by watched resource: one metric for each resource, and errors by their reason.
//!
//! Guarantees: all label sets exist from the start, with the value 0. An update of a [`ResourceFamily`] takes no lock and no
//! hash lookup.

use std::ops::Index;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::{Metric, Registry},
};

use super::error::UpstreamError;
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

/// Errors by resource and reason.
#[derive(Clone, Debug)]
pub(super) struct ErrorFamily(Family<ErrorLabels, Counter>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    resource: &'static str,
    reason: &'static str,
}

impl Default for ErrorFamily {
    fn default() -> Self {
        let family = Family::<ErrorLabels, Counter>::default();
        for resource in Resource::ALL.map(Resource::plural) {
            for reason in UpstreamError::LABELS {
                drop(family.get_or_create(&ErrorLabels { resource, reason }));
            }
        }
        ErrorFamily(family)
    }
}

impl ErrorFamily {
    /// Registers the family under `name`, to which the registry adds its prefix.
    pub(super) fn register(&self, registry: &mut Registry, name: &str, help: &str) {
        registry.register(name, help, self.0.clone());
    }

    /// Counts an error.
    pub(super) fn record(&self, resource: Resource, error: &UpstreamError) {
        self.0.get_or_create(&ErrorLabels { resource: resource.plural(), reason: error.label() }).inc();
    }
}
