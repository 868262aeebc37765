//! The resources and verbs of the simulated API.

use crate::api::{GROUP, PLURAL, VERSION};

/// A resource of the simulated API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ApiResource {
    /// `pods`
    Pods,
    /// `boilerhouseclaims.boilerhouse.dev`
    Claims,
    /// `namespaces`
    Namespaces,
    /// `tokenreviews.authentication.k8s.io`. They can only be created, and are not stored.
    TokenReviews,
    /// `subjectaccessreviews.authorization.k8s.io`. They can only be created, and are not stored.
    AccessReviews,
}

impl ApiResource {
    pub(super) const ALL: [Self; 5] =
        [Self::Pods, Self::Claims, Self::Namespaces, Self::TokenReviews, Self::AccessReviews];

    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Claims => PLURAL,
            Self::Namespaces => "namespaces",
            Self::TokenReviews => "tokenreviews",
            Self::AccessReviews => "subjectaccessreviews",
        }
    }

    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Pods => "Pod",
            Self::Claims => "BoilerhouseClaim",
            Self::Namespaces => "Namespace",
            Self::TokenReviews => "TokenReview",
            Self::AccessReviews => "SubjectAccessReview",
        }
    }

    pub(super) fn group(self) -> &'static str {
        match self {
            Self::Pods | Self::Namespaces => "",
            Self::Claims => GROUP,
            Self::TokenReviews => "authentication.k8s.io",
            Self::AccessReviews => "authorization.k8s.io",
        }
    }

    pub(super) fn version(self) -> &'static str {
        if self == Self::Claims { VERSION } else { "v1" }
    }

    pub(super) fn api_version(self) -> String {
        match self.group() {
            "" => self.version().to_owned(),
            group => format!("{group}/{}", self.version()),
        }
    }

    /// Returns the plural with the API group, as in the messages of the API server.
    pub(super) fn qualified(self) -> String {
        match self.group() {
            "" => self.plural().to_owned(),
            group => format!("{}.{group}", self.plural()),
        }
    }

    pub(super) fn namespaced(self) -> bool {
        matches!(self, Self::Pods | Self::Claims)
    }

    /// Returns whether it is a review: a request that is answered and not stored.
    pub(super) fn is_review(self) -> bool {
        matches!(self, Self::TokenReviews | Self::AccessReviews)
    }
}

/// A verb of RBAC: a kind of request on a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names are those of RBAC")]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
}

impl Verb {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}
