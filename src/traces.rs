//! Traces for an OpenTelemetry collector: one span for each request, and one for each stream from its start to its end
//! (docs/protocol.md#traces).
//!
//! With the feature `otlp`, finished spans wait in a bounded queue, and one task sends them over OTLP/HTTP. Without it, the
//! same types do nothing.
//!
//! Guarantees:
//! - There is no span for an event, and a delivery does nothing for traces.
//! - A span contains no credential, no query and no header but `User-Agent`.
//! - A request never waits for the collector.
//!
//! Must not import: any other module of this crate, except for the reason of a failed connection.

#[cfg(feature = "otlp")]
mod collector;
#[cfg(feature = "otlp")]
mod export;
#[cfg(not(feature = "otlp"))]
mod no_span;
mod request_head;
#[cfg(feature = "otlp")]
mod span;

pub use self::request_head::RequestHead;
#[cfg(feature = "otlp")]
pub use self::{
    export::{Config, Export, FLUSH_TIMEOUT, Metrics, start},
    span::{RequestSpan, StreamSpan, Tracer},
};
#[cfg(not(feature = "otlp"))]
pub use no_span::{RequestSpan, StreamSpan, Tracer};
