//! Metrics of streams.
//!
//! Guarantees: a delivery updates no metric. Each stream counts its written bytes for itself and adds them to the
//! metric at each ping interval and at its end.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{
    end::StreamEnd,
    endpoint::{Endpoint, Transport},
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransportLabels {
    transport: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabels {
    transport: &'static str,
    endpoint: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    transport: &'static str,
    endpoint: &'static str,
    reason: &'static str,
}

fn labels(endpoint: &Endpoint) -> EndpointLabels {
    EndpointLabels { transport: endpoint.transport.label(), endpoint: endpoint.path }
}

fn end_labels(endpoint: &Endpoint, end: StreamEnd) -> EndLabels {
    EndLabels { transport: endpoint.transport.label(), endpoint: endpoint.path, reason: end.label() }
}

/// Metrics of all streams. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    open: Family<EndpointLabels, Gauge>,
    opened: Family<EndpointLabels, Counter>,
    closed: Family<EndLabels, Counter>,
    bytes_sent: Family<TransportLabels, Counter>,
}

impl Metrics {
    /// Adds the metrics to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("streams", "Open streams", self.open.clone());
        registry.register("streams_opened", "Streams started", self.opened.clone());
        registry.register("streams_closed", "Streams ended, by reason", self.closed.clone());
        registry.register(
            "stream_bytes_sent",
            "Bytes written to streams, without TLS overhead; updated every 15 s and at the end of a stream",
            self.bytes_sent.clone(),
        );
    }

    /// Creates every label set of `endpoint` with the value 0.
    pub fn create_label_sets(&self, endpoint: &Endpoint) {
        drop(self.open.get_or_create(&labels(endpoint)));
        drop(self.opened.get_or_create(&labels(endpoint)));
        for end in StreamEnd::ALL {
            drop(self.closed.get_or_create(&end_labels(endpoint, end)));
        }
        drop(self.bytes_sent.get_or_create(&TransportLabels { transport: endpoint.transport.label() }));
    }

    /// Returns the number of open streams of this endpoint.
    pub fn open(&self, endpoint: &Endpoint) -> i64 {
        self.open.get_or_create(&labels(endpoint)).get()
    }

    /// Returns the number of streams that this endpoint has started.
    pub fn opened(&self, endpoint: &Endpoint) -> u64 {
        self.opened.get_or_create(&labels(endpoint)).get()
    }

    /// Returns the number of streams of this endpoint that have ended in this way.
    pub fn closed(&self, endpoint: &Endpoint, end: StreamEnd) -> u64 {
        self.closed.get_or_create(&end_labels(endpoint, end)).get()
    }

    /// Returns the number of bytes written to streams of this transport, as far as they are reported.
    pub fn bytes_sent(&self, transport: Transport) -> u64 {
        self.bytes_sent.get_or_create(&TransportLabels { transport: transport.label() }).get()
    }

    pub(super) fn record_opened(&self, endpoint: &Endpoint) {
        self.open.get_or_create(&labels(endpoint)).inc();
        self.opened.get_or_create(&labels(endpoint)).inc();
    }

    /// Counts a stream as no longer open. A stream that is dropped before its end is counted here only.
    pub(super) fn record_dropped(&self, endpoint: &Endpoint) {
        self.open.get_or_create(&labels(endpoint)).dec();
    }

    pub(super) fn record_closed(&self, endpoint: &Endpoint, end: StreamEnd) {
        self.closed.get_or_create(&end_labels(endpoint, end)).inc();
    }

    pub(super) fn record_sent(&self, endpoint: &Endpoint, bytes: u32) {
        let labels = TransportLabels { transport: endpoint.transport.label() };
        self.bytes_sent.get_or_create(&labels).inc_by(bytes.into());
    }
}
