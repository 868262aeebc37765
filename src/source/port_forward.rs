//! Port-forwards to the Pods of a bridge's Service, as `kubectl port-forward service/NAME` opens them
//! (docs/protocol.md#port-forward).
//!
//! Guarantees: nothing listens on this machine. Each connection selects its Pod again, so that a client that reconnects
//! reaches another Pod when one has ended. No request is retried here.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use k8s_openapi::{
    api::core::v1::{Pod, Service, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{
    Api, Client,
    api::{ListParams, Portforwarder},
};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    time::timeout,
};

use super::{
    connect::ClusterConnection,
    error::{RequestInfo, UpstreamError},
};

/// The label that the Service of a bridge has, and its value.
pub const SERVICE_LABEL: (&str, &str) = ("app.kubernetes.io/name", "boilerhouse-bridge");
/// Services and Pods of one list. A bridge has a few.
const MAX_OBJECTS: u32 = 500;
/// Names that an error lists.
const MAX_NAMES: usize = 10;

/// Why there is no port-forward. Each error states what to do.
#[derive(Debug, Error)]
pub enum Error {
    /// The API server cannot be reached, or rejects the credentials.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The API server answers with another error.
    #[error("cannot {action}: {code} {message}")]
    Status {
        /// What was requested.
        action: String,
        /// The HTTP status.
        code: u16,
        /// The message of the API server.
        message: String,
    },
    /// No Service has the label of a bridge.
    #[error(
        "namespace {0} has no Service with the label {label}={value}; name the Service with --service, another \
         namespace with --namespace, or a bridge with --url",
        label = SERVICE_LABEL.0, value = SERVICE_LABEL.1
    )]
    NoService(String),
    /// Several Services have the label of a bridge.
    #[error("namespace {namespace} has several bridges; choose one with --service: {names}")]
    SeveralServices {
        /// The namespace.
        namespace: String,
        /// The names of the Services.
        names: String,
    },
    /// The Service cannot be forwarded to.
    #[error("Service {service} {problem}")]
    Unusable {
        /// The name of the Service.
        service: String,
        /// What it lacks.
        problem: String,
    },
    /// The API server did not answer in time.
    #[error("cannot {action}: no answer from {server} within {limit:?}")]
    Timeout {
        /// What was requested.
        action: String,
        /// URL of the API server.
        server: String,
        /// The time limit.
        limit: Duration,
    },
}

/// A Service of a bridge, and how to reach its Pods. Clones share the choice of the next Pod.
#[derive(Clone)]
pub struct PortForward {
    client: Client,
    namespace: String,
    server: Arc<str>,
    service: String,
    selector: String,
    port: ServicePort,
    limit: Duration,
    opened: Arc<AtomicUsize>,
}

impl std::fmt::Debug for PortForward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PortForward({}/{}, {})", self.namespace, self.service, self.server)
    }
}

impl PortForward {
    /// Finds the Service in the namespace of `connection`: the one with this name, or the only one with [`SERVICE_LABEL`].
    /// Each request may take `limit`.
    ///
    /// # Errors
    /// The API server does not answer, or there is no such Service, or several.
    pub async fn find(
        connection: &ClusterConnection,
        name: Option<&str>,
        limit: Duration,
    ) -> Result<PortForward, Error> {
        let ClusterConnection { client, namespace, server, .. } = connection;
        let services: Api<Service> = Api::namespaced(client.clone(), namespace);
        let requests = Requests { server: server.as_str().into(), namespace, limit };
        let service = match name {
            Some(name) => {
                requests.answer(services.get(name), format!("get Service {name} in namespace {namespace}")).await?
            }
            None => {
                let (label, value) = SERVICE_LABEL;
                let selected = ListParams::default().labels(&format!("{label}={value}")).limit(MAX_OBJECTS);
                let list = requests.answer(services.list(&selected), format!("list Services in namespace {namespace}"));
                only_service(list.await?.items, namespace)?
            }
        };
        let (service, selector, port) = forwardable(service)?;
        let (client, namespace, server) = (client.clone(), namespace.clone(), requests.server);
        Ok(PortForward { client, namespace, server, service, selector, port, limit, opened: Arc::default() })
    }

    /// Replaces the time that each request may take.
    #[must_use]
    pub fn with_limit(self, limit: Duration) -> PortForward {
        PortForward { limit, ..self }
    }

    /// Returns the URL of the Service as the Pods of the cluster know it. A port with the name or the `appProtocol` `https`
    /// is one with TLS.
    #[must_use]
    pub fn url(&self) -> String {
        let PortForward { namespace, service, port, .. } = self;
        let has_tls = [&port.name, &port.app_protocol].into_iter().any(|text| text.as_deref() == Some("https"));
        let scheme = if has_tls { "https" } else { "http" };
        format!("{scheme}://{service}.{namespace}.svc:{}", port.port)
    }

    /// Opens a connection to a Pod of the Service that is ready.
    ///
    /// # Errors
    /// No Pod is ready, or the API server refuses the port-forward.
    pub async fn open(&self) -> Result<PodConnection, Error> {
        let requests = Requests { server: self.server.clone(), namespace: &self.namespace, limit: self.limit };
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let selected = ListParams::default().labels(&self.selector).limit(MAX_OBJECTS);
        let list = requests.answer(pods.list(&selected), format!("list Pods in namespace {}", self.namespace)).await?;
        let (pod, port) = self.select(&list.items)?;
        let action = format!("forward a port to Pod {pod} in namespace {}", self.namespace);
        let mut forwarder = requests.answer(pods.portforward(&pod, &[port]), action).await?;
        match (forwarder.take_stream(port), forwarder.take_error(port)) {
            (Some(stream), Some(error)) => Ok(PodConnection { stream, error: Some(error.boxed()), forwarder }),
            _ => Err(self.unusable(format!("has no port {port}"))),
        }
    }

    /// Returns a ready Pod, another one for each call, and its port.
    fn select(&self, pods: &[Pod]) -> Result<(String, u16), Error> {
        let ready: Vec<&Pod> = pods.iter().filter(|pod| is_ready(pod)).collect();
        if ready.is_empty() {
            let found = pods.len();
            return Err(self.unusable(format!(
                "has no Pod that is ready ({found} with the labels {}); see `kubectl get pods -n {} -l {}`",
                self.selector, self.namespace, self.selector
            )));
        }
        let pod = ready[self.opened.fetch_add(1, Ordering::Relaxed) % ready.len()];
        let name = pod.metadata.name.clone().unwrap_or_default();
        let port = target_port(&self.port, pod).ok_or_else(|| {
            let target = self.port.target_port.as_ref();
            self.unusable(format!("leads to a port that Pod {name} does not have: {}", shown_port(target)))
        })?;
        Ok((name, port))
    }

    fn unusable(&self, problem: String) -> Error {
        Error::Unusable { service: self.service.clone(), problem }
    }
}

/// What all requests share.
struct Requests<'a> {
    server: Arc<str>,
    namespace: &'a str,
    limit: Duration,
}

impl Requests<'_> {
    /// Waits for an answer.
    async fn answer<T>(
        &self,
        request: impl Future<Output = Result<T, kube::Error>>,
        action: String,
    ) -> Result<T, Error> {
        let Ok(answer) = timeout(self.limit, request).await else {
            return Err(Error::Timeout { action, server: self.server.to_string(), limit: self.limit });
        };
        answer.map_err(|error| match &error {
            kube::Error::Api(status) if status.code != 401 => {
                Error::Status { action, code: status.code, message: status.message.clone() }
            }
            kube::Error::Api(_) => UpstreamError::Unauthorized { server: self.server.clone() }.into(),
            _ => {
                let (namespace, server) = (self.namespace.into(), self.server.clone());
                let info = RequestInfo { verb: "get", resource: "services".into(), namespace, server };
                UpstreamError::from_client_error(&error, &info).into()
            }
        })
    }
}

/// A connection to a Pod. It ends when the value is dropped. What the node reports is the error of a read.
pub struct PodConnection {
    stream: DuplexStream,
    error: Option<BoxFuture<'static, Option<String>>>,
    forwarder: Portforwarder,
}

impl std::fmt::Debug for PodConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodConnection").finish_non_exhaustive()
    }
}

impl Drop for PodConnection {
    fn drop(&mut self) {
        self.forwarder.abort();
    }
}

impl AsyncRead for PodConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let has_bytes = read.is_ready() && buffer.filled().len() > before;
        // After an error of the node nothing follows, and the connection may stay open.
        if !has_bytes
            && let Some(error) = &mut self.error
            && let Poll::Ready(message) = error.as_mut().poll(cx)
        {
            self.error = None;
            if let Some(message) = message {
                return Poll::Ready(Err(io::Error::other(format!("the node reports: {}", message.trim()))));
            }
        }
        read
    }
}

impl AsyncWrite for PodConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Returns the only Service of a list.
fn only_service(mut services: Vec<Service>, namespace: &str) -> Result<Service, Error> {
    match services.pop() {
        None => Err(Error::NoService(namespace.to_owned())),
        Some(service) if services.is_empty() => Ok(service),
        Some(service) => {
            let names = services.iter().chain([&service]).filter_map(|service| service.metadata.name.as_deref());
            let mut names: Vec<&str> = names.collect();
            names.sort_unstable();
            names.truncate(MAX_NAMES);
            Err(Error::SeveralServices { namespace: namespace.to_owned(), names: names.join(", ") })
        }
    }
}

/// Returns name, selector of the Pods, and port of a Service: the port `http`, else `https`, else the first one.
fn forwardable(service: Service) -> Result<(String, String, ServicePort), Error> {
    let name = service.metadata.name.unwrap_or_default();
    let unusable = |problem: &str| Error::Unusable { service: name.clone(), problem: problem.to_owned() };
    let spec = service.spec.unwrap_or_default();
    let labels = spec.selector.unwrap_or_default();
    if labels.is_empty() {
        return Err(unusable("has no selector, so it has no Pods; name another one with --service"));
    }
    let selector: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let is_tcp = |port: &ServicePort| matches!(port.protocol.as_deref(), None | Some("TCP"));
    let ports: Vec<ServicePort> = spec.ports.unwrap_or_default().into_iter().filter(is_tcp).collect();
    let named = |name: &str| ports.iter().find(|port| port.name.as_deref() == Some(name));
    let port = named("http").or_else(|| named("https")).or_else(|| ports.first()).cloned();
    let port = port.ok_or_else(|| unusable("has no TCP port"))?;
    Ok((name, selector.join(","), port))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let is_true = |type_: &str| {
        conditions.is_some_and(|all| all.iter().any(|condition| condition.type_ == type_ && condition.status == "True"))
    };
    pod.metadata.deletion_timestamp.is_none() && is_true("Ready")
}

/// Returns the port of a Pod that a port of the Service leads to.
fn target_port(port: &ServicePort, pod: &Pod) -> Option<u16> {
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => {
            let containers = &pod.spec.as_ref()?.containers;
            let ports = containers.iter().flat_map(|container| container.ports.iter().flatten());
            ports.into_iter().find(|port| port.name.as_ref() == Some(name))?.container_port
        }
    };
    u16::try_from(number).ok()
}

fn shown_port(port: Option<&IntOrString>) -> String {
    match port {
        None => String::new(),
        Some(IntOrString::Int(number)) => number.to_string(),
        Some(IntOrString::String(name)) => name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(value: serde_json::Value) -> Service {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_service_needs_a_selector_and_a_tcp_port() {
        let named = |name: &str| json!({"metadata": {"name": name}});
        assert!(matches!(only_service(vec![], "ns"), Err(Error::NoService(_))));
        let two = only_service(vec![service(named("b")), service(named("a"))], "ns").unwrap_err();
        assert!(two.to_string().ends_with("choose one with --service: a, b"), "{two}");
        let spec = json!({"selector": {"app": "bridge", "tier": "x"}, "ports": [
            {"port": 9, "protocol": "UDP"}, {"name": "metrics", "port": 9090}, {"name": "http", "port": 80}]});
        let (name, selector, port) = forwardable(service(json!({"metadata": {"name": "s"}, "spec": spec}))).unwrap();
        assert_eq!((name.as_str(), selector.as_str(), port.port), ("s", "app=bridge,tier=x", 80));
        for (spec, words) in [
            (json!({"ports": [{"port": 80}]}), "has no selector"),
            (json!({"selector": {"a": "b"}, "ports": [{"port": 9, "protocol": "UDP"}]}), "has no TCP port"),
        ] {
            let error = forwardable(service(json!({"metadata": {"name": "s"}, "spec": spec}))).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn the_target_port_is_a_number_or_a_name() {
        let pod: Pod = serde_json::from_value(json!({
            "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 3000}]}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        }))
        .unwrap();
        let port = |target: serde_json::Value| -> ServicePort {
            serde_json::from_value(json!({"port": 80, "targetPort": target})).unwrap()
        };
        assert_eq!(target_port(&port(json!("web")), &pod), Some(3000));
        assert_eq!(target_port(&port(json!(8080)), &pod), Some(8080));
        assert_eq!(target_port(&port(json!(null)), &pod), Some(80));
        assert_eq!(target_port(&port(json!("other")), &pod), None);
        assert!(is_ready(&pod) && !is_ready(&Pod::default()));
    }
}
