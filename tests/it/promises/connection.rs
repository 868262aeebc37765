//! What a connection is held to, and what it is called.

use std::time::Duration;

use uuid::Uuid;

use crate::support::{stage::Stage, web};

/// The longest message that a client may send, in bytes (protocol.md section 2).
const MESSAGE_BYTES: usize = 64 * 1024;
/// How long a close frame may take, on a busy machine.
const CLOSE_BOUND: Duration = Duration::from_secs(20);

pub(super) async fn what_clients_say_is_ignored(mut stage: Stage<'_>) {
    let mut audience = stage.listen("/ws").await;
    for (_, listener) in &mut audience.ears {
        for text in ["", "{}", r#"{"type":"instance.state","name":"forged","phase":"Running"}"#, "subscribe"] {
            listener.send(text.to_owned()).await;
        }
        listener.send("x".repeat(MESSAGE_BYTES)).await;
    }
    stage.cluster.create_pod("a", "").await;
    stage.expect(&mut audience, &["instance.state a Pending"], &[]).await;
}

pub(super) async fn a_message_over_64_kib_closes(mut stage: Stage<'_>) {
    let mut audience = stage.listen("/ws").await;
    let mut others = stage.listen("/ws").await;
    for (engine, listener) in &mut audience.ears {
        listener.send("x".repeat(MESSAGE_BYTES + 1)).await;
        let (told, close) = listener.closed(CLOSE_BOUND).await;
        assert_eq!((told, close.map(|(code, _)| code)), (0, Some(1009)), "{engine:?}");
    }
    stage.cluster.create_pod("a", "").await;
    stage.expect(&mut others, &["instance.state a Pending"], &[]).await;
}

pub(super) async fn one_connection_has_an_id(mut stage: Stage<'_>) {
    let uid = stage.cluster.namespace_uid().await;
    let own = Uuid::new_v5(&Uuid::NAMESPACE_OID, uid.as_bytes());
    let mut audience = stage.listen(&format!("/ws?connectionId={own}")).await;
    stage.cluster.create_pod("a", "").await;
    stage.expect(&mut audience, &["instance.state a Pending"], &[]).await;

    let upgrade = [
        ("Connection", "close, Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let others = [Uuid::new_v5(&Uuid::NAMESPACE_URL, uid.as_bytes()).to_string(), uid, String::new()];
    for (engine, bridge) in stage.bridges().await {
        for other in &others {
            let answer = web::ask(bridge.address, "GET", &format!("/ws?connectionId={other}"), &upgrade).await;
            assert_eq!((answer.status, &answer.json()["code"]), (404, &"NOT_FOUND".into()), "{engine:?}: {other}");
        }
    }
}
