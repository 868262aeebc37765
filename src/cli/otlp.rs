//! The flags of traces, which `serve` and `relay` share (docs/protocol.md#traces).

#[cfg(not(feature = "otlp"))]
use std::convert::Infallible;
use std::{future::pending, path::PathBuf};

use clap::Args;
use http::Uri;
use prometheus_client::registry::Registry;
#[cfg(feature = "otlp")]
use tracing::{info, warn};

#[cfg(not(feature = "otlp"))]
use super::broker;
use super::exit::CliError;
#[cfg(feature = "otlp")]
use crate::{client, tasks, traces};
use crate::{client::has_wrong_port, tasks::Tasks, traces::Tracer};

/// A collector of traces. Without the feature there is none.
#[cfg(feature = "otlp")]
#[derive(Debug)]
pub(super) struct Collector {
    /// The flag or the variable that names it.
    name: &'static str,
    config: traces::Config,
}
/// See the variant with the feature.
#[cfg(not(feature = "otlp"))]
pub(super) type Collector = Infallible;

/// The path for spans below the URL of a collector (OTLP 1.x, "OTLP/HTTP Request").
const TRACES_PATH: &str = "/v1/traces";
/// The samplers of OpenTelemetry.
#[cfg(feature = "otlp")]
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// Arguments of traces.
#[derive(Clone, Debug, Args)]
pub(super) struct OtlpArgs {
    /// OpenTelemetry collector that receives traces over OTLP/HTTP: http://host:4318, or https://host. /v1/traces is added.
    /// It needs a binary with the feature `otlp`
    #[arg(long, env = "BRIDGE_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,

    /// Path of a file with the certificates (PEM) that issue the collector's certificate. Without it, those of the operating
    /// system
    #[arg(long, env = "BRIDGE_OTLP_CA_FILE", value_name = "FILE")]
    otlp_ca_file: Option<PathBuf>,
}

/// The tracer of a server, and the task that sends its spans.
#[derive(Default)]
pub(super) struct Traces {
    pub(super) tracer: Tracer,
    sending: Option<Tasks>,
}

impl Traces {
    /// Sends the spans that wait, for a bounded time.
    pub(super) async fn flush(self) {
        let Some(sending) = self.sending else { return };
        let mut is_asked = false;
        let ask_once = async || {
            if std::mem::replace(&mut is_asked, true) {
                pending().await
            }
        };
        // Spans that the collector has not taken by then are lost.
        let _ = sending.run_until(ask_once).await;
    }
}

/// Parses the URL of a collector. Returns it without a slash at its end. An error does not repeat the text, which can contain
/// a password.
fn collector_url(text: &str) -> Result<String, String> {
    let expected = || "expected http://host:port or https://host:port".to_owned();
    let uri: Uri = text.parse().map_err(|_| expected())?;
    let scheme = uri.scheme_str().filter(|scheme| ["http", "https"].contains(scheme)).ok_or_else(expected)?;
    let authority = uri.authority().filter(|authority| !authority.host().is_empty()).ok_or_else(expected)?;
    if authority.as_str().contains('@') || uri.query().is_some() {
        return Err("credentials are not part of the URL; use OTEL_EXPORTER_OTLP_HEADERS".to_owned());
    }
    if has_wrong_port(authority) {
        return Err(format!("{}, with a port from 1 to 65535", expected()));
    }
    Ok(format!("{scheme}://{authority}{}", uri.path().trim_end_matches('/')))
}

impl OtlpArgs {
    /// Returns the URL for spans that the flag names, if it is set.
    fn url(&self) -> Result<Option<String>, CliError> {
        // Not a value parser: clap would print a URL with a password.
        let url = self.otlp_endpoint.as_deref().map(collector_url).transpose();
        let url = url.map_err(|error| CliError::usage(format!("--otlp-endpoint: {error}")))?;
        Ok(url.map(|url| url + TRACES_PATH))
    }

    /// Checks that the file with certificates belongs to this URL.
    fn check_ca_file(&self, url: Option<&str>) -> Result<(), CliError> {
        match url {
            _ if self.otlp_ca_file.is_none() => Ok(()),
            None => Err(CliError::usage("--otlp-ca-file needs --otlp-endpoint")),
            Some(url) if url.starts_with("https://") => Ok(()),
            Some(_) => Err(CliError::usage("--otlp-ca-file needs an https:// URL")),
        }
    }

    /// Returns the collector of traces, if there is one.
    ///
    /// # Errors
    /// A URL or a file cannot be used, or this binary has no support of traces.
    #[cfg(feature = "otlp")]
    pub(super) fn resolve(&self) -> Result<Option<Collector>, CliError> {
        let (name, url) = match (self.url()?, url_variable()) {
            (Some(url), _) => ("--otlp-endpoint", url),
            (None, None) => return self.check_ca_file(None).map(|()| None),
            (None, Some(_)) if environment_turns_off() => return Ok(None),
            (None, Some((name, url, path))) => {
                let url = collector_url(&url).map_err(|error| CliError::usage(format!("{name}: {error}")))?;
                (name, url + path)
            }
        };
        self.check_ca_file(Some(&url))?;
        if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            info!("traces are off: OTEL_SDK_DISABLED is true");
            return Ok(None);
        }
        warn_about_sampler();
        let headers = ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"];
        let has_headers = headers.into_iter().any(|name| variable(name).is_some());
        let has_tls = url.starts_with("https://");
        if has_headers && !has_tls {
            warn!("the headers for the collector are sent unencrypted; use an https:// URL");
        }
        let certificate = "OTEL_EXPORTER_OTLP_CERTIFICATE";
        let (source, file) = match (&self.otlp_ca_file, variable(certificate).filter(|_| has_tls)) {
            (Some(file), _) => ("--otlp-ca-file", Some(file.clone())),
            (None, Some(file)) => (certificate, Some(PathBuf::from(file))),
            (None, None) => (name, None),
        };
        let tls = client::tls_config(has_tls, file.as_deref());
        let tls = tls.map_err(|error| CliError::usage(format!("{source}: {error}")))?;
        Ok(Some(Collector { name, config: traces::Config { url, tls } }))
    }

    /// See the variant with the feature.
    #[cfg(not(feature = "otlp"))]
    pub(super) fn resolve(&self) -> Result<Option<Collector>, CliError> {
        let url = self.url()?;
        self.check_ca_file(url.as_deref())?;
        if url.is_none() { Ok(None) } else { Err(broker::without_feature("--otlp-endpoint", "otlp")) }
    }
}

/// Returns the value of a variable. An empty one counts as unset, as OpenTelemetry requires.
#[cfg(feature = "otlp")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Returns the standard variable that names a collector, its value, and the path that is added to it.
#[cfg(feature = "otlp")]
fn url_variable() -> Option<(&'static str, String, &'static str)> {
    let [own, common] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
    let of = |name, path| variable(name).map(|url| (name, url, path));
    of(own, "").or_else(|| of(common, TRACES_PATH))
}

/// Returns whether the standard variables turn off the traces to the collector that they name. Tools set them for every process
/// of a cluster, so a protocol that the bridge does not have is no error.
#[cfg(feature = "otlp")]
fn environment_turns_off() -> bool {
    if variable("OTEL_TRACES_EXPORTER").is_some_and(|exporter| exporter == "none") {
        return true;
    }
    let protocols = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
    if let Some(protocol) = protocols.into_iter().find_map(variable)
        && protocol != "http/protobuf"
    {
        warn!("traces are off: the environment asks for a protocol other than http/protobuf; set --otlp-endpoint");
        return true;
    }
    false
}

/// Logs a sampler that does not exist. The default is then in use, as OpenTelemetry requires.
#[cfg(feature = "otlp")]
fn warn_about_sampler() {
    let Some(sampler) = variable("OTEL_TRACES_SAMPLER") else { return };
    let ratio = variable("OTEL_TRACES_SAMPLER_ARG").and_then(|ratio| ratio.parse::<f64>().ok());
    if !SAMPLERS.contains(&sampler.as_str()) {
        warn!("OTEL_TRACES_SAMPLER is none of {}; all traces are sent", SAMPLERS.join(", "));
    } else if sampler.ends_with("traceidratio") && !ratio.is_some_and(|ratio| (0.0..=1.0).contains(&ratio)) {
        warn!("OTEL_TRACES_SAMPLER_ARG is no number from 0 to 1; all traces are sent");
    }
}

/// Starts to send traces to the collector, if there is one.
///
/// # Errors
/// The URL cannot be used.
#[cfg(feature = "otlp")]
pub(super) fn start(collector: Option<Collector>, registry: &mut Registry) -> Result<Traces, CliError> {
    let Some(Collector { name, config }) = collector else { return Ok(Traces::default()) };
    info!(url = config.url, "sending traces");
    let metrics = traces::Metrics::default();
    metrics.register(registry);
    let started = traces::start(config, metrics);
    let (tracer, export) = started.map_err(|error| CliError::usage(format!("{name}: {error}")))?;
    // Tasks of their own, because the spans of the last streams are sent after the drain.
    let sending = Tasks::new(tasks::Config { drain: traces::FLUSH_TIMEOUT, ..tasks::Config::default() });
    sending.connection(export.run(sending.stop().clone().cancelled_owned()));
    Ok(Traces { tracer, sending: Some(sending) })
}

/// See the variant with the feature.
#[cfg(not(feature = "otlp"))]
pub(super) fn start(collector: Option<Collector>, _: &mut Registry) -> Result<Traces, CliError> {
    match collector {
        None => Ok(Traces::default()),
        Some(never) => match never {},
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_of_a_collector_has_no_credentials() {
        for (text, expected) in [
            ("http://collector:4318", "http://collector:4318"),
            ("https://collector", "https://collector"),
            ("https://collector.example/otlp/", "https://collector.example/otlp"),
            ("http://[::1]:4318/", "http://[::1]:4318"),
        ] {
            assert_eq!(collector_url(text).as_deref(), Ok(expected), "{text}");
        }
        for wrong in [
            "",
            "collector",
            "collector:4318",
            "grpc://collector:4317",
            "http://",
            "http://user:secret@collector",
            "http://collector/?key=secret",
            "http:/collector",
            "http://collector:43180000",
            "http://collector:",
            "http://[::1]:0",
        ] {
            let error = collector_url(wrong).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
