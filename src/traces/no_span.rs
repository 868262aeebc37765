//! The types of [`super`] in a binary without the feature `otlp`. They do nothing.

use super::request_head::RequestHead;

/// Starts the spans of requests.
#[derive(Clone, Debug, Default)]
pub struct Tracer(());

impl Tracer {
    /// Returns the span of a request.
    #[must_use]
    pub fn request<'a>(&self, _head: impl FnOnce() -> RequestHead<'a>) -> RequestSpan {
        RequestSpan(())
    }
}

/// The span of a request.
#[derive(Clone, Debug, Default)]
pub struct RequestSpan(());

impl RequestSpan {
    /// Returns whether the span is recorded.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        false
    }

    /// Makes the span a child of the one that the client named.
    pub fn accept_parent(&self) {}

    /// Returns the span of the stream that the request opens.
    #[must_use]
    pub fn stream(&self, _route: &'static str, _transport: &'static str, _resumes: bool) -> StreamSpan {
        StreamSpan(())
    }

    /// Ends the span.
    pub fn finish(&self, _route: Option<&'static str>, _status: u16) {}
}

/// The span of a stream.
#[derive(Debug, Default)]
pub struct StreamSpan(());

impl StreamSpan {
    /// Adds bytes that were written.
    pub fn add_sent(&self, _bytes: u32) {}

    /// Ends the span.
    pub fn finish(&self, _reason: &'static str) {}
}
