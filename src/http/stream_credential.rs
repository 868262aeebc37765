//! The credential of a stream: the stream announces its expiry and ends with it (`docs/guarantees.md#guarantees`, G13).
//!
//! Guarantees: the first batch of a stream is never `auth.expiring`; a stream that has ended for its credential sends no
//! further data.
//!
//! Must not import: an endpoint.

use std::{
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;

use super::{
    auth::lease::{CredentialStatus, CredentialWatch},
    filter_limit::FilterSlot,
    rate_limit::StreamSlot,
    stream::{Group, Outbound},
};
use crate::{
    event::render,
    feed::{ReadResult, SharedBatch},
    wire::{CloseReason, websocket::MessagePart},
};

/// The output `out` of a stream, until the credential of its client ends.
#[derive(Debug)]
pub(super) struct WithCredential<O> {
    out: O,
    /// Boxed, because most streams of a bridge without credentials have none, and the memory of a stream must be small.
    credential: Option<Box<CredentialState>>,
}

/// What a stream occupies of its caller's limits. Dropping it frees them.
#[derive(Debug)]
pub(super) struct StreamSlots {
    pub(super) stream: Option<StreamSlot>,
    pub(super) filter: Option<FilterSlot>,
}

/// The credential and the slots of a client.
struct CredentialState {
    watch: Option<CredentialWatch>,
    /// Whether the first batch has been read. `auth.expiring` is sent after it.
    first_read_done: bool,
    /// The end of the credential, if it must still be announced.
    expiring: Option<Timestamp>,
    ended: Option<CloseReason>,
    /// Dropped at the end of the stream.
    _slots: StreamSlots,
}

impl<O: Outbound> WithCredential<O> {
    /// Wraps `out`. `watch` reports changes of the credential; `slots` are freed at the end of the stream.
    pub(super) fn new(out: O, watch: Option<CredentialWatch>, slots: StreamSlots) -> WithCredential<O> {
        let needed = watch.is_some() || slots.stream.is_some() || slots.filter.is_some();
        let credential = needed.then(|| {
            CredentialState { watch, first_read_done: false, expiring: None, ended: None, _slots: slots }.into()
        });
        WithCredential { out, credential }
    }
}

impl CredentialState {
    /// Applies a change of the credential.
    fn apply(&mut self, status: CredentialStatus) {
        match status {
            CredentialStatus::Valid => self.expiring = None,
            CredentialStatus::Expiring(end) => self.expiring = Some(end),
            CredentialStatus::Ended(close) => self.ended = Some(close),
        }
    }

    /// Applies all changes that are available now.
    fn poll_now(&mut self) {
        while let Some(status) = self.watch.as_mut().and_then(|watch| watch.next().now_or_never().flatten()) {
            self.apply(status);
        }
    }

    fn poll_state_change(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.watch.as_mut().map(|watch| watch.poll_next_unpin(cx)) {
            Some(Poll::Ready(Some(status))) => {
                self.apply(status);
                Poll::Ready(())
            }
            // The stream of changes never ends.
            Some(Poll::Ready(None) | Poll::Pending) | None => Poll::Pending,
        }
    }

    fn poll_credential_end(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        loop {
            if let Some(close) = self.ended {
                return Poll::Ready(close);
            }
            ready!(self.poll_state_change(cx));
        }
    }
}

impl std::fmt::Debug for CredentialState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CredentialState")
            .field("expiring", &self.expiring)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl<O: Outbound> Outbound for WithCredential<O> {
    fn read(&mut self, max_bytes: usize) -> ReadResult {
        let WithCredential { out, credential } = self;
        let Some(credential) = credential else { return out.read(max_bytes) };
        credential.poll_now();
        if let Some(close) = credential.ended {
            return ReadResult::End(close);
        }
        if !std::mem::replace(&mut credential.first_read_done, true) {
            match out.read(max_bytes) {
                ReadResult::Idle => {}
                first @ (ReadResult::Batch(_) | ReadResult::End(_)) => return first,
            }
        }
        match credential.expiring.take().and_then(|end| expiring_event(out, end)) {
            Some(frame) => ReadResult::Batch(vec![frame]),
            None => out.read(max_bytes),
        }
    }

    fn prepare_read(&mut self) -> bool {
        self.out.prepare_read()
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(credential) = &mut self.credential {
            match credential.poll_state_change(cx) {
                Poll::Ready(()) => return Poll::Ready(()),
                Poll::Pending => {}
            }
        }
        self.out.poll_readable(cx)
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        self.credential.as_mut().map_or(Poll::Pending, |credential| credential.poll_credential_end(cx))
    }

    fn group(&mut self) -> Option<Group> {
        self.out.group()
    }

    fn accept_batch(&mut self, batch: &SharedBatch) -> bool {
        // A pending `auth.expiring` or end takes precedence over shared batches.
        let can_share = |credential: &CredentialState| {
            credential.first_read_done && credential.expiring.is_none() && credential.ended.is_none()
        };
        self.credential.as_deref().is_none_or(can_share) && self.out.accept_batch(batch)
    }

    fn on_message_part(&mut self, part: &MessagePart<'_>) {
        self.out.on_message_part(part);
    }

    fn heartbeat(&mut self) -> Option<Bytes> {
        self.out.heartbeat()
    }

    fn control_event(&mut self, name: &'static str, json: &dyn Fn(u64) -> String) -> Option<Bytes> {
        self.out.control_event(name, json)
    }

    fn closing_event(&mut self, close: CloseReason, retry: Duration) -> Option<Bytes> {
        self.out.closing_event(close, retry)
    }
}

/// Returns the event `auth.expiring`, or `None` on `/ws`, whose format does not have it.
fn expiring_event(out: &mut impl Outbound, end: Timestamp) -> Option<Bytes> {
    let name = "auth.expiring";
    out.control_event(name, &|now_ms| {
        format!(r#"{{"type":"{name}","time":"{}","expiresAt":"{end}"}}"#, render::format_timestamp(now_ms))
    })
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;
    use crate::{
        event::{
            NamespaceId, Resource,
            projection::{EventFormat, Projection},
        },
        feed::{self, Feed, Framing, StartAt},
    };

    /// All `time` values of a stream come from one clock.
    #[test]
    fn expiry_notice_has_the_time_of_the_feed_clock() {
        const NOW_MS: u64 = 1_767_323_045_678;
        let (mut writer, feed) = Feed::new(feed::Config { wall_clock_ms: || NOW_MS, ..feed::Config::default() });
        writer.set_namespace(NamespaceId::from_uid("a namespace"));
        writer.replace(Resource::Pods, Vec::new(), 1);
        writer.replace(Resource::Claims, Vec::new(), 1);
        let cache = feed.projection_cache(Projection::everything(EventFormat::Full), Framing::WEBSOCKET);
        let subscription = feed.subscribe(cache, StartAt::Live).unwrap();
        let end = Timestamp::from_millisecond(NOW_MS as i64 + 60_000).unwrap();
        let watch = stream::iter([CredentialStatus::Expiring(end)]).chain(stream::pending()).boxed();
        let slots = StreamSlots { stream: None, filter: None };
        let mut out = WithCredential::new(subscription, Some(watch), slots);
        let mut text = String::new();
        while let ReadResult::Batch(frames) = out.read(1) {
            frames.iter().for_each(|frame| text += &String::from_utf8_lossy(frame));
        }
        let expected =
            r#"{"type":"auth.expiring","time":"2026-01-02T03:04:05.678Z","expiresAt":"2026-01-02T03:05:05.678Z"}"#;
        assert!(text.contains(expected), "{text}");
    }
}
