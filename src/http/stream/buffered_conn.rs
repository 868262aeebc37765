//! A socket with one outgoing queue.
//!
//! Guarantees: bytes are sent in the order in which they were queued. A connection with an empty queue holds no buffer.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    time::Instant,
};

use super::input_debt::InputDebt;
use crate::http::conn::Conn;

/// Maximum number of bytes of one read. A client's frames are small, and all streams of a thread share the buffer.
const READ_BUFFER_BYTES: usize = 16 * 1024;

/// Maximum number of buffers of one vectored write: 1 KiB of stack. More buffers would hardly reduce the cost per
/// buffer.
const MAX_SLICES: usize = 64;

thread_local! {
    /// Received bytes. A task processes them before it waits again, so that one buffer for each thread is enough.
    static READ_BUFFER: RefCell<[u8; READ_BUFFER_BYTES]> = const { RefCell::new([0; READ_BUFFER_BYTES]) };
}

/// What happened on a connection.
#[derive(Debug)]
pub(super) enum IoEvent {
    /// All queued bytes are written.
    Flushed,
    /// This many bytes are in the read buffer of the thread: see [`with_read_buffer`].
    Received(usize),
    /// The client sends nothing more. It may still read.
    InputEnded,
    /// The connection has failed.
    Failed,
}

/// Calls `f` with the first `len` bytes of the read buffer of the thread, which [`BufferedConn::poll`] has just
/// reported.
pub(super) fn with_read_buffer<T>(len: usize, f: impl FnOnce(&mut [u8]) -> T) -> T {
    READ_BUFFER.with_borrow_mut(|buffer| f(&mut buffer[..len]))
}

/// A socket and the bytes that wait to be written.
#[derive(Debug)]
pub(super) struct BufferedConn {
    conn: Conn,
    /// The bytes that wait. The first buffer can be partly written.
    queue: VecDeque<Bytes>,
    /// The first buffer of the queue is partly written.
    mid_frame: bool,
    /// Written bytes can still be inside the socket object: TLS buffers bytes that the kernel does not accept.
    unflushed: bool,
    /// The number of written bytes that [`BufferedConn::take_written`] has not returned. It saturates at 4 GiB.
    written: u32,
    /// What the client has sent. It is here because the other small fields leave room for it.
    pub(super) input_debt: InputDebt,
    /// The time since which writes have made no progress.
    blocked_since: Option<Instant>,
}

impl BufferedConn {
    pub(super) fn new(conn: Conn) -> Self {
        Self {
            conn,
            queue: VecDeque::new(),
            mid_frame: false,
            unflushed: false,
            written: 0,
            input_debt: InputDebt::default(),
            blocked_since: None,
        }
    }

    /// Queues complete frames.
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.queue.push_back(bytes);
    }

    /// Queues complete frames.
    pub(super) fn push_all(&mut self, frames: Vec<Bytes>) {
        if self.queue.is_empty() {
            self.queue = frames.into();
        } else {
            self.queue.extend(frames);
        }
    }

    /// Returns true if no byte waits to be written.
    pub(super) fn is_drained(&self) -> bool {
        self.queue.is_empty() && !self.unflushed
    }

    /// Returns the time since which writes have made no progress, or `None` while writes are not blocked.
    pub(super) fn blocked_since(&self) -> Option<Instant> {
        self.blocked_since
    }

    /// Returns the number of bytes written since the last call.
    pub(super) fn take_written(&mut self) -> u32 {
        std::mem::take(&mut self.written)
    }

    /// Writes queued bytes and, if `may_read`, reads. While a write is blocked, input is still read.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, may_read: bool) -> Poll<IoEvent> {
        if !self.is_drained() {
            match self.poll_write(cx) {
                Poll::Ready(Ok(())) => return Poll::Ready(IoEvent::Flushed),
                Poll::Ready(Err(_)) => return Poll::Ready(IoEvent::Failed),
                Poll::Pending => {}
            }
        }
        if !may_read {
            return Poll::Pending;
        }
        READ_BUFFER.with_borrow_mut(|buffer| {
            let mut buf = ReadBuf::new(buffer);
            let outcome = ready!(Pin::new(&mut self.conn).poll_read(cx, &mut buf));
            Poll::Ready(match (outcome, buf.filled().len()) {
                (Ok(()), len @ 1..) => IoEvent::Received(len),
                (Ok(()), 0) => IoEvent::InputEnded,
                (Err(_), _) => IoEvent::Failed,
            })
        })
    }

    /// Writes `bytes` although nothing is queued. Bytes that the kernel does not accept at once are queued.
    pub(super) fn poll_write_direct(&mut self, cx: &mut Context<'_>, bytes: &Bytes) -> Poll<io::Result<()>> {
        let written = match Pin::new(&mut self.conn).poll_write(cx, bytes) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(written)) => written,
            Poll::Ready(Err(err)) => return Poll::Ready(Err(err)),
            Poll::Pending => 0,
        };
        self.unflushed = written > 0;
        self.count_written(written);
        if written < bytes.len() {
            self.push(bytes.slice(written..));
            self.mid_frame = written > 0;
        }
        self.poll_write(cx)
    }

    /// Writes queued bytes until the queue is empty or the kernel accepts no more.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut progress = false;
        while !self.queue.is_empty() {
            let outcome = if let (1, Some(only)) = (self.queue.len(), self.queue.front()) {
                Pin::new(&mut self.conn).poll_write(cx, only)
            } else {
                let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                let count = self.queue.len().min(MAX_SLICES);
                for (slice, bytes) in slices.iter_mut().zip(&self.queue) {
                    *slice = IoSlice::new(bytes);
                }
                Pin::new(&mut self.conn).poll_write_vectored(cx, &slices[..count])
            };
            match outcome {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => {
                    self.on_written(written);
                    (progress, self.unflushed) = (true, true);
                }
                Poll::Ready(Err(err)) => return Poll::Ready(Err(err)),
                Poll::Pending => return self.on_pending(progress),
            }
        }
        if self.unflushed {
            match Pin::new(&mut self.conn).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(err)) => return Poll::Ready(Err(err)),
                Poll::Pending => return self.on_pending(progress),
            }
        }
        self.blocked_since = None;
        Poll::Ready(Ok(()))
    }

    /// Records that the kernel accepts no more bytes. Progress restarts the time without progress.
    fn on_pending(&mut self, progress: bool) -> Poll<io::Result<()>> {
        if progress || self.blocked_since.is_none() {
            self.blocked_since = Some(Instant::now());
        }
        Poll::Pending
    }

    fn count_written(&mut self, bytes: usize) {
        self.written = self.written.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Removes written bytes from the queue.
    fn on_written(&mut self, mut bytes: usize) {
        self.count_written(bytes);
        while let Some(first) = self.queue.front_mut() {
            if first.len() > bytes {
                first.advance(bytes);
                self.mid_frame |= bytes > 0;
                return;
            }
            bytes -= first.len();
            self.queue.pop_front();
            self.mid_frame = false;
        }
        // An empty queue releases its capacity.
        self.queue = VecDeque::new();
    }

    /// Writes the rest of the started frame and `closing_bytes` on a blocked connection, in one system call.
    ///
    /// The kernel reports a socket as writable only when a large part of its buffer is free, so that this write can
    /// succeed. If it does not, the queue stays as it is, and [`BufferedConn::poll_close`] resets the connection.
    pub(super) fn try_write_final(&mut self, closing_bytes: &[u8]) {
        let started = if self.mid_frame { self.queue.front().map_or(&[][..], |first| first) } else { &[] };
        let bytes = [started, closing_bytes].concat();
        if self.conn.write_now(&bytes).is_ok_and(|written| written == bytes.len()) {
            self.count_written(bytes.len());
            self.queue.clear();
            self.unflushed = false;
        }
    }

    /// Ends the output, after all queued bytes are written. The peer sees the end of its input. Input is still read.
    pub(super) fn end_output(&mut self, cx: &mut Context<'_>) {
        // As in `poll_close`. A further call has no effect.
        let _ = Pin::new(&mut self.conn).poll_shutdown(cx);
    }

    /// Closes the connection. If bytes are still queued, the connection is reset, so that the kernel discards its
    /// unsent bytes.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_drained() {
            // The shutdown fails only on a connection that is already closed. If TLS's `close_notify` cannot be written
            // at once, it is omitted.
            let _ = Pin::new(&mut self.conn).poll_shutdown(cx);
            return Poll::Ready(());
        }
        self.conn.abort();
        Poll::Ready(())
    }
}
