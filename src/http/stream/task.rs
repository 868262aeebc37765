//! One stream: its loop, with every branch in sight.
//!
//! Two may send: the stream's own task, and a writer that tells a whole audience ([`super::fan`]); each has all of the
//! state meanwhile. A writer sends only what all are shown, and leaves everything else to the task.
use std::{
    future::poll_fn,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{task::yield_now, time::sleep_until};

use super::{
    Closed, Config, Outbound, Place,
    fan_out::Member,
    protocol::{Sent, Session},
};
use crate::{
    feed::{Read, Shown},
    wire::{Close, websocket::Piece},
};

/// A stream where its task and a writer find it.
#[derive(Debug)]
pub(super) struct Stage<O> {
    pub(super) streams: Place,
    cast: Mutex<Cast<O>>,
}

/// Everything that sending needs.
#[derive(Debug)]
struct Cast<O> {
    session: Session,
    /// None once it has panicked.
    out: Option<O>,
    /// Of the stream's task.
    waker: Option<Waker>,
    /// A writer tells it what its audience is shown.
    seated: bool,
    /// The writer has left something to the task.
    look: bool,
    /// The writer has met the end of the connection.
    gone: Option<Closed>,
    panicked: bool,
}

impl<O: Outbound + 'static> Stage<O> {
    pub(super) fn new(session: Session, out: O, streams: Place) -> Self {
        let out = Some(out);
        let cast = Cast { session, out, waker: None, seated: false, look: false, gone: None, panicked: false };
        Self { streams, cast: Mutex::new(cast) }
    }

    /// What panics inside has said so by its panic.
    fn with<T>(&self, f: impl FnOnce(&mut Cast<O>, &Config) -> T) -> T {
        f(&mut self.cast.lock().unwrap_or_else(PoisonError::into_inner), &self.streams.config)
    }

    /// Finds a seat in its audience, if it has one: then what came meanwhile must be read once more.
    fn sit_down(self: &Arc<Self>) -> bool {
        self.with(|cast, _| {
            let Some(out) = cast.out.as_mut().filter(|_| self.streams.fan.is_running()) else { return false };
            let Some(audience) = out.audience() else { return false };
            let newly = !std::mem::replace(&mut cast.seated, true);
            if newly {
                let member: Weak<Self> = Arc::downgrade(self);
                self.streams.fan.seat(audience, member);
            }
            newly
        })
    }
}

impl<O: Outbound + 'static> Member for Stage<O> {
    fn tell(&self, shown: Option<&Shown>) {
        self.with(|cast, _| {
            let Cast { session, out, waker, look, gone, panicked, .. } = cast;
            if session.is_closing() || session.link.blocked_since().is_some() {
                // The stream's own task is at it.
                return;
            }
            let Some(waker) = waker else {
                *look = true;
                return;
            };
            let sent = catch_unwind(AssertUnwindSafe(|| {
                let shown = shown.filter(|shown| session.is_idle() && out.as_mut().is_some_and(|out| out.take(shown)));
                shown.map(|shown| session.show(&mut Context::from_waker(waker), shown))
            }));
            match sent {
                Ok(Some(Sent::All)) => return,
                Ok(Some(Sent::End(closed))) => *gone = Some(closed),
                // It is elsewhere, or the kernel is full: the rest is its task's.
                Ok(None | Some(Sent::Some | Sent::Blocked)) => *look = true,
                Err(_) => *panicked = true,
            }
            waker.wake_by_ref();
        });
    }
}

/// Runs to the end, and ends the connection.
pub(super) async fn run<O: Outbound + 'static>(stage: &Arc<Stage<O>>) -> Closed {
    // What lives across an await has its place in every stream's memory: locals are few here, and short.
    stage.with(|cast, config| cast.session.early_input(&mut cast.out, config));
    let mut stop = pin!(stage.streams.stop.cancelled());
    let mut alarm = pin!(sleep_until(stage.with(|cast, config| cast.session.deadline(config))));
    let closed = loop {
        let sent = poll_fn(|cx| Poll::Ready(stage.with(|cast, config| cast.send(cx, config)))).await;
        if let Sent::End(closed) = sent {
            break closed;
        }
        if matches!(sent, Sent::All) && stage.sit_down() {
            continue;
        }
        let deadline = stage.with(|cast, config| cast.session.deadline(config));
        if deadline < alarm.deadline() {
            alarm.as_mut().reset(deadline);
        }
        let step = tokio::select! {
            // Rare things first: nothing can keep them waiting, and they hardly ever keep others waiting.
            biased;
            () = &mut stop, if stage.with(|cast, _| cast.session.is_open()) => {
                stage.with(|cast, config| cast.session.drain(config));
                ControlFlow::Continue(())
            }
            () = &mut alarm => {
                let step = poll_fn(|cx| Poll::Ready(stage.with(|cast, config| {
                    cast.session.overdue(cx, &mut cast.out, config)?;
                    cast.session.tick(&mut cast.out, config)
                }))).await;
                alarm.as_mut().reset(stage.with(|cast, config| cast.session.deadline(config)));
                step
            }
            step = poll_fn(|cx| stage.with(|cast, config| cast.poll_moved(cx, config))) => step,
            () = poll_fn(|cx| stage.with(|cast, config| cast.poll_news(cx, &sent, config))) => ControlFlow::Continue(()),
            () = yield_now(), if matches!(sent, Sent::Some) => ControlFlow::Continue(()),
        };
        if let ControlFlow::Break(closed) = step {
            break closed;
        }
    };
    poll_fn(|cx| stage.with(|cast, _| cast.session.link.poll_end(cx))).await;
    closed
}

/// After a panic in `run`: says so where it still can. What panicked is asked for its last frame, and nothing else.
pub(super) async fn apologize<O: Outbound + 'static>(stage: &Arc<Stage<O>>) -> Closed {
    stage.with(|cast, config| {
        (cast.look, cast.panicked) = (false, false);
        let farewell = cast.out.take().and_then(|mut out| {
            catch_unwind(AssertUnwindSafe(|| out.farewell(Close::Internal, config.retry()))).unwrap_or_default()
        });
        cast.session.end_with(Close::Internal, cast.session.until(), farewell, config);
    });
    run(stage).await
}

impl<O: Outbound> Cast<O> {
    fn send(&mut self, cx: &mut Context<'_>, config: &Config) -> Sent {
        match self.gone {
            Some(closed) => Sent::End(closed),
            None => self.session.send(cx, &mut self.out, config),
        }
    }

    /// Ready when there may be more to send. A client that takes nothing more, or hardly anything, is asked for nothing but
    /// its right to the rest.
    fn poll_news(&mut self, cx: &mut Context<'_>, sent: &Sent, config: &Config) -> Poll<()> {
        match sent {
            Sent::All => self.out.poll_changed(cx),
            Sent::Blocked if !self.session.is_closing() => {
                let close = ready!(self.out.poll_ended(cx));
                self.session.close(close, &mut self.out, config);
                Poll::Ready(())
            }
            Sent::Some | Sent::Blocked | Sent::End(_) => Poll::Pending,
        }
    }

    /// The next thing that happens on the connection, or that a writer has left to do.
    fn poll_moved(&mut self, cx: &mut Context<'_>, config: &Config) -> Poll<ControlFlow<Closed>> {
        if self.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
        assert!(!self.panicked, "a writer has met a panic");
        if std::mem::take(&mut self.look) || self.gone.is_some() {
            return Poll::Ready(ControlFlow::Continue(()));
        }
        self.session.link.poll(cx).map(|moved| self.session.moved(&moved, &mut self.out, config))
    }
}

/// What has panicked has nothing to say any more.
impl<O: Outbound> Outbound for Option<O> {
    fn tell(&mut self, name: &'static str, json: &str) -> Option<Bytes> {
        self.as_mut()?.tell(name, json)
    }

    fn read(&mut self, max_bytes: usize) -> Read {
        self.as_mut().map_or(Read::Idle, |out| out.read(max_bytes))
    }

    fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.as_mut().map_or(Poll::Pending, |out| out.poll_changed(cx))
    }

    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<Close> {
        self.as_mut().map_or(Poll::Pending, |out| out.poll_ended(cx))
    }

    fn received(&mut self, piece: &Piece<'_>) {
        if let Some(out) = self {
            out.received(piece);
        }
    }

    fn heartbeat(&mut self) -> Option<Bytes> {
        self.as_mut()?.heartbeat()
    }

    fn farewell(&mut self, close: Close, retry: Duration) -> Option<Bytes> {
        self.as_mut()?.farewell(close, retry)
    }
}
