//! What the peer sends: frames on WebSocket, dropped bytes on SSE, and the end of its input.
//!
//! Guarantees: a client that sends more than it may is read later, not disconnected ([`super::super::input_debt`]).

use std::{
    ops::ControlFlow,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

use super::{CloseWait, Peer, Phase, StreamProtocol};
use crate::{
    feed::ReadResult,
    http::stream::{
        buffered_conn::{IoEvent, with_read_buffer},
        config::Config,
        end::StreamEnd,
        outbound::Outbound,
    },
    wire::websocket::{self, MessagePart},
};

impl StreamProtocol {
    /// Writes queued bytes and reads, unless the client has sent too much or sends nothing more.
    pub(in crate::http::stream) fn poll_conn(&mut self, cx: &mut Context<'_>, config: &Config) -> Poll<IoEvent> {
        let input_ended = matches!(self.phase, Phase::Closing { wait_for: CloseWait::FlushedAfterInput, .. });
        self.conn.poll(cx, !input_ended && self.reads_paused_until(config).is_none())
    }

    /// Returns the time until which the client is not read, because it has sent more than
    /// [`Config::max_frames_per_second`].
    pub(super) fn reads_paused_until(&self, config: &Config) -> Option<Instant> {
        let pause = self.conn.input_debt.pause(config.max_frames_per_second);
        // The usual case needs no clock.
        if pause.is_zero() {
            return None;
        }
        Some(self.last_received + pause).filter(|until| *until > Instant::now())
    }

    /// Handles an event of the connection.
    pub(in crate::http::stream) fn on_io<O: Outbound>(
        &mut self,
        event: &IoEvent,
        out: &mut O,
        config: &Config,
    ) -> ControlFlow<StreamEnd> {
        match event {
            IoEvent::Flushed => ControlFlow::Continue(()),
            IoEvent::Received(len) => {
                let before = std::mem::replace(&mut self.last_received, Instant::now());
                let frames = with_read_buffer(*len, |bytes| self.on_input(bytes, out, config));
                let elapsed = self.last_received - before;
                self.conn.input_debt.add(frames, *len, elapsed, config.max_frames_per_second);
                ControlFlow::Continue(())
            }
            IoEvent::InputEnded => self.on_input_ended(config),
            IoEvent::Failed => ControlFlow::Break(self.on_disconnect()),
        }
    }

    /// Processes the bytes that the client sent after its request.
    pub(in crate::http::stream) fn process_read_ahead<O: Outbound>(&mut self, out: &mut O, config: &Config) {
        let mut read_ahead = std::mem::take(&mut self.read_ahead);
        let frames = self.on_input(&mut read_ahead, out, config);
        self.conn.input_debt.add(frames, read_ahead.len(), Duration::ZERO, config.max_frames_per_second);
    }

    /// Processes bytes from the peer. Returns the number of frames that were parsed.
    pub(super) fn on_input<O: Outbound>(&mut self, mut bytes: &mut [u8], out: &mut O, config: &Config) -> usize {
        let Peer::WebSocket(reader) = &mut self.peer else { return 0 };
        if matches!(self.phase, Phase::Closing { wait_for, .. } if !matches!(wait_for, CloseWait::PeerClose)) {
            return 0;
        }
        let mut frames = 0;
        let blocked = self.conn.blocked_since().is_some();
        let mut pongs = Vec::new();
        let end = loop {
            if bytes.is_empty() {
                break None;
            }
            frames += 1;
            match reader.read(bytes) {
                Ok((_, Some(MessagePart::Close(_)))) => break Some(Ok(())),
                Err(close) => break Some(Err(close)),
                Ok((used, part)) => {
                    match part {
                        Some(MessagePart::Ping(payload)) => {
                            if blocked {
                                pongs.clear();
                            }
                            websocket::pong(&mut pongs, &payload);
                        }
                        Some(part) => out.on_message_part(&part),
                        None => {}
                    }
                    bytes = &mut bytes[used..];
                }
            }
        };
        if matches!(self.phase, Phase::Closing { .. }) {
            // Nothing follows the close frame of the bridge.
        } else if blocked {
            self.pending_pong = if pongs.is_empty() { self.pending_pong.take() } else { Some(pongs.into()) };
        } else {
            if !pongs.is_empty() {
                self.conn.push(pongs.into());
            }
            // Frames that answer earlier messages precede the close frame that answers the last one.
            if end.is_some()
                && let ReadResult::Batch(frames) = out.read(config.batch_bytes)
            {
                self.conn.push_all(frames);
            }
        }
        match end {
            None => {}
            Some(Ok(())) => self.on_client_close(config),
            Some(Err(close)) => self.close_on_protocol_error(close, out, config),
        }
        frames
    }
}
