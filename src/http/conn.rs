//! Sockets: from an accepted TCP connection to a value that runs a stream on it.
//!
//! hyper parses requests and writes ordinary responses. A response that carries a [`StreamStart`] never reaches it: the
//! connection is taken back from hyper once all earlier responses are in the kernel, hyper's buffers are freed, and the
//! stream runs in a small task of its own. Always: a number of connections, of header bytes and of waiting bytes, and an
//! end for whoever makes no progress. It knows no route and no feed.
mod io;
mod takeback;
mod tls;

use std::{
    convert::Infallible,
    future::poll_fn,
    net::SocketAddr,
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    Request, Response,
    body::{Body, Incoming},
    server::conn::http1,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tower::Service;

pub use self::{
    io::Conn,
    takeback::{HijackedSocket, StreamStart},
    tls::{ReloadingTls, TlsError},
};
use self::{io::WriteTimeoutIo, takeback::HijackService};
use crate::tasks::{BoxError, Tasks};

/// Connections beyond those that streams may have: probes and GETs get through however many streams there are, and who
/// comes for one too many is told so. 1000 of them, with hyper's buffers, are 32 MiB at the worst.
pub const NON_STREAM_CONNECTIONS: usize = 1000;

/// Limits of a listener and of each connection until its stream starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// Connections at a time, streams included; the next is accepted and closed. More than there may be streams (docs/protocol.md
    /// section 7: 10000), by [`NON_STREAM_CONNECTIONS`].
    pub max_connections: usize,
    /// A request's head has this long to arrive, an idle kept-alive connection too (docs/guarantees.md: 5 s).
    pub header_read_timeout: Duration,
    /// Who has asked for nothing yet when the process drains has this long to do so (1 s: a few round trips).
    pub drain_request_grace: Duration,
    /// A request's head is at most this many bytes, else 431. 16 KiB: a browser's cookies and a Kubernetes token, with
    /// room. hyper takes no less than 8 KiB. As much of a response waits in hyper.
    pub max_head_bytes: usize,
    /// A write that moves no byte for this long ends the connection (docs/protocol.md#boilerhouse-stream: 10 s).
    pub write_timeout: Duration,
    /// The kernel holds at most this many bytes of a connection that it has not yet sent: what a client that stops
    /// reading costs, and how soon it is noticed (issue 3: 64 KiB in all).
    pub max_unsent_bytes: u32,
    /// A silent connection is probed this often (15 s), and a peer that acknowledges nothing for three times as long is
    /// gone: that is the idle limit of docs/protocol.md#boilerhouse-stream, for those that owe no pong (SSE, plain requests).
    pub keepalive_interval: Duration,
    /// Connections that the kernel keeps until they are accepted: 4096, and no more than the system lets it
    /// (`net.core.somaxconn`). Beyond the 128 that the standard library asks for, a crowd that comes back at once would wait for a
    /// second, until its packets are sent again.
    pub backlog: i32,
    /// The pause after `accept` fails, for want of file descriptors mostly: 100 ms.
    pub accept_retry_delay: Duration,
    /// What connections are encrypted with; a handshake has as long as a request's head. `None`: plain TCP.
    pub tls: Option<ReloadingTls>,
    /// How often the files of a certificate are looked at: 10 s, so that a new one is served half a minute later.
    pub tls_reload_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_connections: 10_000 + NON_STREAM_CONNECTIONS,
            header_read_timeout: Duration::from_secs(5),
            drain_request_grace: Duration::from_secs(1),
            max_head_bytes: 16 * 1024,
            write_timeout: Duration::from_secs(10),
            max_unsent_bytes: 32 * 1024,
            keepalive_interval: Duration::from_secs(15),
            backlog: 4096,
            accept_retry_delay: Duration::from_millis(100),
            tls: None,
            tls_reload_interval: Duration::from_secs(10),
        }
    }
}

/// What this module counts.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Connections accepted.
    pub accepted: Counter,
    /// Connections closed at once because there were too many.
    pub rejected: Counter,
    /// Failures of `accept` itself.
    pub accept_errors: Counter,
}

impl Metrics {
    /// Makes the counters known to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("connections_accepted", "TCP connections accepted", self.accepted.clone());
        registry.register("connections_refused", "TCP connections over the limit", self.rejected.clone());
        registry.register("accept_errors", "Failures to accept a connection", self.accept_errors.clone());
    }
}

/// Whom a request came from: put into the extensions of each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The other end of the connection.
    pub address: SocketAddr,
    /// Whether the connection is encrypted, up to us.
    pub tls: bool,
}

/// Accepts connections for ever and serves each with a clone of `service` in a task of its own. While the process drains
/// it still accepts, so that probes and new clients are told so; it ends by being dropped.
pub async fn serve<S, B>(
    listener: TcpListener,
    service: S,
    config: Config,
    metrics: Metrics,
    tasks: Tasks,
) -> Infallible
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    if let Err(err) = SockRef::from(&listener).listen(config.backlog) {
        // It goes on with what it has.
        tracing::debug!(%err, "cannot make the listener's queue longer");
    }
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(config.header_read_timeout).max_buf_size(config.max_head_bytes);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(err) => {
                metrics.accept_errors.inc();
                tracing::warn!(%err, "cannot accept a connection");
                tokio::time::sleep(config.accept_retry_delay).await;
                continue;
            }
        };
        metrics.accepted.inc();
        if tasks.connections() >= config.max_connections {
            metrics.rejected.inc();
            continue;
        }
        if let Err(err) = set_socket_options(&stream, &config) {
            // Only a socket that is already dead refuses these.
            tracing::debug!(%err, %peer, "cannot set a socket option");
            continue;
        }
        let peer = Peer { address: peer, tls: config.tls.is_some() };
        let (http, service, task_set) = (http.clone(), service.clone(), tasks.clone());
        match &config.tls {
            None => {
                let io = WriteTimeoutIo::new(Conn::Plain(stream), config.write_timeout);
                tasks.connection(serve_connection(http, io, peer, service, task_set, config.drain_request_grace));
            }
            Some(tls) => {
                let (tls, limit, write_timeout) = (tls.clone(), config.header_read_timeout, config.write_timeout);
                let drain_request_grace = config.drain_request_grace;
                tasks.connection(async move {
                    // Boxed: once it is over its place is not needed any more.
                    match Box::pin(tls.accept(stream, limit)).await {
                        Ok(stream) => {
                            let io = WriteTimeoutIo::new(Conn::Tls(stream), write_timeout);
                            serve_connection(http, io, peer, service, task_set, drain_request_grace).await;
                        }
                        Err(err) => tracing::debug!(%err, peer = %peer.address, "handshake failed"),
                    }
                });
            }
        }
    }
}

/// Events go out at once, a dead peer is noticed, a slow one holds few bytes.
fn set_socket_options(stream: &TcpStream, config: &Config) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(config.keepalive_interval)
            .with_interval(config.keepalive_interval)
            .with_retries(2),
    )?;
    // Keep-alive is silent while data waits for its acknowledgement; this covers that time.
    #[cfg(target_os = "linux")]
    {
        socket.set_tcp_user_timeout(Some(config.keepalive_interval * 3))?;
        socket.set_tcp_notsent_lowat(config.max_unsent_bytes)?;
    }
    Ok(())
}

/// Serves one connection with hyper until it ends or a response starts a stream on it.
async fn serve_connection<S, B>(
    mut http: http1::Builder,
    io: WriteTimeoutIo,
    peer: Peer,
    service: S,
    tasks: Tasks,
    drain_request_grace: Duration,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let slot = io.slot().clone();
    let service = HijackService::new(service, peer, slot.clone());
    // Who comes while the process drains gets one answer (`/readyz` then says so), not a closed door...
    let mut draining = tasks.stop().is_cancelled();
    let mut hyper = http.keep_alive(!draining).serve_connection(TokioIo::new(io), service);
    let mut drain = pin!(async {
        tasks.stop().cancelled().await;
        // ...and so does who has come just before: hyper would close it without a word.
        if !slot.has_request() {
            tokio::time::sleep(drain_request_grace).await;
        }
    });
    let handoff = poll_fn(|cx| {
        if !draining && drain.as_mut().poll(cx).is_ready() {
            draining = true;
            Pin::new(&mut hyper).graceful_shutdown();
        }
        match Pin::new(&mut hyper).poll(cx) {
            Poll::Ready(outcome) => {
                if let Err(err) = outcome {
                    tracing::debug!(%err, peer = %peer.address, "connection failed");
                }
                Poll::Ready(None)
            }
            Poll::Pending => match slot.take() {
                Some(handoff) => Poll::Ready(Some(handoff)),
                None => Poll::Pending,
            },
        }
    })
    .await;
    let Some((head, start)) = handoff else { return };
    // `into_parts` throws unwritten bytes away: the slot gave the stream out only after a flush that reached the socket.
    let parts = hyper.into_parts();
    // A copy: the stream shall not keep hyper's whole buffer for the few bytes in it.
    let read_ahead = Bytes::copy_from_slice(&parts.read_buf);
    let socket = HijackedSocket { conn: parts.io.into_inner().into_inner(), head, read_ahead };
    drop((parts.read_buf, parts.service));
    start.run(socket, &tasks);
}

#[cfg(test)]
pub(in crate::http) mod tests;
