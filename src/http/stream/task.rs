//! One stream: its loop, with every branch in sight.
//!
//! Two may send: the stream's own task, and a writer that tells a whole audience ([`super::fan_out`]); each has all of the
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
    Config, Outbound, StreamEnd, StreamPermit,
    fan_out::Member,
    protocol::{SendOutcome, StreamProtocol},
};
use crate::{
    feed::{ReadResult, SharedBatch},
    wire::{CloseReason, websocket::MessagePart},
};

/// A stream where its task and a writer find it.
#[derive(Debug)]
pub(super) struct StreamTask<O> {
    pub(super) permit: StreamPermit,
    state: Mutex<StreamState<O>>,
}

/// Everything that sending needs.
#[derive(Debug)]
struct StreamState<O> {
    protocol: StreamProtocol,
    /// None once it has panicked.
    out: Option<O>,
    /// Of the stream's task.
    waker: Option<Waker>,
    /// A writer tells it what its audience is shown.
    in_fan_out: bool,
    /// The writer has left something to the task.
    needs_task: bool,
    /// The writer has met the end of the connection.
    ended: Option<StreamEnd>,
    panicked: bool,
}

impl<O: Outbound + 'static> StreamTask<O> {
    pub(super) fn new(protocol: StreamProtocol, out: O, permit: StreamPermit) -> Self {
        let out = Some(out);
        let state = StreamState {
            protocol,
            out,
            waker: None,
            in_fan_out: false,
            needs_task: false,
            ended: None,
            panicked: false,
        };
        Self { permit, state: Mutex::new(state) }
    }

    /// What panics inside has said so by its panic.
    fn with_state<T>(&self, f: impl FnOnce(&mut StreamState<O>, &Config) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner), &self.permit.config)
    }

    /// Finds a seat in its audience, if it has one: then what came meanwhile must be read once more.
    fn join_fan_out(self: &Arc<Self>) -> bool {
        self.with_state(|state, _| {
            let Some(out) = state.out.as_mut().filter(|_| self.permit.fan_out.is_running()) else { return false };
            let Some(group) = out.group() else { return false };
            let newly_joined = !std::mem::replace(&mut state.in_fan_out, true);
            if newly_joined {
                let member: Weak<Self> = Arc::downgrade(self);
                self.permit.fan_out.join(group, member);
            }
            newly_joined
        })
    }
}

impl<O: Outbound + 'static> Member for StreamTask<O> {
    fn deliver(&self, batch: Option<&SharedBatch>) {
        self.with_state(|state, _| {
            let StreamState { protocol, out, waker, needs_task, ended, panicked, .. } = state;
            if protocol.is_closing() || protocol.conn.blocked_since().is_some() {
                // The stream's own task is at it.
                return;
            }
            let Some(waker) = waker else {
                *needs_task = true;
                return;
            };
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let batch =
                    batch.filter(|batch| protocol.is_idle() && out.as_mut().is_some_and(|out| out.accept_batch(batch)));
                batch.map(|batch| protocol.send_shared(&mut Context::from_waker(waker), batch))
            }));
            match outcome {
                Ok(Some(SendOutcome::Drained)) => return,
                Ok(Some(SendOutcome::Ended(end))) => *ended = Some(end),
                // It is elsewhere, or the kernel is full: the rest is its task's.
                Ok(None | Some(SendOutcome::More | SendOutcome::Blocked)) => *needs_task = true,
                Err(_) => *panicked = true,
            }
            waker.wake_by_ref();
        });
    }
}

/// Runs to the end, and ends the connection.
pub(super) async fn run<O: Outbound + 'static>(stream: &Arc<StreamTask<O>>) -> StreamEnd {
    // What lives across an await has its place in every stream's memory: locals are few here, and short.
    stream.with_state(|state, config| state.protocol.process_read_ahead(&mut state.out, config));
    let mut stop = pin!(stream.permit.stop.cancelled());
    let mut timer = pin!(sleep_until(stream.with_state(|state, config| state.protocol.deadline(config))));
    let end = loop {
        let outcome = poll_fn(|cx| Poll::Ready(stream.with_state(|state, config| state.send(cx, config)))).await;
        if let SendOutcome::Ended(end) = outcome {
            break end;
        }
        if matches!(outcome, SendOutcome::Drained) && stream.join_fan_out() {
            continue;
        }
        let deadline = stream.with_state(|state, config| state.protocol.deadline(config));
        if deadline < timer.deadline() {
            timer.as_mut().reset(deadline);
        }
        let step = tokio::select! {
            // Rare things first: nothing can keep them waiting, and they hardly ever keep others waiting.
            biased;
            () = &mut stop, if stream.with_state(|state, _| state.protocol.is_open()) => {
                stream.with_state(|state, config| state.protocol.drain(config));
                ControlFlow::Continue(())
            }
            () = &mut timer => {
                let step = poll_fn(|cx| Poll::Ready(stream.with_state(|state, config| {
                    state.protocol.poll_io_before_deadline(cx, &mut state.out, config)?;
                    state.protocol.on_deadline(&mut state.out, config)
                }))).await;
                timer.as_mut().reset(stream.with_state(|state, config| state.protocol.deadline(config)));
                step
            }
            step = poll_fn(|cx| stream.with_state(|state, config| state.poll_io(cx, config))) => step,
            () = poll_fn(|cx| stream.with_state(|state, config| state.poll_readable(cx, &outcome, config))) => ControlFlow::Continue(()),
            () = yield_now(), if matches!(outcome, SendOutcome::More) => ControlFlow::Continue(()),
        };
        if let ControlFlow::Break(end) = step {
            break end;
        }
    };
    poll_fn(|cx| stream.with_state(|state, _| state.protocol.conn.poll_close(cx))).await;
    end
}

/// After a panic in `run`: says so where it still can. What panicked is asked for its last frame, and nothing else.
pub(super) async fn close_after_panic<O: Outbound + 'static>(stream: &Arc<StreamTask<O>>) -> StreamEnd {
    stream.with_state(|state, config| {
        (state.needs_task, state.panicked) = (false, false);
        let closing_event = state.out.take().and_then(|mut out| {
            catch_unwind(AssertUnwindSafe(|| out.closing_event(CloseReason::Internal, config.retry_delay())))
                .unwrap_or_default()
        });
        state.protocol.close_with_event(CloseReason::Internal, state.protocol.close_wait(), closing_event, config);
    });
    run(stream).await
}

impl<O: Outbound> StreamState<O> {
    fn send(&mut self, cx: &mut Context<'_>, config: &Config) -> SendOutcome {
        match self.ended {
            Some(end) => SendOutcome::Ended(end),
            None => self.protocol.send(cx, &mut self.out, config),
        }
    }

    /// Ready when there may be more to send. A client that takes nothing more, or hardly anything, is asked for nothing but
    /// its right to the rest.
    fn poll_readable(&mut self, cx: &mut Context<'_>, outcome: &SendOutcome, config: &Config) -> Poll<()> {
        match outcome {
            SendOutcome::Drained => self.out.poll_readable(cx),
            SendOutcome::Blocked if !self.protocol.is_closing() => {
                let close = ready!(self.out.poll_end(cx));
                self.protocol.close(close, &mut self.out, config);
                Poll::Ready(())
            }
            SendOutcome::More | SendOutcome::Blocked | SendOutcome::Ended(_) => Poll::Pending,
        }
    }

    /// The next thing that happens on the connection, or that a writer has left to do.
    fn poll_io(&mut self, cx: &mut Context<'_>, config: &Config) -> Poll<ControlFlow<StreamEnd>> {
        if self.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
        assert!(!self.panicked, "a writer has met a panic");
        if std::mem::take(&mut self.needs_task) || self.ended.is_some() {
            return Poll::Ready(ControlFlow::Continue(()));
        }
        self.protocol.conn.poll(cx).map(|moved| self.protocol.on_io(&moved, &mut self.out, config))
    }
}

/// What has panicked has nothing to say any more.
impl<O: Outbound> Outbound for Option<O> {
    fn control_event(&mut self, name: &'static str, json: &str) -> Option<Bytes> {
        self.as_mut()?.control_event(name, json)
    }

    fn read(&mut self, max_bytes: usize) -> ReadResult {
        self.as_mut().map_or(ReadResult::Idle, |out| out.read(max_bytes))
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.as_mut().map_or(Poll::Pending, |out| out.poll_readable(cx))
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        self.as_mut().map_or(Poll::Pending, |out| out.poll_end(cx))
    }

    fn on_message_part(&mut self, part: &MessagePart<'_>) {
        if let Some(out) = self {
            out.on_message_part(part);
        }
    }

    fn heartbeat(&mut self) -> Option<Bytes> {
        self.as_mut()?.heartbeat()
    }

    fn closing_event(&mut self, close: CloseReason, retry: Duration) -> Option<Bytes> {
        self.as_mut()?.closing_event(close, retry)
    }
}
