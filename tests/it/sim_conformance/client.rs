//! A raw client of the Kubernetes API: requests, watches line by line, and objects with exactly the given fields.
//!
//! Guarantees: every wait has a bound.

use std::time::Duration;

use boilerhouse_bridge::test_support::{ClaimBuilder, PodBuilder};
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

/// How long an expected line, response or end may take, on a busy machine.
const LINE_BOUND: Duration = Duration::from_secs(30);

/// Waits until claims can be watched. A restarted API server is ready shortly before its caches. Until they are ready,
/// it answers 429 "storage is (re)initializing".
pub(super) async fn watchable(client: &Client) {
    let end = Instant::now() + LINE_BOUND;
    let path = "/apis/boilerhouse.dev/v1alpha1/boilerhouseclaims?watch=1&timeoutSeconds=1";
    while get(client, path).await.0 != StatusCode::OK {
        assert!(Instant::now() < end, "claims cannot be watched in time");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A watch as its raw lines.
pub(super) struct Lines {
    body: Body,
    unread: Vec<u8>,
}

impl Lines {
    /// Starts a watch.
    pub(super) async fn open(client: &Client, path: &str) -> Self {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response =
            timeout(LINE_BOUND, client.send(request)).await.expect("the watch does not start in time").unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        Self { body: response.into_body(), unread: Vec::new() }
    }

    /// Returns the next line, or `None` at the end of the watch. It has no bound.
    pub(super) async fn read(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = self.body.frame().await?.unwrap();
            self.unread.extend_from_slice(&frame.into_data().unwrap());
        }
    }

    /// Returns the next line.
    pub(super) async fn next(&mut self) -> Value {
        timeout(LINE_BOUND, self.read())
            .await
            .expect("no line arrives in time")
            .expect("expected a line, found the end")
    }

    /// Expects the end of the watch, and no line before it.
    pub(super) async fn end(&mut self) {
        assert_eq!(timeout(LINE_BOUND, self.read()).await.expect("the watch does not end in time"), None);
    }
}

/// Sends a request. Returns the status and the body, as JSON or else as a string.
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

/// Sends a merge patch and returns the patched object.
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

/// Creates a claim of the tenant `alice`. The request has a status, which the API server drops.
pub(super) async fn create_claim(client: &Client, ns: &str, name: &str) -> Value {
    let claim = ClaimBuilder::new(name).phase("Active").json();
    let (code, object) = post(client, &claims(ns, ""), claim).await;
    assert_eq!(code, StatusCode::CREATED, "{object}");
    object
}

/// Returns a Pod with exactly these labels, which is not managed unless they say so. It has a status, which the API
/// server replaces at creation.
pub(super) fn pod(name: &str, labels: &Value) -> Value {
    let mut pod = PodBuilder::new(name).json();
    pod["metadata"]["labels"] = labels.clone();
    pod
}

/// Adds the type of a claim. The argument may be invalid, which no builder produces.
pub(super) fn typed(mut claim: Value) -> Value {
    claim["apiVersion"] = json!("boilerhouse.dev/v1alpha1");
    claim["kind"] = json!("BoilerhouseClaim");
    claim
}

/// Removes the type, as items of a Pod list have none.
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

/// Returns the query of a watch that starts after the version of an object. It ends after 30 s at the latest.
pub(super) fn from(object: &Value) -> String {
    format!("?watch=1&timeoutSeconds=30&resourceVersion={}", version(object))
}

pub(super) fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

pub(super) fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}
