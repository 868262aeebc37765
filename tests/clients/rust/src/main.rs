//! Runs one Rust client against the bridge. Prints one JSON line for each message and each change of the client's
//! state, as `tests/clients/run` describes.
//!
//! usage: boilerhouse-bridge-client-suite CLIENT BASE_URL

use std::{
    error::Error,
    io::{BufRead, BufReader},
    pin::pin,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use futures::{Stream, StreamExt};
use serde_json::{Value, json};

const RETRY: Duration = Duration::from_secs(1);

/// The end of one stream.
enum End {
    /// The stream ended in order.
    Clean,
    /// The end is printed already.
    Printed,
}
type Outcome = Result<End, Box<dyn Error + Send + Sync>>;

static BASE: Mutex<String> = Mutex::new(String::new());
static LAST_EVENT_ID: Mutex<String> = Mutex::new(String::new());

fn print(mut line: Value) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    line["t"] = json!(now.as_secs_f64() * 1000.0);
    println!("{line}");
}

fn state(kind: &str, detail: impl ToString) {
    print(json!({"state": kind, "detail": detail.to_string()}));
}

/// Prints a message and remembers its cursor.
fn message(text: &str) {
    print(json!({"message": text}));
    if let Some(id) = serde_json::from_str::<Value>(text).ok().as_ref().and_then(|event| event["id"].as_str()) {
        *LAST_EVENT_ID.lock().unwrap() = id.to_owned();
    }
}

fn closed(code: u16, reason: &str) -> Outcome {
    state("close", format!("{code} {reason}").trim());
    Ok(End::Printed)
}

fn last_event_id() -> String {
    LAST_EVENT_ID.lock().unwrap().clone()
}

fn sse_url() -> String {
    format!("{}/api/sse", BASE.lock().unwrap())
}

fn ws_url() -> String {
    let base = BASE.lock().unwrap().replacen("http", "ws", 1);
    match last_event_id() {
        id if id.is_empty() => format!("{base}/api/websocket"),
        id => format!("{base}/api/websocket?lastEventId={id}"),
    }
}

/// Connects again after each end, as programs do whose library does not.
async fn repeat<F: Future<Output = Outcome>>(read_one_stream: impl Fn() -> F) {
    loop {
        state("connect", last_event_id());
        print_end(read_one_stream().await);
        tokio::time::sleep(RETRY).await;
    }
}

fn repeat_blocking(read_one_stream: impl Fn() -> Outcome) {
    loop {
        state("connect", last_event_id());
        print_end(read_one_stream());
        std::thread::sleep(RETRY);
    }
}

fn print_end(outcome: Outcome) {
    match outcome {
        Ok(End::Clean) => state("end", ""),
        Ok(End::Printed) => {}
        Err(error) => {
            let mut texts = vec![error.to_string()];
            let mut cause = error.source();
            while let Some(error) = cause {
                texts.push(error.to_string());
                cause = error.source();
            }
            state("error", texts.join(": "));
        }
    }
}

async fn get() -> reqwest::Result<reqwest::Response> {
    let mut request = reqwest::Client::new().get(sse_url());
    let id = last_event_id();
    if !id.is_empty() {
        request = request.header("Last-Event-ID", id);
    }
    let response = request.send().await?.error_for_status()?;
    state("open", "");
    Ok(response)
}

async fn eventsource_stream() -> Outcome {
    use eventsource_stream::Eventsource;
    let mut events = get().await?.bytes_stream().eventsource();
    while let Some(event) = events.next().await {
        message(&event?.data);
    }
    Ok(End::Clean)
}

async fn sse_stream() -> Outcome {
    let mut events = sse_stream::SseByteStream::new(get().await?.bytes_stream());
    while let Some(event) = events.next().await {
        if let Some(data) = event?.data {
            message(&data);
        }
    }
    Ok(End::Clean)
}

async fn reqwest_eventsource() -> Outcome {
    use reqwest_eventsource::{Error, Event, EventSource};
    let mut source = EventSource::get(sse_url());
    while let Some(event) = source.next().await {
        match event {
            Ok(Event::Open) => state("open", ""),
            Ok(Event::Message(event)) => message(&event.data),
            Err(Error::StreamEnded) => state("end", ""),
            Err(error) => state("error", error),
        }
    }
    state("gave up", "");
    std::process::exit(0)
}

async fn eventsource_client() -> Outcome {
    use eventsource_client::{Client, ClientBuilder, Error, SSE};
    let transport = launchdarkly_sdk_transport::HyperTransport::builder().build_http()?;
    let client = ClientBuilder::for_url(&sse_url())?.build_with_transport(transport);
    let mut events = client.stream();
    while let Some(event) = events.next().await {
        match event {
            Ok(SSE::Connected(_)) => state("open", ""),
            Ok(SSE::Event(event)) => message(&event.data),
            Ok(SSE::Comment(_)) => {}
            Err(Error::Eof) => state("end", ""),
            Err(error) => state("error", format!("{error:?}")),
        }
    }
    state("gave up", "");
    std::process::exit(0)
}

fn ureq() -> Outcome {
    let mut request = ureq::get(sse_url());
    let id = last_event_id();
    if !id.is_empty() {
        request = request.header("Last-Event-ID", id);
    }
    let response = request.call()?;
    state("open", "");
    for line in BufReader::new(response.into_body().into_reader()).lines() {
        if let Some(data) = line?.strip_prefix("data: ") {
            message(data);
        }
    }
    Ok(End::Clean)
}

fn tungstenite() -> Outcome {
    let (mut socket, _) = tungstenite::connect(ws_url())?;
    state("open", "");
    loop {
        match socket.read()? {
            tungstenite::Message::Text(text) => message(&text),
            tungstenite::Message::Close(Some(frame)) => return closed(frame.code.into(), &frame.reason),
            _ => {}
        }
    }
}

/// Reads a WebSocket of the crates that use the messages of tungstenite.
async fn read_messages<E: Error + Send + Sync + 'static>(
    messages: impl Stream<Item = Result<tungstenite::Message, E>>,
) -> Outcome {
    state("open", "");
    let mut messages = pin!(messages);
    while let Some(next) = messages.next().await {
        match next? {
            tungstenite::Message::Text(text) => message(&text),
            tungstenite::Message::Close(Some(frame)) => return closed(frame.code.into(), &frame.reason),
            _ => {}
        }
    }
    Ok(End::Clean)
}

async fn tokio_tungstenite() -> Outcome {
    let (socket, _) = tokio_tungstenite::connect_async(ws_url()).await?;
    read_messages(socket).await
}

async fn async_tungstenite() -> Outcome {
    use async_tungstenite::tungstenite::Message;
    let (mut socket, _) = async_tungstenite::tokio::connect_async(ws_url()).await?;
    state("open", "");
    while let Some(next) = socket.next().await {
        match next? {
            Message::Text(text) => message(&text),
            Message::Close(Some(frame)) => return closed(frame.code.into(), &frame.reason),
            _ => {}
        }
    }
    Ok(End::Clean)
}

async fn tokio_websockets() -> Outcome {
    let (mut socket, _) = tokio_websockets::ClientBuilder::new().uri(&ws_url())?.connect().await?;
    state("open", "");
    while let Some(next) = socket.next().await {
        let next = next?;
        if let Some(text) = next.as_text() {
            message(text);
        } else if let Some((code, reason)) = next.as_close() {
            return closed(code.into(), reason);
        }
    }
    Ok(End::Clean)
}

async fn fastwebsockets() -> Outcome {
    use fastwebsockets::{FragmentCollector, OpCode, handshake};
    use hyper::header::{CONNECTION, HOST, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
    let url: hyper::Uri = ws_url().parse()?;
    let address = url.authority().ok_or("no address")?.to_string();
    let stream = tokio::net::TcpStream::connect(&address).await?;
    let request = hyper::Request::get(url)
        .header(HOST, address)
        .header(UPGRADE, "websocket")
        .header(CONNECTION, "upgrade")
        .header(SEC_WEBSOCKET_KEY, handshake::generate_key())
        .header(SEC_WEBSOCKET_VERSION, "13")
        .body(http_body_util::Empty::<hyper::body::Bytes>::new())?;
    let (socket, _) = handshake::client(&hyper_util::rt::TokioExecutor::new(), request, stream).await?;
    let mut socket = FragmentCollector::new(socket);
    state("open", "");
    loop {
        let frame = socket.read_frame().await?;
        match frame.opcode {
            OpCode::Text => message(std::str::from_utf8(&frame.payload)?),
            OpCode::Close if frame.payload.len() >= 2 => {
                let code = u16::from_be_bytes([frame.payload[0], frame.payload[1]]);
                return closed(code, std::str::from_utf8(&frame.payload[2..])?);
            }
            _ => {}
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    *BASE.lock().unwrap() = arguments[2].clone();
    match arguments[1].as_str() {
        "eventsource-stream" => repeat(eventsource_stream).await,
        "sse-stream" => repeat(sse_stream).await,
        "reqwest-eventsource" => repeat(reqwest_eventsource).await,
        "eventsource-client (Rust)" => repeat(eventsource_client).await,
        "ureq" => repeat_blocking(ureq),
        "tungstenite" => repeat_blocking(tungstenite),
        "tokio-tungstenite" => repeat(tokio_tungstenite).await,
        "async-tungstenite" => repeat(async_tungstenite).await,
        "tokio-websockets" => repeat(tokio_websockets).await,
        "fastwebsockets" => repeat(fastwebsockets).await,
        name => panic!("unknown client: {name}"),
    }
}
