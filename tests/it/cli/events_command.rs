//! `events`: output, exit codes and what goes to stderr.

use std::{process::Output, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    process::Command,
    time::timeout,
};

use crate::support::{
    bridge_process::command,
    http_client::TEST_TIMEOUT,
    sim_cluster::{KEY, SimCluster},
    tcp_proxy::TcpProxy,
};

async fn events(args: &[&str]) -> Output {
    let mut events = command(&[&["events"], args].concat());
    timeout(TEST_TIMEOUT, events.output()).await.expect("it ends in time").unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn events_are_lines_of_json_in_a_pipe_and_readable_on_request() {
    let cluster = SimCluster::new().await;
    cluster.create_pod("first");
    let bridge = cluster.bridge(&[]).await;
    let url = format!("http://{}", bridge.address);
    for transport in ["websocket", "sse"] {
        let output = events(&["--url", &url, "--transport", transport, "--count", "1"]).await;
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{transport}");
        let event: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&event["type"], &event["instances"][0]["name"]), (&"state.initial".into(), &"first".into()));
    }
    let output = events(&["--url", &url, "-o", "text", "--count", "1"]).await;
    assert!(
        text(&output.stdout).ends_with("state.initial       connect: 1 instance, 0 claims, 1 pool\n"),
        "{output:?}"
    );
    // Filters of the bridge, and those of the output.
    let filter = ["--url", &url, "--instance-filter", "name=other", "--types", "instance", "--count", "1"];
    let output = events(&filter).await;
    let event: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(event["instances"], Value::Array(Vec::new()));
    let output = events(&["--url", &url, "--events", "tenant.claimed", "--timeout", "0.3"]).await;
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), ""), "{output:?}");
}

#[tokio::test]
async fn exit_codes_tell_how_it_ended() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge_with_key().await;
    let url = format!("http://{}", bridge.address);
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "another key").unwrap();
    let path = token.path().to_string_lossy();
    let with_token = |url: &str, code: i32, words: &'static str| {
        let args: Vec<String> = ["--url", url, "--token-file", &path, "--timeout", "5"].map(str::to_owned).into();
        async move {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let output = events(&args).await;
            assert!(output.status.code() == Some(code) && text(&output.stderr).contains(words), "{output:?}");
        }
    };
    with_token(&url, 4, "HTTP 401: invalid API key").await;
    with_token("http://192.0.2.1:3000", 2, "a credential is not sent over plain HTTP to 192.0.2.1:3000").await;
    with_token("http://user:secret@localhost:1", 2, "a URL must not contain a credential").await;
    let cases: [(&[&str], i32, &str); 7] = [
        (&["--url", "http://127.0.0.1:1", "--connect-timeout", "0.3"], 5, "Connection refused"),
        (&["--url", &url, "--types", "tenant.claim"], 2, "did you mean 'tenant.claimed'? accepted: claim,"),
        (&["--url", &url, "--claim-filter", "tenant=a"], 2, "unknown key 'tenant': did you mean 'tenantId'?"),
        (&["--url", &url, "--timeout", "soon"], 2, "accepted: a time such as 3, 3s, 2m or 1h"),
        (&["--url", &format!("{url}/nothing")], 1, "HTTP 404: no such path"),
        (&["--url", &url], 4, "HTTP 401: missing Authorization header"),
        (&["--url", &url], 4, "; pass the file that contains it with --token-file"),
    ];
    for (args, code, words) in cases {
        let output = events(args).await;
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        assert!(text(&output.stderr).contains(words), "{args:?}: {output:?}");
        assert!(!text(&output.stderr).contains("secret"), "{output:?}");
    }
    std::fs::write(token.path(), format!("{KEY}\n")).unwrap();
    let output = events(&["--url", &url, "--token-file", &path, "--count", "1000", "--timeout", "0.5"]).await;
    assert_eq!(output.status.code(), Some(124), "{output:?}");
}

/// A bridge refuses some requests of SSE with a 200 whose only event is `stream.closing`.
#[tokio::test]
async fn streams_that_only_close_are_no_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let refusing = tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = socket.read(&mut [0; 4096]).await;
            let refusal = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n\
                 data: {\"type\":\"stream.closing\",\"reason\":\"too many connections\",\"retryAfterMs\":100}\n\n";
            let _ = socket.write_all(refusal.as_bytes()).await;
        }
    });
    let output = events(&["--url", &url, "--transport", "sse", "--connect-timeout", "3", "-o", "text"]).await;
    refusing.abort();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert!(stderr.contains("the bridge closed the stream: too many connections"), "{stderr}");
    assert!(!stderr.contains("connected again"), "{stderr}");
}

/// `--connect-timeout` is for the first connection. A later one can take longer.
#[tokio::test]
async fn short_connect_timeout_does_not_end_a_reconnect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/events", listener.local_addr().unwrap());
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
    let serving = tokio::spawn(async move {
        for number in [1, 2] {
            let (mut socket, _) = listener.accept().await.unwrap();
            assert!(socket.read(&mut [0; 4096]).await.unwrap() > 0);
            if number == 2 {
                let gives_up = timeout(Duration::from_secs(3), socket.read(&mut [0; 1])).await;
                assert!(gives_up.is_err(), "the client gives up: {gives_up:?}");
            }
            let event = format!("{head}data: {{\"type\":\"order\",\"number\":{number}}}\n\n");
            socket.write_all(event.as_bytes()).await.unwrap();
        }
    });
    let output = events(&["--url", &url, "--connect-timeout", "2", "--count", "2"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serving.await.unwrap();
}

#[tokio::test]
async fn interrupt_and_closed_pipe_end_it() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    let url = format!("http://{}", bridge.address);
    let start = || {
        let mut events: Command = command(&["events", "--url", &url]);
        events
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    };
    let mut events = start();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    timeout(TEST_TIMEOUT, lines.next_line()).await.unwrap().unwrap().unwrap();
    let pid = rustix_pid(events.id().unwrap());
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(timeout(TEST_TIMEOUT, events.wait()).await.unwrap().unwrap().code(), Some(130));

    let mut events = start();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    timeout(TEST_TIMEOUT, lines.next_line()).await.unwrap().unwrap().unwrap();
    drop(lines);
    let write = async {
        for n in 0_u32.. {
            cluster.create_pod(&format!("pod-{n}"));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let status = tokio::select! {
        () = write => unreachable!(),
        status = timeout(TEST_TIMEOUT, events.wait()) => status.unwrap().unwrap(),
    };
    assert_eq!(status.code(), Some(0), "a closed pipe is success");
}

/// The bridge is restarted while the command runs. It prints each event once.
#[tokio::test]
async fn events_continue_after_a_restart() {
    let cluster = SimCluster::new().await;
    let bridge = cluster.bridge(&[]).await;
    // The address of the proxy stays. The port of an ended bridge can be that of another process.
    let proxy = TcpProxy::new(None, 1).await;
    proxy.set_target(Some(bridge.address));
    let url = format!("http://{}", proxy.address);
    let mut events = command(&["events", "--url", &url, "--events", "state.initial,instance.state", "--count", "3"]);
    events.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).kill_on_drop(true);
    let mut events = events.spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    // Without the state it has no cursor, and a new bridge would send the state.
    let state = timeout(TEST_TIMEOUT, lines.next_line()).await.unwrap().unwrap().unwrap();
    assert!(state.contains("state.initial"), "{state}");
    cluster.create_pod("before");
    drop(bridge);
    cluster.create_pod("between");
    let bridge = cluster.bridge(&[]).await;
    proxy.set_target(Some(bridge.address));
    for name in ["before", "between"] {
        let line = timeout(TEST_TIMEOUT, lines.next_line()).await.expect("it comes in time").unwrap().unwrap();
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["name"], name);
    }
    let output = timeout(TEST_TIMEOUT, events.wait_with_output()).await.expect("it ends in time").unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let stderr = text(&output.stderr);
    assert!(stderr.contains("next try in") && stderr.contains("connected again after"), "{stderr}");
}

fn rustix_pid(pid: u32) -> rustix::process::Pid {
    rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}
