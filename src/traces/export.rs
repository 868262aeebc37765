//! The queue of finished spans, and the task that sends them to the collector.
//!
//! Owns: the queue, and the metrics of traces.
//!
//! Guarantees: ending a span never waits. Where the queue is full, or the collector does not take a batch, the spans are
//! dropped and counted.

use std::{fmt, future::pending, pin::pin, sync::Arc, time::Duration};

use opentelemetry::{Context, InstrumentationScope, KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    resource::{EnvResourceDetector, TelemetryResourceDetector},
    trace::{SdkTracerProvider, Span, SpanData, SpanExporter as _, SpanProcessor},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use rustls::ClientConfig;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tracing::warn;

use super::{
    collector::{Collector, MAX_REASON_CHARS},
    span::Tracer,
};

/// Maximum number of finished spans that wait.
const QUEUE: usize = 2048;
/// Maximum number of spans of one request to the collector.
const MAX_BATCH: usize = 512;
/// Time that a span waits for others before it is sent.
const BATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Time in which the collector must take a batch, retries included.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time to send the spans that wait when the process ends.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
/// Time between two log entries about spans that were not sent.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// The name of the instrumentation, and the default of `service.name`.
const NAME: &str = "boilerhouse-bridge";

/// Where spans are sent.
#[derive(Clone, Debug)]
pub struct Config {
    /// The URL for spans, such as `http://localhost:4318/v1/traces`.
    pub url: String,
    /// For https: the certificates to trust.
    pub tls: Arc<ClientConfig>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// The metrics of traces. Clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    sent: Counter,
    not_sent: Counter,
    queue_full: Counter,
    spans: Family<OutcomeLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let spans: Family<OutcomeLabels, Counter> = Family::default();
        let counter = |outcome| spans.get_or_create(&OutcomeLabels { outcome }).clone();
        let [sent, not_sent, queue_full] = ["sent", "not_sent", "queue_full"].map(counter);
        Metrics { sent, not_sent, queue_full, spans }
    }
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("otlp_spans", "Finished spans, by what happened to them", self.spans.clone());
    }
}

/// Puts finished spans into the queue.
#[derive(Debug)]
struct Queue {
    sender: mpsc::Sender<SpanData>,
    metrics: Metrics,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.sender.try_send(span).is_err() {
            self.metrics.queue_full.inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Sends the spans of the queue.
pub struct Export {
    exporter: SpanExporter,
    collector: Arc<Collector>,
    spans: mpsc::Receiver<SpanData>,
    metrics: Metrics,
    /// When the log entry about spans that were not sent may be written again.
    next_log: Instant,
}

/// Returns a tracer, and what sends its spans. Both read the standard variables of OpenTelemetry for the resource, the
/// sampler and the headers of requests to the collector.
///
/// # Errors
/// The URL cannot be used.
pub fn start(config: Config, metrics: Metrics) -> Result<(Tracer, Export), String> {
    let collector = Arc::new(Collector::new(config.tls));
    let exporter = SpanExporter::builder()
        .with_http()
        .with_shared_http_client(collector.clone())
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(config.url)
        .with_timeout(EXPORT_TIMEOUT);
    let mut exporter = exporter.build().map_err(|error| error.to_string())?;
    let resource = resource();
    exporter.set_resource(&resource);
    let (sender, spans) = mpsc::channel(QUEUE);
    let queue = Queue { sender, metrics: metrics.clone() };
    let provider = SdkTracerProvider::builder().with_resource(resource).with_span_processor(queue).build();
    let scope = InstrumentationScope::builder(NAME).with_version(env!("CARGO_PKG_VERSION")).build();
    let tracer = Tracer::new(provider.tracer_with_scope(scope));
    Ok((tracer, Export { exporter, collector, spans, metrics, next_log: Instant::now() }))
}

/// Returns what the spans say of this process. `OTEL_RESOURCE_ATTRIBUTES` adds to it, `OTEL_SERVICE_NAME` names the service.
fn resource() -> Resource {
    let resource = Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_service_name(NAME)
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match std::env::var("OTEL_SERVICE_NAME") {
        Ok(name) if !name.is_empty() => resource.with_service_name(name).build(),
        _ => resource.build(),
    }
}

/// Without the exporter, whose headers can contain a credential.
impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export").field("spans", &self.spans.len()).finish_non_exhaustive()
    }
}

impl Export {
    /// Sends spans until `stop`, then those that wait. The caller must bound that by [`FLUSH_TIMEOUT`].
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = &mut stop => break,
                () = collect(&mut self.spans, &mut batch) => self.send(std::mem::take(&mut batch)).await,
            }
        }
        loop {
            while batch.len() < MAX_BATCH
                && let Ok(span) = self.spans.try_recv()
            {
                batch.push(span);
            }
            if batch.is_empty() {
                return;
            }
            self.send(std::mem::take(&mut batch)).await;
        }
    }

    async fn send(&mut self, batch: Vec<SpanData>) {
        let count = batch.len() as u64;
        let reason = match timeout(EXPORT_TIMEOUT, self.exporter.export(batch)).await {
            Ok(Ok(())) => {
                self.metrics.sent.inc_by(count);
                return;
            }
            Ok(Err(error)) => self.collector.take_failure().unwrap_or_else(|| error.to_string()),
            Err(_) => format!("no answer within {EXPORT_TIMEOUT:?}"),
        };
        self.metrics.not_sent.inc_by(count);
        let now = Instant::now();
        if now >= self.next_log {
            self.next_log = now + LOG_INTERVAL;
            let reason: String = reason.chars().take(MAX_REASON_CHARS).collect();
            warn!(reason, "traces not sent to the collector; bridge_otlp_spans_total counts the dropped spans");
        }
    }
}

/// Waits for a span, then for more of them until the batch is complete. Spans that have arrived stay in the batch when this
/// future is dropped.
async fn collect(spans: &mut mpsc::Receiver<SpanData>, batch: &mut Vec<SpanData>) {
    if spans.recv_many(batch, MAX_BATCH).await == 0 {
        // Nothing can come any more.
        return pending().await;
    }
    let end = Instant::now() + BATCH_INTERVAL;
    while batch.len() < MAX_BATCH {
        let rest = MAX_BATCH - batch.len();
        match timeout_at(end, spans.recv_many(batch, rest)).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
    }
}
