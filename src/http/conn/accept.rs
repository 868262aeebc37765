//! The listener: accepts connections, sets socket options, and serves each connection with hyper until it ends or a
//! stream starts on it.
//!
//! Owns: the listening socket, and each connection until its stream starts.
//!
//! Guarantees:
//! - At most [`Config::max_connections`] connections are open. A further connection is accepted and closed.
//! - A failure of `accept` does not end the listener.
//! - While the process drains, each accepted connection still gets one response.

use std::{
    convert::Infallible,
    future::poll_fn,
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
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tower::Service;

use super::{
    hijack::HijackService,
    metrics::{Metrics, RejectReason},
    peer::Peer,
    stream_start::HijackedSocket,
    tls::ReloadingTls,
    transport::Conn,
    write_timeout::WriteTimeoutIo,
};
use crate::tasks::{BoxError, Tasks};

/// Connections beyond the maximum number of streams, for probes, GETs and the rejection of further streams.
///
/// 1000 of them cost at most 32 MiB, hyper's buffers included.
pub const NON_STREAM_CONNECTIONS: usize = 1000;

/// Limits of a listener, and of each connection until its stream starts (docs/limits.md).
#[derive(Debug, Clone)]
pub struct Config {
    /// Maximum number of open connections, streams included. A further connection is accepted and closed.
    ///
    /// Default: the maximum number of streams (docs/protocol.md#access: 10000) plus [`NON_STREAM_CONNECTIONS`].
    pub max_connections: usize,
    /// Maximum time until a request head is complete, also on an idle kept-alive connection, and maximum time of a TLS
    /// handshake. Default: 5 s (docs/guarantees.md#security-rules).
    pub header_read_timeout: Duration,
    /// Time in which a connection without a request may send one after the drain has started. Default: 1 s, a few round
    /// trips.
    pub drain_request_grace: Duration,
    /// Maximum size of a request head. A larger one gets 431. hyper buffers at most as many bytes of a response.
    ///
    /// Default: 16 KiB, enough for a browser's cookies and a Kubernetes token. hyper's minimum is 8 KiB.
    pub max_head_bytes: usize,
    /// Time without progress after which a write ends the connection. Default: 10 s
    /// (docs/protocol.md#boilerhouse-stream).
    pub write_timeout: Duration,
    /// Maximum number of unsent bytes that the kernel accepts for a connection (`TCP_NOTSENT_LOWAT`). Default: 32 KiB.
    ///
    /// It bounds the memory of a client that does not read, 64 KiB in all (docs/performance.md#goals). A smaller value
    /// detects such a client earlier.
    pub max_unsent_bytes: u32,
    /// Silence before a TCP keep-alive probe, and time between probes. Default: 15 s.
    ///
    /// A peer that acknowledges nothing for three times this interval is disconnected. This is the idle limit of
    /// docs/protocol.md#boilerhouse-stream for clients that send no pongs (SSE, plain requests).
    pub keepalive_interval: Duration,
    /// Maximum number of connections that the kernel queues until they are accepted. Default: 4096; the kernel's own
    /// maximum is `net.core.somaxconn`.
    ///
    /// The standard library uses 128. When more clients reconnect at once, they wait 1 s until their kernels send the
    /// first packet again.
    pub backlog: i32,
    /// Pause after a failed `accept`, which mostly means that no file descriptor is free. Default: 100 ms.
    pub accept_retry_delay: Duration,
    /// Certificate and key of the listener. `None` means plain TCP.
    pub tls: Option<ReloadingTls>,
    /// Time between two reads of the certificate files. Default: 10 s. A change is served after the second read that
    /// finds it, after 10 to 20 s.
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

/// Accepts connections and serves each of them with a clone of `service`, in a connection task of its own.
///
/// It never returns. While the process drains it still accepts, so that probes and new clients get a response. Dropping
/// the future closes the listener.
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
        // The listener works with the backlog that it has.
        tracing::debug!(%err, "listen backlog not changed");
    }
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(config.header_read_timeout).max_buf_size(config.max_head_bytes);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(err) => {
                metrics.record_accept_error();
                tracing::warn!(%err, "accept failed");
                tokio::time::sleep(config.accept_retry_delay).await;
                continue;
            }
        };
        metrics.record_accepted();
        if tasks.connections() >= config.max_connections {
            metrics.record_rejected(RejectReason::Limit);
            continue;
        }
        if let Err(err) = set_socket_options(&stream, &config) {
            // This fails only on a socket that is already closed.
            metrics.record_rejected(RejectReason::SocketOption);
            tracing::debug!(%err, %peer, "socket option not set");
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
                let (drain_request_grace, metrics) = (config.drain_request_grace, metrics.clone());
                tasks.connection(async move {
                    // Boxed, so that the task does not keep the memory of the handshake.
                    match Box::pin(tls.accept(stream, limit)).await {
                        Ok(stream) => {
                            let io = WriteTimeoutIo::new(Conn::Tls(stream), write_timeout);
                            serve_connection(http, io, peer, service, task_set, drain_request_grace).await;
                        }
                        Err(err) => {
                            metrics.record_rejected(RejectReason::TlsHandshake);
                            tracing::debug!(%err, peer = %peer.address, "TLS handshake failed");
                        }
                    }
                });
            }
        }
    }
}

/// Sets the socket options: events are sent at once, a dead peer is detected, and few bytes wait in the kernel.
fn set_socket_options(stream: &TcpStream, config: &Config) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(config.keepalive_interval)
            .with_interval(config.keepalive_interval)
            .with_retries(2),
    )?;
    // TCP sends no keep-alive probes while data waits for an acknowledgement. `TCP_USER_TIMEOUT` covers that time.
    #[cfg(target_os = "linux")]
    {
        socket.set_tcp_user_timeout(Some(config.keepalive_interval * 3))?;
        socket.set_tcp_notsent_lowat(config.max_unsent_bytes)?;
    }
    Ok(())
}

/// Serves one connection with hyper until it ends or a response starts a stream on it.
pub(super) async fn serve_connection<S, B>(
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
    // A connection that arrives during the drain gets one response (`/readyz` then reports the drain).
    let mut draining = tasks.stop().is_cancelled();
    let mut hyper = http.keep_alive(!draining).serve_connection(TokioIo::new(io), service);
    let mut drain = pin!(async {
        tasks.stop().cancelled().await;
        // A connection that arrived just before the drain gets one response, too. hyper would close it without one.
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
    // `into_parts` discards unwritten bytes. There are none, because the slot returns a stream only after a flush of
    // the socket.
    let parts = hyper.into_parts();
    // Copied, so that the stream does not keep hyper's buffer of up to 16 KiB for a few bytes.
    let read_ahead = Bytes::copy_from_slice(&parts.read_buf);
    let socket = HijackedSocket { conn: parts.io.into_inner().into_inner(), head, read_ahead };
    drop((parts.read_buf, parts.service));
    start.run(socket, &tasks);
}
