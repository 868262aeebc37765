//! What the service side ([`super::hijack`]), the socket side ([`super::hyper_io`]) and the task of one connection
//! know together: whether a request is in progress, and the response that starts a stream.
//!
//! The service side stores the response. The socket side reports flushes, and the connection task takes the response
//! from the slot.
//!
//! Guarantees: the slot returns a response only after a flush that came after the response was stored. hyper then holds
//! no byte of an earlier response.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::stream_start::StreamStart;

/// The slot of one connection. Clones share the slot.
#[derive(Debug, Clone, Default)]
pub(super) struct HandoffSlot(Arc<Mutex<Slot>>);

#[derive(Debug, Default)]
struct Slot {
    state: State,
    /// A write waits until the client reads.
    write_blocked: bool,
    /// The client sends nothing more.
    input_ended: bool,
}

#[derive(Debug, Default)]
enum State {
    /// No request has arrived.
    #[default]
    Idle,
    /// A request is in progress.
    Serving {
        /// The request asks for an upgrade.
        upgrade: bool,
    },
    /// hyper has the response to the last request.
    Answered,
    /// A stream is to start. hyper may still hold bytes of earlier responses.
    Pending(Bytes, StreamStart),
    /// A stream is to start, and hyper holds no bytes of earlier responses.
    Ready(Bytes, StreamStart),
}

impl HandoffSlot {
    /// Returns true if a request has arrived on this connection.
    pub(super) fn has_request(&self) -> bool {
        !matches!(self.lock().state, State::Idle)
    }

    /// Returns true if the connection waits for a request: no request is in progress, and no answer is being written.
    pub(super) fn waits_for_request(&self) -> bool {
        let slot = self.lock();
        matches!(slot.state, State::Idle | State::Answered) && !slot.write_blocked
    }

    /// Records that a request has arrived.
    pub(super) fn mark_request(&self, upgrade: bool) {
        self.lock().state = State::Serving { upgrade };
    }

    /// Records that hyper has the response to the request.
    pub(super) fn mark_answered(&self) {
        self.lock().state = State::Answered;
    }

    /// Stores the response head and the stream that the response starts.
    pub(super) fn store(&self, head: Bytes, start: StreamStart) {
        self.lock().state = State::Pending(head, start);
    }

    /// Records whether a write waits until the client reads.
    pub(super) fn set_write_blocked(&self, write_blocked: bool) {
        self.lock().write_blocked = write_blocked;
    }

    /// Records that hyper's write buffer is empty and that the socket is flushed.
    pub(super) fn mark_flushed(&self) {
        let state = &mut self.lock().state;
        *state = match std::mem::take(state) {
            State::Pending(head, start) => State::Ready(head, start),
            other @ (State::Idle | State::Serving { .. } | State::Answered | State::Ready(..)) => other,
        };
    }

    /// Records the end of the client's input. Returns true if hyper must not see it: a client that half-closes the
    /// connection after its request still reads the answer.
    pub(super) fn hides_input_end(&self) -> bool {
        let mut slot = self.lock();
        // Without a request there is nothing to answer.
        slot.input_ended = !matches!(slot.state, State::Idle);
        slot.input_ended
    }

    /// Returns true if an end of the client's input was hidden from hyper.
    pub(super) fn input_ended(&self) -> bool {
        self.lock().input_ended
    }

    /// Returns true if a client that has asked for a WebSocket has ended its input before the answer. It has left: a
    /// WebSocket needs the client's bytes.
    pub(super) fn is_abandoned(&self) -> bool {
        let slot = self.lock();
        slot.input_ended && matches!(slot.state, State::Serving { upgrade: true })
    }

    /// Returns the response head and the stream, once a flush was recorded after they were stored.
    pub(super) fn take(&self) -> Option<(Bytes, StreamStart)> {
        let state = &mut self.lock().state;
        match std::mem::take(state) {
            State::Ready(head, start) => Some((head, start)),
            other @ (State::Idle | State::Serving { .. } | State::Answered | State::Pending(..)) => {
                *state = other;
                None
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
