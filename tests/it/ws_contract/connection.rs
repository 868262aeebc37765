//! Rules of a connection: messages of clients, and the connection id.

use std::time::Duration;

use uuid::Uuid;

use crate::support::{http_client, ws_matrix::WsMatrix};

/// Maximum size of a client's message in bytes (docs/protocol.md#boilerhouse-stream).
const MESSAGE_BYTES: usize = 64 * 1024;
/// How long the close frame may take, on a busy machine.
const CLOSE_BOUND: Duration = Duration::from_secs(20);

pub(super) async fn client_messages_are_ignored(mut matrix: WsMatrix<'_>) {
    let mut listeners = matrix.listen("/ws").await;
    for (_, listener) in &mut listeners.clients {
        for text in ["", "{}", r#"{"type":"instance.state","name":"forged","phase":"Running"}"#, "subscribe"] {
            listener.send(text.to_owned()).await;
        }
        listener.send("x".repeat(MESSAGE_BYTES)).await;
    }
    matrix.cluster.create_pod("a", "").await;
    matrix.expect(&mut listeners, &["instance.state a Pending"], &[]).await;
}

pub(super) async fn client_message_over_64_kib_closes_the_stream(mut matrix: WsMatrix<'_>) {
    let mut listeners = matrix.listen("/ws").await;
    let mut others = matrix.listen("/ws").await;
    for (mode, listener) in &mut listeners.clients {
        listener.send("x".repeat(MESSAGE_BYTES + 1)).await;
        let (received, close) = listener.closed(CLOSE_BOUND).await;
        assert_eq!((received, close.map(|(code, _)| code)), (0, Some(1009)), "{mode:?}");
    }
    matrix.cluster.create_pod("a", "").await;
    matrix.expect(&mut others, &["instance.state a Pending"], &[]).await;
}

pub(super) async fn connection_id_is_derived_from_the_namespace_uid(mut matrix: WsMatrix<'_>) {
    let uid = matrix.cluster.namespace_uid().await;
    let own = Uuid::new_v5(&Uuid::NAMESPACE_OID, uid.as_bytes());
    let mut listeners = matrix.listen(&format!("/ws?connectionId={own}")).await;
    matrix.cluster.create_pod("a", "").await;
    matrix.expect(&mut listeners, &["instance.state a Pending"], &[]).await;

    let upgrade = [
        ("Connection", "close, Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let others = [Uuid::new_v5(&Uuid::NAMESPACE_URL, uid.as_bytes()).to_string(), uid, String::new()];
    for (mode, bridge) in matrix.bridges().await {
        for other in &others {
            let answer =
                http_client::request(bridge.address, "GET", &format!("/ws?connectionId={other}"), &upgrade).await;
            assert_eq!((answer.status, &answer.json()["code"]), (404, &"NOT_FOUND".into()), "{mode:?}: {other}");
        }
    }
}
