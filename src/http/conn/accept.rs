//! The listener: accepts connections, and sets socket options.
//!
//! Owns: the listening socket, and each connection until its task starts ([`super::connection`]).
//!
//! Guarantees:
//! - At most [`Config::max_connections`] connections are open, and the connections that wait for a request are bounded
//!   ([`Config::max_waiting`]). Beyond a bound, the connection that has waited longest for a request is closed.
//! - A failure of `accept` does not end the listener.

use std::{convert::Infallible, io, time::Duration};

use hyper::{
    Request, Response,
    body::{Body, Incoming},
    server::conn::http1,
};
use hyper_util::rt::TokioTimer;
use rustix::io::Errno;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    task::yield_now,
};
use tower::Service;

use super::{
    connection::ConnContext,
    metrics::{Metrics, RejectReason},
    peer::Peer,
    tls::ReloadingTls,
    transport::Conn,
    waiting::{CountedAddress, WaitingConns},
};
use crate::tasks::{BoxError, Tasks};

/// Connections beyond the maximum number of streams, for probes, GETs and the rejection of further streams.
///
/// 1000 of them cost at most 32 MiB, hyper's buffers included.
pub const NON_STREAM_CONNECTIONS: usize = 1000;
/// Connections of a listener for probes. A few kubelets, load balancers and people use it.
pub const PROBE_CONNECTIONS: usize = 64;

/// Maximum number of turns in which the listener waits for the end of a connection that it has closed.
const MAX_YIELDS: usize = 256;

/// Limits of a listener, and of each connection until its stream starts (docs/limits.md).
#[derive(Debug, Clone)]
pub struct Config {
    /// Maximum number of open connections, streams included. For a further connection, the one that has waited longest
    /// for a request is closed. If none waits, the new connection is accepted and closed.
    ///
    /// Default: the maximum number of streams (docs/protocol.md#access: 10000) plus [`NON_STREAM_CONNECTIONS`].
    pub max_connections: usize,
    /// Maximum number of connections that wait for a request: new ones, and kept-alive ones after an answer. Beyond it
    /// the one that has waited longest is closed.
    ///
    /// Default: 4096, as many as `backlog` lets arrive at once. With hyper's buffers they cost at most 128 MiB.
    pub max_waiting: usize,
    /// Maximum number of such connections of one address. Default: 1024, a quarter of `max_waiting`, so that many
    /// clients behind one address can connect at once.
    pub max_waiting_per_address: usize,
    /// The address that a waiting connection is counted for. Default: the peer's address.
    pub counted_address: CountedAddress,
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
    /// Pause after an `accept` that failed because the process or the system has no file descriptor or no memory for a
    /// further socket. Default: 100 ms.
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
            max_waiting: 4096,
            max_waiting_per_address: 1024,
            counted_address: CountedAddress::default(),
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

impl Config {
    /// Returns the limits of a listener for probes: few connections, short times, no TLS.
    ///
    /// A kubelet opens one connection for each probe, and its default timeout is 1 s.
    #[must_use]
    pub fn probes() -> Config {
        Config {
            max_connections: PROBE_CONNECTIONS,
            max_waiting: PROBE_CONNECTIONS,
            max_waiting_per_address: PROBE_CONNECTIONS,
            header_read_timeout: Duration::from_secs(2),
            max_head_bytes: 8 * 1024,
            write_timeout: Duration::from_secs(2),
            backlog: 128,
            ..Config::default()
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
    let waiting = WaitingConns::new(config.max_waiting, config.max_waiting_per_address);
    let context = ConnContext {
        http,
        service,
        tasks: tasks.clone(),
        metrics: metrics.clone(),
        handshake_timeout: config.header_read_timeout,
        write_timeout: config.write_timeout,
        drain_request_grace: config.drain_request_grace,
    };
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(err) => {
                metrics.record_accept_error();
                if is_out_of_resources(&err) {
                    tracing::warn!(%err, "accept failed");
                    // The file descriptor of this connection lets the next one in.
                    waiting.close_oldest();
                    tokio::time::sleep(config.accept_retry_delay).await;
                } else {
                    // Only the connection that was to be accepted is lost.
                    tracing::debug!(%err, "accept failed");
                }
                continue;
            }
        };
        metrics.record_accepted();
        let is_full = || tasks.connections() >= config.max_connections;
        if is_full() {
            if !waiting.close_oldest() {
                metrics.record_rejected(RejectReason::Limit);
                continue;
            }
            // The file of a closed connection is free after its task has run.
            for _ in 0..MAX_YIELDS {
                if !is_full() {
                    break;
                }
                yield_now().await;
            }
        }
        if let Err(err) = set_socket_options(&stream, &config) {
            // This fails only on a socket that is already closed.
            metrics.record_rejected(RejectReason::SocketOption);
            tracing::debug!(%err, %peer, "socket option not set");
            continue;
        }
        let waiting = waiting.connection(config.counted_address.of(peer.ip()));
        let peer = Peer { address: peer, tls: config.tls.is_some() };
        match config.tls.clone() {
            None => tasks.connection(context.clone().serve(Conn::Plain(stream), peer, waiting)),
            Some(tls) => tasks.connection(context.clone().serve_tls(stream, tls, peer, waiting)),
        }
    }
}

/// Returns true if `accept` failed because the process or the system has no resources for a further socket. It would
/// fail again at once.
///
/// Other errors concern one connection, such as one that its client has reset (accept(2), "Error handling").
fn is_out_of_resources(err: &io::Error) -> bool {
    matches!(Errno::from_io_error(err), Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exhausted_resources_pause_the_listener() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert!(is_out_of_resources(&errno.into()), "{errno}");
        }
        // accept(2) lists these errors of a single connection.
        for errno in [
            Errno::CONNABORTED,
            Errno::CONNRESET,
            Errno::INTR,
            Errno::PERM,
            Errno::PROTO,
            Errno::NETDOWN,
            Errno::NOPROTOOPT,
            Errno::HOSTDOWN,
            Errno::HOSTUNREACH,
            Errno::NETUNREACH,
            Errno::OPNOTSUPP,
        ] {
            assert!(!is_out_of_resources(&errno.into()), "{errno}");
        }
        assert!(!is_out_of_resources(&io::Error::other("not an error of the system")));
    }
}
