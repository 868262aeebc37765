//! Supervision of tasks and shutdown. Every task of this crate is spawned here, except blocking work that its caller
//! awaits (encodings of GETs, reads of files) and the connections of the simulator. The HTTP clients to the API server
//! spawn tasks of their own for their connections.
//!
//! Owns: the process tasks and the connection tasks.
//! - A *process task* (the hub, the accept loop) runs until shutdown. The first one that ends by itself ends the
//!   process, and is the exit reason.
//! - A *connection task* may end at any time. Its panic is counted and has no effect on other tasks.
//!
//! Guarantees: shutdown has two steps. First, `stop` asks the connection tasks to end. When all have ended, or at the
//! drain deadline, the process tasks are dropped at their next await.
//!
//! Must not import: other modules of this crate.
use std::{
    any::Any,
    fmt,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::FutureExt as _;
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The error with which a task fails.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Time limits of the shutdown.
#[derive(Debug, Clone)]
pub struct Config {
    /// Time for the connection tasks to end after the signal (docs/protocol.md#stream-endpoints, "Drain": 10 s).
    pub drain: Duration,
    /// Time to wait for process tasks that do not reach an await: 1 s. Other process tasks are dropped at their next
    /// await.
    pub abort_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { drain: Duration::from_secs(10), abort_timeout: Duration::from_secs(1) }
    }
}

/// How a shutdown ended that a signal requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// All connection tasks ended within the drain time, except `cut` of them.
    Drained {
        /// Number of connections that were still open at the deadline.
        cut: usize,
    },
    /// A second signal ended the process without waiting.
    Immediately,
}

/// The unexpected end of a process task.
#[derive(Debug, thiserror::Error)]
pub enum TaskExit {
    /// The task returned. A process task must not return.
    #[error("{name} ended unexpectedly")]
    Returned {
        /// The name of the task.
        name: &'static str,
    },
    /// The task failed.
    #[error("{name} failed")]
    Failed {
        /// The name of the task.
        name: &'static str,
        /// The error of the task.
        source: BoxError,
    },
    /// The task panicked.
    #[error("{name} panicked: {message}")]
    Panicked {
        /// The name of the task.
        name: &'static str,
        /// The message of the panic.
        message: String,
    },
}

/// The metrics of this module.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Connection tasks that panicked.
    pub panics: Counter,
    /// Connection tasks that run.
    pub connections: Gauge,
}

impl Metrics {
    /// Registers the counters with `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("http_connections", "Open TCP connections, streams included", self.connections.clone());
        registry.register("http_connection_panics", "Connection tasks that panicked", self.panics.clone());
    }
}

/// A handle to the tasks of one process. All clones refer to the same tasks.
#[derive(Clone)]
pub struct Tasks(Arc<Inner>);

struct Inner {
    config: Config,
    metrics: Metrics,
    /// Asks connection tasks to end. A signal or the first unexpected end of a process task cancels it.
    stop: CancellationToken,
    /// Drops the process tasks. It is cancelled after the drain.
    abort: CancellationToken,
    process: TaskTracker,
    connections: TaskTracker,
    /// The first unexpected end of a process task. Later ones are consequences of it and are not recorded.
    first_exit: Mutex<Option<TaskExit>>,
}

impl Tasks {
    /// Creates a handle without tasks.
    pub fn new(config: Config) -> Self {
        let inner = Inner {
            config,
            metrics: Metrics::default(),
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
            process: TaskTracker::new(),
            connections: TaskTracker::new(),
            first_exit: Mutex::new(None),
        };
        // `TaskTracker::wait` returns only for a closed tracker. A closed tracker still accepts tasks.
        inner.process.close();
        inner.connections.close();
        Self(Arc::new(inner))
    }

    /// Spawns a process task. On shutdown the task is dropped at its next await, after the drain of the connections.
    pub fn spawn<T, E>(&self, name: &'static str, task: impl Future<Output = Result<T, E>> + Send + 'static)
    where
        T: Send,
        E: Into<BoxError>,
    {
        let inner = self.0.clone();
        let tracked = self.0.process.track_future(async move {
            let outcome = tokio::select! {
                biased;
                () = inner.abort.cancelled() => return,
                outcome = AssertUnwindSafe(task).catch_unwind() => outcome,
            };
            let exit = match outcome {
                Ok(Ok(_)) => TaskExit::Returned { name },
                Ok(Err(err)) => TaskExit::Failed { name, source: err.into() },
                Err(panic) => TaskExit::Panicked { name, message: message(&*panic) },
            };
            inner.first_exit.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(exit);
            inner.stop.cancel();
        });
        spawn_tracked(tracked);
    }

    /// Spawns a connection task. The task should end when [`Tasks::stop`] is cancelled. A panic ends this task only.
    pub fn connection(&self, task: impl Future<Output = ()> + Send + 'static) {
        let inner = self.0.clone();
        inner.metrics.connections.inc();
        // Combinators instead of an async block, because an async block would hold `task` twice: captured and awaited.
        let counted = AssertUnwindSafe(task).catch_unwind().map(move |outcome| {
            inner.metrics.connections.dec();
            if outcome.is_err() {
                inner.metrics.panics.inc();
            }
        });
        spawn_tracked(self.0.connections.track_future(counted));
    }

    /// Returns the number of running connection tasks.
    pub fn connections(&self) -> usize {
        self.0.connections.len()
    }

    /// Returns the token that is cancelled at the start of the shutdown. Connection tasks then have the drain time to
    /// end.
    pub fn stop(&self) -> &CancellationToken {
        &self.0.stop
    }

    /// Returns the metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Waits for `signal` or for the first unexpected end of a process task, and then shuts down: connection tasks have
    /// the drain time to end, then process tasks are dropped. A second `signal` during the shutdown returns
    /// immediately.
    ///
    /// # Errors
    /// Returns the first unexpected end of a process task, before the signal or during the drain.
    pub async fn run_until(&self, mut signal: impl AsyncFnMut()) -> Result<Stopped, TaskExit> {
        let inner = &self.0;
        tokio::select! {
            () = inner.stop.cancelled() => {}
            () = signal() => inner.stop.cancel(),
        }
        let cut = tokio::select! {
            biased;
            cut = self.drain() => cut,
            () = signal() => return self.first_exit().map_or(Ok(Stopped::Immediately), Err),
        };
        self.first_exit().map_or(Ok(Stopped::Drained { cut }), Err)
    }

    /// Waits for the connection tasks, at most for the drain time, and then drops the process tasks. Returns the number
    /// of connection tasks that have not ended.
    async fn drain(&self) -> usize {
        let inner = &self.0;
        // The count below shows whether the drain time was enough.
        let _ = timeout(inner.config.drain, inner.connections.wait()).await;
        let cut = inner.connections.len();
        inner.abort.cancel();
        if timeout(inner.config.abort_timeout, inner.process.wait()).await.is_err() {
            tracing::warn!(tasks = inner.process.len(), "process tasks did not end within the abort timeout");
        }
        cut
    }

    fn first_exit(&self) -> Option<TaskExit> {
        self.0.first_exit.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks")
            .field("process", &self.0.process.len())
            .field("connections", &self.0.connections.len())
            .finish_non_exhaustive()
    }
}

/// Spawns a task. The join handle is not needed: the tracker waits for the task, and the task catches its own panic.
#[allow(clippy::disallowed_methods, reason = "this module is the owner that the lint asks for")]
fn spawn_tracked(task: impl Future<Output = ()> + Send + 'static) {
    drop(tokio::spawn(task));
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("the panic has no text").to_owned()
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::pending, io, time::Instant};

    use tokio::sync::{mpsc, oneshot};

    use super::*;

    /// Returns the two ends of a queue of signals, which holds two.
    fn signals() -> (mpsc::Sender<()>, mpsc::Receiver<()>) {
        mpsc::channel(2)
    }

    async fn next(signals: &mut mpsc::Receiver<()>) {
        if signals.recv().await.is_none() {
            pending().await
        }
    }

    fn short() -> Tasks {
        Tasks::new(Config { drain: Duration::from_millis(50), abort_timeout: Duration::from_millis(50) })
    }

    #[tokio::test]
    async fn signal_drains_connections_before_process_tasks_end() {
        let tasks = Tasks::new(Config::default());
        let (send, mut receive) = signals();
        let (alive, dropped) = oneshot::channel::<()>();
        tasks.spawn("hub", async move {
            let _alive = alive;
            pending::<Result<Infallible, io::Error>>().await
        });
        let (end, mut ended) = oneshot::channel();
        let stop = tasks.stop().clone();
        tasks.connection(async move {
            stop.cancelled().await;
            end.send(()).unwrap();
        });
        assert_eq!(tasks.connections(), 1);
        send.send(()).await.unwrap();
        let stopped = tasks.run_until(async || next(&mut receive).await).await.unwrap();
        assert_eq!(stopped, Stopped::Drained { cut: 0 });
        ended.try_recv().expect("the connection task must end before run_until returns");
        assert!(dropped.await.is_err(), "the process task must be dropped");
    }

    #[tokio::test]
    async fn first_ended_process_task_is_the_exit_reason() {
        let tasks = short();
        tasks.spawn("running", pending::<Result<(), io::Error>>());
        tasks.spawn("failing", async { Err::<(), _>(io::Error::other("disk full")) });
        let exit = tasks.run_until(async || pending().await).await.unwrap_err();
        let source = std::error::Error::source(&exit).map(ToString::to_string);
        assert_eq!((exit.to_string().as_str(), source.as_deref()), ("failing failed", Some("disk full")));

        let tasks = short();
        tasks.spawn("returning", async { Ok::<_, io::Error>(()) });
        let exit = tasks.run_until(async || pending().await).await.unwrap_err();
        assert!(matches!(exit, TaskExit::Returned { name: "returning" }), "expected TaskExit::Returned: {exit:?}");

        let tasks = short();
        tasks.spawn("panicking", async {
            assert_eq!(1, 2, "an assertion that fails");
            Ok::<_, io::Error>(())
        });
        let exit = tasks.run_until(async || pending().await).await.unwrap_err();
        assert!(exit.to_string().starts_with("panicking panicked: assertion"), "expected the panic's message: {exit}");
    }

    #[tokio::test]
    async fn connection_panic_is_counted_and_isolated() {
        let tasks = Tasks::new(Config::default());
        let (done, other_done) = oneshot::channel();
        tasks.connection(async { panic!("a connection task panics") });
        tasks.connection(async { done.send(()).unwrap() });
        other_done.await.unwrap();
        let (send, mut receive) = signals();
        send.send(()).await.unwrap();
        let stopped = tasks.run_until(async || next(&mut receive).await).await.unwrap();
        assert_eq!((stopped, tasks.metrics().panics.get()), (Stopped::Drained { cut: 0 }, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn open_connection_is_aborted_at_the_drain_deadline() {
        let tasks = Tasks::new(Config::default());
        tasks.connection(pending());
        let (send, mut receive) = signals();
        send.send(()).await.unwrap();
        let started = tokio::time::Instant::now();
        let stopped = tasks.run_until(async || next(&mut receive).await).await.unwrap();
        assert_eq!((stopped, started.elapsed().as_secs()), (Stopped::Drained { cut: 1 }, 10));
    }

    #[tokio::test]
    async fn second_signal_stops_immediately() {
        let tasks = Tasks::new(Config::default());
        tasks.connection(pending());
        let (send, mut receive) = signals();
        send.send(()).await.unwrap();
        send.send(()).await.unwrap();
        let started = Instant::now();
        let stopped = tasks.run_until(async || next(&mut receive).await).await.unwrap();
        assert_eq!(stopped, Stopped::Immediately);
        let waited = started.elapsed();
        assert!(waited < Duration::from_secs(5), "must not wait for the drain time of 10 s, waited {waited:?}");
    }
}
