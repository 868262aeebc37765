//! Sockets: from an accepted TCP connection to a value that runs a stream on it.
//!
//! hyper parses requests and writes ordinary responses. A response that carries a [`Start`] never reaches it: the
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
    takeback::{Socket, Start},
    tls::{BadTls, Tls},
};
use self::{io::Guarded, takeback::Parking};
use crate::tasks::{BoxError, Tasks};

/// Connections beyond those that streams may have: probes and GETs get through however many streams there are, and who
/// comes for one too many is told so. 1000 of them, with hyper's buffers, are 32 MiB at the worst.
pub const BESIDE_STREAMS: usize = 1000;

/// Limits of a listener and of each connection until its stream starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// Connections at a time, streams included; the next is accepted and closed. More than there may be streams (protocol.md
    /// section 7: 10000), by [`BESIDE_STREAMS`].
    pub max_connections: usize,
    /// A request's head has this long to arrive, an idle kept-alive connection too (quality.md: 5 s).
    pub header_read_timeout: Duration,
    /// Who has asked for nothing yet when the process drains has this long to do so (1 s: a few round trips).
    pub last_request: Duration,
    /// A request's head is at most this many bytes, else 431. 16 KiB: a browser's cookies and a Kubernetes token, with
    /// room. hyper takes no less than 8 KiB. As much of a response waits in hyper.
    pub max_head_bytes: usize,
    /// A write that moves no byte for this long ends the connection (protocol.md section 2: 10 s).
    pub write_stall: Duration,
    /// The kernel holds at most this many bytes of a connection that it has not yet sent: what a client that stops
    /// reading costs, and how soon it is noticed (issue 3: 64 KiB in all).
    pub max_unsent_bytes: u32,
    /// A silent connection is probed this often (15 s), and a peer that acknowledges nothing for three times as long is
    /// gone: that is the idle limit of protocol.md section 2, for those that owe no pong (SSE, plain requests).
    pub keepalive: Duration,
    /// The pause after `accept` fails, for want of file descriptors mostly: 100 ms.
    pub accept_pause: Duration,
    /// What connections are encrypted with; a handshake has as long as a request's head. `None`: plain TCP.
    pub tls: Option<Tls>,
    /// How often the files of a certificate are looked at: 10 s, so that a new one is served half a minute later.
    pub tls_reread: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_connections: 10_000 + BESIDE_STREAMS,
            header_read_timeout: Duration::from_secs(5),
            last_request: Duration::from_secs(1),
            max_head_bytes: 16 * 1024,
            write_stall: Duration::from_secs(10),
            max_unsent_bytes: 32 * 1024,
            keepalive: Duration::from_secs(15),
            accept_pause: Duration::from_millis(100),
            tls: None,
            tls_reread: Duration::from_secs(10),
        }
    }
}

/// What this module counts.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Connections accepted.
    pub accepted: Counter,
    /// Connections closed at once because there were too many.
    pub refused: Counter,
    /// Failures of `accept` itself.
    pub accept_errors: Counter,
}

impl Metrics {
    /// Makes the counters known to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("connections_accepted", "TCP connections accepted", self.accepted.clone());
        registry.register("connections_refused", "TCP connections over the limit", self.refused.clone());
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
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(config.header_read_timeout).max_buf_size(config.max_head_bytes);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(err) => {
                metrics.accept_errors.inc();
                tracing::warn!(%err, "cannot accept a connection");
                tokio::time::sleep(config.accept_pause).await;
                continue;
            }
        };
        metrics.accepted.inc();
        if tasks.connections() >= config.max_connections {
            metrics.refused.inc();
            continue;
        }
        if let Err(err) = prepare(&stream, &config) {
            // Only a socket that is already dead refuses these.
            tracing::debug!(%err, %peer, "cannot set a socket option");
            continue;
        }
        let peer = Peer { address: peer, tls: config.tls.is_some() };
        let (http, service, serving) = (http.clone(), service.clone(), tasks.clone());
        match &config.tls {
            None => {
                let io = Guarded::new(Conn::Plain(stream), config.write_stall);
                tasks.connection(connection(http, io, peer, service, serving, config.last_request));
            }
            Some(tls) => {
                let (tls, limit, stall) = (tls.clone(), config.header_read_timeout, config.write_stall);
                let last_request = config.last_request;
                tasks.connection(async move {
                    // Boxed: once it is over its place is not needed any more.
                    match Box::pin(tls.accept(stream, limit)).await {
                        Ok(stream) => {
                            let io = Guarded::new(Conn::Tls(stream), stall);
                            connection(http, io, peer, service, serving, last_request).await;
                        }
                        Err(err) => tracing::debug!(%err, peer = %peer.address, "handshake failed"),
                    }
                });
            }
        }
    }
}

/// Events go out at once, a dead peer is noticed, a slow one holds few bytes.
fn prepare(stream: &TcpStream, config: &Config) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(config.keepalive).with_interval(config.keepalive).with_retries(2),
    )?;
    // Keep-alive is silent while data waits for its acknowledgement; this covers that time.
    #[cfg(target_os = "linux")]
    {
        socket.set_tcp_user_timeout(Some(config.keepalive * 3))?;
        socket.set_tcp_notsent_lowat(config.max_unsent_bytes)?;
    }
    Ok(())
}

/// Serves one connection with hyper until it ends or a response starts a stream on it.
async fn connection<S, B>(
    mut http: http1::Builder,
    io: Guarded,
    peer: Peer,
    service: S,
    tasks: Tasks,
    last_request: Duration,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let slot = io.slot().clone();
    let service = Parking::new(service, peer, slot.clone());
    // Who comes while the process drains gets one answer (`/readyz` then says so), not a closed door...
    let mut leaving = tasks.stop().is_cancelled();
    let mut hyper = http.keep_alive(!leaving).serve_connection(TokioIo::new(io), service);
    let mut leave = pin!(async {
        tasks.stop().cancelled().await;
        // ...and so does who has come just before: hyper would close it without a word.
        if !slot.is_asked() {
            tokio::time::sleep(last_request).await;
        }
    });
    let parked = poll_fn(|cx| {
        if !leaving && leave.as_mut().poll(cx).is_ready() {
            leaving = true;
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
                Some(parked) => Poll::Ready(Some(parked)),
                None => Poll::Pending,
            },
        }
    })
    .await;
    let Some((head, start)) = parked else { return };
    // `into_parts` throws unwritten bytes away: the slot gave the stream out only after a flush that reached the socket.
    let parts = hyper.into_parts();
    // A copy: the stream shall not keep hyper's whole buffer for the few bytes in it.
    let early = Bytes::copy_from_slice(&parts.read_buf);
    let socket = Socket { conn: parts.io.into_inner().into_inner(), head, early };
    drop((parts.read_buf, parts.service));
    start.run(socket, &tasks);
}

#[cfg(test)]
pub(in crate::http) mod tests;
