//! One connection, from its accept until it ends or a response starts a stream on it.
//!
//! Owns: the socket during this time.
//!
//! Guarantees:
//! - A connection that waits for a request ends when it must give way to others ([`super::waiting`]).
//! - While the process drains, each accepted connection still gets one response.
//! - A client that half-closes the connection after its request gets the answer.

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
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

use super::{
    hijack::HijackService,
    hyper_io::HyperIo,
    metrics::{Metrics, RejectReason},
    peer::Peer,
    stream_start::HijackedSocket,
    tls::ReloadingTls,
    transport::Conn,
    waiting::WaitingConn,
};
use crate::tasks::{BoxError, Tasks};

/// What all connections of a listener share. Each connection has a clone.
#[derive(Clone)]
pub(super) struct ConnContext<S> {
    pub(super) http: http1::Builder,
    pub(super) service: S,
    pub(super) tasks: Tasks,
    pub(super) metrics: Metrics,
    pub(super) handshake_timeout: Duration,
    pub(super) write_timeout: Duration,
    pub(super) drain_request_grace: Duration,
}

impl<S, B> ConnContext<S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    /// Completes the TLS handshake, then serves the connection.
    pub(super) async fn serve_tls(self, stream: TcpStream, tls: ReloadingTls, peer: Peer, mut waiting: WaitingConn) {
        // Boxed, so that the task does not keep the memory of the handshake.
        let mut handshake = Box::pin(async move { tls.accept(stream, self.handshake_timeout).await });
        let outcome = poll_fn(|cx| match waiting.poll_must_close(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => handshake.as_mut().poll(cx).map(Some),
        })
        .await;
        drop(handshake);
        match outcome {
            Some(Ok(stream)) => self.serve(Conn::Tls(stream), peer, waiting).await,
            Some(Err(err)) => {
                self.metrics.record_rejected(RejectReason::TlsHandshake);
                tracing::debug!(%err, peer = %peer.address, "TLS handshake failed");
            }
            None => self.metrics.record_rejected(RejectReason::Waiting),
        }
    }

    /// Serves the connection with hyper until it ends or a response starts a stream on it.
    pub(super) async fn serve(self, conn: Conn, peer: Peer, mut waiting: WaitingConn) {
        let ConnContext { mut http, service, tasks, metrics, drain_request_grace, .. } = self;
        let io = HyperIo::new(conn, self.write_timeout);
        let slot = io.slot().clone();
        let service = HijackService::new(service, peer, slot.clone());
        // A connection that arrives during the drain gets one response (`/readyz` then reports the drain).
        let mut ending = tasks.stop().is_cancelled();
        let mut hyper = http.keep_alive(!ending).serve_connection(TokioIo::new(io), service);
        let mut drain = pin!(async {
            tasks.stop().cancelled().await;
            // A connection that arrived just before the drain gets one response, too. hyper would close it without one.
            if !slot.has_request() {
                tokio::time::sleep(drain_request_grace).await;
            }
        });
        let handoff = poll_fn(|cx| {
            loop {
                if !ending && (slot.input_ended() || drain.as_mut().poll(cx).is_ready()) {
                    ending = true;
                    // hyper completes the answer that is in progress.
                    Pin::new(&mut hyper).graceful_shutdown();
                }
                if let Poll::Ready(outcome) = Pin::new(&mut hyper).poll(cx) {
                    if let Err(err) = outcome {
                        tracing::debug!(%err, peer = %peer.address, "connection failed");
                    }
                    return Poll::Ready(None);
                }
                if let Some(handoff) = slot.take() {
                    return Poll::Ready(Some(handoff));
                }
                if slot.input_ended() {
                    if slot.is_abandoned() {
                        return Poll::Ready(None);
                    }
                    if !ending {
                        continue;
                    }
                }
                if !slot.waits_for_request() {
                    waiting.stop();
                } else if waiting.poll_must_close(cx).is_ready() {
                    metrics.record_rejected(RejectReason::Waiting);
                    return Poll::Ready(None);
                }
                return Poll::Pending;
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
}
