//! The interface between a stream and what it sends: a subscription, a decorated subscription, an echo.

use std::{
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;

use super::log::Group;
use crate::{
    feed::{ReadResult, SharedBatch},
    wire::{CloseReason, websocket::MessagePart},
};

/// What a stream sends, and how it ends.
pub trait Outbound: Send {
    /// Returns the next complete frames, about `max_bytes` of them. It never waits.
    fn read(&mut self, max_bytes: usize) -> ReadResult;

    /// Returns whether the next [`Outbound::read`] has frames that it must encode first, which can take milliseconds. The
    /// stream then calls it on a blocking thread.
    fn prepare_read(&mut self) -> bool {
        false
    }

    /// Is ready when [`Outbound::read`] can have more. Until then it wakes the task of `cx` when that can be the case.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Is ready when the stream must end although its client has not read everything.
    fn poll_end(&mut self, _cx: &mut Context<'_>) -> Poll<CloseReason> {
        Poll::Pending
    }

    /// Waits for [`Outbound::poll_readable`]. It is cancel safe.
    fn readable(&mut self) -> impl Future<Output = ()> + Send {
        poll_fn(|cx| self.poll_readable(cx))
    }

    /// Returns the fan-out group of this stream, if it has one.
    ///
    /// From this call on a shard reads the log for all members of the group, so that [`Outbound::poll_readable`] does
    /// not have to report new entries.
    fn group(&mut self) -> Option<Group> {
        None
    }

    /// Accepts a shared batch in place of a read, if the batch starts at the position of this stream. Returns true if
    /// the position has moved to the end of the batch.
    fn accept_batch(&mut self, _batch: &SharedBatch) -> bool {
        false
    }

    /// Receives a part of a client's WebSocket message. The default implementation drops it.
    fn on_message_part(&mut self, _part: &MessagePart<'_>) {}

    /// Returns a frame to send every [`super::Config::ping_interval`]: in addition to WebSocket's ping, and in place of
    /// SSE's comment line.
    fn heartbeat(&mut self) -> Option<Bytes> {
        None
    }

    /// Returns the frame of an event about the stream itself. `json` returns the JSON of the event at a time of the
    /// stream's clock, in milliseconds since the Unix epoch. Returns `None` if the event format of the stream has no such
    /// events.
    fn control_event(&mut self, _name: &'static str, _json: &dyn Fn(u64) -> String) -> Option<Bytes> {
        None
    }

    /// Returns the last frame of a stream that the bridge ends, which precedes WebSocket's close frame. It contains the
    /// reason, and `retry`, the delay before the client reconnects.
    fn closing_event(&mut self, _close: CloseReason, _retry: Duration) -> Option<Bytes> {
        None
    }
}
