//! A response that starts a stream, and the socket that the stream receives.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures::FutureExt as _;
use hyper::Response;

use super::transport::Conn;
use crate::tasks::Tasks;

/// A connection that was taken from hyper, for a stream to run on.
#[derive(Debug)]
pub struct HijackedSocket {
    /// The connection.
    pub conn: Conn,
    /// The response head. It is not sent yet, so that the stream can write it together with the first events.
    pub head: Bytes,
    /// The bytes that the client sent after the head of its request: the start of the stream's input. They can contain a
    /// part of the body of the request.
    pub read_ahead: Bytes,
}

type StartFn = Box<dyn FnOnce(HijackedSocket, &Tasks) + Send>;

/// The stream that a response starts. A service puts it into the extensions of the response.
///
/// Status and headers of the response are sent as they are, with `Date`, and with `Connection: close` unless the status
/// is 101. The body of the response is dropped.
#[derive(Clone)]
pub struct StreamStart(Arc<Mutex<Option<StartFn>>>);

impl StreamStart {
    /// Returns a start that calls `run` with the socket. The future that `run` returns becomes a connection task; its
    /// output is dropped.
    pub fn new<F>(run: impl FnOnce(HijackedSocket) -> F + Send + 'static) -> Self
    where
        F: Future + Send + 'static,
    {
        // The task is created inside the closure, where the type of the future is known: a boxed future would be a
        // second allocation.
        let run: StartFn = Box::new(move |socket, tasks| tasks.connection(run(socket).map(drop)));
        Self(Arc::new(Mutex::new(Some(run))))
    }

    /// Starts the stream. Only the first call on all clones has an effect.
    pub(super) fn run(self, socket: HijackedSocket, tasks: &Tasks) {
        let run = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(run) = run {
            run(socket, tasks);
        }
    }
}

impl fmt::Debug for StreamStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamStart")
    }
}

/// Returns a response with this head and an empty body, which starts the stream `start`, if there is one.
pub(crate) fn response<B: Default>(head: Response<()>, start: Option<StreamStart>) -> Response<B> {
    let mut response = head.map(|()| B::default());
    if let Some(start) = start {
        response.extensions_mut().insert(start);
    }
    response
}
