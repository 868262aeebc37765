//! One connection of a client: over TCP or TLS, its request, and the start of the answer.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use http::Uri;
use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::tls;

/// Bytes of an answer that say how it went: `HTTP/1.1 200`.
const STATUS: usize = 12;
/// Bytes of an answer that are read at first, and shown when it is a refusal.
const START: usize = 1024;

/// Either of the two.
pub(super) type Stream = Box<dyn Io>;

pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(super) fn is_websocket(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("ws" | "wss"))
}

pub(super) fn is_encrypted(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("wss" | "https"))
}

/// A URL that a stream may have.
pub(super) fn url(text: &str) -> Result<Uri, String> {
    let parsed = text.parse::<Uri>().ok().filter(|uri| uri.host().is_some());
    let speaks = |uri: &Uri| matches!(uri.scheme_str(), Some("ws" | "wss" | "http" | "https"));
    parsed.filter(speaks).ok_or_else(|| "expected a URL like ws://127.0.0.1:8765/ws: ws, wss, http or https".to_owned())
}

/// The connection, without a word on it.
pub(super) async fn reach(uri: &Uri) -> Result<TcpStream> {
    let authority = uri.authority().context("a URL with a host")?;
    let port = authority.port_u16().unwrap_or(if is_encrypted(uri) { 443 } else { 80 });
    Ok(TcpStream::connect((authority.host(), port)).await?)
}

/// Asks for this path and query of the URL's server; returns what came with the answer's first line, too.
pub(super) async fn connect(uri: &Uri, path: &str, trust: Option<&Arc<ClientConfig>>) -> Result<(Stream, Vec<u8>)> {
    let authority = uri.authority().context("a URL with a host")?;
    let stream = reach(uri).await?;
    stream.set_nodelay(true)?;
    let mut stream: Stream = match trust {
        Some(trust) => Box::new(TlsConnector::from(trust.clone()).connect(tls::name(authority.host())?, stream).await?),
        None => Box::new(stream),
    };
    let upgrade = if is_websocket(uri) {
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    } else {
        "Accept: text/event-stream\r\n"
    };
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\n{upgrade}\r\n").as_bytes()).await?;
    stream.flush().await?;
    let mut start = Vec::with_capacity(START);
    while start.len() < STATUS {
        if stream.read_buf(&mut start).await? == 0 {
            bail!("{uri} has ended a connection");
        }
    }
    if !matches!(&start[STATUS - 3..STATUS], b"101" | b"200") {
        bail!("{uri} answered: {}", String::from_utf8_lossy(&start));
    }
    Ok((stream, start))
}
