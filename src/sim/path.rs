//! The path of a request: URL → resource, namespace, name and verb, as kube-apiserver parses it. Pure.

use http::Method;

use super::resource::{ApiResource, Verb};

/// The parts of a path of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ResourcePath {
    pub(super) resource: ApiResource,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    /// Whether the path ends with the subresource `status`.
    pub(super) status: bool,
}

impl ResourcePath {
    /// Parses a path. Returns `None` if the simulated API serves no resource there.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some((*namespace).to_owned()), rest),
            _ => (None, rest),
        };
        let (plural, name, status) = match rest {
            [plural] => (plural, None, false),
            [plural, name] => (plural, Some((*name).to_owned()), false),
            [plural, name, "status"] => (plural, Some((*name).to_owned()), true),
            _ => return None,
        };
        let resource = ApiResource::ALL.into_iter().find(|r| r.group() == group && r.plural() == *plural)?;
        let exists = resource.version() == version && !(resource.is_review() && name.is_some());
        // The collection of a namespaced resource also exists without a namespace: it is the list of all namespaces.
        let is_addressable = resource.namespaced() == namespace.is_some() || (name.is_none() && resource.namespaced());
        (exists && is_addressable).then_some(Self { resource, namespace, name, status })
    }

    /// Returns the verb of RBAC for a request with this method. Returns `None` if the path does not support the method.
    pub(super) fn verb(&self, method: &Method, watch: bool) -> Option<Verb> {
        Some(match (method.as_str(), self.name.is_some()) {
            (method, _) if self.resource.is_review() && method != "POST" => return None,
            ("GET", true) if !watch => Verb::Get,
            ("GET", false) if !watch => Verb::List,
            ("GET", false) => Verb::Watch,
            ("POST", false) => Verb::Create,
            ("PUT", true) => Verb::Update,
            ("PATCH", true) => Verb::Patch,
            ("DELETE", true) => Verb::Delete,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_parser_resolves_resources() {
        let parse = |path| ResourcePath::parse(path).map(|t| (t.resource, t.namespace, t.name, t.status));
        let (pods, claims, n, a) = (ApiResource::Pods, ApiResource::Claims, Some("n".to_owned()), Some("a".to_owned()));
        assert_eq!(parse("/api/v1/pods"), Some((pods, None, None, false)));
        assert_eq!(parse("/api/v1/namespaces/n/pods/a/status"), Some((pods, n.clone(), a.clone(), true)));
        let path = "/apis/boilerhouse.dev/v1alpha1/namespaces/n/boilerhouseclaims/a";
        assert_eq!(parse(path), Some((claims, n, a.clone(), false)));
        assert_eq!(parse("/api/v1/namespaces/a"), Some((ApiResource::Namespaces, None, a, false)));
        assert_eq!(parse("/api/v1/namespaces"), Some((ApiResource::Namespaces, None, None, false)));
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        assert_eq!(parse(path), Some((ApiResource::TokenReviews, None, None, false)));
        let unserved = [
            "/api/v1/pods/a",
            "/api/v1/namespaces/n/nodes",
            "/apis/x.dev/v1alpha1/boilerhouseclaims",
            "/",
            "/api/v2/pods",
            "/apis/boilerhouse.dev/v1/boilerhouseclaims",
            "/apis/authentication.k8s.io/v1/tokenreviews/a",
        ];
        for path in unserved {
            assert_eq!(parse(path), None, "no resource is served at {path}");
        }
    }
}
