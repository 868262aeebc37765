//! A stream that lives as long as its credential: told before it ends, and ended with it (G13).

use std::{
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;

use super::{
    auth::lease::{Hold, Standing},
    rate_limit::Seat,
    stream::Outbound,
};
use crate::{
    event::render,
    feed::{Audience, Read, Shown},
    wire::{Close, websocket::Piece},
};

/// What a stream sends, for as long as its client may have it.
#[derive(Debug)]
pub(super) struct Leased<O> {
    out: O,
    /// Boxed: where nobody signs in there are none, and a stream is to be small.
    terms: Option<Box<Terms>>,
}

/// What a client's stream rests on.
struct Terms {
    hold: Option<Hold>,
    /// The first thing that a client is told is never this.
    begun: bool,
    expiring: Option<Timestamp>,
    ended: Option<Close>,
    /// Free again when the stream is over.
    _seat: Option<Seat>,
}

impl<O: Outbound> Leased<O> {
    /// For as long as the credential holds, in that seat.
    pub(super) fn new(out: O, hold: Option<Hold>, seat: Option<Seat>) -> Leased<O> {
        let needed = hold.is_some() || seat.is_some();
        let terms = needed.then(|| Terms { hold, begun: false, expiring: None, ended: None, _seat: seat }.into());
        Leased { out, terms }
    }
}

impl Terms {
    /// Takes note of a change of the credential.
    fn take(&mut self, standing: Standing) {
        match standing {
            Standing::Good => self.expiring = None,
            Standing::Expiring(end) => self.expiring = Some(end),
            Standing::Ended(close) => self.ended = Some(close),
        }
    }

    fn look(&mut self) {
        while let Some(standing) = self.hold.as_mut().and_then(|hold| hold.next().now_or_never().flatten()) {
            self.take(standing);
        }
    }

    fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.hold.as_mut().map(|hold| hold.poll_next_unpin(cx)) {
            Some(Poll::Ready(Some(standing))) => {
                self.take(standing);
                Poll::Ready(())
            }
            // It never ends.
            Some(Poll::Ready(None) | Poll::Pending) | None => Poll::Pending,
        }
    }

    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<Close> {
        loop {
            if let Some(close) = self.ended {
                return Poll::Ready(close);
            }
            ready!(self.poll_changed(cx));
        }
    }
}

impl std::fmt::Debug for Terms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terms").field("expiring", &self.expiring).field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl<O: Outbound> Outbound for Leased<O> {
    fn read(&mut self, max_bytes: usize) -> Read {
        let Leased { out, terms } = self;
        let Some(terms) = terms else { return out.read(max_bytes) };
        terms.look();
        if let Some(close) = terms.ended {
            return Read::End(close);
        }
        if !std::mem::replace(&mut terms.begun, true) {
            match out.read(max_bytes) {
                Read::Idle => {}
                first @ (Read::Batch(_) | Read::End(_)) => return first,
            }
        }
        match terms.expiring.take().and_then(|end| expiring(out, end)) {
            Some(frame) => Read::Batch(vec![frame]),
            None => out.read(max_bytes),
        }
    }

    fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(terms) = &mut self.terms {
            match terms.poll_changed(cx) {
                Poll::Ready(()) => return Poll::Ready(()),
                Poll::Pending => {}
            }
        }
        self.out.poll_changed(cx)
    }

    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<Close> {
        self.terms.as_mut().map_or(Poll::Pending, |terms| terms.poll_ended(cx))
    }

    fn audience(&mut self) -> Option<Audience> {
        self.out.audience()
    }

    fn take(&mut self, shown: &Shown) -> bool {
        // What the credential has come to is told first.
        let clear = |terms: &Terms| terms.begun && terms.expiring.is_none() && terms.ended.is_none();
        self.terms.as_deref().is_none_or(clear) && self.out.take(shown)
    }

    fn received(&mut self, piece: &Piece<'_>) {
        self.out.received(piece);
    }

    fn heartbeat(&mut self) -> Option<Bytes> {
        self.out.heartbeat()
    }

    fn tell(&mut self, name: &'static str, json: &str) -> Option<Bytes> {
        self.out.tell(name, json)
    }

    fn farewell(&mut self, close: Close, retry: Duration) -> Option<Bytes> {
        self.out.farewell(close, retry)
    }
}

/// `auth.expiring`, where the client's contract has that word (`/ws` has not).
fn expiring(out: &mut impl Outbound, end: Timestamp) -> Option<Bytes> {
    let name = "auth.expiring";
    let now_ms = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
    out.tell(name, &format!(r#"{{"type":"{name}","time":"{}","expiresAt":"{end}"}}"#, render::time(now_ms)))
}
