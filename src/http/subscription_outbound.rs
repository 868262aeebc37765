//! A feed subscription as the output of a stream.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;

use super::stream::{Group, Outbound, control};
use crate::{
    feed::{ReadResult, SharedBatch, Subscription},
    wire::CloseReason,
};

impl Outbound for Subscription {
    fn read(&mut self, max_bytes: usize) -> ReadResult {
        Subscription::read(self, max_bytes)
    }

    fn prepare_read(&mut self) -> bool {
        Subscription::prepare_read(self)
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Subscription::poll_readable(self, cx)
    }

    fn group(&mut self) -> Option<Group> {
        Subscription::join_group(self).map(Group::Feed)
    }

    fn accept_batch(&mut self, batch: &SharedBatch) -> bool {
        Subscription::accept_batch(self, batch)
    }

    fn heartbeat(&mut self) -> Option<Bytes> {
        Subscription::heartbeat(self)
    }

    fn control_event(&mut self, name: &'static str, json: &dyn Fn(u64) -> String) -> Option<Bytes> {
        let mut out = Vec::new();
        self.framing()?.append_frame(&mut out, name, None, &json(self.now_ms()));
        Some(out.into())
    }

    fn closing_event(&mut self, close: CloseReason, retry: Duration) -> Option<Bytes> {
        Some(control::closing_event(self.framing()?, close.text(), retry))
    }
}
