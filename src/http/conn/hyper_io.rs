//! The I/O object that hyper reads and writes: a socket whose writes time out, and whose end of input hyper does not
//! see while a request is in progress.
//!
//! Guarantees:
//! - A write, flush or shutdown that makes no progress for the write timeout fails with `TimedOut`, and the connection
//!   is reset. A client that does not read therefore cannot keep a response open.
//! - A client that half-closes the connection after its request gets the complete answer.
//! - Each completed flush is recorded in the [`HandoffSlot`].

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

use super::{handoff::HandoffSlot, transport::Conn};

/// A socket while hyper owns it.
#[derive(Debug)]
pub(super) struct HyperIo {
    conn: Conn,
    slot: HandoffSlot,
    write_timeout: Duration,
    /// Runs while a write is blocked. Each write that makes progress removes it.
    stall_timer: Option<Pin<Box<Sleep>>>,
}

impl HyperIo {
    /// Returns the I/O object with a slot of its own.
    pub(super) fn new(conn: Conn, write_timeout: Duration) -> Self {
        Self { conn, slot: HandoffSlot::default(), write_timeout, stall_timer: None }
    }

    /// Returns the slot in which flushes are recorded.
    pub(super) fn slot(&self) -> &HandoffSlot {
        &self.slot
    }

    /// Returns the socket.
    pub(super) fn into_inner(self) -> Conn {
        self.conn
    }

    /// Passes the outcome of a write on. A pending outcome becomes an error after the write timeout without progress.
    fn apply_write_timeout<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            if self.stall_timer.take().is_some() {
                self.slot.set_write_blocked(false);
            }
            return outcome;
        }
        if self.stall_timer.is_none() {
            self.slot.set_write_blocked(true);
        }
        let write_timeout = self.write_timeout;
        let timer = self.stall_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(write_timeout)));
        ready!(timer.as_mut().poll(cx));
        self.conn.abort();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for HyperIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.conn).poll_read(cx, buf))?;
        let at_end = buf.filled().len() == before && buf.remaining() > 0;
        if at_end && self.slot.hides_input_end() {
            // hyper would drop the request. The connection task closes the connection after the answer.
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HyperIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.conn).poll_write(cx, buf);
        self.apply_write_timeout(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.conn).poll_write_vectored(cx, bufs);
        self.apply_write_timeout(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.conn.is_write_vectored()
    }

    /// hyper calls this only when its write buffer is empty (`proto/h1/io.rs`, `Buffered::poll_flush`). After a response
    /// was stored in the slot, a completed flush therefore means that all earlier responses are written.
    ///
    /// hyper does not document this order. `Cargo.toml` names its exact version, and
    /// `hijack_waits_until_hyper_has_flushed_earlier_responses` fails if a later version has another order.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS accepts a write before the kernel does, so that the flush can block as well.
        let flushed = Pin::new(&mut self.conn).poll_flush(cx);
        ready!(self.apply_write_timeout(cx, flushed))?;
        self.slot.mark_flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.conn).poll_shutdown(cx);
        self.apply_write_timeout(cx, ended)
    }
}
