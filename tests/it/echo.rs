//! `examples/echo_server.rs` with an ordinary client: the server that external conformance suites test must be correct.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use futures::{SinkExt, StreamExt};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        Bytes, Message,
        protocol::frame::{
            CloseFrame, Frame,
            coding::{CloseCode, Data, OpCode},
        },
    },
};

use crate::support::web::BOUND;

/// The example, killed when dropped.
struct Echo(Child);

impl Drop for Echo {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the example as `cargo test` has built it.
async fn connect() -> (Echo, WebSocketStream<TcpStream>) {
    let folder = Path::new(env!("CARGO_BIN_EXE_boilerhouse-bridge")).parent().unwrap();
    let mut command = Command::new(folder.join("examples/echo_server"));
    let child = command.arg("0").stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("cargo build --example echo_server builds it, as `cargo test` does");
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let echo = Echo(child);
    let url = line.trim().strip_prefix("echoing on ").unwrap();
    let stream = TcpStream::connect(url.strip_prefix("ws://").unwrap()).await.unwrap();
    let (client, _) = timeout(BOUND, client_async(url, stream)).await.unwrap().unwrap();
    (echo, client)
}

async fn next(client: &mut WebSocketStream<TcpStream>) -> Message {
    timeout(BOUND, client.next()).await.expect("no message").expect("the end").unwrap()
}

/// Numbers that no compression, masking or splitting leaves alone by chance.
fn noise(len: usize) -> Bytes {
    (0..len as u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[tokio::test]
async fn messages_of_any_size_come_back_whole() {
    let (_echo, mut client) = connect().await;
    for len in [0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20] {
        let binary = Message::Binary(noise(len));
        client.send(binary.clone()).await.unwrap();
        assert_eq!(next(&mut client).await, binary, "{len} bytes");
        let text = Message::text("ü€𝄞x".chars().cycle().take(len).collect::<String>());
        client.send(text.clone()).await.unwrap();
        assert_eq!(next(&mut client).await, text, "{len} characters");
    }
}

#[tokio::test]
async fn fragments_with_pings_between_them_come_back_as_one() {
    let (_echo, mut client) = connect().await;
    for (data, whole) in [(Data::Text, Bytes::from("ü€𝄞".repeat(50_000))), (Data::Binary, noise(1 << 20))] {
        // Seven is coprime to everything in here: characters are cut in each of their places.
        let size = whole.len().div_ceil(7);
        for (index, chunk) in whole.chunks(size).enumerate() {
            let (data, last) = (if index == 0 { data } else { Data::Continue }, index == 6);
            let frame = Frame::message(Bytes::copy_from_slice(chunk), OpCode::Data(data), last);
            client.feed(Message::Frame(frame)).await.unwrap();
            if !last {
                client.feed(Message::Ping(Bytes::from(format!("ping {index}")))).await.unwrap();
            }
        }
        client.flush().await.unwrap();
        for index in 0..6 {
            assert_eq!(next(&mut client).await, Message::Pong(Bytes::from(format!("ping {index}"))));
        }
        let message = next(&mut client).await;
        assert_eq!((message.is_text(), message.into_data()), (data == Data::Text, whole));
    }
}

#[tokio::test]
async fn many_small_messages_and_the_close() {
    let (_echo, client) = connect().await;
    let (mut send, mut receive) = client.split();
    let sending = async {
        for index in 0..5000 {
            send.feed(Message::text(index.to_string())).await.unwrap();
        }
        let reason = CloseFrame { code: CloseCode::Normal, reason: "enough".into() };
        send.send(Message::Close(Some(reason))).await.unwrap();
    };
    let receiving = async {
        for index in 0..5000 {
            assert_eq!(receive.next().await.unwrap().unwrap(), Message::text(index.to_string()));
        }
        assert!(
            matches!(receive.next().await.unwrap().unwrap(), Message::Close(Some(frame)) if u16::from(frame.code) == 1000)
        );
        assert!(receive.next().await.is_none());
    };
    timeout(BOUND, futures::future::join(sending, receiving)).await.expect("it stops");
}
