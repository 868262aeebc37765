//! A response that starts a stream, and how it gets past hyper.
//!
//! The service wrapper parks such a response in a slot that the connection task looks into, and never answers hyper.
//! The slot gives it out only after a flush has been seen: then everything hyper had to write is written.
use std::{
    convert::Infallible,
    fmt,
    future::pending,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures::FutureExt as _;
use hyper::{
    Request, Response, StatusCode, Version,
    body::{Body, Incoming},
    header::{CONNECTION, DATE, HeaderMap, HeaderValue, UPGRADE},
};
use tower::Service;

use super::{Conn, Peer};
use crate::tasks::Tasks;

/// A connection that hyper has let go, for a stream to run on.
#[derive(Debug)]
pub struct HijackedSocket {
    /// The connection.
    pub conn: Conn,
    /// The response's head. Nothing of it is sent yet, so that it shares a write with the first events.
    pub head: Bytes,
    /// What the client sent after its request.
    pub read_ahead: Bytes,
}

type StartFn = Box<dyn FnOnce(HijackedSocket, &Tasks) + Send>;

/// The stream that a response starts, put into the response's extensions. The response's status and headers go out as
/// they are (with `Date`, and `Connection: close` unless it is a 101), its body does not.
#[derive(Clone)]
pub struct StreamStart(Arc<Mutex<Option<StartFn>>>);

impl StreamStart {
    /// `run` gets the socket; what it returns becomes a connection task, whose output is dropped.
    pub fn new<F>(run: impl FnOnce(HijackedSocket) -> F + Send + 'static) -> Self
    where
        F: Future + Send + 'static,
    {
        // The task is made in here, where the future's type is known: a boxed future would be a second allocation.
        let run: StartFn = Box::new(move |socket, tasks| tasks.connection(run(socket).map(drop)));
        Self(Arc::new(Mutex::new(Some(run))))
    }

    /// Starts the stream; only the first clone that is asked does.
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

/// Where a parked response waits for hyper's last flush.
#[derive(Debug, Clone, Default)]
pub(super) struct HandoffSlot(Arc<Mutex<State>>);

#[derive(Debug, Default)]
enum State {
    /// No request has come yet.
    #[default]
    Idle,
    /// Ordinary requests and responses.
    Serving,
    /// A stream is to start; hyper may still hold bytes of earlier responses.
    Pending(Bytes, StreamStart),
    /// A stream is to start and hyper holds nothing more.
    Ready(Bytes, StreamStart),
}

impl HandoffSlot {
    /// Whether a request has come.
    pub(super) fn has_request(&self) -> bool {
        !matches!(*self.lock(), State::Idle)
    }

    fn mark_request(&self) {
        let mut state = self.lock();
        if matches!(*state, State::Idle) {
            *state = State::Serving;
        }
    }

    fn store(&self, head: Bytes, start: StreamStart) {
        *self.lock() = State::Pending(head, start);
    }

    /// hyper's write buffer is empty and flushed.
    pub(super) fn mark_flushed(&self) {
        let mut state = self.lock();
        *state = match std::mem::take(&mut *state) {
            State::Pending(head, start) => State::Ready(head, start),
            other @ (State::Idle | State::Serving | State::Ready(..)) => other,
        };
    }

    /// The head and the stream, once they can be had without loss.
    pub(super) fn take(&self) -> Option<(Bytes, StreamStart)> {
        let mut state = self.lock();
        match std::mem::take(&mut *state) {
            State::Ready(head, start) => Some((head, start)),
            other @ (State::Idle | State::Serving | State::Pending(..)) => {
                *state = other;
                None
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The service as hyper sees it.
pub(super) struct HijackService<S> {
    service: S,
    peer: Peer,
    slot: HandoffSlot,
}

impl<S> HijackService<S> {
    pub(super) fn new(service: S, peer: Peer, slot: HandoffSlot) -> Self {
        Self { service, peer, slot }
    }
}

impl<S, B> hyper::service::Service<Request<Incoming>> for HijackService<S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone,
    S::Future: Send + 'static,
    B: Send,
{
    type Response = Response<B>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.peer);
        // RFC 9110, section 7.8: an Upgrade of HTTP/1.0 is to be ignored.
        if request.version() < Version::HTTP_11 {
            request.headers_mut().remove(UPGRADE);
        }
        // A body would be taken for the stream's input: a request that has one is answered, but starts nothing.
        let has_no_body = request.body().is_end_stream();
        let slot = self.slot.clone();
        slot.mark_request();
        let response_future = self.service.clone().call(request);
        Box::pin(async move {
            let mut response = response_future.await?;
            match response.extensions_mut().remove::<StreamStart>() {
                Some(start) if has_no_body => {
                    slot.store(encode_head(response.status(), response.headers()), start);
                    drop(response);
                    pending().await
                }
                Some(_) => {
                    *response.status_mut() = StatusCode::BAD_REQUEST;
                    response.headers_mut().clear();
                    Ok(response)
                }
                None => Ok(response),
            }
        })
    }
}

/// A response head on the wire (RFC 9112 section 4): no length and no chunks, the stream ends with the connection.
fn encode_head(status: StatusCode, headers: &HeaderMap) -> Bytes {
    let mut headers = headers.clone();
    let now = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&jiff::Timestamp::now());
    if let Some(date) = now.ok().and_then(|now| HeaderValue::try_from(now).ok()) {
        headers.insert(DATE, date);
    }
    if status != StatusCode::SWITCHING_PROTOCOLS {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in &headers {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out.into()
}
