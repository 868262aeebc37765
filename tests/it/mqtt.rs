//! MQTT messages of a real broker as events (docs/protocol.md#mqtt).

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::{Instant, interval, timeout},
};

use crate::support::{
    bridge_process::BridgeProcess,
    broker::{Broker, assert_metrics_are_documented},
    http_client::{self, WsClient, metric, poll_until_async},
    sim_cluster::SimCluster,
    sse_client::{SseClient, SseEvent},
    sse_upstream::SseUpstream,
    stream_latency::{WATCHED, stream_latency},
    tcp_proxy::TcpProxy,
};

/// The stream of MQTT messages, without an initial state.
const MESSAGES: &str = "/api/websocket?snapshot=none&types=mqtt";

/// Returns the line of the input in `/readyz?verbose`. The bridge must be ready.
async fn state(bridge: &BridgeProcess) -> String {
    let answer = http_client::get(bridge.address, "/readyz?verbose").await;
    assert_eq!(answer.status, 200, "a missing broker leaves the bridge ready: {}", answer.body);
    let line = answer.body.lines().find_map(|line| line.strip_prefix("[i] mqtt: "));
    line.unwrap_or_else(|| panic!("no line about MQTT: {}", answer.body)).to_owned()
}

/// Waits until the line of the input contains this text.
async fn wait_for_state(bridge: &BridgeProcess, text: &str) {
    poll_until_async(async || state(bridge).await.contains(text).then_some(())).await;
}

/// Returns topic and payload of the messages up to the one with this topic.
async fn messages_until(stream: &mut WsClient, last: &str) -> Vec<(String, Value)> {
    let mut messages = Vec::new();
    loop {
        let mut event = stream.event().await;
        assert_eq!(event["type"], "mqtt.message", "{event}");
        assert!(event["time"].as_str().is_some_and(|time| time.len() == 24), "{event}");
        assert_eq!(event.as_object().unwrap().len(), 4, "type, time, topic and payload: {event}");
        let topic = event["topic"].as_str().unwrap().to_owned();
        let is_last = topic == last;
        messages.push((topic, event["payload"].take()));
        if is_last {
            return messages;
        }
    }
}

fn outcome(name: &str) -> String {
    format!("bridge_mqtt_messages_total{{outcome=\"{name}\"}}")
}

/// A relay sends the messages of its own broker beside the events of its upstream, also while that is down.
#[tokio::test]
async fn relay_sends_messages_beside_the_events_of_its_upstream() {
    let mut broker = Broker::mosquitto(&["allow_anonymous true"], &[]).await;
    let mut upstream = SseUpstream::new().await;
    let (url, upstream_url) = (format!("mqtt://{}", broker.address), upstream.url());
    // Room for two events, so that messages cannot evict any.
    let args = ["relay", "--upstream", &upstream_url, "--listen", "127.0.0.1:0", "--history", "2"];
    let mqtt = ["--mqtt-url", &url, "--mqtt-topic", "plant/#", "--mqtt-rate", "1000"];
    let relay = BridgeProcess::run(&[args.as_slice(), &mqtt].concat()).await;
    let mut connection = upstream.stream().await;
    connection.send("id: 1\ndata: a\n\n").await;
    wait_for_state(&relay, "connected").await;
    let mut client = SseClient::open(relay.address, "/events", &[]).await;
    assert_eq!(client.event().await.data, "a");
    let count: usize = 20;
    for number in 0..count {
        broker.publish(&format!("plant/{number}"), b"{\"c\":[1,null]}", &["-q", "1"]).await;
    }
    broker.publish("plant/picture", b"\xff\xd8", &["-q", "1"]).await;
    broker.publish("plant/task", br#"{"type": "task", "title": "no mission"}"#, &["-q", "1"]).await;
    for number in 0..count {
        let SseEvent { id, event, data, .. } = client.event().await;
        let mut data: Value = serde_json::from_str(&data).unwrap();
        assert!(data["time"].take().as_str().is_some_and(|time| time.len() == 24 && time.ends_with('Z')));
        let expected = json!({"type": "mqtt.message", "time": null, "topic": format!("plant/{number}"), "payload": {"c": [1, null]}});
        assert_eq!((id, event.as_deref(), data), (None, Some("mqtt.message"), expected));
    }
    for name in ["not_json", "refused"] {
        http_client::wait_for_metric(relay.address, &outcome(name), |count| count == 1).await;
    }
    // The upstream is down: messages still arrive, on both streams.
    drop(connection);
    assert_eq!(client.event().await.event.as_deref(), Some("matrix-down"));
    let mut stream = WsClient::connect(relay.address, "/events/ws?lastEventId=1").await;
    for number in 0..count {
        assert_eq!(stream.event().await["topic"], format!("plant/{number}"), "messages after the id are sent again");
    }
    broker.publish("plant/down", b"0", &["-q", "1"]).await;
    while stream.event().await["topic"] != "plant/down" {}
    assert_metrics_are_documented(relay.address, "bridge_mqtt").await;
    broker.kill();
    wait_for_state(&relay, "down for ").await;
}

#[tokio::test]
async fn json_messages_of_the_topics_are_events_and_others_are_counted() {
    let broker = Broker::mosquitto(&["allow_anonymous true"], &[]).await;
    broker.publish("plant/kitchen/temp", br#"{"c": 21.5}"#, &["-r"]).await;
    broker.publish("plant/kitchen/picture", b"\xff\xd8\xff", &["-r"]).await;
    let (cluster, proxy) = (SimCluster::new().await, TcpProxy::new(None, 1).await);
    let url = format!("mqtt://{}", proxy.address);
    let args = ["--mqtt-url", &url, "--mqtt-topic", "plant/+/temp,alarm/#", "--mqtt-topic", "plant/kitchen/picture"];
    let bridge = cluster.bridge(&args).await;
    wait_for_state(&bridge, "down for ").await;
    // Open before the broker can be reached, so that the retained messages are received.
    let mut stream = WsClient::connect_live(bridge.address, MESSAGES).await;
    let mut everything = WsClient::connect_live(bridge.address, "/api/websocket?snapshot=none").await;
    let mut others = WsClient::connect_live(bridge.address, "/api/websocket?snapshot=none&types=instance").await;
    proxy.set_target(Some(broker.address));
    assert_eq!(
        messages_until(&mut stream, "plant/kitchen/temp").await,
        [("plant/kitchen/temp".to_owned(), json!({"c": 21.5}))]
    );
    wait_for_state(&bridge, "connected").await;
    let large = format!("\"{}\"", "x".repeat(70_000));
    for (topic, payload) in [
        ("plant/cellar/temp", b"[1, null, \"\xc3\xa4\"]".as_slice()),
        ("plant/cellar/shelf/temp", b"1"),
        ("plant/cellar/light", b"1"),
        ("alarm", b"true"),
        ("alarm/fire/cellar", br#"{"a": {"b": "</script>\n"}}"#),
        ("alarm/binary", b"\x00\x01\xfe"),
        ("alarm/text", b"fire"),
        ("alarm/empty", b""),
        ("alarm/large", large.as_bytes()),
        ("alarm/task", br#"{"type": "task", "title": "no mission"}"#),
        ("alarm/end", b"null"),
    ] {
        broker.publish(topic, payload, &["-q", "1"]).await;
    }
    let expected = [
        ("plant/cellar/temp", json!([1, null, "\u{e4}"])),
        ("alarm", json!(true)),
        ("alarm/fire/cellar", json!({"a": {"b": "</script>\n"}})),
        ("alarm/end", Value::Null),
    ];
    let expected = expected.map(|(topic, payload)| (topic.to_owned(), payload));
    assert_eq!(messages_until(&mut stream, "alarm/end").await, expected);
    assert_eq!(messages_until(&mut everything, "alarm/end").await[1..], expected, "streams without types have them");
    for (name, count) in [("published", 5), ("not_json", 4), ("too_large", 1), ("refused", 1), ("dropped", 0)] {
        assert_eq!(metric(bridge.address, &outcome(name)).await, count, "{name}");
    }
    assert_eq!(metric(bridge.address, "bridge_mqtt_up").await, 1);
    assert!(state(&bridge).await.ends_with("0 messages dropped, 6 not accepted"), "{}", state(&bridge).await);
    assert_metrics_are_documented(bridge.address, "bridge_mqtt").await;
    cluster.create_pod("a");
    assert_eq!(others.event().await["type"], "instance.state", "other families get no messages");
}

#[tokio::test]
async fn tls_and_password_are_checked_and_read_again_before_each_try() {
    let certificate = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let foreign = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (pem, key) = (certificate.cert.pem(), certificate.signing_key.serialize_pem());
    // mosquitto hashes the passwords of a file that has plain ones with `mosquitto_passwd -U`.
    let files = [("tls.crt", &*pem), ("tls.key", &*key), ("users", "bridge:a long pass word\n"), ("user", "bridge\n")];
    let passwords = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(passwords.path(), files[2].1).unwrap();
    let hashed = tokio::process::Command::new("mosquitto_passwd").arg("-U").arg(passwords.path()).status().await;
    assert!(hashed.unwrap().success());
    let hashed = std::fs::read_to_string(passwords.path()).unwrap();
    let files =
        [files[0], files[1], ("users", &*hashed), files[3], ("password", "wrong"), ("ca.crt", &*foreign.cert.pem())];
    let lines = ["allow_anonymous false", "password_file DIR/users", "certfile DIR/tls.crt", "keyfile DIR/tls.key"];
    let broker = Broker::mosquitto(&lines, &files).await;
    let file = |name| broker.file(name).to_string_lossy().into_owned();
    let [user, password, ca] = [file("user"), file("password"), file("ca.crt")];
    let cluster = SimCluster::new().await;
    let url = format!("mqtts://{}", broker.address);
    let args =
        ["--mqtt-url", &url, "--mqtt-topic", "#", "--mqtt-username-file", &user, "--mqtt-password-file", &password];
    let bridge = cluster.bridge(&[&args[..], &["--mqtt-ca-file", &ca]].concat()).await;
    let mut stream = WsClient::connect_live(bridge.address, MESSAGES).await;
    wait_for_state(&bridge, "certificate").await;
    std::fs::write(&ca, &pem).unwrap();
    wait_for_state(&bridge, "the broker does not accept the user or the password").await;
    std::fs::write(&password, "a long pass word\n").unwrap();
    wait_for_state(&bridge, "connected").await;
    let tls = file("tls.crt");
    broker.publish("a", b"1", &["--cafile", &tls, "-u", "bridge", "-P", "a long pass word"]).await;
    assert_eq!(messages_until(&mut stream, "a").await, [("a".to_owned(), json!(1))]);
    let log = bridge.log().join("\n");
    assert!(!log.contains("pass word"), "no password in the log: {log}");
}

#[tokio::test]
async fn killed_broker_leaves_the_bridge_ready_and_is_read_again() {
    let mut broker = Broker::mosquitto(&["allow_anonymous true"], &[]).await;
    let cluster = SimCluster::new().await;
    let url = format!("mqtt://{}", broker.address);
    let bridge = cluster.bridge(&["--mqtt-url", &url, "--mqtt-topic", "#"]).await;
    let mut stream = WsClient::connect_live(bridge.address, "/api/websocket?snapshot=none").await;
    for round in 0..2 {
        wait_for_state(&bridge, "connected").await;
        broker.publish("before", format!("{round}").as_bytes(), &[]).await;
        assert_eq!(stream.event().await["payload"], round);
        broker.kill();
        wait_for_state(&bridge, "down for ").await;
        assert_eq!(metric(bridge.address, "bridge_mqtt_up").await, 0);
        cluster.create_pod(&format!("pod-{round}"));
        let event = stream.event().await;
        assert_eq!(event["type"], "instance.state", "streams go on, and an outage is no event: {event}");
        while stream.event().await["type"] != "pool.depth" {}
        broker.restart().await;
    }
    wait_for_state(&bridge, "connected").await;
    assert_eq!(metric(bridge.address, "bridge_mqtt_connections_total").await, 3);
    let failures = metric(bridge.address, "bridge_mqtt_failures_total").await;
    assert!((2..20).contains(&failures), "{failures} tries: a delay lies between two");
}

/// A broker accepts the connection (CONNACK) and never answers the subscription.
#[tokio::test]
async fn broker_that_does_not_answer_the_subscription_is_given_up() {
    let broker = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("mqtt://{}", broker.local_addr().unwrap());
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&["--mqtt-url", &url, "--mqtt-topic", "#"]).await;
    let (mut connection, _) =
        timeout(http_client::TEST_TIMEOUT, broker.accept()).await.expect("no connection").unwrap();
    let mut packet = [0; 1024];
    assert!(connection.read(&mut packet).await.unwrap() > 0);
    connection.write_all(&[0x20, 3, 0, 0, 0]).await.unwrap();
    wait_for_state(&bridge, "no answer to the subscription within 10 s").await;
    assert_eq!(metric(bridge.address, "bridge_mqtt_connections_total").await, 0);
}

/// Messages that are published in a second.
const RATE: usize = 10_000;
/// Messages a second that become events.
const ACCEPTED: usize = 200;
/// Seconds of the load.
const SECONDS: usize = 3;
/// Changes of a Pod whose latency on a stream is measured.
const CHANGES: usize = 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_messages_a_second_are_bounded_and_leave_the_streams_alone() {
    let broker = Broker::mosquitto(&["allow_anonymous true"], &[]).await;
    let cluster = SimCluster::new().await;
    cluster.create_pod(WATCHED);
    let (url, rate) = (format!("mqtt://{}", broker.address), ACCEPTED.to_string());
    let bridge = cluster.bridge(&["--mqtt-url", &url, "--mqtt-topic", "load", "--mqtt-rate", &rate]).await;
    wait_for_state(&bridge, "connected").await;
    let mut stream = WsClient::connect_live(bridge.address, "/api/websocket?snapshot=none&types=instance").await;
    let mut messages = WsClient::connect_live(bridge.address, MESSAGES).await;
    let quiet = stream_latency(&cluster, &mut stream, CHANGES, Duration::from_millis(50)).await;

    let mut publisher = broker.publisher("load", &["-l"]);
    let mut input = publisher.stdin.take().unwrap();
    let start = Instant::now();
    let load = tokio::spawn(async move {
        let mut ticks = interval(Duration::from_millis(10));
        for tick in 0..SECONDS * 100 {
            ticks.tick().await;
            let lines: String = (0..RATE / 100).map(|n| format!("{{\"n\":{}}}\n", tick * RATE / 100 + n)).collect();
            input.write_all(lines.as_bytes()).await.unwrap();
        }
        drop(input);
        publisher.wait().await.unwrap();
    });
    let busy = stream_latency(&cluster, &mut stream, CHANGES, Duration::from_millis(50)).await;
    load.await.unwrap();
    let elapsed = start.elapsed();

    let sent = (SECONDS * RATE) as u64;
    let counted = async || {
        let counts =
            [metric(bridge.address, &outcome("published")).await, metric(bridge.address, &outcome("dropped")).await];
        (counts[0] + counts[1] >= sent).then_some(counts)
    };
    let [published, dropped] = poll_until_async(counted).await;
    assert_eq!(published + dropped, sent, "each message is an event or counted");
    // The bound: the rate, the burst of one second and the queue.
    let bound = ACCEPTED as f64 * (start.elapsed().as_secs_f64() + 1.0) + 256.0;
    assert!(published as f64 <= bound, "{published} events, at most {bound}");
    assert!(published >= (ACCEPTED * SECONDS) as u64, "{published} events: the rate is used");
    assert!(state(&bridge).await.contains(&format!("; {dropped} messages dropped")), "{}", state(&bridge).await);
    let mut last = None;
    for _ in 0..published {
        let n = messages.event().await["payload"]["n"].as_u64();
        assert!(n > last, "in the order of the broker, none twice: {n:?} after {last:?}");
        last = n;
    }
    println!(
        "{sent} messages in {elapsed:?}: {published} events, {dropped} dropped; a change reaches a stream in {:?} (max {:?}) \
         without messages, {:?} (max {:?}) beside them",
        quiet[0], quiet[1], busy[0], busy[1],
    );
    assert!(busy[0] < quiet[0] * 10 + Duration::from_millis(250), "streams wait for messages: {quiet:?} {busy:?}");
}

/// Messages to the shared subscription.
const SHARED: u64 = 200;

#[tokio::test]
async fn two_bridges_on_one_shared_subscription_take_each_message_once() {
    let broker = Broker::mosquitto(&["allow_anonymous true"], &[]).await;
    let cluster = SimCluster::new().await;
    let url = format!("mqtt://{}", broker.address);
    let args = ["--mqtt-url", &url, "--mqtt-topic", "$share/bridges/jobs/#", "--mqtt-rate", "10000"];
    let bridges = [cluster.bridge(&args).await, cluster.bridge(&args).await];
    let mut streams = Vec::new();
    for bridge in &bridges {
        wait_for_state(bridge, "connected").await;
        streams.push(WsClient::connect_live(bridge.address, MESSAGES).await);
    }
    let mut publisher = broker.publisher("jobs/new", &["-q", "1", "-l"]);
    let mut input = publisher.stdin.take().unwrap();
    let lines: String = (0..SHARED).map(|n| format!("{n}\n")).collect();
    input.write_all(lines.as_bytes()).await.unwrap();
    drop(input);
    assert!(publisher.wait().await.unwrap().success());
    let published = async || {
        let [a, b] = [&bridges[0], &bridges[1]].map(|bridge| bridge.address);
        let counts = [metric(a, &outcome("published")).await, metric(b, &outcome("published")).await];
        (counts[0] + counts[1] >= SHARED).then_some(counts)
    };
    let counts = poll_until_async(published).await;
    let mut received = BTreeMap::<u64, usize>::new();
    for (stream, count) in streams.iter_mut().zip(counts) {
        assert!(count > 0, "each bridge takes its part: {counts:?}");
        for _ in 0..count {
            *received.entry(stream.event().await["payload"].as_u64().unwrap()).or_default() += 1;
        }
    }
    let expected: BTreeMap<u64, usize> = (0..SHARED).map(|n| (n, 1)).collect();
    assert_eq!(received, expected, "each message once");
    println!("{SHARED} messages of a shared subscription: {counts:?}");
}
