//! Why no client for a cluster can be built.

use std::{io, path::PathBuf};

use thiserror::Error;

use super::field::{FieldError, shown_name};

/// Why no client for a cluster can be built. Each error states what to do, and none contains a value of the kubeconfig.
#[derive(Debug, Error)]
pub enum Error {
    /// No kubeconfig and no service account.
    #[error(
        "no kubeconfig found (looked at {searched}) and this is not a Pod with a service account; name a file with \
         --kubeconfig or KUBECONFIG, or try `boilerhouse-bridge demo`, which needs no cluster"
    )]
    NotFound {
        /// The paths that were searched.
        searched: String,
    },
    /// A kubeconfig that cannot be read.
    #[error("cannot read the kubeconfig {}", .path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A kubeconfig that is not YAML. The text contains the position and no content, which may be a token.
    #[error("cannot parse the kubeconfig {}: error at line {line}, column {column}", .path.display())]
    Malformed {
        /// Path of the file.
        path: PathBuf,
        /// Counted from 1; 0 if it is unknown.
        line: u64,
        /// Counted from 1; 0 if it is unknown.
        column: u64,
    },
    /// A kubeconfig with a field that has a wrong type, also in an entry that is not used. kubectl refuses such a file.
    #[error("cannot use the kubeconfig {}", .path.display())]
    Invalid {
        /// Path of the file.
        path: PathBuf,
        /// The field.
        #[source]
        source: FieldError,
    },
    /// `--context` names no context of the kubeconfig.
    #[error("the kubeconfig has no context `{wanted}`; it has {known}")]
    UnknownContext {
        /// The name in `--context`.
        wanted: String,
        /// The existing contexts.
        known: String,
    },
    /// No `current-context` and no `--context`.
    #[error("the kubeconfig names no current context; choose one with --context: it has {known}")]
    NoContext {
        /// The existing contexts.
        known: String,
    },
    /// A context with missing or unusable fields.
    #[error("cannot use the context `{context}` of the kubeconfig")]
    Unusable {
        /// Name of the context.
        context: String,
        /// The field.
        #[source]
        source: FieldError,
    },
    /// A Pod without a usable service account.
    #[error("cannot use the service account of this Pod; check that `automountServiceAccountToken` is not false")]
    InCluster(#[source] FieldError),
}

/// Returns the names of contexts for an error.
pub(super) fn known_contexts<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.map(|name| format!("`{}`", shown_name(name))).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
