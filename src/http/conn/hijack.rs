//! The service that hyper calls. It does not pass a response that starts a stream to hyper.
//!
//! Guarantees: such a response is stored in the [`HandoffSlot`], and its future never completes. hyper therefore writes
//! nothing of it.

use std::{convert::Infallible, future::pending, pin::Pin};

use bytes::Bytes;
use hyper::{
    Request, Response, StatusCode, Version,
    body::Incoming,
    header::{ACCEPT, CONNECTION, DATE, HeaderMap, HeaderValue, TRANSFER_ENCODING, UPGRADE},
};
use tower::{Service, ServiceExt as _};

use super::{handoff::HandoffSlot, peer::Peer, stream_start::StreamStart};

/// A service of the HTTP layer, wrapped for one connection.
pub(super) struct HijackService<S> {
    service: S,
    peer: Peer,
    slot: HandoffSlot,
}

impl<S> HijackService<S> {
    /// Wraps `service` for the connection of `peer`, whose slot is `slot`.
    pub(super) fn new(service: S, peer: Peer, slot: HandoffSlot) -> Self {
        Self { service, peer, slot }
    }
}

impl<S, B> hyper::service::Service<Request<Incoming>> for HijackService<S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Send,
{
    type Response = Response<B>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.peer);
        let version = request.version();
        request.extensions_mut().insert(version);
        // RFC 9110 section 7.8: a server ignores `Upgrade` in an HTTP/1.0 request.
        if request.version() < Version::HTTP_11 {
            request.headers_mut().remove(UPGRADE);
        }
        let slot = self.slot.clone();
        // A client that waits for a stream has left when its input has ended.
        let has = |name, value: &str| {
            let values = request.headers().get_all(name).into_iter().filter_map(|value| value.to_str().ok());
            values.flat_map(|values| values.split(',')).any(|one| one.trim().eq_ignore_ascii_case(value))
        };
        slot.mark_request(request.headers().contains_key(UPGRADE) || has(ACCEPT, "text/event-stream"));
        let wants_close = has(CONNECTION, "close");
        let response_future = self.service.clone().oneshot(request);
        Box::pin(async move {
            let mut response = response_future.await?;
            match response.extensions_mut().remove::<StreamStart>() {
                Some(start) => {
                    slot.store(encode_head(response.status(), response.headers(), wants_close), start);
                    drop(response);
                    pending().await
                }
                None => {
                    slot.mark_answered();
                    Ok(response)
                }
            }
        })
    }
}

/// Returns a response head as it is sent (RFC 9112 section 4). The end of the stream is the end of the connection.
fn encode_head(status: StatusCode, headers: &HeaderMap, wants_close: bool) -> Bytes {
    let mut headers = headers.clone();
    let now = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&jiff::Timestamp::now());
    if let Some(date) = now.ok().and_then(|now| HeaderValue::try_from(now).ok()) {
        headers.insert(DATE, date);
    }
    // A crash of the bridge cuts a body in chunks, which is an error for its client. Clients such as Node's `fetch` take it
    // for the end of the body if the head announces the close of the connection. Those do not ask for the close.
    if status != StatusCode::SWITCHING_PROTOCOLS && (wants_close || !headers.contains_key(TRANSFER_ENCODING)) {
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
