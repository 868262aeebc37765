//! The end of a stream: closing events, close frames, the last chunk, and what a closing stream waits for.
//!
//! Guarantees: a close frame (RFC 6455 section 5.5.1) or last chunk (RFC 9112 section 7.1) is sent once, and nothing follows
//! it.

use std::ops::ControlFlow;

use bytes::Bytes;
use tokio::time::Instant;

use super::{CloseWait, Phase, StreamProtocol};
use crate::{
    http::stream::{config::Config, end::StreamEnd, outbound::Outbound},
    wire::CloseReason,
};

impl StreamProtocol {
    /// Ends the stream after the end of the client's input. What is queued is still written, because the client may have
    /// closed only its side of the connection.
    pub(super) fn on_input_ended(&mut self, config: &Config) -> ControlFlow<StreamEnd> {
        if self.conn.is_drained() {
            return ControlFlow::Break(self.on_disconnect());
        }
        match &mut self.phase {
            Phase::Closing { wait_for, .. } => *wait_for = CloseWait::FlushedAfterInput,
            Phase::Open | Phase::Draining { .. } => {
                let (end, deadline) = (StreamEnd::Disconnected, Instant::now() + config.write_timeout);
                self.phase = Phase::Closing { end, wait_for: CloseWait::FlushedAfterInput, deadline };
            }
        }
        ControlFlow::Continue(())
    }

    /// Queues the last frames. On WebSocket the stream then waits for the peer's close frame.
    pub(in crate::http::stream) fn close<O: Outbound>(&mut self, close: CloseReason, out: &mut O, config: &Config) {
        self.close_with_event(close, self.close_wait(), out.closing_event(close, config.retry_delay()), config);
    }

    /// Returns what this transport waits for after the last frame.
    pub(in crate::http::stream) fn close_wait(&self) -> CloseWait {
        if self.peer.is_websocket() { CloseWait::PeerClose } else { CloseWait::Flushed }
    }

    /// Closes the stream because the peer's bytes cannot be parsed further.
    pub(super) fn close_on_protocol_error<O: Outbound>(&mut self, close: CloseReason, out: &mut O, config: &Config) {
        match &mut self.phase {
            Phase::Closing { wait_for, .. } => *wait_for = CloseWait::PeerEof,
            Phase::Open | Phase::Draining { .. } => {
                self.close_with_event(
                    close,
                    CloseWait::PeerEof,
                    out.closing_event(close, config.retry_delay()),
                    config,
                );
            }
        }
    }

    /// Queues `closing_event` and starts to close.
    pub(in crate::http::stream) fn close_with_event(
        &mut self,
        close: CloseReason,
        wait_for: CloseWait,
        closing_event: Option<Bytes>,
        config: &Config,
    ) {
        if let Some(closing_event) = closing_event {
            self.conn.push(closing_event);
        }
        self.start_closing(close, StreamEnd::ByBridge(close), wait_for, config);
    }

    /// Handles the peer's close frame: the answer to the bridge's, or the first.
    pub(super) fn on_client_close(&mut self, config: &Config) {
        match &mut self.phase {
            Phase::Closing { wait_for, .. } => *wait_for = CloseWait::Flushed,
            Phase::Open | Phase::Draining { .. } => {
                self.start_closing(CloseReason::Normal, StreamEnd::ClientClosed, CloseWait::Flushed, config);
            }
        }
    }

    /// Queues the close frame or the last chunk, and sets the deadline.
    pub(super) fn start_closing(&mut self, close: CloseReason, end: StreamEnd, wait_for: CloseWait, config: &Config) {
        let frame = self.peer.encode_end(close);
        if !frame.is_empty() {
            self.conn.push(frame);
        }
        self.phase = Phase::Closing { end, wait_for, deadline: Instant::now() + config.write_timeout };
    }

    /// Returns the end of a stream whose connection was closed. A stream that was already closing keeps its end.
    pub(super) fn on_disconnect(&self) -> StreamEnd {
        match self.phase {
            Phase::Closing { end, .. } => end,
            Phase::Open | Phase::Draining { .. } => StreamEnd::Disconnected,
        }
    }

    /// Ends the stream after the write timeout. The last frames are written only if they fit at once.
    pub(super) fn on_write_timeout<O: Outbound>(&mut self, out: &mut O, config: &Config) -> StreamEnd {
        if let Phase::Closing { end, .. } = self.phase {
            return end;
        }
        let closing_event = out.closing_event(CloseReason::SlowConsumer, config.retry_delay()).unwrap_or_default();
        let close = self.peer.encode_end(CloseReason::SlowConsumer);
        if !(closing_event.is_empty() && close.is_empty()) {
            self.conn.try_write_final(&[closing_event, close].concat());
        }
        StreamEnd::ByBridge(CloseReason::SlowConsumer)
    }
}
