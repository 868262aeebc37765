//! A connection and what has been begun on it.
//!
//! Always: bytes leave in the order they came; an idle link holds no buffer at all.
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

use crate::http::conn::Conn;

/// One read takes at most this many bytes: a client's frames are small, and the scratch is shared by a whole thread.
const READ_BUFFER_BYTES: usize = 16 * 1024;

/// One write takes at most this many slices: 1 KiB of stack, and far past where a system call's cost is spread thin.
const MAX_SLICES: usize = 64;

thread_local! {
    /// Where input lands. It is used up before the task that read it waits again, so that a thread needs only one.
    static READ_BUFFER: RefCell<[u8; READ_BUFFER_BYTES]> = const { RefCell::new([0; READ_BUFFER_BYTES]) };
}

/// What came of waiting on a link.
#[derive(Debug)]
pub(super) enum IoEvent {
    /// All that was queued is written.
    Flushed,
    /// This many bytes are in the thread's scratch: see [`with_read_buffer`].
    Received(usize),
    /// The connection has ended.
    Closed,
}

/// Hands over the first `len` bytes of this thread's scratch: what [`BufferedConn::poll`] has just announced.
pub(super) fn with_read_buffer<T>(len: usize, f: impl FnOnce(&mut [u8]) -> T) -> T {
    READ_BUFFER.with_borrow_mut(|buffer| f(&mut buffer[..len]))
}

/// A connection, and the bytes that wait for it.
#[derive(Debug)]
pub(super) struct BufferedConn {
    conn: Conn,
    /// What is begun or waits; the first may be partly written.
    queue: VecDeque<Bytes>,
    /// The first of the queue is partly written: the peer is inside of it.
    mid_frame: bool,
    /// What was written may still wait inside the connection: TLS keeps what the kernel does not take.
    unflushed: bool,
    /// Since when a write has moved nothing.
    blocked_since: Option<Instant>,
}

impl BufferedConn {
    pub(super) fn new(conn: Conn) -> Self {
        Self { conn, queue: VecDeque::new(), mid_frame: false, unflushed: false, blocked_since: None }
    }

    pub(super) fn push(&mut self, bytes: Bytes) {
        self.queue.push_back(bytes);
    }

    pub(super) fn push_all(&mut self, frames: Vec<Bytes>) {
        if self.queue.is_empty() {
            self.queue = frames.into();
        } else {
            self.queue.extend(frames);
        }
    }

    /// Nothing waits to be written.
    pub(super) fn is_drained(&self) -> bool {
        self.queue.is_empty() && !self.unflushed
    }

    /// Since when a write has moved nothing; none while writes go through.
    pub(super) fn blocked_since(&self) -> Option<Instant> {
        self.blocked_since
    }

    /// Waits for the next thing that moves. While a write is blocked, input is still taken.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<IoEvent> {
        if !self.is_drained() {
            match self.poll_write(cx) {
                Poll::Ready(Ok(())) => return Poll::Ready(IoEvent::Flushed),
                Poll::Ready(Err(_)) => return Poll::Ready(IoEvent::Closed),
                Poll::Pending => {}
            }
        }
        READ_BUFFER.with_borrow_mut(|buffer| {
            let mut buf = ReadBuf::new(buffer);
            let outcome = ready!(Pin::new(&mut self.conn).poll_read(cx, &mut buf));
            Poll::Ready(match (outcome, buf.filled().len()) {
                (Ok(()), len @ 1..) => IoEvent::Received(len),
                (Ok(()), 0) | (Err(_), _) => IoEvent::Closed,
            })
        })
    }

    /// Writes these bytes, with nothing before them; what does not go out at once is queued.
    pub(super) fn poll_write_direct(&mut self, cx: &mut Context<'_>, bytes: &Bytes) -> Poll<io::Result<()>> {
        let written = match Pin::new(&mut self.conn).poll_write(cx, bytes) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(written)) => written,
            Poll::Ready(Err(err)) => return Poll::Ready(Err(err)),
            Poll::Pending => 0,
        };
        self.unflushed = written > 0;
        if written < bytes.len() {
            self.push(bytes.slice(written..));
            self.mid_frame = written > 0;
        }
        self.poll_write(cx)
    }

    /// Writes what is queued, as much at a time as the kernel takes.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut moved = false;
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
                    (moved, self.unflushed) = (true, true);
                }
                Poll::Ready(Err(err)) => return Poll::Ready(Err(err)),
                Poll::Pending => return self.on_pending(moved),
            }
        }
        if self.unflushed {
            match Pin::new(&mut self.conn).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(err)) => return Poll::Ready(Err(err)),
                Poll::Pending => return self.on_pending(moved),
            }
        }
        self.blocked_since = None;
        Poll::Ready(Ok(()))
    }

    /// The kernel takes no more; since when, where nothing has moved.
    fn on_pending(&mut self, moved: bool) -> Poll<io::Result<()>> {
        if moved || self.blocked_since.is_none() {
            self.blocked_since = Some(Instant::now());
        }
        Poll::Pending
    }

    fn on_written(&mut self, mut bytes: usize) {
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
        // An idle link keeps no capacity.
        self.queue = VecDeque::new();
    }

    /// The last try on a blocked link: the rest of what was begun and `farewell`, at once, or nothing. The kernel may
    /// have some room without having said so: it says so only for a lot.
    pub(super) fn try_write_final(&mut self, closing_bytes: &[u8]) {
        let started = if self.mid_frame { self.queue.front().map_or(&[][..], |first| first) } else { &[] };
        let bytes = [started, closing_bytes].concat();
        if self.conn.write_now(&bytes).is_ok_and(|written| written == bytes.len()) {
            self.queue.clear();
            self.unflushed = false;
        }
    }

    /// Ends the connection: in order when all is written, else by a reset, so that the kernel forgets the rest too.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_drained() {
            // Only a connection that is already gone refuses; what does not go at once (TLS's own last word) is not
            // worth a wait.
            let _ = Pin::new(&mut self.conn).poll_shutdown(cx);
            return Poll::Ready(());
        }
        self.conn.abort();
        Poll::Ready(())
    }
}
