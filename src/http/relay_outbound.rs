//! A client of a relay as the output of a stream.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;

use super::stream::{Group, Outbound, control};
use crate::{
    feed::{Framing, ReadResult, SharedBatch},
    relay,
    wire::CloseReason,
};

/// Returns the framing of the events that the transport adds: they are named, because the data of other events can be any
/// text.
fn framing(out: &relay::Outbound) -> Framing {
    Framing { format: out.format(), edgeplane_names: true }
}

impl Outbound for relay::Outbound {
    fn read(&mut self, max_bytes: usize) -> ReadResult {
        relay::Outbound::read(self, max_bytes)
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        relay::Outbound::poll_readable(self, cx)
    }

    fn group(&mut self) -> Option<Group> {
        self.join_group().map(Group::Relay)
    }

    fn accept_batch(&mut self, batch: &SharedBatch) -> bool {
        relay::Outbound::accept_batch(self, batch)
    }

    fn control_event(&mut self, name: &'static str, json: &dyn Fn(u64) -> String) -> Option<Bytes> {
        let now_ms = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default();
        let mut out = Vec::new();
        framing(self).append_frame(&mut out, name, None, &json(now_ms));
        Some(out.into())
    }

    fn closing_event(&mut self, close: CloseReason, retry: Duration) -> Option<Bytes> {
        Some(control::closing_event(framing(self), close.text(), retry))
    }
}
