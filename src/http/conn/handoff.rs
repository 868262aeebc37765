//! The slot in which a response that starts a stream waits until hyper has flushed all earlier responses.
//!
//! The service side ([`super::hijack`]) stores the response. The connection side ([`super::write_timeout`]) reports
//! flushes, and the connection task takes the response from the slot.
//!
//! Guarantees: the slot returns a response only after a flush that came after the response was stored. hyper then holds
//! no byte of an earlier response.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::stream_start::StreamStart;

/// The slot of one connection. Clones share the slot.
#[derive(Debug, Clone, Default)]
pub(super) struct HandoffSlot(Arc<Mutex<State>>);

#[derive(Debug, Default)]
enum State {
    /// No request has arrived.
    #[default]
    Idle,
    /// A request has arrived, and no response has started a stream.
    Serving,
    /// A stream is to start. hyper may still hold bytes of earlier responses.
    Pending(Bytes, StreamStart),
    /// A stream is to start, and hyper holds no bytes of earlier responses.
    Ready(Bytes, StreamStart),
}

impl HandoffSlot {
    /// Returns true if a request has arrived on this connection.
    pub(super) fn has_request(&self) -> bool {
        !matches!(*self.lock(), State::Idle)
    }

    /// Records that a request has arrived.
    pub(super) fn mark_request(&self) {
        let mut state = self.lock();
        if matches!(*state, State::Idle) {
            *state = State::Serving;
        }
    }

    /// Stores the response head and the stream that the response starts.
    pub(super) fn store(&self, head: Bytes, start: StreamStart) {
        *self.lock() = State::Pending(head, start);
    }

    /// Records that hyper's write buffer is empty and that the socket is flushed.
    pub(super) fn mark_flushed(&self) {
        let mut state = self.lock();
        *state = match std::mem::take(&mut *state) {
            State::Pending(head, start) => State::Ready(head, start),
            other @ (State::Idle | State::Serving | State::Ready(..)) => other,
        };
    }

    /// Returns the response head and the stream, once a flush was recorded after they were stored.
    pub(super) fn take(&self) -> Option<(Bytes, StreamStart)> {
        let mut state = self.lock();
        match std::mem::take(&mut *state) {
            State::Ready(head, start) => Some((head, start)),
            other @ (State::Idle | State::Serving | State::Pending(..)) => {
                *state = other;
                None
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
