//! `events` without a URL, and `dashboard`: they find the Service of the bridge and forward a port to a Pod.
//!
//! A small API server of the test speaks the port-forward protocol of Kubernetes (binary WebSocket messages: a channel, then
//! bytes) and leads to a real bridge. The real API server has no node here, so that it refuses; its refusal must be
//! reported.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Output,
    sync::{Arc, Mutex},
};

use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

use crate::support::{
    self,
    bridge_process::{BridgeProcess, command},
    cluster::Cluster,
    http_client::{self, TEST_TIMEOUT, WsClient},
    sim_cluster::SimCluster,
};

const NAMESPACE: &str = "boilerhouse";
/// The port of the bridge in its Pod.
const POD_PORT: u16 = 3000;

/// What the API server of the test knows.
#[derive(Default)]
struct Objects {
    services: Vec<Value>,
    pods: Vec<Value>,
    /// Where a port of each Pod leads to. Without an entry the node reports an error.
    targets: Vec<(&'static str, SocketAddr)>,
    /// The Pods of port-forwards, and the paths of all requests.
    forwarded: Vec<String>,
    requests: Vec<String>,
}

/// A small API server with Services, Pods and port-forwards.
struct ForwardingApi {
    objects: Arc<Mutex<Objects>>,
    kubeconfig: tempfile::NamedTempFile,
    serving: JoinHandle<()>,
}

impl ForwardingApi {
    async fn start(objects: Objects) -> ForwardingApi {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let kubeconfig = support::sim_cluster::kubeconfig(&format!("http://{}", listener.local_addr().unwrap()));
        let objects = Arc::new(Mutex::new(objects));
        let shared = objects.clone();
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                connections.spawn(answer(socket, shared.clone()));
            }
        });
        ForwardingApi { objects, kubeconfig, serving }
    }

    async fn events(&self, args: &[&str]) -> Output {
        events(&self.kubeconfig.path().to_string_lossy(), args).await
    }
}

impl Drop for ForwardingApi {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn events(kubeconfig: &str, args: &[&str]) -> Output {
    let mut events = command(&[&["events", "--kubeconfig", kubeconfig], args].concat());
    timeout(TEST_TIMEOUT, events.output()).await.expect("it ends in time").unwrap()
}

/// Answers the requests of one connection.
async fn answer(mut socket: TcpStream, objects: Arc<Mutex<Objects>>) {
    let mut received = Vec::new();
    loop {
        let Some(end) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
            match socket.read_buf(&mut received).await {
                Ok(bytes) if bytes > 0 => continue,
                _ => return,
            }
        };
        let head = String::from_utf8(received.drain(..end + 4).collect()).unwrap();
        let path = head.split(' ').nth(1).unwrap().to_owned();
        objects.lock().unwrap().requests.push(path.clone());
        let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
        let services = format!("/api/v1/namespaces/{NAMESPACE}/services");
        let list = |items: &[Value]| json!({"metadata": {"resourceVersion": "1"}, "items": items});
        if let Some(pod) = path.strip_prefix(&format!("{pods}/")).and_then(|rest| rest.split('/').next()) {
            return forward(socket, &head, &path, pod, &objects).await;
        }
        let (status, body) = {
            let objects = objects.lock().unwrap();
            if let Some(name) = path.strip_prefix(&format!("{services}/")) {
                let found = objects.services.iter().find(|service| service["metadata"]["name"] == name);
                found
                    .map_or((404, status(404, &format!("services \"{name}\" not found"))), |found| (200, found.clone()))
            } else if path.starts_with(&services) {
                assert!(path.contains("labelSelector=app.kubernetes.io%2Fname%3Dboilerhouse-bridge"), "{path}");
                (200, list(&objects.services))
            } else if path.starts_with(&pods) {
                assert!(path.contains("labelSelector=app%3Dbridge"), "{path}");
                (200, list(&objects.pods))
            } else {
                (404, status(404, "no such path"))
            }
        };
        let body = body.to_string();
        let answer = format!(
            "HTTP/1.1 {status} Answer\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        if socket.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

fn status(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message})
}

/// Speaks the port-forward protocol. The first message of each channel is the port (little endian); channel 0 has the data,
/// and channel 1 an error.
async fn forward(mut socket: TcpStream, head: &str, path: &str, pod: &str, objects: &Mutex<Objects>) {
    assert!(path.contains(&format!("/portforward?&ports={POD_PORT}")), "{path}");
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
    };
    assert!(header("sec-websocket-protocol").unwrap().contains("v4.channel.k8s.io"), "{head}");
    let target = {
        let mut objects = objects.lock().unwrap();
        objects.forwarded.push(pod.to_owned());
        objects.targets.iter().find(|(name, _)| *name == pod).map(|(_, target)| *target)
    };
    let accept = derive_accept_key(header("sec-websocket-key").unwrap().as_bytes());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Protocol: v4.channel.k8s.io\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    socket.write_all(answer.as_bytes()).await.unwrap();
    let mut stream = WebSocketStream::from_raw_socket(socket, Role::Server, None).await;
    let [low, high] = POD_PORT.to_le_bytes();
    for channel in [0, 1] {
        stream.send(Message::binary(vec![channel, low, high])).await.unwrap();
    }
    let Some(target) = target else {
        let error = "\x01an error occurred forwarding 3000: connection refused inside the Pod";
        stream.send(Message::binary(error.as_bytes().to_vec())).await.unwrap();
        // The client ends the connection.
        while let Some(Ok(_)) = stream.next().await {}
        return;
    };
    let mut bridge = TcpStream::connect(target).await.unwrap();
    let mut bytes = vec![0; 16 << 10];
    loop {
        tokio::select! {
            read = bridge.read(&mut bytes) => {
                let read = read.unwrap_or(0);
                if read == 0 || stream.send(Message::binary([&[0], &bytes[..read]].concat())).await.is_err() {
                    let _ = stream.close(None).await;
                    return;
                }
            }
            message = stream.next() => match message {
                Some(Ok(Message::Binary(message))) if message.first() == Some(&0) => {
                    bridge.write_all(&message[1..]).await.unwrap();
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
        }
    }
}

fn service(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app.kubernetes.io/name": "boilerhouse-bridge"}},
        "spec": {"selector": {"app": "bridge"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    })
}

fn pod(name: &str, is_ready: bool) -> Value {
    json!({
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"containers": [{"name": "bridge", "ports": [{"name": "http", "containerPort": POD_PORT}]}]},
        "status": {"conditions": [{"type": "Ready", "status": if is_ready { "True" } else { "False" }}]},
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn events_of_a_bridge_arrive_through_a_port_forward() {
    let cluster = SimCluster::new().await;
    cluster.create_pod("first");
    let bridge = cluster.bridge(&[]).await;
    let api = ForwardingApi::start(Objects {
        services: vec![service("bridge")],
        pods: vec![pod("starting", false), pod("one", true), pod("two", true)],
        targets: vec![("one", bridge.address), ("two", bridge.address)],
        ..Objects::default()
    })
    .await;
    for transport in ["websocket", "sse"] {
        let output = api.events(&["--transport", transport, "--count", "1"]).await;
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{transport}");
        let event: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(event["instances"][0]["name"], "first", "{transport}");
    }
    let output = api.events(&["--service", "bridge", "--count", "1"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let requests = api.objects.lock().unwrap().requests.clone();
    assert!(requests.contains(&format!("/api/v1/namespaces/{NAMESPACE}/services/bridge")), "{requests:?}");
}

/// A Pod that refuses is reported with the text of the node, and the next connection goes to another Pod.
#[tokio::test]
async fn a_refusal_of_the_node_is_reported_and_another_pod_is_tried() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let api = ForwardingApi::start(Objects {
        services: vec![service("bridge")],
        pods: vec![pod("broken", true), pod("good", true)],
        targets: vec![("good", bridge.address)],
        ..Objects::default()
    })
    .await;
    let output = api.events(&["--count", "1"]).await;
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("an error occurred forwarding 3000: connection refused inside the Pod"), "{stderr}");
    assert_eq!(api.objects.lock().unwrap().forwarded, ["broken", "good"]);
}

#[tokio::test]
async fn what_cannot_be_found_is_one_sentence_with_exit_code_5() {
    let nothing = ForwardingApi::start(Objects::default()).await;
    let two = ForwardingApi::start(Objects { services: vec![service("b"), service("a")], ..Objects::default() }).await;
    let no_pod = Objects { services: vec![service("bridge")], pods: vec![pod("p", false)], ..Objects::default() };
    let no_pod = ForwardingApi::start(no_pod).await;
    let cases: [(&ForwardingApi, &[&str], &str); 4] = [
        (
            &nothing,
            &[],
            "namespace boilerhouse has no Service with the label app.kubernetes.io/name=boilerhouse-bridge",
        ),
        (&nothing, &["--service", "bridge"], "404 services \"bridge\" not found"),
        (&two, &[], "has several bridges; choose one with --service: a, b"),
        (
            &no_pod,
            &["--connect-timeout", "0.5"],
            "Service bridge has no Pod that is ready (1 with the labels app=bridge)",
        ),
    ];
    for (api, args, words) in cases {
        let output = api.events(args).await;
        let stderr = text(&output.stderr);
        assert!(output.status.code() == Some(5) && stderr.contains(words), "{args:?}: {output:?}");
    }
    let unreachable = support::sim_cluster::kubeconfig("http://127.0.0.1:1");
    let output = events(&unreachable.path().to_string_lossy(), &[]).await;
    let stderr = text(&output.stderr);
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(5), 1), "{stderr}");
    assert!(stderr.contains("with context simulated: cannot connect to http://127.0.0.1:1"), "{stderr}");
    let output = events("/nowhere/config", &[]).await;
    assert!(output.status.code() == Some(5) && text(&output.stderr).contains("/nowhere/config"), "{output:?}");
}

/// The real API server accepts the request and refuses it, because the Pod runs on no node.
#[tokio::test]
async fn the_real_api_server_understands_the_request() {
    let cluster = Cluster::shared().await;
    let (plane, namespace) = (cluster.plane(), cluster.namespace.clone());
    let mut service = service("bridge");
    let mut pod = pod("bridge-0", true);
    let (status, spec) = (pod["status"].take(), pod["spec"].clone());
    pod["metadata"] = json!({"name": "bridge-0", "labels": {"app": "bridge"}});
    pod["spec"] = spec;
    pod["spec"]["containers"][0]["image"] = "bridge".into();
    service["metadata"].as_object_mut().unwrap().remove("namespace");
    let core = format!("/api/v1/namespaces/{namespace}");
    plane.call(http::Method::POST, &format!("{core}/services"), &service).await;
    cluster.write(http::Method::POST, "pods", "", &pod).await;
    cluster.write(http::Method::PATCH, "pods", "/bridge-0/status", &json!({ "status": status })).await;
    let kubeconfig = plane.kubeconfig();
    let args = ["--namespace", &namespace, "--connect-timeout", "3"];
    let output = events(&kubeconfig.to_string_lossy(), &args).await;
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{stderr}");
    let words = format!(
        "cannot forward a port to Pod bridge-0 in namespace {namespace}: 400 pod bridge-0 does not have a host"
    );
    assert!(stderr.contains(&words), "{stderr}");
}

/// `dashboard` prints a URL of this machine, which leads to the bridge.
#[tokio::test]
async fn the_dashboard_of_a_bridge_is_reached_through_a_port_forward() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let api = ForwardingApi::start(Objects {
        services: vec![service("bridge")],
        pods: vec![pod("one", true)],
        targets: vec![("one", bridge.address)],
        ..Objects::default()
    })
    .await;
    let kubeconfig = api.kubeconfig.path().to_string_lossy().into_owned();
    let mut dashboard = BridgeProcess::run(&["dashboard", "--kubeconfig", &kubeconfig]).await;
    let html = [("Accept", "text/html")];
    let page = http_client::request(dashboard.address, "GET", "/", &html).await;
    assert!(page.status == 200 && page.body.contains("app.js"), "{}", page.body);
    assert_eq!(http_client::get(dashboard.address, "/api/v1/instances").await.body, "[]");
    let mut stream = WsClient::connect(dashboard.address, "/api/websocket").await;
    assert_eq!(stream.json().await["type"], "state.initial");
    dashboard.signal("TERM").await;
    assert_eq!(dashboard.ended(TEST_TIMEOUT).await.code(), Some(0));
    let nothing = ForwardingApi::start(Objects::default()).await;
    let mut dashboard = command(&["dashboard", "--kubeconfig", &nothing.kubeconfig.path().to_string_lossy()]);
    let output = timeout(TEST_TIMEOUT, dashboard.output()).await.expect("it ends in time").unwrap();
    assert!(output.status.code() == Some(5) && text(&output.stderr).contains("has no Service"), "{output:?}");
}

/// Connections without a free file are lost. The command and what it forwards go on.
#[tokio::test]
async fn the_dashboard_goes_on_after_connections_that_cannot_be_accepted() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let api = ForwardingApi::start(Objects {
        services: vec![service("bridge")],
        pods: vec![pod("one", true)],
        targets: vec![("one", bridge.address)],
        ..Objects::default()
    })
    .await;
    let kubeconfig = api.kubeconfig.path().to_string_lossy().into_owned();
    let dashboard = BridgeProcess::run_with_file_limit(&["dashboard", "--kubeconfig", &kubeconfig], 40).await;
    let mut stream = WsClient::connect(dashboard.address, "/api/websocket").await;
    assert_eq!(stream.json().await["type"], "state.initial");
    let mut many = Vec::new();
    for _ in 0..60 {
        many.push(TcpStream::connect(dashboard.address).await.unwrap());
    }
    dashboard.wait_for_log("cannot accept a connection: Too many open files").await;
    drop(many);
    // Connections without an answer are lost until the files are free again.
    let request = format!("GET /livez HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", dashboard.address);
    http_client::poll_until_async(async || {
        let (mut socket, mut answer) = (TcpStream::connect(dashboard.address).await.unwrap(), String::new());
        socket.write_all(request.as_bytes()).await.ok()?;
        socket.read_to_string(&mut answer).await.ok()?;
        answer.contains("200 OK").then_some(())
    })
    .await;
    cluster.create_pod("alpha");
    stream.until(|event| event["name"] == "alpha").await;
}
