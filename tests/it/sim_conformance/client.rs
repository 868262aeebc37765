//! Raw requests, raw watches, and the smallest objects that a real API server takes.

use std::time::Duration;

use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

/// How long a line may take that must come.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long nothing must come to be called silence.
const SILENCE: Duration = Duration::from_secs(2);

/// Waits until claims can be watched: a restarted API server is ready a little before its caches are, and then answers
/// 429, "storage is (re)initializing".
pub(super) async fn watchable(client: &Client) {
    let end = Instant::now() + PATIENCE;
    let path = "/apis/boilerhouse.dev/v1alpha1/boilerhouseclaims?watch=1&timeoutSeconds=1";
    while get(client, path).await.0 != StatusCode::OK {
        assert!(Instant::now() < end, "claims cannot be watched");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A raw watch, line by line.
pub(super) struct Lines {
    body: Body,
    rest: Vec<u8>,
}

impl Lines {
    pub(super) async fn open(client: &Client, path: &str) -> Self {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = timeout(PATIENCE, client.send(request)).await.expect("a watch answers at once").unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        Self { body: response.into_body(), rest: Vec::new() }
    }

    /// The next line, or `None` at the end.
    pub(super) async fn read(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = self.body.frame().await?.unwrap();
            self.rest.extend_from_slice(&frame.into_data().unwrap());
        }
    }

    pub(super) async fn next(&mut self) -> Value {
        timeout(PATIENCE, self.read()).await.expect("a line in time").expect("a line, not the end")
    }

    pub(super) async fn silent(&mut self) {
        if let Ok(line) = timeout(SILENCE, self.read()).await {
            panic!("silence, not {line:?}");
        }
    }

    pub(super) async fn end(&mut self) {
        self.end_within(PATIENCE).await;
    }

    pub(super) async fn end_within(&mut self, bound: Duration) {
        assert_eq!(timeout(bound, self.read()).await.expect("the end in time"), None);
    }
}

pub(super) async fn call(client: &Client, method: Method, path: &str, body: Option<&Value>) -> (StatusCode, Value) {
    let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let body = body.map(|body| serde_json::to_vec(body).unwrap()).unwrap_or_default();
    let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, kind);
    let response = client.send(request.body(Body::from(body)).unwrap()).await.unwrap();
    let code = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
    (code, serde_json::from_slice(&bytes).unwrap_or_else(|_| text()))
}

pub(super) async fn get(client: &Client, path: &str) -> (StatusCode, Value) {
    call(client, Method::GET, path, None).await
}

pub(super) async fn post(client: &Client, path: &str, body: Value) -> (StatusCode, Value) {
    call(client, Method::POST, path, Some(&body)).await
}

pub(super) async fn patch(client: &Client, path: &str, body: &Value) -> (StatusCode, Value) {
    call(client, Method::PATCH, path, Some(body)).await
}

pub(super) async fn patched(client: &Client, path: &str, body: &Value) -> Value {
    let (code, object) = patch(client, path, body).await;
    assert_eq!(code, StatusCode::OK, "{object}");
    object
}

pub(super) async fn create_pod(client: &Client, ns: &str, name: &str, labels: Value) -> Value {
    let (code, object) = post(client, &pods(ns, ""), pod(name, &labels)).await;
    assert_eq!(code, StatusCode::CREATED, "{object}");
    object
}

pub(super) async fn create_claim(client: &Client, ns: &str, name: &str) -> Value {
    let body = json!({
        "metadata": {"name": name}, "spec": {"tenantId": "alice", "workloadRef": "web"}, "status": {"phase": "Active"},
    });
    let (code, object) = post(client, &claims(ns, ""), typed(body)).await;
    assert_eq!(code, StatusCode::CREATED, "{object}");
    object
}

pub(super) fn pod(name: &str, labels: &Value) -> Value {
    let spec = json!({"containers": [{"name": "main", "image": "example.invalid/none"}]});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec})
}

pub(super) fn typed(mut claim: Value) -> Value {
    claim["apiVersion"] = json!("boilerhouse.dev/v1alpha1");
    claim["kind"] = json!("BoilerhouseClaim");
    claim
}

pub(super) fn untype(object: &mut Value) {
    let fields = object.as_object_mut().unwrap();
    fields.remove("kind");
    fields.remove("apiVersion");
}

pub(super) fn pods(ns: &str, rest: &str) -> String {
    format!("/api/v1/namespaces/{ns}/pods{rest}")
}

pub(super) fn claims(ns: &str, rest: &str) -> String {
    format!("/apis/boilerhouse.dev/v1alpha1/namespaces/{ns}/boilerhouseclaims{rest}")
}

/// The query of a watch from where an object was written; it ends by itself should a test forget it.
pub(super) fn from(object: &Value) -> String {
    format!("?watch=1&timeoutSeconds=30&resourceVersion={}", version(object))
}

pub(super) fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

pub(super) fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}
