//! One classification of everything that can fail between the bridge and the API server.
//!
//! Guarantees: `Display` is for the operator's log and states what to do. `reason` is for clients and contains no address,
//! path or file name. Neither contains the content of a response, except the message of a Status object.

use std::{error::Error as StdError, io, sync::Arc, time::Duration};

use http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use serde::Deserialize;
use thiserror::Error;

/// Maximum depth of the chain of causes that is searched. Real errors nest about five levels deep.
const MAX_CAUSES: usize = 16;

/// Maximum bytes of the message of an error response. It is enough for a sentence; a proxy may send any amount.
const MAX_MESSAGE: usize = 300;

/// Returns an error and its causes, joined with colons. The errors of some libraries end with their cause already; such a
/// cause is not repeated.
#[must_use]
pub fn error_chain(error: &(dyn StdError + 'static)) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    for _ in 0..MAX_CAUSES {
        let Some(error) = cause else { break };
        let message = error.to_string();
        if !text.ends_with(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

/// Why no credentials could be obtained. The text contains no output, argument or environment of a credential plugin, which
/// may contain a token.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct CredentialError(pub String);

/// What an error message states about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestInfo {
    /// The verb of RBAC: `get`, `list`, `watch`, `create`.
    pub verb: &'static str,
    /// The resource as `kubectl` accepts it: the plural, with the group or with the name of an object.
    pub resource: Arc<str>,
    /// The watched namespace.
    pub namespace: Arc<str>,
    /// URL of the API server.
    pub server: Arc<str>,
}

impl RequestInfo {
    /// Returns whether the resource is in the namespace. The Namespace itself is not.
    fn is_namespaced(&self) -> bool {
        !self.resource.starts_with("namespaces/")
    }

    /// Returns what is requested, for a sentence.
    fn words(&self) -> String {
        let place = if self.is_namespaced() { format!(" in namespace {}", self.namespace) } else { String::new() };
        format!("{} {}{place}", self.verb, self.resource)
    }

    /// Returns the arguments of `kubectl auth can-i`.
    fn kubectl_words(&self) -> String {
        let place = if self.is_namespaced() { format!(" -n {}", self.namespace) } else { String::new() };
        format!("{} {}{place}", self.verb, self.resource)
    }
}

/// Why a request failed or a watch ended.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UpstreamError {
    /// No process listens at the address.
    #[error(
        "cannot connect to {server}: connection refused; check that the cluster runs and that --context is correct"
    )]
    ConnectionRefused {
        /// URL of the API server.
        server: Arc<str>,
    },
    /// No connection for another reason: no route, unknown host name, no response to the connection request.
    #[error("cannot connect to {server}: {detail}; check the network and the server's address in the kubeconfig")]
    Unreachable {
        /// URL of the API server.
        server: Arc<str>,
        /// The innermost cause.
        detail: String,
    },
    /// The TLS handshake failed.
    #[error(
        "cannot open a trusted connection to {server}: {detail}; check `certificate-authority-data`, the client \
         certificate's expiry and the server's name in the kubeconfig"
    )]
    Tls {
        /// URL of the API server.
        server: Arc<str>,
        /// The error of rustls.
        detail: String,
    },
    /// The credentials of the kubeconfig could not be obtained.
    #[error("cannot get credentials for the API server: {0}")]
    Credentials(String),
    /// 401.
    #[error("{server} rejects the credentials of this context: 401; renew them, then check with `kubectl auth whoami`")]
    Unauthorized {
        /// URL of the API server.
        server: Arc<str>,
    },
    /// 403.
    #[error(
        "cannot {}: 403; grant it to this account or choose another namespace with --namespace, then check with its kubeconfig: \
         `kubectl auth can-i {}`",
        .0.words(), .0.kubectl_words()
    )]
    Forbidden(RequestInfo),
    /// 404 on the Namespace.
    #[error(
        "namespace {0} does not exist: 404; create it (`kubectl create namespace {0}`) or choose another with --namespace"
    )]
    NoNamespace(Arc<str>),
    /// 404 on the claims.
    #[error(
        "the cluster has no BoilerhouseClaim resource: 404; install the Boilerhouse operator, or run \
         `boilerhouse-bridge crd | kubectl apply -f -`"
    )]
    NoCrd,
    /// 410, as a status or as an `ERROR` line of a watch: the API server no longer has the requested history.
    #[error("the requested history has expired on the API server (410)")]
    Expired,
    /// 429, or another status with `Retry-After`: a temporary rejection.
    #[error("the API server throttles requests or is overloaded ({code})")]
    Throttled {
        /// The HTTP status.
        code: u16,
        /// The delay that `Retry-After` or the Status object requests.
        retry_after: Option<Duration>,
    },
    /// Any other status.
    #[error("cannot {} {}: {code} {message}", .request_info.verb, .request_info.resource)]
    ErrorStatus {
        /// The HTTP status.
        code: u16,
        /// The message of the Status object, truncated to 300 bytes.
        message: String,
        /// The request.
        request_info: RequestInfo,
    },
    /// An `ERROR` line of a watch, for another reason than expired history.
    #[error("the watch ended with an error: {code} {message}")]
    WatchError {
        /// The code of the Status object.
        code: u16,
        /// The message of the Status object, truncated to 300 bytes.
        message: String,
    },
    /// A list beyond one of its bounds (docs/limits.md#hub). Nothing of it is used.
    #[error(
        "cannot list {} in namespace {}: the list has {excess}; reduce the number of objects, or check what answers at {}",
        .request_info.resource, .request_info.namespace, .request_info.server
    )]
    ListTooLarge {
        /// The exceeded bound, such as "more than 10000 pages".
        excess: String,
        /// The request.
        request_info: RequestInfo,
    },
    /// No complete response within the time limit of the request, or no complete list within that of the list.
    #[error(
        "cannot {} {}: no complete response from {} within {} s",
        .request_info.verb, .request_info.resource, .request_info.server, .limit.as_secs_f32()
    )]
    Timeout {
        /// The request.
        request_info: RequestInfo,
        /// The time limit.
        limit: Duration,
    },
    /// The watch did not end at its `timeoutSeconds`, so its connection no longer delivers anything.
    #[error("the watch did not end at its timeout: its connection is dead")]
    WatchOverdue,
    /// The API server ended the watch in the regular way.
    #[error("the watch ended")]
    WatchEnded,
    /// The connection ended in the middle of a response.
    #[error("the connection to the API server was lost: {0}")]
    ConnectionLost(String),
    /// A response or a watch line that cannot be parsed. The text gives the position and never the content.
    #[error("cannot parse a response of the API server: {0}")]
    Decode(String),
    /// The version is lower than an earlier one: etcd was restored from an older backup, or another cluster answers.
    #[error("the resourceVersion of the API server went back from {known} to {now}: history reset")]
    VersionWentBack {
        /// The highest version received before.
        known: u64,
        /// The version of the latest response.
        now: u64,
    },
}

impl UpstreamError {
    /// Classifies an error of kube's client: no response was received.
    #[must_use]
    pub fn from_client_error(error: &kube::Error, request_info: &RequestInfo) -> UpstreamError {
        let server = request_info.server.clone();
        let mut innermost = String::new();
        let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
        for _ in 0..MAX_CAUSES {
            let Some(error) = cause else { break };
            // The client of the dedicated watchers has classified it.
            if let Some(classified) = error.downcast_ref::<UpstreamError>() {
                return classified.clone();
            }
            if let Some(error) = error.downcast_ref::<CredentialError>() {
                return UpstreamError::Credentials(error.0.clone());
            }
            let io = error.downcast_ref::<io::Error>();
            if let Some(tls) = error.downcast_ref::<rustls::Error>() {
                return UpstreamError::Tls { server, detail: tls.to_string() };
            }
            if io.is_some_and(|io| io.kind() == io::ErrorKind::ConnectionRefused) {
                return UpstreamError::ConnectionRefused { server };
            }
            innermost = truncate_message(&error.to_string());
            // `io::Error::source` skips the wrapped error itself, and hyper-rustls wraps one `io::Error` in another.
            cause = match io.and_then(io::Error::get_ref) {
                Some(wrapped) => Some(wrapped),
                None => error.source(),
            };
        }
        UpstreamError::Unreachable { server, detail: innermost }
    }

    /// Classifies a response whose status is not a success.
    #[must_use]
    pub fn from_response(
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        request_info: &RequestInfo,
    ) -> UpstreamError {
        let status_body: StatusBody = serde_json::from_slice(body).unwrap_or_default();
        let header = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let seconds =
            header.or_else(|| status_body.details.map(|d| d.retry_after_seconds).filter(|seconds| *seconds > 0));
        UpstreamError::status(status.as_u16(), &status_body.message, seconds.map(Duration::from_secs), request_info)
    }

    /// Classifies an error of the JSON parser. It keeps the position and not the content, which may be a secret.
    #[must_use]
    pub fn from_json_error(error: &serde_json::Error) -> UpstreamError {
        let (line, column) = (error.line(), error.column());
        UpstreamError::Decode(format!("{:?} error at line {line} column {column}", error.classify()))
    }

    /// Classifies an `ERROR` line of a watch.
    #[must_use]
    pub fn from_watch_status(status: &kube::core::Status, request_info: &RequestInfo) -> UpstreamError {
        let seconds = status.details.as_ref().map(|d| d.retry_after_seconds).filter(|seconds| *seconds > 0);
        let code = if status.reason == "Expired" || status.reason == "Gone" { 410 } else { status.code };
        match UpstreamError::status(code, &status.message, seconds.map(|s| Duration::from_secs(s.into())), request_info)
        {
            UpstreamError::ErrorStatus { code, message, .. } => UpstreamError::WatchError { code, message },
            other => other,
        }
    }

    fn status(code: u16, message: &str, retry_after: Option<Duration>, request_info: &RequestInfo) -> UpstreamError {
        match code {
            401 => UpstreamError::Unauthorized { server: request_info.server.clone() },
            403 => UpstreamError::Forbidden(request_info.clone()),
            404 if request_info.verb == "get" => UpstreamError::NoNamespace(request_info.namespace.clone()),
            404 if request_info.resource.starts_with("boilerhouseclaims") => UpstreamError::NoCrd,
            410 => UpstreamError::Expired,
            429 => UpstreamError::Throttled { code, retry_after },
            _ if retry_after.is_some() => UpstreamError::Throttled { code, retry_after },
            _ => UpstreamError::ErrorStatus {
                code,
                message: truncate_message(message),
                request_info: request_info.clone(),
            },
        }
    }

    /// All values of [`UpstreamError::label`].
    pub const LABELS: [&'static str; 19] = [
        "connection_refused",
        "unreachable",
        "tls",
        "no_credentials",
        "unauthorized",
        "forbidden",
        "no_namespace",
        "no_crd",
        "history_expired",
        "too_many_requests",
        "error_answer",
        "watch_error",
        "list_too_large",
        "no_answer",
        "watch_overdue",
        "watch_ended",
        "connection_cut",
        "unreadable_answer",
        "older_history",
    ];

    /// Returns the reason for clients: a few words of the fixed vocabulary of docs/protocol.md#full-stream.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.names().0
    }

    /// Returns the reason as the value of a metric label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        self.names().1
    }

    /// Returns [`UpstreamError::reason`] and [`UpstreamError::label`].
    fn names(&self) -> (&'static str, &'static str) {
        match self {
            UpstreamError::ConnectionRefused { .. } => ("connection refused", "connection_refused"),
            UpstreamError::Unreachable { .. } => ("unreachable", "unreachable"),
            UpstreamError::Tls { .. } => ("tls", "tls"),
            UpstreamError::Credentials(_) => ("no credentials", "no_credentials"),
            UpstreamError::Unauthorized { .. } => ("unauthorized", "unauthorized"),
            UpstreamError::Forbidden(_) => ("forbidden", "forbidden"),
            UpstreamError::NoNamespace(_) => ("no namespace", "no_namespace"),
            UpstreamError::NoCrd => ("no BoilerhouseClaim resource", "no_crd"),
            UpstreamError::Expired => ("history expired", "history_expired"),
            UpstreamError::Throttled { .. } => ("too many requests", "too_many_requests"),
            UpstreamError::ErrorStatus { .. } => ("error answer", "error_answer"),
            UpstreamError::WatchError { .. } => ("watch error", "watch_error"),
            UpstreamError::ListTooLarge { .. } => ("list too large", "list_too_large"),
            UpstreamError::Timeout { .. } => ("no answer", "no_answer"),
            UpstreamError::WatchOverdue => ("watch overdue", "watch_overdue"),
            UpstreamError::WatchEnded => ("watch ended", "watch_ended"),
            UpstreamError::ConnectionLost(_) => ("connection cut", "connection_cut"),
            UpstreamError::Decode(_) => ("unreadable answer", "unreadable_answer"),
            UpstreamError::VersionWentBack { .. } => ("older history", "older_history"),
        }
    }

    /// Returns whether a healthy watch can end with this error. The next attempt then shows whether the upstream is down.
    #[must_use]
    pub fn is_expected(&self) -> bool {
        matches!(
            self,
            UpstreamError::WatchEnded
                | UpstreamError::ConnectionLost(_)
                | UpstreamError::WatchOverdue
                | UpstreamError::Expired
                | UpstreamError::WatchError { .. }
                | UpstreamError::Decode(_)
                | UpstreamError::VersionWentBack { .. }
        )
    }

    /// Returns whether only a new list helps: a watch from the last version would fail again, or would miss a change.
    #[must_use]
    pub fn requires_relist(&self) -> bool {
        match self {
            UpstreamError::Expired
            | UpstreamError::WatchError { .. }
            | UpstreamError::Decode(_)
            | UpstreamError::VersionWentBack { .. }
            | UpstreamError::ListTooLarge { .. }
            | UpstreamError::NoCrd => true,
            UpstreamError::ErrorStatus { code, .. } => (400..500).contains(code),
            _ => false,
        }
    }
}

/// The parts of a Status object that this module uses.
#[derive(Default, Deserialize)]
#[serde(default)]
struct StatusBody {
    message: String,
    details: Option<Details>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Details {
    retry_after_seconds: u64,
}

/// Returns the message without surrounding white space, cut after [`MAX_MESSAGE`] bytes at a character boundary.
fn truncate_message(message: &str) -> String {
    let end = message.char_indices().map(|(at, _)| at).find(|at| *at > MAX_MESSAGE).unwrap_or(message.len());
    message[..end].trim().to_owned()
}

#[cfg(test)]
mod tests;
