//! The Rust client against the binary: it follows the cluster through cuts at any byte and restarts of the bridge, on both
//! transports, and reports what is no stream.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashSet},
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use boilerhouse_bridge::client::{Builder, Client, Error, Event, Events, InstanceFilter, Payload, State, Transport};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    net::TcpListener,
    time::{Instant, sleep, timeout},
};

use crate::support::{
    self, bridge_process::BridgeProcess, cluster::Cluster, http_client::TEST_TIMEOUT, sim_cluster::SimCluster,
    tcp_proxy::TcpProxy,
};

/// Connections that are cut, in the short form and in the long form.
const CUTS: [u64; 2] = [8, 200];
/// A connection delivers about so many bytes before it is cut: the head, a resume and a few events.
const CUT_AFTER: (u64, u64) = (2_500, 4_000);
/// The time between two writes.
const PAUSE: Duration = Duration::from_millis(20);
/// The cluster has at most so many Pods.
const PODS: u64 = 8;

/// What one client has received.
#[derive(Default)]
struct Received {
    state: State,
    keys: HashSet<String>,
    errors: u64,
}

impl Received {
    /// Reads until `enough`, and returns why a connection ended last.
    async fn read_until(&mut self, events: &mut Events, enough: impl Fn(&Received, &Events) -> bool) {
        while !enough(self, events) {
            match timeout(TEST_TIMEOUT, events.next())
                .await
                .expect("the client waits too long")
                .expect("it has not ended")
            {
                Ok(event) => {
                    self.state.apply(&event);
                    let value = event.value();
                    let Some(key) = value["key"].as_str() else { continue };
                    // A deletion that is found by a difference can have another key than the real one.
                    let is_new = self.keys.insert(key.to_owned());
                    assert!(is_new || value["coalesced"] == true, "{key} is delivered twice");
                }
                Err(error) => {
                    assert!(!error.is_final(), "{error}");
                    self.state.connection_ended();
                    self.errors += 1;
                }
            }
        }
    }

    fn phases(&self) -> BTreeMap<String, String> {
        let phases = self.state.instances().values();
        phases.map(|instance| (instance.name.clone(), instance.phase.clone())).collect()
    }
}

/// Writes until `is_enough`: each Pod gets a phase, and now and then it is deleted and created again. `written` counts the
/// writes of all calls.
async fn write(cluster: &Cluster, written: &mut u64, is_enough: &Cell<bool>) {
    while !is_enough.get() {
        let n = *written;
        *written += 1;
        let name = format!("pod-{}", n % PODS);
        match n / PODS % 4 {
            0 => cluster.create_pod(&name, "").await,
            1 => cluster.pod_phase(&name, "Pending").await,
            2 => cluster.pod_phase(&name, "Running").await,
            _ => cluster.delete_pod(&name).await,
        }
        sleep(PAUSE).await;
    }
}

/// Returns the phases of all Pods, as the API server lists them.
async fn phases(cluster: &Cluster) -> BTreeMap<String, String> {
    let request =
        http::Request::get(format!("/api/v1/namespaces/{}/pods", cluster.namespace)).body(Vec::new()).unwrap();
    let list: serde_json::Value = cluster.client().request(request).await.unwrap();
    let pods = list["items"].as_array().unwrap().iter();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    pods.map(|pod| (text(&pod["metadata"]["name"]), text(&pod["status"]["phase"]))).collect()
}

/// The long form runs on the real API server.
#[tokio::test]
async fn client_follows_the_cluster_through_cuts_and_restarts() {
    let cuts = CUTS[usize::from(support::long_form())];
    let mut cluster = if support::long_form() { Cluster::real().await } else { Cluster::simulated().await };
    let (kubeconfig, namespace) = (cluster.kubeconfig().to_string_lossy().into_owned(), cluster.namespace.clone());
    let mut bridge = BridgeProcess::start(&kubeconfig, &namespace, &[]).await;
    bridge.wait_ready().await;
    let proxy = TcpProxy::new(Some(CUT_AFTER), 7).await;
    proxy.set_target(Some(bridge.address));
    let client = |transport| {
        let builder = Client::builder(format!("http://{}", proxy.address)).transport(transport);
        builder.build().unwrap().events()
    };
    let mut clients = [Transport::WebSocket, Transport::Sse].map(|transport| (client(transport), Received::default()));
    let mut written = 0;
    for part in 1..=3 {
        let [(one, first), (two, second)] = &mut clients;
        let enough = |_: &Received, events: &Events| events.connections() > cuts * part / 3;
        let is_enough = Cell::new(false);
        let reading = async {
            tokio::join!(first.read_until(one, enough), second.read_until(two, enough));
            is_enough.set(true);
        };
        tokio::join!(write(&cluster, &mut written, &is_enough), reading);
        match part {
            1 => {
                // The next bridge has no state of its clients.
                bridge.signal("KILL").await;
                bridge.ended(TEST_TIMEOUT).await;
                bridge = BridgeProcess::start(&kubeconfig, &namespace, &[]).await;
                bridge.wait_ready().await;
                proxy.set_target(Some(bridge.address));
            }
            2 => {
                cluster.down().await;
                cluster.up().await;
            }
            _ => {}
        }
    }
    let expected = phases(&cluster).await;
    for (events, received) in &mut clients {
        let is_equal = |received: &Received, _: &Events| received.phases() == expected;
        let reached = timeout(2 * TEST_TIMEOUT, received.read_until(events, is_equal)).await;
        assert!(reached.is_ok(), "the fold is {:?}, the API server has {expected:?}", received.phases());
        assert!(received.errors >= cuts, "{} errors", received.errors);
    }
}

#[tokio::test]
async fn filters_and_types_are_sent_to_the_bridge() {
    let cluster = SimCluster::new().await;
    cluster.create_pod("one");
    cluster.create_pod("two");
    let bridge = cluster.bridge(&[]).await;
    for transport in [Transport::WebSocket, Transport::Sse] {
        let client = Client::builder(bridge.address.to_string()).transport(transport).types(["instance"]);
        let mut events = client.instances(InstanceFilter::new().name("two")).build().unwrap().events();
        let first = timeout(TEST_TIMEOUT, events.next()).await.unwrap().unwrap().unwrap();
        let Payload::StateInitial(state) = &first.payload else { panic!("{first:?}") };
        assert_eq!(state.instances.iter().map(|instance| instance.name.as_str()).collect::<Vec<_>>(), ["two"]);
        assert!(first.id.is_some() && events.cursor() == first.id.as_deref());
        cluster.pod_phase("one", "Running");
        cluster.pod_phase("two", if transport == Transport::Sse { "Running" } else { "Pending" });
        let next = timeout(TEST_TIMEOUT, events.next()).await.unwrap().unwrap().unwrap();
        let Payload::InstanceState(change) = &next.payload else { panic!("{next:?}") };
        assert_eq!(change.name, "two");
    }
}

/// Serves one response to each connection.
async fn serve(response: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(response.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    format!("http://{address}")
}

#[tokio::test]
async fn responses_that_are_no_stream_are_named() {
    let cases: [(&str, bool, &str); 6] = [
        (
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 21\r\n\r\n\n<title>Sign in</title>",
            true,
            "200 OK with text/html, not an event stream: \"<title>Sign in</titl",
        ),
        ("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 8\r\n\r\nno route", false, "HTTP 502: no route"),
        (
            "HTTP/1.1 302 Found\r\nLocation: https://login.example/?t=1\r\nContent-Length: 0\r\n\r\n",
            true,
            "redirects to https://login.example/:",
        ),
        (
            "HTTP/1.1 401 Unauthorized\r\nContent-Length: 72\r\n\r\n{\"code\":\"UNAUTHORIZED\",\"message\":\"send a token\",\"error\":\"send a token\"} ",
            true,
            "HTTP 401: send a token",
        ),
        (
            "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
            false,
            "HTTP 429: Too Many Requests",
        ),
        ("not HTTP\r\n\r\n", false, "cannot connect to"),
    ];
    for (response, is_final, words) in cases {
        let url = serve(response).await;
        let mut events = Client::builder(&url).transport(Transport::Sse).build().unwrap().events();
        let error = timeout(TEST_TIMEOUT, events.next()).await.unwrap().unwrap().unwrap_err();
        assert!(error.is_final() == is_final && error.to_string().contains(words), "{error} for {response:?}");
        let next = timeout(Duration::from_millis(50), events.next()).await;
        assert_eq!(matches!(next, Ok(None)), is_final, "{response:?}");
    }
    // A WebSocket client names a response without an upgrade.
    let url = serve("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
    let mut events = Client::builder(&url).build().unwrap().events();
    let error = timeout(TEST_TIMEOUT, events.next()).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, Error::NotAStream { expected: "a WebSocket", .. }), "{error}");
}

/// The requests that a scripted server has received.
type Requests = Arc<Mutex<Vec<String>>>;

/// Returns the settings of an SSE client without a network, for tests with paused time. Its connections get these streams, one
/// after the other. The last one stays open.
fn scripted(streams: &'static [&'static str]) -> (Builder, Requests) {
    let (connections, requests) = (AtomicUsize::new(0), Requests::default());
    let seen = requests.clone();
    let open = move || {
        let (client, mut server) = duplex(1 << 16);
        let number = connections.fetch_add(1, Ordering::Relaxed);
        let seen = seen.clone();
        tokio::spawn(async move {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(server.read_u8().await.unwrap());
            }
            seen.lock().unwrap().push(String::from_utf8(request).unwrap());
            let stream = streams[number.min(streams.len() - 1)];
            let response = format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n{stream}");
            server.write_all(response.as_bytes()).await.unwrap();
            if number + 1 >= streams.len() {
                pending().await
            }
        });
        async move { Ok(client) }
    };
    (Client::builder("http://bridge.test").transport(Transport::Sse).connector(open), requests)
}

/// Returns the next event or error.
async fn next(events: &mut Events) -> Result<Event, Error> {
    events.next().await.expect("the stream has not ended")
}

#[tokio::test(start_paused = true)]
async fn stream_that_only_closes_is_no_connection_and_the_delays_grow() {
    const REFUSED: &str = "data: {\"type\":\"stream.closing\",\"reason\":\"not ready\",\"detail\":\"pods: forbidden\",\"retryAfterMs\":1}\n\n";
    let (client, _) = scripted(&[REFUSED, REFUSED, REFUSED, REFUSED, "data: {\"type\":\"heartbeat\"}\n\n"]);
    let mut events = client.build().unwrap().events();
    for least_delay in [500, 1000, 2000, 4000] {
        assert_eq!(next(&mut events).await.unwrap().kind, "stream.closing");
        let error = next(&mut events).await.unwrap_err();
        assert!(matches!(&error, Error::Closed { reason, .. } if reason == "not ready"), "{error}");
        assert_eq!(error.to_string(), "the bridge closed the stream: not ready (pods: forbidden)");
        let delay = events.reconnects_at().unwrap() - Instant::now();
        assert!(delay >= Duration::from_millis(least_delay), "{delay:?} is less than {least_delay} ms");
        assert_eq!(events.connections(), 0);
    }
    assert_eq!(next(&mut events).await.unwrap().kind, "heartbeat");
    assert_eq!(events.connections(), 1);
}

#[tokio::test(start_paused = true)]
async fn connection_without_an_event_counts_after_a_second() {
    let (client, _) = scripted(&[": a comment\n\n"]);
    let mut events = client.build().unwrap().events();
    for (wait, connections) in [(999, 0), (2, 1)] {
        timeout(Duration::from_millis(wait), events.next()).await.unwrap_err();
        assert_eq!(events.connections(), connections);
    }
    let error = next(&mut events).await.unwrap_err();
    assert!(matches!(error, Error::Silent(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn ids_that_no_header_can_carry_are_no_cursor() {
    const FIRST: &str = "id: 1\ndata: {}\n\nid: a\u{1}b\ndata: {}\n\n";
    let (client, requests) = scripted(&[FIRST, "id: 2\ndata: {}\n\n"]);
    let mut events = client.build().unwrap().events();
    next(&mut events).await.unwrap();
    let malformed = next(&mut events).await.unwrap_err();
    assert!(matches!(malformed, Error::Malformed { number: 2, .. }), "{malformed}");
    next(&mut events).await.unwrap_err();
    assert_eq!(events.cursor(), Some("1"));
    next(&mut events).await.unwrap();
    assert_eq!(events.cursor(), Some("2"));
    assert!(requests.lock().unwrap()[1].contains("\r\nlast-event-id: 1\r\n"), "{requests:?}");
}

#[tokio::test]
async fn malformed_events_are_skipped() {
    let url = serve(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: {\"type\":\"new\"}\n\ndata: {\n\nid: 7\ndata: {\"type\":\"x\"}\n\n",
    )
    .await;
    let mut events = Client::builder(&url).transport(Transport::Sse).build().unwrap().events();
    assert_eq!(events.next().await.unwrap().unwrap().kind, "new");
    let error = events.next().await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Malformed { number: 2, .. }) && !error.is_final(), "{error}");
    let event = events.next().await.unwrap().unwrap();
    assert_eq!((event.kind.as_str(), events.cursor()), ("x", Some("7")));
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_connection() {
    const LIMIT: Duration = Duration::from_millis(300);
    let (client, _) = scripted(&["data: {\"type\":\"heartbeat\"}\n\n"]);
    let mut events = client.silence_timeout(LIMIT).build().unwrap().events();
    assert_eq!(next(&mut events).await.unwrap().kind, "heartbeat");
    let last_byte = Instant::now();
    let error = next(&mut events).await.unwrap_err();
    assert!(matches!(error, Error::Silent(LIMIT)) && !error.is_final(), "{error}");
    assert_eq!(last_byte.elapsed(), LIMIT);
}

#[tokio::test]
async fn credentials_are_sent_and_read_again() {
    use std::io::Write as _;
    let cluster = SimCluster::new().await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let variables = [("BOILERHOUSE_API_KEY", "the-right-key")];
    let kubeconfig = cluster.kubeconfig();
    let args = ["serve", "--port", "0", "--kubeconfig", &kubeconfig, "--namespace", support::sim_cluster::NAMESPACE];
    let bridge = support::bridge_process::BridgeProcess::run_with(&args, &variables).await;
    bridge.wait_ready().await;
    let client = |path: &std::path::Path| Client::builder(bridge.address.to_string()).token_file(path).build().unwrap();
    writeln!(file, "wrong").unwrap();
    let error = client(file.path()).events().next().await.unwrap().unwrap_err();
    assert!(error.is_unauthorized() && error.is_final(), "{error}");
    let good = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(good.path(), "  the-right-key\n").unwrap();
    assert_eq!(client(good.path()).events().next().await.unwrap().unwrap().kind, "state.initial");
    std::fs::write(good.path(), "\n").unwrap();
    let error = client(good.path()).events().next().await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Token { .. }) && error.to_string().contains("the file is empty"), "{error}");
}
