//! Requests to the API server: the URL, the credentials, and the connections.
//!
//! Owns: the connections with the current certificates, and what was last read of the files that the kubeconfig names.
//!
//! Guarantees:
//! - Files are read again at most [`Limits::reload_interval`] later, when a request is sent. New certificates get new
//!   connections; requests that run keep theirs. Files that cannot be used change nothing.
//! - A plugin or a file that blocks never blocks a request for longer than [`Limits`] states.
//! - Nothing is retried here.

use std::{
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::FutureExt as _;
use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{AUTHORIZATION, USER_AGENT},
};
use hyper::body::Incoming;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use kube::client::Body;
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout},
};
use tower::BoxError;

use super::{
    contents::{Contents, has_files},
    field::FieldError,
    plugin::Credential,
    plugin_runs::{self, Current, PluginRuns},
    single_flight::SingleFlight,
    target::{Authorization, Target},
};
use crate::source::error::CredentialError;

const AGENT: HeaderValue = HeaderValue::from_static(concat!("boilerhouse-bridge/", env!("CARGO_PKG_VERSION")));

/// Time limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Time after which the files of the kubeconfig are read again.
    pub(super) reload_interval: Duration,
    /// The same after the API server has rejected the credentials (401).
    pub(super) reload_after_rejection: Duration,
    /// Maximum time that a request waits for the files. It then uses what was read before.
    pub(super) file_wait: Duration,
    /// Time without an answer after which a log line reports it.
    pub(super) answer_notice: Duration,
    /// Time that an unused connection stays open.
    pub(super) pool_idle: Duration,
    pub(super) plugin: plugin_runs::Limits,
}

type Connections = HyperClient<HttpsConnector<HttpConnector>, Body>;
/// What a read of the files returns, or `None` if it panicked.
type Reread = Option<(Contents, Option<FieldError>)>;

/// Sends requests to one API server.
pub(super) struct ApiService {
    target: Arc<Target>,
    limits: Limits,
    tcp: HttpConnector,
    has_files: bool,
    reading: SingleFlight<Reread>,
    plugin: Option<PluginRuns>,
    session: Mutex<Session>,
    /// Whether any request got an answer.
    is_answered: AtomicBool,
    /// Whether a log line has reported a missing answer since the last answer.
    is_silent: AtomicBool,
}

/// The state that requests share.
struct Session {
    contents: Contents,
    /// The plugin's certificate that the connections use.
    identity: Option<Arc<[Vec<u8>; 2]>>,
    connections: Connections,
    read_at: Instant,
    is_rejected: bool,
    /// The last error about the files that was logged.
    reported: Option<FieldError>,
}

impl ApiService {
    /// Reads the files of the target and prepares its connections. It sends nothing and runs no plugin.
    ///
    /// # Errors
    /// When a file cannot be read, or a certificate or key cannot be used.
    pub(super) fn new(target: Target, tcp: HttpConnector, limits: Limits) -> Result<ApiService, FieldError> {
        let contents = Contents::read(&target)?;
        let connections = connect(&target, &contents, None, &tcp, limits.pool_idle)?;
        let plugin = match &target.authorization {
            Authorization::Plugin(plugin) => Some(PluginRuns::new(plugin.clone(), limits.plugin)),
            Authorization::None | Authorization::Fixed(_) | Authorization::File { .. } => None,
        };
        let session = Session {
            contents,
            identity: None,
            connections,
            read_at: Instant::now(),
            is_rejected: false,
            reported: None,
        };
        Ok(ApiService {
            has_files: has_files(&target),
            target: Arc::new(target),
            limits,
            tcp,
            reading: SingleFlight::new(),
            plugin,
            session: Mutex::new(session),
            is_answered: AtomicBool::new(false),
            is_silent: AtomicBool::new(false),
        })
    }

    /// Sends a request whose URL is relative to the server. Returns the response with any status.
    ///
    /// # Errors
    /// A [`CredentialError`], or the error of the connection.
    pub(super) async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, BoxError> {
        self.reread_files().await;
        let current = self.credential().await?;
        let session = self.session_for(current.as_ref().map(|current| &current.credential));
        // Without the rejection, a plugin whose certificate cannot be used would not run again before it expires.
        let (connections, authorization) = session.inspect_err(|_| self.reject(current.as_ref()))?;
        let request = address(&self.target, request, authorization)?;
        let response = self.answer(connections.request(request)).await?;
        if response.status() == StatusCode::BAD_REQUEST && !self.target.server.is_https() {
            // The requests of the bridge are valid. Servers of Go answer so to http on a port for https.
            return Err("the server answers 400 to http; it may expect https".into());
        }
        if response.status() == StatusCode::UNAUTHORIZED {
            self.session().is_rejected = true;
            self.reject(current.as_ref());
        }
        Ok(response)
    }

    /// Makes the plugin run again for the next request, if it returned this credential.
    fn reject(&self, current: Option<&Current>) {
        if let (Some(plugin), Some(current)) = (&self.plugin, current) {
            plugin.reject(current.run());
        }
    }

    /// Returns what requests wait for: a plugin that runs, or the first answer. `None` otherwise.
    pub(super) fn awaited(&self) -> Option<&'static str> {
        if self.plugin.as_ref().is_some_and(PluginRuns::is_running) {
            return Some("the credential plugin of the kubeconfig");
        }
        (!self.is_answered.load(Ordering::Relaxed)).then_some("the first answer of the API server")
    }

    async fn credential(&self) -> Result<Option<Current>, CredentialError> {
        let Some(plugin) = &self.plugin else { return Ok(None) };
        let authority = self.session().contents.authority.clone();
        plugin.current(authority).await.map(Some)
    }

    /// Reads the files again if it is time.
    async fn reread_files(&self) {
        if !self.has_files || !self.is_reload_due() {
            return;
        }
        let start = || {
            let (target, last) = (self.target.clone(), self.session().contents.clone());
            spawn_blocking(move || Contents::read_again(&target, &last)).map(Result::ok).boxed()
        };
        // A file system that does not answer must not block the request.
        let _ = self.reading.load(start, self.limits.file_wait, |read| self.apply(read)).await;
    }

    fn is_reload_due(&self) -> bool {
        let session = self.session();
        let interval = match session.is_rejected {
            true => self.limits.reload_after_rejection,
            false => self.limits.reload_interval,
        };
        session.read_at.elapsed() >= interval
    }

    /// Uses what was read, unless no connection can be made with it.
    fn apply(&self, read: &Reread) {
        let mut session = self.session();
        session.read_at = Instant::now();
        session.is_rejected = false;
        let Some((contents, error)) = read else { return };
        let mut error = error.clone();
        if contents.has_same_tls(&session.contents) {
            session.contents = contents.clone();
        } else {
            let credential = session.identity.clone().map(Credential::of_identity);
            let connections = connect(&self.target, contents, credential.as_ref(), &self.tcp, self.limits.pool_idle);
            match connections {
                Ok(connections) => {
                    tracing::info!("certificates of the kubeconfig changed; new connections use them");
                    session.contents = contents.clone();
                    session.connections = connections;
                }
                Err(unusable) => {
                    session.contents.authorization = contents.authorization.clone();
                    error.get_or_insert(unusable);
                }
            }
        }
        if session.reported != error {
            if let Some(error) = &error {
                tracing::warn!(%error, "files of the kubeconfig cannot be used; the last usable ones stay in effect");
            }
            session.reported = error;
        }
    }

    /// Returns the connections and the header for a request. A plugin's new certificate gets new connections.
    fn session_for(
        &self,
        credential: Option<&Credential>,
    ) -> Result<(Connections, Option<HeaderValue>), CredentialError> {
        let mut session = self.session();
        let identity = credential.and_then(|credential| credential.identity.clone());
        if identity != session.identity {
            let connections = connect(&self.target, &session.contents, credential, &self.tcp, self.limits.pool_idle);
            session.connections = connections.map_err(|error| CredentialError(error.to_string()))?;
            session.identity = identity;
        }
        let plugin_header = credential.and_then(|credential| credential.authorization.clone());
        Ok((session.connections.clone(), plugin_header.or_else(|| session.contents.authorization.clone())))
    }

    /// Waits for the head of a response. Reports in the log that the API server does not answer.
    async fn answer<T, E>(&self, answer: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let mut answer = pin!(answer);
        let notice = self.limits.answer_notice;
        let result = match timeout(notice, &mut answer).await {
            Ok(result) => result,
            Err(_) => {
                if !self.is_silent.swap(true, Ordering::Relaxed) {
                    let (server, waited_s) = (&self.target.server, notice.as_secs());
                    tracing::warn!(%server, waited_s, "waiting for an answer of the API server");
                }
                answer.await
            }
        };
        if result.is_ok() {
            self.is_answered.store(true, Ordering::Relaxed);
            self.is_silent.store(false, Ordering::Relaxed);
        }
        result
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds the server and the user's headers to a request.
pub(super) fn address(
    target: &Target,
    request: Request<Body>,
    authorization: Option<HeaderValue>,
) -> Result<Request<Body>, http::Error> {
    let (mut head, body) = request.into_parts();
    head.uri = target.server.at(head.uri.path_and_query())?;
    head.headers.insert(USER_AGENT, AGENT);
    for (name, value) in &target.impersonation {
        head.headers.try_append(name, value.clone())?;
    }
    if let Some(authorization) = authorization {
        head.headers.insert(AUTHORIZATION, authorization);
    }
    Ok(Request::from_parts(head, body))
}

/// Builds a pool of connections.
fn connect(
    target: &Target,
    contents: &Contents,
    credential: Option<&Credential>,
    tcp: &HttpConnector,
    pool_idle: Duration,
) -> Result<Connections, FieldError> {
    let config = Arc::new(contents.client_config(target, credential)?);
    let https = match target.tls.as_ref().and_then(|tls| tls.server_name.clone()) {
        Some(name) => HttpsConnector::new(tcp.clone(), config, false, Arc::new(FixedServerNameResolver::new(name))),
        None => HttpsConnector::from((tcp.clone(), config)),
    };
    let mut pool = HyperClient::builder(TokioExecutor::new());
    Ok(pool.pool_idle_timeout(pool_idle).pool_timer(TokioTimer::new()).build(https))
}
