//! Traces (docs/protocol.md#traces): what the binary sends to a collector, and that no collector delays it.

mod collector;

use std::time::Duration;

use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use tokio::time::{Instant, timeout};

use self::collector::{Answer, Collector, Received, attribute};
use crate::support::{
    bridge_process::BridgeProcess,
    http_client::{self, TEST_TIMEOUT, WsClient, metric, request, send_raw, wait_for_metric},
    sim_cluster::{KEY, NAMESPACE, SimCluster, kubeconfig},
    sse_client::SseClient,
};

/// The end of a process without streams: sends of waiting spans are bounded by 3 s (docs/limits.md), and a machine is busy.
const END_BOUND: Duration = Duration::from_secs(15);
/// A trace that a caller with a credential joins, and one that another caller wants to join.
const JOINED: &str = "0af7651916cd43dd8448eb211c80319c";
const REFUSED: &str = "1af7651916cd43dd8448eb211c80319c";
const CALLER_SPAN: &str = "b7ad6b7169203331";
/// Part of every text that must not reach the collector.
const CANARY: &str = "canary";

fn traceparent(trace: &str, flags: &str) -> String {
    format!("00-{trace}-{CALLER_SPAN}-{flags}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Starts `serve` on the cluster with a key, these arguments and these variables, and waits until it is ready.
async fn serve(cluster: &SimCluster, args: &[&str], variables: &[(&str, &str)]) -> BridgeProcess {
    let config = cluster.kubeconfig();
    let all = ["serve", "--port", "0", "--kubeconfig", &config, "--namespace", NAMESPACE, "--drain", "1"];
    let variables = [&[("BOILERHOUSE_API_KEY", KEY)], variables].concat();
    let bridge = BridgeProcess::run_with(&[&all[..], args].concat(), &variables).await;
    bridge.wait_ready().await;
    bridge
}

/// Starts a relay without an upstream.
async fn relay(args: &[&str], variables: &[(&str, &str)]) -> BridgeProcess {
    let all = ["relay", "--upstream", "http://127.0.0.1:1/events", "--listen", "127.0.0.1:0"];
    BridgeProcess::run_with(&[&all[..], args].concat(), variables).await
}

/// Ends the process with SIGTERM. Returns how long that took.
async fn terminate(bridge: &mut BridgeProcess) -> Duration {
    let start = Instant::now();
    bridge.signal("TERM").await;
    assert!(bridge.ended(END_BOUND).await.success(), "{:#?}", bridge.log());
    start.elapsed()
}

fn attributes(span: &Span, keys: &[&str]) -> Vec<Option<String>> {
    keys.iter().map(|key| attribute(&span.attributes, key)).collect()
}

/// Returns the only span for which `matches` is true.
fn only(spans: &[Span], matches: impl Fn(&Span) -> bool) -> &Span {
    let found: Vec<&Span> = spans.iter().filter(|span| matches(span)).collect();
    assert_eq!(found.len(), 1, "{found:#?} of {spans:#?}");
    found[0]
}

/// The span of the request with this `User-Agent`.
fn of_agent<'r>(received: &'r Received, agent: &str) -> &'r Span {
    only(&received.spans, |span| attribute(&span.attributes, "user_agent.original").as_deref() == Some(agent))
}

#[tokio::test]
async fn requests_and_streams_have_spans_without_credentials() {
    let cluster = SimCluster::new().await;
    let collector = Collector::new(Answer::Ok).await;
    let variables = [
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20canary-collector"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.name=ignored"),
        ("OTEL_SERVICE_NAME", "bridge-under-test"),
    ];
    let mut bridge = serve(&cluster, &["--otlp-endpoint", &collector.url(), "--log-level", "debug"], &variables).await;
    let address = bridge.address;
    let bearer = format!("Bearer {KEY}");
    let (joined, refused) = (traceparent(JOINED, "01"), traceparent(REFUSED, "01"));
    let hidden =
        [("tracestate", "vendor=canary-state"), ("baggage", "key=canary-baggage"), ("cookie", "a=canary-cookie")];
    let with = |headers: &[(&'static str, &'static str)]| [&hidden[..], headers].concat();

    let known = [("authorization", bearer.as_str()), ("traceparent", joined.as_str())];
    let headers: Vec<(&str, &str)> = [&with(&[("user-agent", "known")])[..], &known[..]].concat();
    let path = "/api/v1/instances?_cache=canary-query";
    assert_eq!(request(address, "GET", path, &headers).await.status, 200);
    let headers: Vec<(&str, &str)> =
        [&with(&[("user-agent", "unknown")])[..], &[("traceparent", refused.as_str())]].concat();
    assert_eq!(request(address, "GET", path, &headers).await.status, 401);
    let wrong = [("authorization", "Bearer canary-wrong"), ("traceparent", refused.as_str()), ("user-agent", "wrong")];
    assert_eq!(request(address, "GET", path, &wrong).await.status, 401);
    // Routes that admit callers without a credential.
    for path in ["/livez", "/api/v1/stats"] {
        let anonymous = [("traceparent", refused.as_str()), ("user-agent", path)];
        assert_eq!(request(address, "GET", path, &anonymous).await.status, 200, "{path}");
    }
    let anonymous = [("user-agent", "anonymous"), ("traceparent", refused.as_str())];
    let mut anonymous = WsClient::with(address, "/ws", &anonymous).await.unwrap();
    let long = "x".repeat(1000);
    assert_eq!(request(address, "CANARYMETHOD", &format!("/{long}"), &[("user-agent", &long)]).await.status, 404);

    // Two streams of server-sent events; the second resumes.
    let known: Vec<(&str, &str)> = [&known[..], &[("user-agent", "sse")]].concat();
    let mut sse = SseClient::open(address, "/api/sse", &known).await;
    let id = sse.event().await.id.unwrap();
    cluster.create_pod("one");
    cluster.create_pod("two");
    sse.until(|event| event["type"] == "instance.state" && event["name"] == "two").await;
    let resumed: Vec<(&str, &str)> =
        [&known[..2], &[("user-agent", "resumed"), ("last-event-id", id.as_str())]].concat();
    let mut second = SseClient::open(address, "/api/sse", &resumed).await;
    second.until(|event| event["type"] == "instance.state" && event["name"] == "two").await;
    drop(second);

    // A WebSocket with a ticket, which is the only credential in a URL.
    let answer = request(address, "POST", "/api/v1/tickets", &known[..1]).await;
    let ticket = answer.json()["ticket"].as_str().unwrap().to_owned();
    let path = format!("/api/websocket?token={ticket}");
    let headers = [("user-agent", "websocket"), ("traceparent", joined.as_str())];
    let mut websocket = WsClient::with(address, &path, &headers).await.unwrap();
    websocket.next_text().await.unwrap();
    websocket.close().await;
    anonymous.next_text().await.unwrap();
    let end = r#"bridge_streams_closed_total{transport="websocket",endpoint="/api/websocket",reason="client_closed"}"#;
    let closed = async {
        let headers = [("authorization", bearer.as_str())];
        while !request(address, "GET", "/metrics", &headers).await.body.lines().any(|line| line == format!("{end} 1")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(TEST_TIMEOUT, closed).await.expect("the WebSocket has ended");
    let closing = async move { anonymous.closed(TEST_TIMEOUT).await };
    let (_, (_, close)) = tokio::join!(terminate(&mut bridge), closing);
    assert_eq!(close, Some((1012, "draining".to_owned())));
    assert_eq!(sse.rest().await.last().map(|event| event.json()["type"].clone()), Some("stream.closing".into()));

    let received = collector.received();
    for head in &received.heads {
        assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("application/x-protobuf") && head.contains("Bearer canary-collector"), "{head}");
    }
    let secrets = [CANARY, KEY, &ticket, "authorization"];
    for (body, secret) in received.bodies.iter().flat_map(|body| secrets.map(|secret| (body, secret))) {
        let text = String::from_utf8_lossy(body).to_ascii_lowercase();
        assert!(!text.contains(&secret.to_ascii_lowercase()), "{secret} in {text}");
    }
    assert!(!bridge.log().iter().any(|line| line.contains("canary-collector")), "{:#?}", bridge.log());
    let resource = |key: &str| attribute(&received.resource, key);
    assert_eq!(resource("service.name").as_deref(), Some("bridge-under-test"));
    assert_eq!(resource("deployment.environment.name").as_deref(), Some("test"));
    assert_eq!(resource("service.version").as_deref(), Some(env!("CARGO_PKG_VERSION")));

    // Requests.
    let span = of_agent(&received, "known");
    assert_eq!((span.name.as_str(), span.kind()), ("GET /api/v1/instances", SpanKind::Server));
    assert_eq!((hex(&span.trace_id).as_str(), hex(&span.parent_span_id).as_str()), (JOINED, CALLER_SPAN));
    assert_eq!(span.trace_state, "");
    let keys = ["http.request.method", "http.route", "url.path", "http.response.status_code", "client.address"];
    let values =
        ["GET", "/api/v1/instances", "/api/v1/instances", "200", "127.0.0.1"].map(|value| Some(value.to_owned()));
    assert_eq!(attributes(span, &keys), values);
    assert!(span.end_time_unix_nano >= span.start_time_unix_nano && span.start_time_unix_nano > 0);
    for (agent, route, status) in [
        ("unknown", "/api/v1/instances", "401"),
        ("wrong", "/api/v1/instances", "401"),
        ("/livez", "/livez", "200"),
        ("/api/v1/stats", "/api/v1/stats", "200"),
        ("anonymous", "/ws", "101"),
    ] {
        let span = of_agent(&received, agent);
        assert_eq!((span.name.as_str(), span.parent_span_id.len()), (format!("GET {route}").as_str(), 0), "{span:?}");
        assert_eq!(attribute(&span.attributes, "http.response.status_code").as_deref(), Some(status));
        assert_eq!(attribute(&span.attributes, "error.type"), None);
    }
    assert!(!received.spans.iter().any(|span| hex(&span.trace_id) == REFUSED), "{:#?}", received.spans);
    let span = of_agent(&received, &long[..200]);
    let keys = ["http.request.method", "http.route", "http.response.status_code"];
    assert_eq!(span.name, "HTTP");
    assert_eq!(attributes(span, &keys), [Some("_OTHER".to_owned()), None, Some("404".to_owned())]);
    assert_eq!(attribute(&span.attributes, "url.path").map(|path| path.len()), Some(200));

    // Streams: one span each, whatever they have sent.
    let streams: Vec<&Span> = received.spans.iter().filter(|span| span.name.starts_with("stream ")).collect();
    assert_eq!(streams.len(), 4, "{streams:#?}");
    for (agent, transport, protocol, route, resumes, reason, status) in [
        ("anonymous", "websocket", "websocket", "/ws", "false", "draining", "101"),
        ("sse", "sse", "http", "/api/sse", "false", "draining", "200"),
        ("resumed", "sse", "http", "/api/sse", "true", "disconnected", "200"),
        ("websocket", "websocket", "websocket", "/api/websocket", "false", "client_closed", "101"),
    ] {
        let opened = of_agent(&received, agent);
        assert_eq!(opened.name, format!("GET {route}"));
        assert_eq!(hex(&opened.trace_id) == JOINED, agent != "anonymous", "{opened:?}");
        assert_eq!(attribute(&opened.attributes, "http.response.status_code").as_deref(), Some(status));
        let span = only(&received.spans, |span| span.parent_span_id == opened.span_id);
        assert_eq!((span.name.clone(), span.kind()), (format!("stream {route}"), SpanKind::Internal));
        assert_eq!(span.trace_id, opened.trace_id);
        let keys = [
            "bridge.stream.transport",
            "network.protocol.name",
            "http.route",
            "bridge.stream.resumes",
            "bridge.stream.close_reason",
        ];
        let values = [transport, protocol, route, resumes, reason].map(|value| Some(value.to_owned()));
        assert_eq!(attributes(span, &keys), values, "{agent}");
        let sent: u64 = attribute(&span.attributes, "bridge.stream.bytes_sent").unwrap().parse().unwrap();
        assert!(sent > 100, "{agent}: {sent} bytes");
        assert!(span.end_time_unix_nano >= opened.start_time_unix_nano);
    }
}

#[tokio::test]
async fn failed_request_is_an_error_and_a_flush_sends_its_span() {
    let collector = Collector::new(Answer::Ok).await;
    let nowhere = kubeconfig("http://127.0.0.1:1");
    let config = nowhere.path().to_string_lossy().into_owned();
    let mut bridge = BridgeProcess::start(&config, NAMESPACE, &["--otlp-endpoint", &collector.url()]).await;
    assert_eq!(http_client::get(bridge.address, "/readyz").await.status, 503);
    terminate(&mut bridge).await;
    let received = collector.received();
    let span = only(&received.spans, |span| span.name == "GET /readyz");
    let keys = ["http.response.status_code", "error.type"];
    assert_eq!(attributes(span, &keys), [Some("503".to_owned()), Some("503".to_owned())]);
    assert_eq!(span.status.as_ref().map(|status| status.code()), Some(StatusCode::Error));
}

#[tokio::test]
async fn collector_that_is_down_or_refuses_costs_a_log_entry() {
    let refusing = Collector::new(Answer::Status("401 Unauthorized")).await;
    for (url, reason) in [("http://127.0.0.1:1".to_owned(), "refused"), (refusing.url(), "401")] {
        let mut bridge = relay(&["--otlp-endpoint", &url], &[]).await;
        let address = bridge.address;
        for path in ["/livez", "/nothing"] {
            http_client::get(address, path).await;
        }
        wait_for_metric(address, r#"bridge_otlp_spans_total{outcome="not_sent"}"#, |count| count >= 2).await;
        let warned = bridge.wait_for_log("traces not sent").await;
        assert!(warned.contains(reason), "{warned}");
        http_client::get(address, "/livez").await;
        terminate(&mut bridge).await;
        let warnings = bridge.log().into_iter().filter(|line| line.contains("traces not sent")).count();
        assert_eq!(warnings, 1, "at most one a minute: {:#?}", bridge.log());
    }
}

/// A collector that takes requests and never answers: the queue is full after 2,048 spans, requests are answered at once, and
/// the process ends in time.
#[tokio::test]
async fn collector_that_hangs_delays_neither_requests_nor_the_end() {
    const REQUESTS: usize = 4000;
    let collector = Collector::new(Answer::Hang).await;
    let mut bridge = relay(&["--otlp-endpoint", &collector.url()], &[]).await;
    let address = bridge.address;
    http_client::get(address, "/livez").await;
    collector.wait_for_request().await;
    let request = format!("GET /livez HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let last = format!("GET /livez HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let answers = send_raw(address, (request.repeat(REQUESTS - 1) + &last).as_bytes()).await;
    let answers = String::from_utf8(answers).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), REQUESTS);
    assert!(metric(address, r#"bridge_otlp_spans_total{outcome="queue_full"}"#).await > 0);
    assert_eq!(metric(address, r#"bridge_otlp_spans_total{outcome="sent"}"#).await, 0);
    let took = terminate(&mut bridge).await;
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test]
async fn standard_variables_select_the_collector_and_the_sampler() {
    let collector = Collector::new(Answer::Ok).await;
    let url = collector.url();
    let [endpoint, traces_endpoint] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
    let own = format!("{url}/own/path");
    // Variables, and the path of the requests to the collector.
    type Row<'a> = (&'a [(&'a str, &'a str)], Option<&'a str>);
    let table: &[Row<'_>] = &[
        (&[(endpoint, &url)], Some("/v1/traces")),
        (&[(traces_endpoint, &own), (endpoint, "http://127.0.0.1:1")], Some("/own/path")),
        (&[(endpoint, &url), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")], Some("/v1/traces")),
        (&[(endpoint, &url), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], None),
        (&[(endpoint, &url), ("OTEL_TRACES_EXPORTER", "none")], None),
        // What is turned off has no errors: the certificates belong to the collector that is not used.
        (
            &[
                (endpoint, "collector:4317"),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
                ("BRIDGE_OTLP_CA_FILE", "/absent"),
            ],
            None,
        ),
        // Requests are not compressed.
        (&[(endpoint, &url), ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")], Some("/v1/traces")),
        (&[(endpoint, &url), ("OTEL_SDK_DISABLED", "true")], None),
        (&[("BRIDGE_OTLP_ENDPOINT", &url), ("OTEL_SDK_DISABLED", "TRUE")], None),
        (&[("BRIDGE_OTLP_ENDPOINT", &url), ("OTEL_TRACES_SAMPLER", "always_off")], None),
        (
            &[
                ("BRIDGE_OTLP_ENDPOINT", &url),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
                ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
                ("OTEL_TRACES_SAMPLER_ARG", "1"),
            ],
            Some("/v1/traces"),
        ),
        (&[("OTEL_SERVICE_NAME", "x")], None),
    ];
    for (variables, path) in table {
        let before = collector.received().heads.len();
        let mut bridge = relay(&[], variables).await;
        assert_eq!(http_client::get(bridge.address, "/livez").await.status, 200);
        terminate(&mut bridge).await;
        let received = collector.received();
        let paths: Vec<&str> = received.heads[before..].iter().filter_map(|head| head.split(' ').nth(1)).collect();
        assert_eq!(paths.first().copied(), *path, "{variables:?}: {:#?}", bridge.log());
    }
}

/// A caller with a credential can keep a trace from being recorded, as its own sampler decided.
#[tokio::test]
async fn decision_of_a_known_caller_not_to_record_counts() {
    let cluster = SimCluster::new().await;
    let collector = Collector::new(Answer::Ok).await;
    let mut bridge = serve(&cluster, &["--otlp-endpoint", &collector.url()], &[]).await;
    let (bearer, unsampled) = (format!("Bearer {KEY}"), traceparent(JOINED, "00"));
    let known = [("authorization", bearer.as_str()), ("traceparent", unsampled.as_str()), ("user-agent", "known")];
    let mut stream = SseClient::open(bridge.address, "/api/sse", &known).await;
    stream.event().await;
    let unknown = [("traceparent", unsampled.as_str()), ("user-agent", "unknown")];
    assert_eq!(request(bridge.address, "GET", "/livez", &unknown).await.status, 200);
    terminate(&mut bridge).await;
    let received = collector.received();
    of_agent(&received, "unknown");
    assert!(!received.spans.iter().any(|span| hex(&span.trace_id) == JOINED), "{:#?}", received.spans);
    assert!(!received.spans.iter().any(|span| span.name.starts_with("stream ")), "{:#?}", received.spans);
}
