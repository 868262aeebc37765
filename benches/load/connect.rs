//! One connection of a client: TCP or TLS, the request, and the start of the response.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use http::Uri;
use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::tls;

/// Bytes of a response up to its status: `HTTP/1.1 200`.
const STATUS: usize = 12;
/// Bytes of a response that the first read accepts, and that are printed when the status is an error.
const START: usize = 1024;
/// Header fields of a WebSocket request.
pub(crate) const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                                  Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// A connection with or without TLS.
pub(crate) type Stream = Box<dyn Io>;

pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(crate) fn is_websocket(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("ws" | "wss"))
}

pub(crate) fn is_encrypted(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("wss" | "https"))
}

/// Parses the URL of a stream.
pub(crate) fn url(text: &str) -> Result<Uri, String> {
    let parsed = text.parse::<Uri>().ok().filter(|uri| uri.host().is_some());
    let is_known = |uri: &Uri| matches!(uri.scheme_str(), Some("ws" | "wss" | "http" | "https"));
    parsed
        .filter(is_known)
        .ok_or_else(|| "expected a URL such as ws://127.0.0.1:8765/ws: ws, wss, http or https".to_owned())
}

/// Opens the TCP connection.
pub(crate) async fn reach(uri: &Uri) -> Result<TcpStream> {
    let authority = uri.authority().context("the URL has no host")?;
    let port = authority.port_u16().unwrap_or(if is_encrypted(uri) { 443 } else { 80 });
    Ok(TcpStream::connect((authority.host(), port)).await?)
}

/// Requests this path and query from the server of the URL. Returns the connection and the bytes that arrived with the
/// status line.
pub(crate) async fn connect(uri: &Uri, path: &str, trust: Option<&Arc<ClientConfig>>) -> Result<(Stream, Vec<u8>)> {
    let authority = uri.authority().context("the URL has no host")?;
    let stream = reach(uri).await?;
    stream.set_nodelay(true)?;
    let mut stream: Stream = match trust {
        Some(trust) => Box::new(TlsConnector::from(trust.clone()).connect(tls::name(authority.host())?, stream).await?),
        None => Box::new(stream),
    };
    let fields = if is_websocket(uri) { UPGRADE } else { "Accept: text/event-stream\r\n" };
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\n{fields}\r\n").as_bytes()).await?;
    stream.flush().await?;
    let mut start = Vec::with_capacity(START);
    while start.len() < STATUS {
        if stream.read_buf(&mut start).await? == 0 {
            bail!("{uri} closed a connection before it answered");
        }
    }
    if !matches!(&start[STATUS - 3..STATUS], b"101" | b"200") {
        bail!("{uri} answered: {}", String::from_utf8_lossy(&start));
    }
    Ok((stream, start))
}
