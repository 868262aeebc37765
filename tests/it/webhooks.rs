//! `events --forward-to`: deliveries to receivers that fail, through restarts of the command, signed so that another
//! implementation accepts them.

mod receiver;
mod seeded_faults;

use std::{process::Stdio, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use self::receiver::{Answer, Receiver, start_forwarding};
use crate::support::{
    self,
    bridge_process::{NO_ROOTS, command},
    http_client::TEST_TIMEOUT,
    npm_client::NpmClient,
    sim_cluster::SimCluster,
};

/// A secret of 24 bytes.
const SECRET: &str = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz";

/// A running `events --forward-to`.
struct Forwarder {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Forwarder {
    fn start(url: &str, args: &[&str]) -> Forwarder {
        let mut command: Command = command(&[&["events", "--url", url], args].concat());
        command.envs(NO_ROOTS).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Forwarder { child, lines }
    }

    /// Returns the next delivery.
    async fn delivery(&mut self) -> Value {
        let line = timeout(TEST_TIMEOUT, self.lines.next_line()).await.expect("no delivery in time").unwrap();
        serde_json::from_str(&line.expect("the command has ended")).unwrap()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Waits for the end, and returns the exit code and stderr.
    async fn ended(self) -> (Option<i32>, String) {
        let output = timeout(TEST_TIMEOUT, self.child.wait_with_output()).await.expect("it ends in time").unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

#[tokio::test]
async fn deliveries_are_signed_and_shown() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let mut receiver = NpmClient::start("webhook_receiver.mjs", SECRET);
    receiver.until(|line| line.get("listening").is_some()).await;
    let hook = format!("http://127.0.0.1:{}/hook", receiver.lines[0]["listening"]);
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), format!("{SECRET}\n")).unwrap();
    let url = format!("http://{}", bridge.address);
    let args = ["--transport", "sse", "--events", "tenant.claimed,tenant.released", "--forward-to", &hook];
    let secret = secret.path().to_string_lossy();
    let mut forwarder = Forwarder::start(&url, &[&args[..], &["--webhook-secret-file", &secret]].concat());
    cluster.create_pod("not-forwarded");
    // The state with which the stream starts can contain the first claims, so that there is no event about them.
    let mut tenants = (0..).map(|n| format!("tenant-{n}"));
    let delivery = loop {
        cluster.claim(&tenants.next().unwrap());
        if let Ok(line) = timeout(Duration::from_millis(200), forwarder.lines.next_line()).await {
            break serde_json::from_str::<Value>(&line.unwrap().expect("the command has ended")).unwrap();
        }
    };
    let shown = |key: &str| delivery[key].clone();
    assert_eq!(
        [shown("receiver"), shown("type"), shown("status"), shown("error"), shown("attempt")],
        [hook.as_str().into(), "tenant.claimed".into(), 204.into(), Value::Null, 1.into()],
        "{delivery}"
    );
    receiver.until(|line| line.get("verified").is_some()).await;
    let received = receiver.lines.last().unwrap()["verified"].clone();
    assert_eq!((&received["contentType"], &received["id"]), (&"application/json".into(), &delivery["webhookId"]));
    assert_eq!(received["id"], received["body"]["key"]);
    let tenant = received["body"]["tenantId"].as_str().unwrap().to_owned();
    cluster.claim_phase(&tenant, "Released");
    while forwarder.delivery().await["type"] != "tenant.released" {}
    forwarder.signal(rustix::process::Signal::TERM);
    let (code, stderr) = forwarder.ended().await;
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("delivered, 0 failed attempts, 0 waiting"), "{stderr}");
    assert!(receiver.lines.iter().all(|line| line.get("refused").is_none()), "{:?}", receiver.lines);
}

/// The first attempt has no answer yet, so that nothing is delivered and nothing has failed.
#[tokio::test]
async fn messages_that_wait_are_counted_at_the_end() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let receiver = Receiver::start().await;
    receiver.always(Answer::Hang);
    let url = format!("http://{}", bridge.address);
    let forwarder = Forwarder::start(&url, &["--types", "instance", "--forward-to", &receiver.url("/hook")]);
    start_forwarding(&cluster, &[&receiver]).await;
    forwarder.signal(rustix::process::Signal::TERM);
    let (code, stderr) = forwarder.ended().await;
    let counts = stderr.lines().find(|line| line.contains(": 0 delivered, 0 failed attempts, "));
    let counts = counts.unwrap_or_else(|| panic!("no counts: {stderr}"));
    assert!(code == Some(0) && counts.contains(" waiting") && !counts.contains(" 0 waiting"), "{stderr}");
}

/// 500, 429 with `Retry-After`, an answer that never comes, and a receiver that is down: each event arrives, in order, and
/// the next one only after it.
#[tokio::test]
async fn a_failing_receiver_gets_every_event_in_order() {
    let down = Duration::from_secs(if support::long_form() { 60 } else { 3 });
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let receiver = Receiver::start().await;
    let url = format!("http://{}", bridge.address);
    let mut forwarder = Forwarder::start(&url, &["--types", "instance", "--forward-to", &receiver.url("/hook")]);
    start_forwarding(&cluster, &[&receiver]).await;
    let before = receiver.attempts();
    for _ in 0..before {
        forwarder.delivery().await;
    }
    let answers = [Answer::Status(500), Answer::RetryAfter(2), Answer::Status(302), Answer::Hang, Answer::Cut];
    receiver.answer_next(answers);
    for n in 0..6 {
        cluster.create_pod(&format!("pod-{n}"));
    }
    let mut attempts = Vec::new();
    while attempts.len() < 6 {
        attempts.push(forwarder.delivery().await);
    }
    let statuses: Vec<&Value> = attempts.iter().map(|attempt| &attempt["status"]).collect();
    assert_eq!(statuses, [&500.into(), &429.into(), &302.into(), &Value::Null, &Value::Null, &200.into()]);
    assert!(attempts[3]["error"].as_str().unwrap().contains("within 10s"), "{}", attempts[3]);
    let ids: Vec<&Value> = attempts.iter().map(|attempt| &attempt["webhookId"]).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "a retry has the id of the first attempt: {ids:?}");
    let [rejected, again] = [receiver.arrived_at(before + 1), receiver.arrived_at(before + 2)];
    assert!(again - rejected >= Duration::from_secs(2), "Retry-After: {:?}", again - rejected);
    receiver.go_down(down).await;
    cluster.create_pod("pod-6");
    cluster.create_pod("pod-7");
    receiver.wait_for_last("pod-7").await;
    assert_eq!(receiver.accepted_names(), (0..8).map(|n| format!("pod-{n}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn receivers_are_independent_and_410_ends_one() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let [dead, gone, good] = [Receiver::start().await, Receiver::start().await, Receiver::start().await];
    dead.always(Answer::Status(503));
    gone.always(Answer::Status(410));
    let urls = [&dead, &gone, &good].map(|receiver| receiver.url("/hook?secret=1"));
    let args: Vec<&str> = urls.iter().flat_map(|url| ["--forward-to", url]).chain(["--types", "instance"]).collect();
    let forwarder = Forwarder::start(&format!("http://{}", bridge.address), &args);
    start_forwarding(&cluster, &[&dead, &gone, &good]).await;
    for n in 0..20 {
        cluster.create_pod(&format!("pod-{n}"));
    }
    good.wait_for_last("pod-19").await;
    assert_eq!((gone.attempts(), dead.accepted_names().len()), (1, 0));
    forwarder.signal(rustix::process::Signal::INT);
    let (code, stderr) = forwarder.ended().await;
    assert_eq!(code, Some(130), "{stderr}");
    for words in
        ["answers 410: no more deliveries to it", "HTTP 503; the delivery is repeated", "waiting, no delivery for"]
    {
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
    assert!(!stderr.contains("secret"), "{stderr}");
    // When each receiver has answered 410, nothing is left to do.
    let gone = Receiver::start().await;
    gone.always(Answer::Status(410));
    let forwarder = Forwarder::start(&format!("http://{}", bridge.address), &["--forward-to", &gone.url("/")]);
    start_forwarding(&cluster, &[&gone]).await;
    let (code, stderr) = forwarder.ended().await;
    assert_eq!((code, stderr.contains("no receiver is left")), (Some(1), true), "{stderr}");
}

/// What the bridge cannot resume is a gap, and the first state is not.
#[tokio::test]
async fn a_gap_is_delivered_in_place_of_a_state() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let receiver = Receiver::start().await;
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state.json").to_string_lossy().into_owned();
    let url = format!("http://{}", bridge.address);
    let hook = receiver.url("/hook");
    let args = [
        "--forward-to",
        &hook,
        "--state-file",
        &state,
        "--events",
        "instance.state",
        "--instance-filter",
        "phase=Unknown",
    ];
    let forwarder = Forwarder::start(&url, &args);
    start_forwarding(&cluster, &[&receiver]).await;
    forwarder.signal(rustix::process::Signal::TERM);
    assert_eq!(forwarder.ended().await.0, Some(0));
    let before = receiver.accepted().len();
    // Another filter cannot continue the cursor.
    let args = ["--forward-to", &hook, "--state-file", &state, "--events", "instance.state", "--count", "2"];
    let mut forwarder = Forwarder::start(&url, &args);
    let gap = forwarder.delivery().await;
    assert_eq!(gap["type"], "stream.gap", "{gap}");
    cluster.create_pod("two");
    forwarder.delivery().await;
    let bodies = receiver.accepted();
    assert_eq!((&bodies[before]["type"], &bodies[before]["reason"]), (&"stream.gap".into(), &"filter".into()));
    assert_eq!(bodies[before + 1]["name"], "two");
}

#[tokio::test]
async fn wrong_arguments_are_refused_before_anything_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file").to_string_lossy().into_owned();
    std::fs::write(&file, "secret").unwrap();
    let hook = "http://127.0.0.1:1/hook";
    let cases: [(&[&str], i32, &str); 12] = [
        (&["--forward-to", "ftp://host/"], 2, "accepted: http://HOST:PORT/PATH or https://HOST/PATH"),
        (&["--forward-to", "https://user:password@host/"], 2, "must not contain a credential"),
        (&["--forward-to", hook, "--forward-to", hook], 2, "names a receiver twice"),
        (&["--forward-to", hook, "--forward-to", "http://127.0.0.1:1/hook?a=1"], 2, "differ only in their query"),
        (&["--forward-to", "http://127.0.0.1:1/a b"], 2, "a URL has no spaces"),
        (&["--forward-to", "http://127.0.0.1:99999/"], 2, "the port is no number from 1 to 65535"),
        (&["--forward-to", hook, "--events", "heartbeat"], 2, "is not forwarded"),
        (&["--forward-to", hook, "--events", "state.initial"], 2, "is not forwarded"),
        (&["--forward-to", hook, "--webhook-secret-file", &file], 2, "each whsec_ and the base64 of 24 to 64 bytes"),
        (&["--forward-to", hook, "--webhook-secret-file", "/nowhere"], 2, "No such file"),
        (&["--forward-to", hook, "--state-file", &file], 1, "not a state file"),
        (&["--state-file", &file], 2, "--state-file has no effect without --forward-to"),
    ];
    for (args, code, words) in cases {
        let forwarder = Forwarder::start("http://127.0.0.1:1", args);
        let (ended, stderr) = forwarder.ended().await;
        assert!(ended == Some(code) && stderr.contains(words), "{args:?}: {ended:?} {stderr}");
        assert!(!stderr.contains("password"), "{stderr}");
    }
}

/// A plain server of events: it has no ids, and ends each connection after its script.
struct PlainServer {
    address: std::net::SocketAddr,
    serving: tokio::task::JoinHandle<()>,
}

impl PlainServer {
    /// Answers each connection with the next body, and the last one without end.
    async fn start(bodies: &'static [&'static str]) -> PlainServer {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            for n in 0.. {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
                    socket.read_buf(&mut request).await.unwrap();
                }
                let Some(body) = bodies.get(n) else { return std::future::pending().await };
                let answer = if body.starts_with("HTTP/1.1") {
                    (*body).to_owned()
                } else {
                    format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n{body}")
                };
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        PlainServer { address, serving }
    }
}

impl Drop for PlainServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// What a server without cursors sent between two connections is a gap, after the reconnect and once. Its own members `id`
/// and `key` mean nothing to the client, and a failed try is no gap.
#[tokio::test]
async fn a_stream_without_cursors_has_a_gap_at_each_reconnect() {
    let first = "data: {\"type\":\"order\",\"id\":17,\"key\":\"customer-1\"}\n\ndata: not JSON\n\n";
    let second = "data: {\"type\":\"order\",\"id\":\"order-2\",\"key\":\"customer-1\"}\n\n";
    let failure = "HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let sign_in = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 7\r\nConnection: close\r\n\r\nSign in";
    let bodies: &[&str] = Vec::leak(vec![first, failure, sign_in, second]);
    let server = PlainServer::start(bodies).await;
    let receiver = Receiver::start().await;
    let hook = receiver.url("/hook");
    let url = format!("http://{}/events", server.address);
    let forwarder = Forwarder::start(&url, &["--transport", "sse", "--forward-to", &hook]);
    receiver.wait_for(4).await;
    let received = receiver.accepted();
    let text = |body: &Value| body["reason"].as_str().or(body["type"].as_str()).unwrap().to_owned();
    assert_eq!(received.iter().map(text).collect::<Vec<_>>(), ["order", "malformed", "unresumable", "order"]);
    drop(forwarder);
}

/// A stream that only says that it closes is no connection, so the first real one has nothing to miss.
#[tokio::test]
async fn refused_streams_before_the_first_event_are_no_gap() {
    let refused = "data: {\"type\":\"stream.closing\",\"reason\":\"not ready\",\"retryAfterMs\":100}\n\n";
    let stream = "data: {\"type\":\"order\"}\n\n";
    let server = PlainServer::start(Vec::leak(vec![refused, refused, stream])).await;
    let receiver = Receiver::start().await;
    let (url, hook) = (format!("http://{}/", server.address), receiver.url("/hook"));
    let forwarder = Forwarder::start(&url, &["--transport", "sse", "--forward-to", &hook]);
    receiver.wait_for(1).await;
    assert_eq!(receiver.accepted()[0]["type"], "order");
    forwarder.signal(rustix::process::Signal::TERM);
    let (code, stderr) = forwarder.ended().await;
    assert!(code == Some(0) && !stderr.contains("connected again"), "{code:?} {stderr}");
}

/// Neither a stdout that is not read nor a full disk stops the deliveries or the signals silently.
#[tokio::test]
async fn deliveries_do_not_wait_for_stdout() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let receiver = Receiver::start().await;
    let (url, hook) = (format!("http://{}", bridge.address), receiver.url("/hook"));
    let forwarder = Forwarder::start(&url, &["--types", "instance", "--forward-to", &hook]);
    start_forwarding(&cluster, &[&receiver]).await;
    // More than the pipe and the queue of lines hold, if each line has more than 100 bytes.
    let pods = 2500;
    for n in 0..pods {
        cluster.create_pod(&format!("pod-{n}"));
    }
    receiver.wait_for_last(&format!("pod-{}", pods - 1)).await;
    forwarder.signal(rustix::process::Signal::INT);
    let (code, stderr) = forwarder.ended().await;
    assert!(code == Some(130) && stderr.contains("lines about deliveries are left out"), "{code:?} {stderr}");

    let mut full: Command = command(&["events", "--url", &url, "--forward-to", &hook]);
    full.stdout(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap()).stderr(Stdio::piped());
    let full = full.kill_on_drop(true).spawn().unwrap();
    let create = async {
        for n in 0_u32.. {
            cluster.create_pod(&format!("more-{n}"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let output = tokio::select! {
        () = create => unreachable!("the loop has no end"),
        output = timeout(TEST_TIMEOUT, full.wait_with_output()) => output.expect("it ends in time").unwrap(),
    };
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains("No space left on device"), "{output:?}");
}
