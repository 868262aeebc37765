//! Who is running, and how it ends. The only module that spawns.
//!
//! Two kinds of tasks. A *process task* (the hub, the accept loop) runs for as long as the process: the first that ends
//! by itself ends everything and is the exit reason. A *connection task* ends when it likes; its panic is counted and
//! touches nobody else. Ending has two moments: `stop` asks the connections to leave, and once they are gone or the
//! drain time is over, what is left of the process tasks is dropped where it waits. It does not know what tasks do.
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

/// A cause that a task hands over when it fails.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How patient the end is.
#[derive(Debug, Clone)]
pub struct Config {
    /// Connections have this long to leave after the signal (docs/protocol.md#stream-endpoints, "Drain": 10 s).
    pub drain: Duration,
    /// Process tasks are dropped at their next await. Only one that never comes to it is waited for, this long: 1 s.
    pub abort_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { drain: Duration::from_secs(10), abort_timeout: Duration::from_secs(1) }
    }
}

/// An orderly end, asked for by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// All has ended, but for `cut` connections that the drain time was too short for.
    Drained {
        /// Connections still open at the deadline.
        cut: usize,
    },
    /// A second signal came: nothing was waited for.
    Immediately,
}

/// The unexpected end of a process task.
#[derive(Debug, thiserror::Error)]
pub enum TaskExit {
    /// It returned, which no process task does by itself.
    #[error("{name} ended without a reason")]
    Returned {
        /// The task's name.
        name: &'static str,
    },
    /// It failed.
    #[error("{name} failed")]
    Failed {
        /// The task's name.
        name: &'static str,
        /// What it said.
        source: BoxError,
    },
    /// It panicked.
    #[error("{name} panicked: {message}")]
    Panicked {
        /// The task's name.
        name: &'static str,
        /// The panic's message.
        message: String,
    },
}

/// What this module counts.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Connection tasks that panicked.
    pub panics: Counter,
    /// Connection tasks that run.
    pub connections: Gauge,
}

impl Metrics {
    /// Makes the counters known to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("http_connections", "Open TCP connections, streams included", self.connections.clone());
        registry.register("http_connection_panics", "Connection tasks that panicked", self.panics.clone());
    }
}

/// A handle to the tasks of one process: cheap to clone, the same tasks behind each clone.
#[derive(Clone)]
pub struct Tasks(Arc<Inner>);

struct Inner {
    config: Config,
    metrics: Metrics,
    /// Connections: leave. Raised by a signal or by the first unexpected end.
    stop: CancellationToken,
    /// Process tasks: be dropped. Raised when the connections are gone.
    abort: CancellationToken,
    process: TaskTracker,
    connections: TaskTracker,
    /// The first unexpected end; later ones are its consequences.
    first_exit: Mutex<Option<TaskExit>>,
}

impl Tasks {
    /// No tasks yet.
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
        // A closed tracker only means that waiting for it ends when it is empty; it still takes tasks.
        inner.process.close();
        inner.connections.close();
        Self(Arc::new(inner))
    }

    /// Runs a process task. It is not told of the end: it is dropped where it waits, after the connections.
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

    /// Runs a connection task: counted, and on its own in its panic. It should watch [`Tasks::stop`].
    pub fn connection(&self, task: impl Future<Output = ()> + Send + 'static) {
        let inner = self.0.clone();
        inner.metrics.connections.inc();
        // Combinators, not an async block: that would hold `task` twice, once as captured and once as awaited.
        let counted = AssertUnwindSafe(task).catch_unwind().map(move |outcome| {
            inner.metrics.connections.dec();
            if outcome.is_err() {
                inner.metrics.panics.inc();
            }
        });
        spawn_tracked(self.0.connections.track_future(counted));
    }

    /// How many connection tasks run.
    pub fn connections(&self) -> usize {
        self.0.connections.len()
    }

    /// Cancelled when the process begins to end: connections then leave within the drain time.
    pub fn stop(&self) -> &CancellationToken {
        &self.0.stop
    }

    /// What has been counted.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Waits for `signal` or for the first unexpected end of a process task, then stops everything: connections are
    /// asked to leave and have the drain time, then process tasks are dropped. `signal` is called again while that
    /// happens: a second one returns at once.
    ///
    /// # Errors
    /// The first unexpected end of a process task, before the signal or while connections leave.
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

    /// Waits for the connections as long as they have, then ends the process tasks. Returns the connections left.
    async fn drain(&self) -> usize {
        let inner = &self.0;
        // What is over time shows in the count below.
        let _ = timeout(inner.config.drain, inner.connections.wait()).await;
        let cut = inner.connections.len();
        inner.abort.cancel();
        if timeout(inner.config.abort_timeout, inner.process.wait()).await.is_err() {
            tracing::warn!(tasks = inner.process.len(), "tasks did not end and are left behind");
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

/// The one spawn of the crate. The handle is not needed: the tracker knows the task, and its panic is caught inside.
#[allow(clippy::disallowed_methods, reason = "this module is the owner that the lint asks for")]
fn spawn_tracked(task: impl Future<Output = ()> + Send + 'static) {
    drop(tokio::spawn(task));
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("not a message").to_owned()
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::pending, io, time::Instant};

    use tokio::sync::{mpsc, oneshot};

    use super::*;

    /// Signals that the test sends by hand; bounded like any queue.
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
        let (left, mut has_left) = oneshot::channel();
        let stop = tasks.stop().clone();
        tasks.connection(async move {
            stop.cancelled().await;
            left.send(()).unwrap();
        });
        assert_eq!(tasks.connections(), 1);
        send.send(()).await.unwrap();
        let stopped = tasks.run_until(async || next(&mut receive).await).await.unwrap();
        assert_eq!(stopped, Stopped::Drained { cut: 0 });
        has_left.try_recv().unwrap();
        assert!(dropped.await.is_err(), "the process task must have been dropped");
    }

    #[tokio::test]
    async fn first_ended_process_task_is_the_exit_reason() {
        let tasks = short();
        tasks.spawn("quiet", pending::<Result<(), io::Error>>());
        tasks.spawn("loud", async { Err::<(), _>(io::Error::other("no more")) });
        let exit = tasks.run_until(async || pending().await).await.unwrap_err();
        let source = std::error::Error::source(&exit).map(ToString::to_string);
        assert_eq!((exit.to_string().as_str(), source.as_deref()), ("loud failed", Some("no more")));

        let tasks = short();
        tasks.spawn("done", async { Ok::<_, io::Error>(()) });
        let exit = tasks.run_until(async || pending().await).await.unwrap_err();
        assert!(matches!(exit, TaskExit::Returned { name: "done" }), "{exit}");

        let tasks = short();
        tasks.spawn("wild", async {
            assert_eq!(1, 2, "sums");
            Ok::<_, io::Error>(())
        });
        let exit = tasks.run_until(async || pending().await).await.unwrap_err();
        assert!(exit.to_string().starts_with("wild panicked: assertion"), "{exit}");
    }

    #[tokio::test]
    async fn connection_panic_is_counted_and_isolated() {
        let tasks = Tasks::new(Config::default());
        let (done, is_done) = oneshot::channel();
        tasks.connection(async { panic!("one client's misfortune") });
        tasks.connection(async { done.send(()).unwrap() });
        is_done.await.unwrap();
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
        assert!(started.elapsed() < Duration::from_secs(5), "the drain time of 10 s was waited for");
    }
}
