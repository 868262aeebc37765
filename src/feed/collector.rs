//! Gauges of the state and the log, read when Prometheus scrapes them, so that a change of the state costs nothing for
//! them.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU64},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{
        MetricType,
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
};

use serde_json::Number;
use tokio::time::Instant;

use super::{latest_telemetry::with_instances, metrics::Label, state::Shared};
use crate::event::{Resource, Telemetry};

/// One label whose value is not known in advance, and its value.
type ValueLabel = [(&'static str, String); 1];

/// The number of tunnels of a workload, and the sums of what they reported.
type Sums = (&'static str, &'static str, fn(&Telemetry) -> u64);

/// The gauges of telemetry that are sums over the tunnels of a workload.
const TELEMETRY_SUMS: [Sums; 6] = [
    ("telemetry_tunnels", "Tunnels with telemetry that has not expired", |_| 1),
    ("telemetry_connections", "Connections that the tunnels have had (ttl)", |telemetry| telemetry.metrics.ttl),
    ("telemetry_open_connections", "Open connections of the tunnels (opn)", |telemetry| telemetry.metrics.opn),
    ("telemetry_requests", "Requests that the tunnels reported", |telemetry| telemetry.metrics.requests),
    ("telemetry_errors", "Failed requests that the tunnels reported", |telemetry| telemetry.metrics.errors),
    ("telemetry_bytes", "Bytes that the tunnels reported", |telemetry| telemetry.metrics.bytes),
];

/// A duration that tunnels report, in milliseconds.
type Duration = (&'static str, fn(&Telemetry) -> &Option<Number>);

/// The durations of which the longest of a workload is a gauge.
const TELEMETRY_DURATIONS: [Duration; 4] = [
    ("rt1", |telemetry| &telemetry.metrics.rt1_ms),
    ("rt5", |telemetry| &telemetry.metrics.rt5_ms),
    ("p50", |telemetry| &telemetry.metrics.p50_ms),
    ("p90", |telemetry| &telemetry.metrics.p90_ms),
];

/// Reads the gauges of one feed, all of them at one moment.
#[derive(Debug)]
pub(super) struct StateCollector(Arc<Shared>);

impl StateCollector {
    pub(super) fn new(shared: Arc<Shared>) -> StateCollector {
        StateCollector(shared)
    }
}

impl Collector for StateCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut state = self.0.state();
        let log = &state.log;
        let (first, entries) = (log.first_position(), log.end_position() - log.first_position());
        let bytes = log.bytes();
        let oldest_ms = log.read_from(first, 1).and_then(|mut oldest| Some(oldest.next()?.observed_at_ms));
        let objects = [state.inventory.instances.len(), state.inventory.claims.len()];
        let (telemetry, inventory) = (state.telemetry.unexpired(Instant::now()), state.inventory.clone());
        let telemetry_bytes = state.telemetry.bytes();
        drop(state);

        let family = Family::<Label, Gauge>::default();
        for (resource, count) in Resource::ALL.into_iter().zip(objects) {
            family.get_or_create(&[("resource", resource.plural())]).set(count.cast_signed() as i64);
        }
        family.encode(encoder.encode_descriptor(
            "feed_objects",
            "Objects in the current state",
            None,
            MetricType::Gauge,
        )?)?;
        ConstGauge::new(entries).encode(encoder.encode_descriptor(
            "feed_log_entries",
            "Entries in the log",
            None,
            MetricType::Gauge,
        )?)?;
        ConstGauge::new(bytes as u64).encode(encoder.encode_descriptor(
            "feed_log_bytes",
            "Bytes charged for the entries in the log",
            None,
            MetricType::Gauge,
        )?)?;
        let oldest = oldest_ms.map_or(0.0, |at_ms| at_ms as f64 / 1000.0);
        ConstGauge::new(oldest).encode(encoder.encode_descriptor(
            "feed_log_oldest_timestamp_seconds",
            "Time of the oldest entry in the log as Unix time, 0 while the log is empty",
            None,
            MetricType::Gauge,
        )?)?;
        ConstGauge::new(telemetry_bytes as u64).encode(encoder.encode_descriptor(
            "feed_telemetry_bytes",
            "Bytes charged for the most recent telemetry of all tunnels",
            None,
            MetricType::Gauge,
        )?)?;
        let mut by_workload = BTreeMap::<&str, Vec<&Telemetry>>::new();
        for (instance, telemetry) in with_instances(&telemetry, &inventory) {
            by_workload.entry(instance.workload_ref.as_deref().unwrap_or_default()).or_default().push(telemetry);
        }
        for (name, help, value) in TELEMETRY_SUMS {
            let family = Family::<ValueLabel, Gauge>::default();
            for (workload, telemetry) in &by_workload {
                let sum = telemetry.iter().fold(0_u64, |sum, telemetry| sum.saturating_add(value(telemetry)));
                let sum = i64::try_from(sum).unwrap_or(i64::MAX);
                family.get_or_create(&[("workload", (*workload).to_owned())]).set(sum);
            }
            family.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        let durations = Family::<[(&'static str, String); 2], Gauge<f64, AtomicU64>>::default();
        for (workload, telemetry) in &by_workload {
            for (name, value) in TELEMETRY_DURATIONS {
                let ms = telemetry.iter().filter_map(|telemetry| value(telemetry).as_ref()?.as_f64());
                let Some(longest) = ms.reduce(f64::max) else { continue };
                let labels = [("workload", (*workload).to_owned()), ("value", name.to_owned())];
                durations.get_or_create(&labels).set(longest / 1000.0);
            }
        }
        durations.encode(encoder.encode_descriptor(
            "telemetry_duration_max_seconds",
            "Highest rt1Ms, rt5Ms, p50Ms and p90Ms of a tunnel of the workload",
            None,
            MetricType::Gauge,
        )?)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use crate::{
        event::{NamespaceId, Resource, Telemetry},
        feed::{Config, Feed},
        test_support::{ClaimBuilder, PodBuilder, telemetry},
    };

    /// The samples of all metrics of a feed, without the buckets of histograms.
    fn samples(feed: &Feed) -> Vec<String> {
        let (mut registry, mut text) = (Registry::with_prefix("bridge"), String::new());
        feed.register_metrics(&mut registry);
        encode(&mut text, &registry).unwrap();
        let mut samples: Vec<_> = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.contains("_bucket"))
            .map(str::to_owned)
            .collect();
        samples.sort_unstable();
        samples
    }

    #[test]
    fn new_feed_reports_every_label_set_with_0() {
        let (_writer, feed) = Feed::new(Config::default());
        assert_eq!(
            samples(&feed),
            [
                r#"bridge_feed_backfill_waiting 0"#,
                r#"bridge_feed_backfills_total{outcome="failed"} 0"#,
                r#"bridge_feed_backfills_total{outcome="filled"} 0"#,
                r#"bridge_feed_backfills_total{outcome="no_room"} 0"#,
                r#"bridge_feed_backfills_total{outcome="timeout"} 0"#,
                r#"bridge_feed_coalesced_total{resource="boilerhouseclaims"} 0"#,
                r#"bridge_feed_coalesced_total{resource="pods"} 0"#,
                r#"bridge_feed_entries_total{kind="change_set"} 0"#,
                r#"bridge_feed_entries_total{kind="ephemeral"} 0"#,
                r#"bridge_feed_history_resets_total 0"#,
                r#"bridge_feed_initial_state_encode_seconds_count 0"#,
                r#"bridge_feed_initial_state_encode_seconds_sum 0.0"#,
                r#"bridge_feed_initial_states_encoded_total 0"#,
                r#"bridge_feed_lagged_total 0"#,
                r#"bridge_feed_log_bytes 0"#,
                r#"bridge_feed_log_entries 0"#,
                r#"bridge_feed_log_oldest_timestamp_seconds 0.0"#,
                r#"bridge_feed_objects{resource="boilerhouseclaims"} 0"#,
                r#"bridge_feed_objects{resource="pods"} 0"#,
                r#"bridge_feed_projection_cache_bytes 0"#,
                r#"bridge_feed_projections 0"#,
                r#"bridge_feed_read_your_writes_timeouts_total 0"#,
                r#"bridge_feed_renders_total 0"#,
                r#"bridge_feed_telemetry_bytes 0"#,
                r#"bridge_feed_tombstones_dropped_total 0"#,
                r#"bridge_feed_version_checks_total{outcome="completed"} 0"#,
                r#"bridge_feed_version_checks_total{outcome="timeout"} 0"#,
            ]
        );
    }

    #[test]
    fn telemetry_is_summed_for_each_workload() {
        let (mut writer, feed) = Feed::new(Config { wall_clock_ms: || 1_500, ..Config::default() });
        writer.set_namespace(NamespaceId::from_uid("u"));
        let pods = ["a", "b", "c"].map(|name| PodBuilder::new(name).workload(if name == "c" { "x\"y" } else { "w" }));
        writer.replace(Resource::Pods, pods.map(|pod| pod.version(1).view()).into(), 5);
        writer.replace(Resource::Claims, Vec::new(), 5);
        for (uid, ms) in [("uid-a", 250), ("uid-b", 20), ("uid-c", 1)] {
            let mut telemetry = Telemetry { received_at_ms: 1_500, ..telemetry(uid) };
            telemetry.metrics.rt1_ms = Some(ms.into());
            telemetry.metrics.bytes = u64::MAX / 4;
            feed.publish_telemetry(telemetry).unwrap();
        }
        let samples = samples(&feed);
        for expected in [
            r#"bridge_telemetry_tunnels{workload="w"} 2"#,
            r#"bridge_telemetry_tunnels{workload="x\"y"} 1"#,
            r#"bridge_telemetry_requests{workload="w"} 6"#,
            r#"bridge_telemetry_duration_max_seconds{workload="w",value="rt1"} 0.25"#,
            r#"bridge_telemetry_bytes{workload="w"} 9223372036854775806"#,
        ] {
            assert!(samples.iter().any(|sample| sample == expected), "{expected} is missing: {samples:#?}");
        }
        assert!(!samples.iter().any(|sample| sample.contains("rt5")), "no value, no sample");
        assert!(samples.iter().any(|sample| {
            sample.strip_prefix("bridge_feed_telemetry_bytes ").is_some_and(|bytes| bytes.parse::<u64>().unwrap() > 300)
        }));
    }

    #[test]
    fn gauges_and_counters_describe_the_hub_and_not_its_dedicated_feeds() {
        let (mut writer, feed) = Feed::new(Config { wall_clock_ms: || 1_500, ..Config::default() });
        writer.set_namespace(NamespaceId::from_uid("u"));
        writer.replace(Resource::Pods, vec![PodBuilder::new("a").version(5).view()], 5);
        writer.replace(Resource::Claims, Vec::new(), 5);
        writer.upsert(PodBuilder::new("b").version(6).view());
        writer.upsert(ClaimBuilder::new("c").version(7).view());
        writer.replace(Resource::Pods, Vec::new(), 3);
        let (mut dedicated, reader) = feed.dedicated();
        dedicated.replace(Resource::Pods, Vec::new(), 9);
        dedicated.upsert(PodBuilder::new("d").version(10).view());
        dedicated.replace(Resource::Pods, Vec::new(), 8);
        let samples = samples(&feed);
        for expected in [
            r#"bridge_feed_objects{resource="pods"} 0"#,
            r#"bridge_feed_objects{resource="boilerhouseclaims"} 1"#,
            r#"bridge_feed_entries_total{kind="change_set"} 3"#,
            r#"bridge_feed_coalesced_total{resource="pods"} 1"#,
            r#"bridge_feed_history_resets_total 1"#,
            r#"bridge_feed_log_entries 1"#,
            r#"bridge_feed_log_oldest_timestamp_seconds 1.5"#,
        ] {
            assert!(samples.iter().any(|sample| sample == expected), "{expected} is missing: {samples:#?}");
        }
        let state = reader.inner.state();
        assert_eq!(state.log.end_position() - state.log.first_position(), 2, "entries of the dedicated feed");
    }
}
