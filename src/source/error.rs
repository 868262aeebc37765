//! What stands between the bridge and the API server, in words that say what to do about it.
//!
//! `Display` is for the operator's log; `reason` is for anybody who listens and names no address, path or file.

use std::{error::Error as StdError, io, sync::Arc, time::Duration};

use http::{HeaderMap, StatusCode, header::RETRY_AFTER};
use kube::client::AuthError;
use serde::Deserialize;
use thiserror::Error;

/// Errors nest a handful deep; a chain that is longer is not looked through to its end.
const MAX_CAUSES: usize = 16;

/// Bytes of an error answer's message that are kept: enough for a sentence, whatever a proxy in between sends.
const MAX_MESSAGE: usize = 300;

/// What was asked of whom: the words an error message needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestInfo {
    /// RBAC's verb: `get`, `list`, `watch`.
    pub verb: &'static str,
    /// The plural, with its group where it has one, or with its name: what `kubectl` takes.
    pub resource: Arc<str>,
    /// The watched namespace.
    pub namespace: Arc<str>,
    /// The API server's URL, for people.
    pub server: Arc<str>,
}

/// Why a request failed or a watch came to its end.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UpstreamError {
    /// No process listens there.
    #[error("nothing listens at {server}: is the cluster running, and is this the right context (--context)?")]
    ConnectionRefused {
        /// The API server's URL.
        server: Arc<str>,
    },
    /// No connection, for another reason: no route, no such name, no answer to the connection request.
    #[error("cannot reach {server}: {detail}")]
    Unreachable {
        /// The API server's URL.
        server: Arc<str>,
        /// The innermost cause.
        detail: String,
    },
    /// The handshake failed.
    #[error(
        "no trusted connection to {server}: {detail}; check `certificate-authority-data`, the client certificate's \
         expiry and the server's name in the kubeconfig"
    )]
    Tls {
        /// The API server's URL.
        server: Arc<str>,
        /// What rustls says.
        detail: String,
    },
    /// The credentials of the kubeconfig could not be obtained.
    #[error("no credentials for the API server: {0}")]
    Credentials(String),
    /// 401.
    #[error(
        "{server} does not accept the credentials of this context (401): renew them, then check with `kubectl auth whoami`"
    )]
    Unauthorized {
        /// The API server's URL.
        server: Arc<str>,
    },
    /// 403.
    #[error(
        "not allowed to {} {} in namespace {}: grant it to this account, then check with `kubectl auth can-i {} {} -n {}`",
        .0.verb, .0.resource, .0.namespace, .0.verb, .0.resource, .0.namespace
    )]
    Forbidden(RequestInfo),
    /// 404 on the Namespace.
    #[error("there is no namespace {0}: create it (`kubectl create namespace {0}`) or choose another with --namespace")]
    NoNamespace(Arc<str>),
    /// 404 on the claims.
    #[error(
        "the cluster has no BoilerhouseClaim resource: install the Boilerhouse operator, or \
         `boilerhouse-bridge crd | kubectl apply -f -`"
    )]
    NoCrd,
    /// 410, as a status or as a line of a watch: the history asked for is gone.
    #[error("the API server no longer has the history asked for (410)")]
    Expired,
    /// 429, or another refusal that will pass by itself.
    #[error("the API server asks for patience ({code})")]
    Throttled {
        /// The HTTP status.
        code: u16,
        /// What `Retry-After` says.
        retry_after: Option<Duration>,
    },
    /// Any other status.
    #[error("the API server answered {code} to {} {}: {message}", .request_info.verb, .request_info.resource)]
    ErrorStatus {
        /// The HTTP status.
        code: u16,
        /// The Status object's message, shortened.
        message: String,
        /// What was asked.
        request_info: RequestInfo,
    },
    /// An `ERROR` line of a watch, for another reason than lost history.
    #[error("the watch ended with error {code}: {message}")]
    WatchError {
        /// The Status object's code.
        code: u16,
        /// The Status object's message, shortened.
        message: String,
    },
    /// No answer in the time that the request has.
    #[error("{} gave no answer to {} {} within {} s", .request_info.server, .request_info.verb, .request_info.resource, .limit.as_secs_f32())]
    Timeout {
        /// What was asked.
        request_info: RequestInfo,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The watch did not end at its own time: nothing comes through that connection any more.
    #[error("the watch outlived its time: its connection is dead")]
    WatchOverdue,
    /// The watch ended in good order.
    #[error("the watch ended")]
    WatchEnded,
    /// The connection broke in the middle of an answer.
    #[error("the connection broke: {0}")]
    ConnectionLost(String),
    /// An answer that is not what it should be. Says where, never what stands there.
    #[error("an answer of the API server cannot be read: {0}")]
    Decode(String),
    /// Its version is lower than one already seen: an older copy of etcd was restored, or it is another cluster.
    #[error("the API server went back in time, from version {known} to {now}")]
    VersionWentBack {
        /// The highest version seen.
        known: u64,
        /// The version it says it is at.
        now: u64,
    },
}

impl UpstreamError {
    /// From what kube's client says when there is no answer.
    #[must_use]
    pub fn from_client_error(error: &kube::Error, request_info: &RequestInfo) -> UpstreamError {
        if let kube::Error::Auth(error) = error {
            return UpstreamError::Credentials(credentials(error));
        }
        let server = request_info.server.clone();
        let mut innermost = String::new();
        let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
        for _ in 0..MAX_CAUSES {
            let Some(error) = cause else { break };
            if let Some(error) = error.downcast_ref::<AuthError>() {
                return UpstreamError::Credentials(credentials(error));
            }
            let io = error.downcast_ref::<io::Error>();
            if let Some(tls) = error.downcast_ref::<rustls::Error>() {
                return UpstreamError::Tls { server, detail: tls.to_string() };
            }
            if io.is_some_and(|io| io.kind() == io::ErrorKind::ConnectionRefused) {
                return UpstreamError::ConnectionRefused { server };
            }
            innermost = truncate_message(&error.to_string());
            // An io::Error hides what it wraps from `source`, and hyper-rustls wraps one in another.
            cause = match io.and_then(io::Error::get_ref) {
                Some(wrapped) => Some(wrapped),
                None => error.source(),
            };
        }
        UpstreamError::Unreachable { server, detail: innermost }
    }

    /// From an answer whose status is not a success.
    #[must_use]
    pub fn from_response(
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        request_info: &RequestInfo,
    ) -> UpstreamError {
        let said: StatusBody = serde_json::from_slice(body).unwrap_or_default();
        let header = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let seconds = header.or_else(|| said.details.map(|d| d.retry_after_seconds).filter(|seconds| *seconds > 0));
        UpstreamError::status(status.as_u16(), &said.message, seconds.map(Duration::from_secs), request_info)
    }

    /// From JSON that is not what it should be. Says where, never what stands there: that may be anybody's secret.
    #[must_use]
    pub fn from_json_error(error: &serde_json::Error) -> UpstreamError {
        let (line, column) = (error.line(), error.column());
        UpstreamError::Decode(format!("{:?} error at line {line} column {column}", error.classify()))
    }

    /// From an `ERROR` line of a watch.
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

    /// A few words for whoever listens to the streams: a stable vocabulary, also a label of the metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            UpstreamError::ConnectionRefused { .. } => "connection refused",
            UpstreamError::Unreachable { .. } => "unreachable",
            UpstreamError::Tls { .. } => "tls",
            UpstreamError::Credentials(_) => "no credentials",
            UpstreamError::Unauthorized { .. } => "unauthorized",
            UpstreamError::Forbidden(_) => "forbidden",
            UpstreamError::NoNamespace(_) => "no namespace",
            UpstreamError::NoCrd => "no BoilerhouseClaim resource",
            UpstreamError::Expired => "history expired",
            UpstreamError::Throttled { .. } => "too many requests",
            UpstreamError::ErrorStatus { .. } => "error answer",
            UpstreamError::WatchError { .. } => "watch error",
            UpstreamError::Timeout { .. } => "no answer",
            UpstreamError::WatchOverdue => "watch overdue",
            UpstreamError::WatchEnded => "watch ended",
            UpstreamError::ConnectionLost(_) => "connection cut",
            UpstreamError::Decode(_) => "unreadable answer",
            UpstreamError::VersionWentBack { .. } => "older history",
        }
    }

    /// Whether a watch may come to this in good health: the next try decides if anything is down.
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

    /// Whether only a new list helps: watching on from the known version would fail again, or would miss a change.
    #[must_use]
    pub fn requires_relist(&self) -> bool {
        match self {
            UpstreamError::Expired
            | UpstreamError::WatchError { .. }
            | UpstreamError::Decode(_)
            | UpstreamError::VersionWentBack { .. }
            | UpstreamError::NoCrd => true,
            UpstreamError::ErrorStatus { code, .. } => (400..500).contains(code),
            _ => false,
        }
    }
}

/// The parts of a Status object that are told on.
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

/// In words. A plugin's command line, environment and output may hold a token, so none of them is repeated.
fn credentials(error: &AuthError) -> String {
    match error {
        AuthError::AuthExecRun { out, .. } => {
            format!("the context's credential plugin failed ({}); `kubectl get pods` shows what it says", out.status)
        }
        AuthError::AuthExecParse(_) => "the context's credential plugin prints no ExecCredential".to_owned(),
        other => truncate_message(&other.to_string()),
    }
}

fn truncate_message(message: &str) -> String {
    let end = message.char_indices().map(|(at, _)| at).find(|at| *at > MAX_MESSAGE).unwrap_or(message.len());
    message[..end].trim().to_owned()
}

#[cfg(test)]
mod tests;
