//! The stream permit, and what all streams of a listener share.
//!
//! Guarantees: at most [`Config::max_streams`] permits exist at once. A part of them is reserved for callers with a credential.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{config::Config, end::StreamEnd, endpoint::Endpoint, fan_out::FanOut, metrics::Metrics};
use crate::traces::StreamSpan;

/// What all streams of a listener share.
#[derive(Debug)]
pub struct StreamContext {
    /// The limits of the streams.
    pub config: Config,
    /// The metrics of the streams.
    pub metrics: Metrics,
    /// Cancelled when the process drains. Each stream then ends within [`Config::drain_spread`].
    pub stop: CancellationToken,
    /// The shards, which write to fan-out groups.
    pub fan_out: FanOut,
    /// Permits for encoding parts of initial states.
    pub(super) encodings: Arc<Semaphore>,
    /// The number of permits that exist.
    open_streams: AtomicUsize,
}

/// The right to be one of at most [`Config::max_streams`] streams. A request acquires it before any other work;
/// dropping it releases it.
#[derive(Debug)]
pub struct StreamPermit {
    context: Arc<StreamContext>,
    endpoint: &'static Endpoint,
    span: StreamSpan,
}

impl StreamContext {
    /// Returns the context of a listener without streams.
    pub fn new(config: Config, metrics: Metrics, stop: CancellationToken) -> Arc<Self> {
        let encodings = Arc::new(Semaphore::new(config.max_concurrent_encodings));
        Arc::new(Self { config, metrics, stop, fan_out: FanOut::new(), encodings, open_streams: AtomicUsize::new(0) })
    }

    /// Returns a permit for one more stream of `endpoint`, or `None` if [`Config::max_streams`] permits exist.
    pub fn try_acquire(self: &Arc<Self>, endpoint: &'static Endpoint) -> Option<StreamPermit> {
        self.try_acquire_below(self.config.max_streams, endpoint)
    }

    /// As [`StreamContext::try_acquire`], for a caller without a credential where credentials are configured. It leaves the
    /// permits that are reserved for callers with a credential ([`Config::max_anonymous_streams`]).
    pub fn try_acquire_unreserved(self: &Arc<Self>, endpoint: &'static Endpoint) -> Option<StreamPermit> {
        self.try_acquire_below(self.config.max_anonymous_streams(), endpoint)
    }

    /// Returns whether [`StreamContext::try_acquire_unreserved`] fails now.
    pub fn has_only_reserved(&self) -> bool {
        self.open_streams.load(Relaxed) >= self.config.max_anonymous_streams()
    }

    fn try_acquire_below(self: &Arc<Self>, max: usize, endpoint: &'static Endpoint) -> Option<StreamPermit> {
        let increment = |open| (open < max).then_some(open + 1);
        self.open_streams.fetch_update(Relaxed, Relaxed, increment).ok()?;
        Some(StreamPermit { context: self.clone(), endpoint, span: StreamSpan::default() })
    }
}

impl StreamPermit {
    /// Sets the span of the stream that the permit is for.
    #[must_use]
    pub fn with_span(mut self, span: StreamSpan) -> StreamPermit {
        self.span = span;
        self
    }

    /// Returns the endpoint of the stream.
    pub fn endpoint(&self) -> &'static Endpoint {
        self.endpoint
    }

    /// Counts the end of the stream, and ends its span.
    pub(super) fn record_closed(&self, end: StreamEnd) {
        self.metrics.record_closed(self.endpoint, end);
        self.span.finish(end.label());
    }

    /// Counts bytes that the stream has written.
    pub(super) fn record_sent(&self, bytes: u32) {
        self.metrics.record_sent(self.endpoint, bytes);
        self.span.add_sent(bytes);
    }
}

impl Deref for StreamPermit {
    type Target = StreamContext;

    fn deref(&self) -> &StreamContext {
        &self.context
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.context.open_streams.fetch_sub(1, Relaxed);
    }
}
