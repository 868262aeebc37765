//! The byte pipe under a connection, and the guard that hyper sees.
//!
//! Always: a write that moves nothing for the configured time is an error, so that no response, however ordinary, can
//! be held open by a client that does not read; and a flush that got through is reported to the slot.
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    net::TcpStream,
    time::Sleep,
};
use tokio_rustls::server::TlsStream;

use super::takeback::HandoffSlot;

/// What a client is connected through.
#[derive(Debug)]
pub enum Conn {
    /// TCP without TLS.
    Plain(TcpStream),
    /// TCP with TLS. Boxed: it is large, and the others should not be.
    Tls(Box<TlsStream<TcpStream>>),
    /// A pipe inside the process: tests, with simulated time.
    Duplex(DuplexStream),
}

impl Conn {
    /// Makes the coming drop an abort: the kernel forgets what it has not sent and the peer sees a reset.
    pub fn abort(&self) {
        match self {
            // Fails only on a socket that is already gone.
            Self::Plain(stream) => drop(stream.set_zero_linger()),
            Self::Tls(stream) => drop(stream.get_ref().0.set_zero_linger()),
            Self::Duplex(_) => {}
        }
    }

    /// One write past the runtime's idea of readiness, which follows the kernel's, which speaks up only for much room.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; TLS and a pipe never take anything this way.
    pub fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => SockRef::from(stream).send(bytes),
            Self::Tls(_) | Self::Duplex(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl AsyncRead for Conn {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Duplex(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Conn {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Duplex(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Duplex(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Duplex(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Duplex(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Duplex(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A connection while hyper has it.
#[derive(Debug)]
pub(super) struct WriteTimeoutIo {
    conn: Conn,
    slot: HandoffSlot,
    write_timeout: Duration,
    /// Runs while a write is blocked; moved on by each byte that goes out.
    stall_timer: Option<Pin<Box<Sleep>>>,
}

impl WriteTimeoutIo {
    pub(super) fn new(conn: Conn, write_timeout: Duration) -> Self {
        Self { conn, slot: HandoffSlot::default(), write_timeout, stall_timer: None }
    }

    /// Where a stream waits for the flush that this guard sees.
    pub(super) fn slot(&self) -> &HandoffSlot {
        &self.slot
    }

    pub(super) fn into_inner(self) -> Conn {
        self.conn
    }

    /// Judges the outcome of one write: a blocked one becomes an error when nothing has moved for too long.
    fn apply_write_timeout<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stall_timer = None;
            return outcome;
        }
        let write_timeout = self.write_timeout;
        let timer = self.stall_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(write_timeout)));
        ready!(timer.as_mut().poll(cx));
        self.conn.abort();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for WriteTimeoutIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.conn).poll_read(cx, buf)
    }
}

impl AsyncWrite for WriteTimeoutIo {
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

    /// hyper 1.12 comes here only when its write buffer is empty (`proto/h1/io.rs`, `Buffered::poll_flush`): once a
    /// response is parked, this is the sign that all earlier ones have been written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS is done with a write before the kernel is.
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
