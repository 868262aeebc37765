//! Metrics of HTTP requests and of rejected streams.
//!
//! Labels come from fixed sets: route patterns, known methods, status codes, reasons. No label contains text of a client.
//!
//! Must not import: any other module of this crate.

use std::time::Duration;

use http::Method;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tokio::time::Instant;

/// Upper bounds of the request duration, in seconds. A WebSocket upgrade may wait 10 s for the first lists.
const REQUEST_SECONDS: [f64; 7] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0];
/// Label of paths without a route, of requests whose `Host` the browser guard rejects, and of unknown methods.
const OTHER: &str = "other";
/// Names of the checks of the browser guard.
const GUARD_CHECKS: [&str; 3] = ["host", "origin", "site"];

/// Counters, gauges and histograms of all requests of a server.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    request_seconds: Family<RouteLabels, Histogram, fn() -> Histogram>,
    in_flight: Gauge,
    guard_rejections: Family<GuardLabels, Counter>,
    streams_rejected: Family<StreamLabels, Counter>,
    draining: Gauge,
}

/// A request that is being answered. It is counted as in flight until it is dropped.
#[derive(Debug)]
pub(super) struct RequestTimer {
    metrics: Metrics,
    start: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    method: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: &'static str,
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GuardLabels {
    check: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StreamLabels {
    transport: &'static str,
    endpoint: &'static str,
    reason: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Metrics {
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(|| Histogram::new(REQUEST_SECONDS)),
            in_flight: Gauge::default(),
            guard_rejections: Family::default(),
            streams_rejected: Family::default(),
            draining: Gauge::default(),
        };
        for check in GUARD_CHECKS {
            drop(metrics.guard_rejections.get_or_create(&GuardLabels { check }));
        }
        metrics
    }
}

impl Metrics {
    /// Registers all metrics under their names.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("http_requests", "Answered requests, stream handshakes included", self.requests.clone());
        registry.register(
            "http_request_duration_seconds",
            "Time from the request head to the response head",
            self.request_seconds.clone(),
        );
        registry.register("http_requests_in_flight", "Requests being answered", self.in_flight.clone());
        registry.register(
            "http_guard_rejections",
            "400 and 403 responses of the Host, Origin and Sec-Fetch-Site checks",
            self.guard_rejections.clone(),
        );
        registry.register(
            "streams_rejected",
            "Stream requests rejected for now, by reason",
            self.streams_rejected.clone(),
        );
        registry.register("draining", "1 while the process drains", self.draining.clone());
    }

    /// Creates the label sets of a route with its main method, so that they are visible before the first request.
    pub(super) fn add_route(&self, route: &'static str, method: &'static str, code: u16) {
        drop(self.requests.get_or_create(&RequestLabels { route, method, code }));
        drop(self.request_seconds.get_or_create(&RouteLabels { route, method }));
    }

    /// Creates the label sets of rejected requests for a stream endpoint.
    pub(super) fn add_stream_endpoint(
        &self,
        endpoint: &'static str,
        transport: &'static str,
        reasons: &[&'static str],
    ) {
        for reason in reasons {
            drop(self.streams_rejected.get_or_create(&StreamLabels { transport, endpoint, reason }));
        }
    }

    /// Starts the measurement of a request.
    pub(super) fn start_request(&self) -> RequestTimer {
        self.in_flight.inc();
        RequestTimer { metrics: self.clone(), start: Instant::now() }
    }

    /// Counts a request that the browser guard rejects. `check` is `host`, `origin` or `site`.
    pub(super) fn count_guard_rejection(&self, check: &'static str) {
        self.guard_rejections.get_or_create(&GuardLabels { check }).inc();
    }

    /// Counts a stream request that is rejected for now.
    pub(super) fn count_stream_rejection(&self, endpoint: &'static str, transport: &'static str, reason: &'static str) {
        self.streams_rejected.get_or_create(&StreamLabels { transport, endpoint, reason }).inc();
    }

    /// Sets whether the process drains.
    pub(super) fn set_draining(&self, draining: bool) {
        self.draining.set(i64::from(draining));
    }
}

impl RequestTimer {
    /// Counts the request with the status code of its response. `route` is `None` if no route answered.
    pub(super) fn finish(self, route: Option<&'static str>, method: &Method, code: u16) {
        let (route, method) = (route.unwrap_or(OTHER), known_method(method).unwrap_or(OTHER));
        let duration: Duration = self.start.elapsed();
        self.metrics.requests.get_or_create(&RequestLabels { route, method, code }).inc();
        self.metrics.request_seconds.get_or_create(&RouteLabels { route, method }).observe(duration.as_secs_f64());
    }
}

impl Drop for RequestTimer {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
    }
}

/// Returns the name of a method of RFC 9110 or RFC 5789. Clients can send any token as a method, so others share one label.
pub(super) fn known_method(method: &Method) -> Option<&'static str> {
    Some(match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_route_method_and_code() {
        let metrics = Metrics::default();
        let finished = metrics.start_request();
        let cancelled = metrics.start_request();
        assert_eq!(metrics.in_flight.get(), 2);
        finished.finish(Some("/ws"), &Method::GET, 101);
        drop(cancelled);
        assert_eq!(metrics.in_flight.get(), 0);
        metrics.start_request().finish(None, &Method::from_bytes(b"EVIL").unwrap(), 404);
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"http_requests_total{route="/ws",method="GET",code="101"} 1"#,
            r#"http_requests_total{route="other",method="other",code="404"} 1"#,
            r#"http_request_duration_seconds_count{route="/ws",method="GET"} 1"#,
            r#"http_guard_rejections_total{check="host"} 0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "expected the line '{line}', found:\n{text}");
        }
        assert!(!text.contains("EVIL"), "expected no text of the client, found:\n{text}");
    }
}
