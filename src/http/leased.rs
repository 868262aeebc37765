//! A stream that lives as long as its credential: told before it ends, and ended with it (G13).

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

use super::{
    auth::lease::{Hold, Standing},
    limit::Seat,
    stream::Outbound,
};
use crate::{
    event::render,
    feed::{Framing, Read},
    wire::{Close, websocket::Piece},
};

/// What a stream sends, for as long as its client may have it.
#[derive(Debug)]
pub(super) struct Leased<O> {
    out: O,
    hold: Hold,
    /// How `auth.expiring` is laid on the wire; `None` where the contract has no such word (`/ws`).
    framing: Option<Framing>,
    /// The first thing that a client is told is never this.
    begun: bool,
    expiring: Option<Timestamp>,
    ended: Option<Close>,
    /// Free again when the stream is over.
    _seat: Seat,
}

impl<O: Outbound> Leased<O> {
    pub(super) fn new(out: O, hold: Hold, seat: Seat, framing: Option<Framing>) -> Leased<O> {
        Leased { out, hold, framing, begun: false, expiring: None, ended: None, _seat: seat }
    }

    fn look(&mut self) {
        match self.hold.look() {
            None => {}
            Some(Standing::Good) => self.expiring = None,
            Some(Standing::Expiring(end)) => self.expiring = Some(end),
            Some(Standing::Ended(close)) => self.ended = Some(close),
        }
    }

    fn expiring(&mut self) -> Option<Bytes> {
        let (end, framing) = (self.expiring.take()?, self.framing?);
        let name = "auth.expiring";
        let now_ms = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
        let json = format!(r#"{{"type":"{name}","time":"{}","expiresAt":"{end}"}}"#, render::time(now_ms));
        let mut out = Vec::new();
        framing.put(&mut out, name, None, &json);
        Some(out.into())
    }
}

impl<O: Outbound> Outbound for Leased<O> {
    fn read(&mut self, max_bytes: usize) -> Read {
        self.look();
        if let Some(close) = self.ended {
            return Read::End(close);
        }
        if std::mem::replace(&mut self.begun, true)
            && let Some(frame) = self.expiring()
        {
            return Read::Batch(vec![frame]);
        }
        match self.out.read(max_bytes) {
            Read::Idle => self.expiring().map_or(Read::Idle, |frame| Read::Batch(vec![frame])),
            other @ (Read::Batch(_) | Read::End(_)) => other,
        }
    }

    async fn changed(&mut self) {
        tokio::select! {
            () = self.hold.changed() => {}
            () = self.out.changed() => {}
        }
    }

    fn received(&mut self, piece: &Piece<'_>) {
        self.out.received(piece);
    }

    fn heartbeat(&mut self) -> Option<Bytes> {
        self.out.heartbeat()
    }

    fn farewell(&mut self, close: Close, retry: Duration) -> Option<Bytes> {
        self.out.farewell(close, retry)
    }
}
