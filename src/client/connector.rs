//! How a client opens a connection: TCP to the host of the URL, or a function of the caller.

use std::{fmt, io, net::IpAddr, sync::Arc};

use futures::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::endpoint::Endpoint;

/// What a client reads from and writes to.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Opens connections.
#[derive(Clone, Default)]
pub(super) struct Connector(Option<Arc<Open>>);

type Open = dyn Fn() -> BoxFuture<'static, io::Result<Box<dyn Io>>> + Send + Sync;

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_tcp() { "Connector(TCP)" } else { "Connector(..)" })
    }
}

impl Connector {
    /// Returns a connector that calls this function.
    pub(super) fn new<T, F>(open: impl Fn() -> F + Send + Sync + 'static) -> Connector
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        F: Future<Output = io::Result<T>> + Send + 'static,
    {
        Connector(Some(Arc::new(move || {
            let opening = open();
            Box::pin(async move { Ok(Box::new(opening.await?) as Box<dyn Io>) })
        })))
    }

    /// Returns whether connections are TCP connections to the host of the URL.
    pub(super) fn is_tcp(&self) -> bool {
        self.0.is_none()
    }

    /// Opens a connection. Returns it and, with TCP, the address to which the host has led.
    pub(super) async fn open(&self, endpoint: &Endpoint) -> io::Result<(Box<dyn Io>, Option<IpAddr>)> {
        if let Some(open) = &self.0 {
            return Ok((open().await?, None));
        }
        let tcp = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
        tcp.set_nodelay(true)?;
        let peer = tcp.peer_addr()?.ip();
        Ok((Box::new(tcp), Some(peer)))
    }
}
