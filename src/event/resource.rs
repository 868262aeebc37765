//! The two watched Kubernetes resources and values that exist once for each of them.

use std::ops::{Index, IndexMut};

use serde::Serialize;

/// A Kubernetes resourceVersion. Versions of one resource are comparable, versions of two resources are not (KEP-5504).
pub type ResourceVersion = u64;

/// A watched Kubernetes resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// Pods with the label `boilerhouse.dev/managed=true`.
    Pods = 0,
    /// BoilerhouseClaims.
    Claims = 1,
}

impl Resource {
    /// Both resources, in the order in which [`PerResource`] stores their values.
    pub const ALL: [Resource; 2] = [Resource::Pods, Resource::Claims];

    /// Returns the plural of the resource as Kubernetes spells it. Logs, metrics and `upstream.*` events use it.
    #[must_use]
    pub fn plural(self) -> &'static str {
        match self {
            Resource::Pods => "pods",
            Resource::Claims => "boilerhouseclaims",
        }
    }
}

/// One value for each watched resource.
///
/// It has the layout of `[T; 2]` and serializes as that array, Pods first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct PerResource<T>([T; 2]);

impl<T> PerResource<T> {
    /// Creates it from the value for Pods and the value for claims.
    #[must_use]
    pub const fn new(pods: T, claims: T) -> PerResource<T> {
        PerResource([pods, claims])
    }

    /// Creates it from the results of `value` for both resources, called in the order of [`Resource::ALL`].
    #[must_use]
    pub fn from_fn(value: impl FnMut(Resource) -> T) -> PerResource<T> {
        PerResource(Resource::ALL.map(value))
    }

    /// Applies `convert` to both values, in the order of [`Resource::ALL`].
    #[must_use]
    pub fn map<U>(self, convert: impl FnMut(T) -> U) -> PerResource<U> {
        PerResource(self.0.map(convert))
    }

    /// Returns both values, in the order of [`Resource::ALL`].
    #[must_use]
    pub fn into_array(self) -> [T; 2] {
        self.0
    }

    /// Iterates over both values, in the order of [`Resource::ALL`].
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    /// Iterates over both values, in the order of [`Resource::ALL`], and allows to change them.
    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, T> {
        self.0.iter_mut()
    }
}

impl<T> Index<Resource> for PerResource<T> {
    type Output = T;

    #[inline]
    fn index(&self, resource: Resource) -> &T {
        &self.0[resource as usize]
    }
}

impl<T> IndexMut<Resource> for PerResource<T> {
    #[inline]
    fn index_mut(&mut self, resource: Resource) -> &mut T {
        &mut self.0[resource as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn per_resource_is_an_array_in_memory_and_in_json() {
        let mut versions = PerResource::new(1_u64, 2);
        versions[Resource::Claims] += 1;
        assert_eq!((versions[Resource::Pods], versions[Resource::Claims]), (1, 3));
        assert_eq!(versions, PerResource::from_fn(|resource| if resource == Resource::Pods { 1 } else { 3 }));
        assert_eq!(versions.map(|version| version * 10).into_array(), [10, 30]);
        assert_eq!(serde_json::to_string(&versions).unwrap(), "[1,3]");
        assert_eq!(size_of_val(&versions), size_of::<[u64; 2]>());
    }
}
