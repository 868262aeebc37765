//! The task of one stream, and the stream as a member of its fan-out group.
//!
//! The stream's own task and the task of its shard ([`super::fan_out`]) both write to the socket. Each of them holds
//! the lock of the complete state while it does.
//!
//! Guarantees:
//! - A shard writes only shared batches, and only if nothing else waits on the socket. All other work stays with the
//!   stream's task.
//! - A panic of the outbound ends only this stream.

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
    config::Config,
    end::StreamEnd,
    fan_out::Member,
    outbound::Outbound,
    permit::StreamPermit,
    protocol::{SendOutcome, StreamProtocol},
};
use crate::{
    feed::{ReadResult, SharedBatch},
    http::sync::run_blocking,
    wire::{CloseReason, websocket::MessagePart},
};

/// A stream, shared by its own task and the task of its shard. It counts as open while it exists.
#[derive(Debug)]
pub(super) struct StreamTask<O> {
    permit: StreamPermit,
    state: Mutex<StreamState<O>>,
}

/// The state that the lock protects.
#[derive(Debug)]
struct StreamState<O> {
    protocol: StreamProtocol,
    /// `None` after a panic.
    out: Option<O>,
    /// Wakes the stream's task.
    waker: Option<Waker>,
    /// The stream is a member of a fan-out group.
    in_fan_out: bool,
    /// The shard has left work to the stream's task.
    needs_task: bool,
    /// How the stream has ended in the task of the shard.
    ended: Option<Result<StreamEnd, OutboundPanicked>>,
}

/// The outbound has panicked in the task of the shard.
#[derive(Debug, Clone, Copy)]
pub(super) struct OutboundPanicked;

impl<O: Outbound + 'static> StreamTask<O> {
    /// Counts the stream as opened.
    pub(super) fn new(protocol: StreamProtocol, out: O, permit: StreamPermit) -> Self {
        permit.metrics.record_opened(permit.endpoint());
        let out = Some(out);
        let state = StreamState { protocol, out, waker: None, in_fan_out: false, needs_task: false, ended: None };
        Self { permit, state: Mutex::new(state) }
    }

    /// Calls `f` with the locked state. A poisoned lock is accepted, because a panic is handled where it is caught.
    fn with_state<T>(&self, f: impl FnOnce(&mut StreamState<O>, &Config) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner), &self.permit.config)
    }

    /// Joins the fan-out group, if the outbound has one. Returns true if the stream has joined now; the caller must
    /// then read once more, because entries can have been appended meanwhile.
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

    /// Counts the end of the stream.
    pub(super) fn record_closed(&self, end: StreamEnd) {
        self.permit.record_closed(end);
    }

    /// Adds the bytes written since the last call to the metric.
    fn record_sent(&self) {
        let bytes = self.with_state(|state, _| state.protocol.conn.take_written());
        self.permit.record_sent(bytes);
    }
}

impl<O> Drop for StreamTask<O> {
    fn drop(&mut self) {
        self.permit.metrics.record_dropped(self.permit.endpoint());
    }
}

impl<O: Outbound + 'static> Member for StreamTask<O> {
    fn deliver(&self, batch: Option<&SharedBatch>) {
        self.with_state(|state, _| {
            let StreamState { protocol, out, waker, needs_task, ended, .. } = state;
            if protocol.is_closing() || protocol.conn.blocked_since().is_some() {
                // The stream's own task waits for the socket.
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
                Ok(Some(SendOutcome::Ended(end))) => *ended = Some(Ok(end)),
                // The stream is at another position, or the socket buffer is full: its own task continues.
                Ok(None | Some(SendOutcome::More | SendOutcome::Blocked)) => *needs_task = true,
                Err(_) => *ended = Some(Err(OutboundPanicked)),
            }
            waker.wake_by_ref();
        });
    }
}

/// Runs the stream to its end, and closes the connection.
///
/// # Errors
/// If the outbound has panicked in the task of the shard. The connection is then still open.
pub(super) async fn run<O: Outbound + 'static>(stream: &Arc<StreamTask<O>>) -> Result<StreamEnd, OutboundPanicked> {
    // A local that lives across an `await` costs memory in every stream: there are few of them, and they are small.
    stream.with_state(|state, config| state.protocol.process_read_ahead(&mut state.out, config));
    let mut stop = pin!(stream.permit.stop.cancelled());
    let mut timer = pin!(sleep_until(stream.with_state(|state, config| state.protocol.deadline(config))));
    let end = loop {
        if stream.with_state(|state, _| state.protocol.can_queue_next() && state.out.prepare_read()) {
            // Boxed: it is rare, and its state would otherwise enlarge the future of every stream.
            Box::pin(queue_next_on_blocking_thread(stream.clone())).await;
        }
        let outcome = poll_fn(|cx| Poll::Ready(stream.with_state(|state, config| state.send(cx, config)))).await?;
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
            // Rare branches come first: no other branch can delay them, and they hardly ever delay others.
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
                stream.record_sent();
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
    stream.record_sent();
    Ok(end)
}

/// Reads and queues the next frames on a blocking thread, when one of [`Config::max_concurrent_encodings`] permits is free.
///
/// Permits are granted in the order of the requests, and each stream needs a new one for each part of its initial state.
/// Streams with long initial states therefore delay each other. They delay a shard only if they are members of a group, after
/// a lag, by the encoding of one part (about 0.1 ms).
async fn queue_next_on_blocking_thread<O: Outbound + 'static>(stream: Arc<StreamTask<O>>) {
    let task_stream = stream.clone();
    let work = move || {
        task_stream.with_state(|state, config| {
            if state.protocol.can_queue_next() {
                state.protocol.queue_next(&mut state.out, config);
            }
        });
    };
    run_blocking(&stream.permit.encodings, work).await;
}

/// Closes the stream with 1011 (`internal`) after a panic of the outbound, which is asked for its closing event only.
pub(super) async fn close_after_panic<O: Outbound + 'static>(stream: &Arc<StreamTask<O>>) -> StreamEnd {
    stream.with_state(|state, config| {
        (state.needs_task, state.ended) = (false, None);
        let closing_event = state.out.take().and_then(|mut out| {
            catch_unwind(AssertUnwindSafe(|| out.closing_event(CloseReason::Internal, config.retry_delay())))
                .unwrap_or_default()
        });
        state.protocol.close_with_event(CloseReason::Internal, state.protocol.close_wait(), closing_event, config);
    });
    // Without an outbound nothing can panic again.
    run(stream).await.unwrap_or(StreamEnd::ByBridge(CloseReason::Internal))
}

impl<O: Outbound> StreamState<O> {
    /// Sends for one turn, unless the stream has ended in the task of the shard.
    fn send(&mut self, cx: &mut Context<'_>, config: &Config) -> Result<SendOutcome, OutboundPanicked> {
        match self.ended {
            Some(ended) => ended.map(SendOutcome::Ended),
            None => Ok(self.protocol.send(cx, &mut self.out, config)),
        }
    }

    /// Is ready when there can be more to send. While a write is blocked, it only checks whether the stream must end,
    /// for example because its credential has expired.
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

    /// Handles the next event of the connection. It is also ready when the shard has left work.
    fn poll_io(&mut self, cx: &mut Context<'_>, config: &Config) -> Poll<ControlFlow<StreamEnd>> {
        if self.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
        if std::mem::take(&mut self.needs_task) || self.ended.is_some() {
            return Poll::Ready(ControlFlow::Continue(()));
        }
        self.protocol.poll_conn(cx, config).map(|event| self.protocol.on_io(&event, &mut self.out, config))
    }
}

/// An outbound that has panicked (`None`) sends nothing more.
impl<O: Outbound> Outbound for Option<O> {
    fn control_event(&mut self, name: &'static str, json: &dyn Fn(u64) -> String) -> Option<Bytes> {
        self.as_mut()?.control_event(name, json)
    }

    fn read(&mut self, max_bytes: usize) -> ReadResult {
        self.as_mut().map_or(ReadResult::Idle, |out| out.read(max_bytes))
    }

    fn prepare_read(&mut self) -> bool {
        self.as_mut().is_some_and(O::prepare_read)
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
