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

use crate::support::http_client::TEST_TIMEOUT;

/// The process of the example. It is killed on drop.
struct Echo(Child);

impl Drop for Echo {
    fn drop(&mut self) {
        // Both calls fail if the process has already exited.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the example, which `cargo test` builds, and connects to it.
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
    let (client, _) = timeout(TEST_TIMEOUT, client_async(url, stream)).await.unwrap().unwrap();
    (echo, client)
}

async fn next(client: &mut WebSocketStream<TcpStream>) -> Message {
    timeout(TEST_TIMEOUT, client.next()).await.expect("no message in time").expect("the connection has ended").unwrap()
}

/// Returns bytes in which a missing or wrong unmasking, or an error at the border of a fragment, shows.
fn noise(len: usize) -> Bytes {
    (0..len as u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[tokio::test]
async fn messages_of_any_size_are_echoed_unchanged() {
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
async fn fragments_with_interleaved_pings_are_echoed_as_one_message() {
    let (_echo, mut client) = connect().await;
    for (data, payload) in [(Data::Text, Bytes::from("ü€𝄞".repeat(50_000))), (Data::Binary, noise(1 << 20))] {
        // 7 is coprime to the lengths of the characters, so that the fragments cut characters at every byte.
        let size = payload.len().div_ceil(7);
        for (index, chunk) in payload.chunks(size).enumerate() {
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
        assert_eq!((message.is_text(), message.into_data()), (data == Data::Text, payload));
    }
}

#[tokio::test]
async fn many_small_messages_and_the_close_are_echoed() {
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
    timeout(TEST_TIMEOUT, futures::future::join(sending, receiving)).await.expect("the echo does not finish");
}
