//! Metrics of the listener. Every label set exists from the start, with the value 0.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Why a TCP connection was closed before a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectReason {
    /// [`super::Config::max_connections`] connections were open, and none of them waited for a request.
    Limit,
    /// It had waited longest for a request when more connections waited, or were open, than a bound allows.
    Waiting,
    /// The TLS handshake failed or took longer than [`super::Config::header_read_timeout`].
    TlsHandshake,
    /// A socket option could not be set.
    SocketOption,
}

impl RejectReason {
    const ALL: [RejectReason; 4] = [Self::Limit, Self::Waiting, Self::TlsHandshake, Self::SocketOption];

    fn name(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Waiting => "waiting",
            Self::TlsHandshake => "tls_handshake",
            Self::SocketOption => "socket_option",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RejectLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    outcome: &'static str,
}

fn reload_labels(success: bool) -> ReloadLabels {
    ReloadLabels { outcome: if success { "ok" } else { "error" } }
}

/// Metrics of a listener. Clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    accepted: Counter,
    rejected: Family<RejectLabels, Counter>,
    accept_errors: Counter,
    tls_reloads: Family<ReloadLabels, Counter>,
    /// Empty without TLS, so that the metric then has no sample.
    certificate_expiry: Family<[(&'static str, &'static str); 0], Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            accepted: Counter::default(),
            rejected: Family::default(),
            accept_errors: Counter::default(),
            tls_reloads: Family::default(),
            certificate_expiry: Family::default(),
        };
        for reason in RejectReason::ALL {
            drop(metrics.rejected.get_or_create(&RejectLabels { reason: reason.name() }));
        }
        for success in [true, false] {
            drop(metrics.tls_reloads.get_or_create(&reload_labels(success)));
        }
        metrics
    }
}

impl Metrics {
    /// Adds the metrics to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("http_connections_accepted", "Accepted TCP connections", self.accepted.clone());
        registry.register(
            "http_connections_rejected",
            "TCP connections that were closed before a request",
            self.rejected.clone(),
        );
        registry.register("http_accept_errors", "Failures of accept(2)", self.accept_errors.clone());
        registry.register("tls_reloads", "Reads of changed TLS certificate files", self.tls_reloads.clone());
        registry.register(
            "tls_certificate_expiry_timestamp_seconds",
            "End of the validity (notAfter) of the served TLS certificate, in seconds since 1970",
            self.certificate_expiry.clone(),
        );
    }

    /// Returns the number of accepted connections.
    pub fn accepted(&self) -> u64 {
        self.accepted.get()
    }

    /// Returns the number of connections that were closed for this reason.
    pub fn rejected(&self, reason: RejectReason) -> u64 {
        self.rejected.get_or_create(&RejectLabels { reason: reason.name() }).get()
    }

    /// Returns the number of successful or failed reloads.
    #[cfg(test)]
    pub(super) fn tls_reloads(&self, success: bool) -> u64 {
        self.tls_reloads.get_or_create(&reload_labels(success)).get()
    }

    #[cfg(test)]
    pub(super) fn certificate_expiry(&self) -> Option<i64> {
        Some(self.certificate_expiry.get(&[])?.get())
    }

    pub(super) fn record_accepted(&self) {
        self.accepted.inc();
    }

    pub(super) fn record_rejected(&self, reason: RejectReason) {
        self.rejected.get_or_create(&RejectLabels { reason: reason.name() }).inc();
    }

    pub(super) fn record_accept_error(&self) {
        self.accept_errors.inc();
    }

    pub(super) fn record_tls_reload(&self, success: bool) {
        self.tls_reloads.get_or_create(&reload_labels(success)).inc();
    }

    pub(super) fn set_certificate_expiry(&self, not_after: Option<i64>) {
        match not_after {
            Some(not_after) => drop(self.certificate_expiry.get_or_create(&[]).set(not_after)),
            None => drop(self.certificate_expiry.remove(&[])),
        }
    }
}
