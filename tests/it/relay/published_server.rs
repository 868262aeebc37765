//! In front of a server of event streams that is not ours: npm's better-sse, in the version that `tests/node/package.json`
//! pins.

use tokio::io::{AsyncBufReadExt, BufReader};

use super::{expect_gap, local_sse, next, relay};
use crate::support::npm_client;

/// Starts the server on this port, or on a free one. Returns its process and its port.
async fn serve(port: u16) -> (tokio::process::Child, u16) {
    let mut command = npm_client::node("sse_server.mjs", &[&port.to_string()]);
    let mut child = command.stderr(std::process::Stdio::inherit()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let port = lines.next_line().await.unwrap().expect("the server has ended").parse().unwrap();
    (child, port)
}

#[tokio::test]
async fn stream_of_a_published_server_is_relayed() {
    let (mut server, port) = serve(0).await;
    let relay = relay(&format!("http://127.0.0.1:{port}/stream"), &[]).await;
    let mut client = local_sse(relay.address, None).await;
    // The server sends one event with every field, and then a count, to each of its clients.
    let named = next(&mut client).await;
    assert_eq!(named, (Some("start".into()), Some("greeting".into()), r#"{"text":"line 1\nline 2"}"#.into()));
    for n in 1..=3 {
        let (id, name, data) = next(&mut client).await;
        assert_eq!((id, name, data), (Some(n.to_string()), Some("count".into()), n.to_string()));
    }
    server.kill().await.unwrap();
    while next(&mut client).await.1.as_deref() != Some("matrix-down") {}
    let _server = serve(port).await;
    while next(&mut client).await.1.as_deref() != Some("matrix-up") {}
    // The restarted server begins again.
    expect_gap(&mut client, "upstream").await;
    assert_eq!(next(&mut client).await.0.as_deref(), Some("start"));
}
