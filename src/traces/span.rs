//! The spans of requests and streams (docs/protocol.md#traces).
//!
//! A client's `traceparent` is hostile input: it can join any trace, and ask to record what would not be recorded. It is
//! therefore used only after the request was admitted with a credential. `tracestate` and `baggage` are never read.
//!
//! Must not import: any sibling except `request_head`.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use http::{HeaderMap, Version, header};
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _},
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{SdkTracer, Span},
};

use super::request_head::RequestHead;

/// Maximum characters of a path and of a `User-Agent` in a span.
const MAX_TEXT_CHARS: usize = 200;
/// `http.request.method` of an unknown method (OpenTelemetry, semantic conventions for HTTP spans).
const OTHER_METHOD: &str = "_OTHER";
/// The header with the id of the client's span (W3C Trace Context, section 3.2).
const TRACEPARENT: &str = "traceparent";
/// The reason of a stream that ended because the bridge failed.
const INTERNAL: &str = "internal";

/// Starts the spans of requests. The default starts none.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<SdkTracer>);

impl Tracer {
    /// Returns a tracer that starts spans.
    pub(super) fn new(tracer: SdkTracer) -> Tracer {
        Tracer(Some(tracer))
    }

    /// Returns the span of a request that arrives now. `head` is not called where no spans are started.
    #[must_use]
    pub fn request<'a>(&self, head: impl FnOnce() -> RequestHead<'a>) -> RequestSpan {
        let Some(tracer) = &self.0 else { return RequestSpan::default() };
        let head = head();
        let mut attributes = vec![
            KeyValue::new("http.request.method", head.method.unwrap_or(OTHER_METHOD)),
            KeyValue::new("url.scheme", if head.secure { "https" } else { "http" }),
            KeyValue::new("url.path", bounded(head.path)),
            KeyValue::new("network.protocol.version", if head.version == Version::HTTP_10 { "1.0" } else { "1.1" }),
            KeyValue::new("client.address", head.address.to_string()),
        ];
        if let Some(agent) = head.headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()) {
            attributes.push(KeyValue::new("user_agent.original", bounded(agent)));
        }
        let method = head.method.unwrap_or("HTTP");
        let builder = SpanBuilder::from_name(method)
            .with_kind(SpanKind::Server)
            .with_start_time(SystemTime::now())
            .with_attributes(attributes);
        let state = Mutex::new(RequestState { builder, span: None });
        RequestSpan(Some(Arc::new(Request { tracer: tracer.clone(), method, parent: parent(head.headers), state })))
    }
}

fn bounded(text: &str) -> String {
    text.chars().take(MAX_TEXT_CHARS).collect()
}

/// Returns the span that the client names as its own. Several headers name none.
fn parent(headers: &HeaderMap) -> Option<SpanContext> {
    /// The only header that is read.
    struct Traceparent<'a>(&'a str);

    impl Extractor for Traceparent<'_> {
        fn get(&self, key: &str) -> Option<&str> {
            (key == TRACEPARENT).then_some(self.0)
        }

        fn keys(&self) -> Vec<&str> {
            vec![TRACEPARENT]
        }
    }

    let mut values = headers.get_all(TRACEPARENT).into_iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let value = Traceparent(value.to_str().ok()?);
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &value);
    let parent = context.span().span_context().clone();
    parent.is_valid().then_some(parent)
}

/// The span of a request. Clones are one span. It starts with the request and ends with [`RequestSpan::finish`], or, once the
/// request is admitted, with its last clone. A request that ends before has no span.
#[derive(Clone, Debug, Default)]
pub struct RequestSpan(Option<Arc<Request>>);

#[derive(Debug)]
struct Request {
    tracer: SdkTracer,
    method: &'static str,
    /// The span that the client names. It is not used before the request is admitted.
    parent: Option<SpanContext>,
    state: Mutex<RequestState>,
}

#[derive(Debug)]
struct RequestState {
    builder: SpanBuilder,
    /// `None` until the parent is known.
    span: Option<Span>,
}

impl Request {
    /// Calls `f` with the span. If it has not started, it starts with this parent.
    fn with_span<T>(&self, parent: Option<&SpanContext>, f: impl FnOnce(&mut Span) -> T) -> T {
        let mut state: MutexGuard<'_, RequestState> = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let RequestState { builder, span } = &mut *state;
        let start = || self.tracer.build_with_context(std::mem::take(builder), &child_of(parent));
        f(span.get_or_insert_with(start))
    }
}

impl RequestSpan {
    /// Returns whether spans are started.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.0.is_some()
    }

    /// Makes the span a child of the one that the client named. The caller must have checked the client's credential.
    pub fn accept_parent(&self) {
        if let Some(request) = &self.0 {
            request.with_span(request.parent.as_ref(), |_| ());
        }
    }

    /// Returns the span of the stream that the request opens: a child of this span that starts now. `resumes` is whether the
    /// client named the event after which the stream continues.
    #[must_use]
    pub fn stream(&self, route: &'static str, transport: &'static str, resumes: bool) -> StreamSpan {
        let Some(request) = &self.0 else { return StreamSpan::default() };
        let protocol = if transport == "websocket" { "websocket" } else { "http" };
        let builder =
            SpanBuilder::from_name(format!("stream {route}")).with_kind(SpanKind::Internal).with_attributes([
                KeyValue::new("http.route", route),
                KeyValue::new("network.protocol.name", protocol),
                KeyValue::new("bridge.stream.transport", transport),
                KeyValue::new("bridge.stream.resumes", resumes),
            ]);
        let parent = request.with_span(None, |span| span.span_context().clone());
        let span = request.tracer.build_with_context(builder, &child_of(Some(&parent)));
        // The parent can be one that is not recorded.
        let stream = span.is_recording().then(|| Stream { span: Mutex::new(span), sent: AtomicU64::new(0) });
        StreamSpan(stream.map(Box::new))
    }

    /// Ends the span. `route` is the pattern of the route that answered with `status`, if there is one.
    pub fn finish(&self, route: Option<&'static str>, status: u16) {
        let Some(request) = &self.0 else { return };
        request.with_span(None, |span| {
            if let Some(route) = route {
                span.update_name(format!("{} {route}", request.method));
                span.set_attribute(KeyValue::new("http.route", route));
            }
            span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
            if status >= 500 {
                span.set_attribute(KeyValue::new("error.type", status.to_string()));
                span.set_status(Status::error(""));
            }
            span.end();
        });
    }
}

fn child_of(parent: Option<&SpanContext>) -> Context {
    parent.map_or_else(Context::new, |parent| Context::new().with_remote_span_context(parent.clone()))
}

/// The span of a stream. Boxed, because most streams have none, and the memory of a stream must be small.
#[derive(Debug, Default)]
pub struct StreamSpan(Option<Box<Stream>>);

#[derive(Debug)]
struct Stream {
    span: Mutex<Span>,
    /// Bytes that were written.
    sent: AtomicU64,
}

impl StreamSpan {
    /// Adds bytes that were written. A delivery must not call it.
    pub fn add_sent(&self, bytes: u32) {
        if let Some(stream) = &self.0 {
            stream.sent.fetch_add(bytes.into(), Relaxed);
        }
    }

    /// Ends the span. `reason` is the label of the end in metrics.
    pub fn finish(&self, reason: &'static str) {
        let Some(stream) = &self.0 else { return };
        let mut span = stream.span.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = i64::try_from(stream.sent.load(Relaxed)).unwrap_or(i64::MAX);
        span.set_attribute(KeyValue::new("bridge.stream.bytes_sent", sent));
        span.set_attribute(KeyValue::new("bridge.stream.close_reason", reason));
        if reason == INTERNAL {
            span.set_attribute(KeyValue::new("error.type", reason));
            span.set_status(Status::error(""));
        }
        span.end();
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn parent_of(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACEPARENT, HeaderValue::from_str(value).unwrap());
        }
        headers.append("tracestate", HeaderValue::from_static("vendor=a-secret"));
        headers.append("baggage", HeaderValue::from_static("key=a-secret"));
        let parent = parent(&headers)?;
        assert!(!format!("{parent:?}").contains("a-secret"), "{parent:?}");
        Some(format!("{}-{}", parent.trace_id(), parent.span_id()))
    }

    #[test]
    fn only_one_well_formed_traceparent_names_a_parent() {
        assert_eq!(parent_of(&[VALID]).as_deref(), Some("0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"));
        for wrong in [
            &[][..],
            &[VALID, VALID],
            &[""],
            &["00"],
            &["00-00000000000000000000000000000000-b7ad6b7169203331-01"],
            &["00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01"],
            &["00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01"],
            &["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x"],
            &["ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
            &[" 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-zz"],
        ] {
            assert_eq!(parent_of(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn text_of_clients_is_cut() {
        assert_eq!(bounded(&"ä".repeat(1000)).chars().count(), MAX_TEXT_CHARS);
    }

    #[test]
    fn default_tracer_starts_no_span() {
        let span = Tracer::default().request(|| panic!("the head is not needed"));
        assert!(!span.is_recorded());
        span.accept_parent();
        let stream = span.stream("/ws", "websocket", false);
        stream.add_sent(1);
        stream.finish("disconnected");
        span.finish(Some("/ws"), 101);
    }
}
